// SPDX-License-Identifier: Apache-2.0
// Control: griddepcontrol, setmaxnreg, named barriers, clusters, fences.
#pragma once

#include <cstdint>

namespace mixgemm::ptx {

/// A value that is the same in all lanes, so that the compiler knows: barriers and copies take
/// their operands from uniform registers, and without it each of them becomes a loop over lanes.
__device__ __forceinline__ int uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

/// The same value, of which the compiler doesn't know how it came about: it must keep it, and can't
/// save a register by computing it anew where it is used.
__device__ __forceinline__ std::uint32_t kept(std::uint32_t value) {
  return __shfl_sync(0xffffffffu, value, threadIdx.x);
}

/// The same value in a register of its own. One that several roles of a CTA start from and count on
/// by themselves was given a single place for all of them: on the stack, if one role had none free.
__device__ __forceinline__ int copied(int value) {
  int copy;
  asm volatile("mov.b32 %0, %1;" : "=r"(copy) : "r"(value));
  return copy;
}

/// True in one lane of the warp, which is all here. The compiler knows that one lane does what
/// depends on it, and takes a copy's operands from uniform registers without further ado.
__device__ __forceinline__ bool elect_one() {
  std::uint32_t elected;
  asm volatile("{\n .reg .pred one;\n elect.sync _|one, 0xffffffff;\n selp.u32 %0, 1, 0, one;\n}"
               : "=r"(elected));
  return elected != 0;
}

/// Whether it holds in any lane of the warp.
__device__ __forceinline__ bool any_of_warp(bool value) {
  return __any_sync(0xffffffffu, value) != 0;
}

/// threadIdx.x, read here: what a seldom taken path computes from it isn't kept in registers on the
/// way there.
__device__ __forceinline__ int thread_here() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

/// Lets the next kernel of the stream start when every CTA has called this or exited. Below SM90 it
/// starts when this one is complete, so there is nothing to say, and nothing to wait for.
__device__ __forceinline__ void griddepcontrol_launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Returns when the kernels before this one in the stream are complete and their writes visible.
__device__ __forceinline__ void griddepcontrol_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Register budget of a warpgroup; every warp of it must execute the same one.
template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

/// Barrier `id` over `threads` threads, which all come to this very instruction.
__device__ __forceinline__ void bar_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
/// The same for whole warps that come from different places in the code, and for those that only
/// say that they are there, and go on.
__device__ __forceinline__ void barrier_sync(int id, int threads) {
  asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void barrier_arrive(int id, int threads) {
  asm volatile("barrier.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ std::uint32_t cluster_ctarank() {
  std::uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

/// Whether the launch has clusters.
__device__ __forceinline__ std::uint32_t is_explicit_cluster() {
  std::uint32_t is;
  asm volatile(
      "{\n .reg .pred is;\n mov.pred is, %%is_explicit_cluster;\n selp.u32 %0, 1, 0, is;\n}"
      : "=r"(is));
  return is;
}
/// This CTA's cluster's place in the grid along z (a launch without clusters counts CTAs).
__device__ __forceinline__ int clusterid_z() {
  int id;
  asm volatile("mov.u32 %0, %%clusterid.z;" : "=r"(id));
  return id;
}

/// Cluster barrier, halves apart; aligned: all threads of a warp together.
__device__ __forceinline__ void barrier_cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
/// Publishes nothing but mbarriers for which fence_mbarrier_init() stands before it: the release
/// above is a device-wide memory barrier.
__device__ __forceinline__ void barrier_cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void barrier_cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/// Orders this thread's ordinary shared-memory writes before later reads by wgmma or the copy
/// engine.
__device__ __forceinline__ void fence_proxy_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// 16 bytes of this CTA's shared memory.
__device__ __forceinline__ float4 ld_shared_f32x4(std::uint32_t address) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

__device__ __forceinline__ void st_shared_f32x4(std::uint32_t address, const float4& v) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(v.x), "f"(v.y),
               "f"(v.z), "f"(v.w)
               : "memory");
}

/// One float of this CTA's shared memory, or of CTA `rank`'s at the same address.
__device__ __forceinline__ float ld_shared_f32(std::uint32_t address) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(address) : "memory");
  return v;
}
__device__ __forceinline__ float ld_shared_cluster_f32(std::uint32_t address, std::uint32_t rank) {
  float v;
  asm volatile(
      "{\n .reg .b32 remote;\n mapa.shared::cluster.u32 remote, %1, %2;\n"
      " ld.shared::cluster.f32 %0, [remote];\n}"
      : "=f"(v)
      : "r"(address), "r"(rank)
      : "memory");
  return v;
}

/// A flag in global memory that publishes earlier writes of the thread (and, through a barrier
/// before it, of its warpgroup) to every thread of the device.
__device__ __forceinline__ void st_release_gpu(std::uint64_t* flag, std::uint64_t value) {
  asm volatile("st.release.gpu.global.b64 [%0], %1;" ::"l"(flag), "l"(value) : "memory");
}
__device__ __forceinline__ std::uint64_t ld_acquire_gpu(const std::uint64_t* flag) {
  std::uint64_t value;
  asm volatile("ld.acquire.gpu.global.b64 %0, [%1];" : "=l"(value) : "l"(flag) : "memory");
  return value;
}

/// Nanoseconds of a clock that all SMs share; it advances in steps of up to a microsecond.
__device__ __forceinline__ std::uint64_t globaltimer_ns() {
  std::uint64_t ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
  return ns;
}

}  // namespace mixgemm::ptx
