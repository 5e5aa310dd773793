// SPDX-License-Identifier: Apache-2.0
// kernels/ptx/sync.cuh on the host.
#pragma once

#include <cstring>

#include "cuda_keywords.hpp"

namespace mixgemm::ptx {

inline void uniform_of_a_warp(void* const (&arguments)[32]) {
  const int first = *static_cast<const int*>(arguments[0]);
  for (void* const value : arguments) {
    if (*static_cast<const int*>(value) != first) {
      emulator::fail("a value that should be the same in all lanes isn't");
    }
  }
}
inline int uniform(int value) {
  emulator::meet_warp(&value, uniform_of_a_warp);
  return value;
}
inline std::uint32_t is_explicit_cluster() { return 0; }
inline bool elect_one() {
  emulator::sync_warp();
  return threadIdx.x % 32 == 0;
}
inline void any_of_lanes(void* const (&arguments)[32]) {
  bool any = false;
  for (void* const value : arguments) any |= *static_cast<bool*>(value);
  for (void* const value : arguments) *static_cast<bool*>(value) = any;
}
inline bool any_of_warp(bool value) {
  emulator::meet_warp(&value, any_of_lanes);
  return value;
}
inline std::uint32_t kept(std::uint32_t value) { return value; }
inline int copied(int value) { return value; }
inline int thread_here() { return static_cast<int>(threadIdx.x); }

inline void griddepcontrol_launch_dependents() { emulator::launch_dependents(); }
inline void griddepcontrol_wait() { emulator::wait_for_before(); }

template <int kRegisters>
void setmaxnreg_dec() {}
template <int kRegisters>
void setmaxnreg_inc() {}

inline void bar_sync(int id, int threads) { emulator::sync_threads(id, threads); }
inline void barrier_sync(int id, int threads) { emulator::sync_threads(id, threads); }
inline void barrier_arrive(int id, int threads) { emulator::arrive_threads(id, threads); }

inline std::uint32_t cluster_ctarank() {
  const emulator::Index id = emulator::cta_in_cluster(), shape = emulator::cluster_shape();
  return id.x + shape.x * (id.y + shape.y * id.z);
}
inline int clusterid_z() { return static_cast<int>(blockIdx.z / emulator::cluster_shape().z); }

inline void barrier_cluster_arrive() { emulator::arrive_cluster(); }
inline void barrier_cluster_arrive_relaxed() { emulator::arrive_cluster(); }
inline void barrier_cluster_wait() { emulator::wait_cluster(); }
inline void fence_proxy_async_shared() {}

template <class Value>
Value load_shared(const char* from) {
  Value value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}
inline float ld_shared_f32(std::uint32_t address) {
  return load_shared<float>(emulator::shared_at(address, 4));
}
inline float ld_shared_cluster_f32(std::uint32_t address, std::uint32_t rank) {
  return load_shared<float>(emulator::shared_at(address, 4, rank));
}
inline float4 ld_shared_f32x4(std::uint32_t address) {
  return load_shared<float4>(emulator::shared_at(address, 16));
}
inline void st_shared_f32x4(std::uint32_t address, const float4& v) {
  std::memcpy(emulator::shared_at(address, 16), &v, 16);
}

inline void st_release_gpu(std::uint64_t* flag, std::uint64_t value) {
  *flag = value;
  emulator::flag_written();
}
inline std::uint64_t ld_acquire_gpu(const std::uint64_t* flag) { return *flag; }

}  // namespace mixgemm::ptx
