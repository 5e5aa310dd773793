// SPDX-License-Identifier: Apache-2.0
// What every GPU test is made of: guarded device memory, a random weight with its reference, and a
// runner that launches, checks on the device and reports.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "gpu_kernels.hpp"
#include "mixgemm/gemm.hpp"
#include "select/select.hpp"

namespace mixgemm::gpu_test {

/// Empty where a usable device is there, else why not.
const std::string& why_no_device();

/// The current device's, where there is a usable one.
const select::DeviceFacts& device_facts();

#define MIXGEMM_NEED_DEVICE()                      \
  if (!mixgemm::gpu_test::why_no_device().empty()) \
  GTEST_SKIP() << mixgemm::gpu_test::why_no_device()

/// Fails the test and throws on a CUDA error, which nothing after it could survive.
void check_cuda(cudaError_t error, const char* what);

/// Counts and worst cases for the summary file. Thread-safe.
class Summary {
 public:
  static Summary& instance();
  void count(const std::string& mechanism, std::int64_t runs = 1);
  /// relative: ‖y − exact‖ ÷ ‖exact‖; to_reference: the same ÷ that of the rounded-weight product;
  /// element: largest error of an element ÷ its bound.
  void worst(const std::string& config, const std::string& type, double relative,
             double to_reference, double element);
  /// Writes a JSON object; false where the file can't be written.
  bool write(const std::string& path, const std::string& commit, int failed, int passed,
             int skipped) const;

 private:
  struct Worst {
    double value = 0;
    std::string config;
  };
  mutable std::mutex mutex_;
  std::map<std::string, std::int64_t> counts_;
  std::map<std::string, Worst> relative_;
  Worst to_reference_, element_;
};

/// Device memory handed out front to back and taken back all at once. With `exact` set, each piece
/// is an allocation of its own, so that compute-sanitizer sees its bounds.
class Arena {
 public:
  explicit Arena(std::size_t bytes);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  void* allocate(std::size_t bytes);
  template <class T>
  T* allocate_array(std::size_t count) {
    return static_cast<T*>(allocate(count * sizeof(T)));
  }
  /// Everything allocated since the mark is given back.
  std::size_t mark() const { return used_; }
  void reset(std::size_t mark = 0);

  /// Set by --exact-allocations.
  static bool exact;

 private:
  std::uint8_t* base_ = nullptr;
  std::size_t size_ = 0;
  std::size_t used_ = 0;  // exact: number of pieces
  std::vector<void*> pieces_;
};

/// How a matrix lies in memory: what TMA and 16-byte vectors take, or what they refuse.
enum class Placement { aligned, odd_ld, odd_base };
inline constexpr Placement kPlacements[] = {Placement::aligned, Placement::odd_ld,
                                            Placement::odd_base};

/// A matrix with guards in front, behind and after each row; contents undefined.
Matrix make_matrix(Arena& arena, int rows, int cols, Placement placement);

/// A random weight: packed on the device between guards with pitches of its own, and dense for the
/// reference.
class TestWeight {
 public:
  TestWeight(Arena& arena, int n, int k, const QuantSpec& spec, std::uint32_t seed,
             cudaStream_t stream);

  const PackedView& view() const { return view_; }
  const PackedWeight& on_cpu() const { return packed_; }
  const double* exact() const { return exact_; }
  const float* rounded() const { return rounded_; }
  /// Did anything write to the weight or to its guards?
  void check_untouched(Findings* findings, cudaStream_t stream) const;

 private:
  Matrix guarded(Arena& arena, const void* source, std::size_t row_bytes, std::size_t pitch_bytes,
                 std::size_t extra_pitch_bytes, std::size_t rows, cudaStream_t stream);

  PackedView view_;
  PackedWeight packed_, on_device_;
  std::vector<Matrix> pieces_, originals_;
  double* exact_ = nullptr;
  float* rounded_ = nullptr;
};

/// Random codes, scales and zeros. Values of w are some hundredths, so that sums stay in range; in
/// every seventh row scales are anything from subnormal to one, zero or negative.
CanonicalWeight random_weight(int n, int k, const QuantSpec& spec, std::uint32_t seed);

/// Activations, reference sums, bias and residual for M tokens of a weight.
struct TestInputs {
  TestInputs(Arena& arena, const TestWeight& weight, int m, DataType act, std::uint32_t seed,
             cudaStream_t stream);

  int m, n, k;
  DataType act;
  Matrix x[3];  ///< the same numbers in each Placement
  Matrix bias;
  Matrix residual[3];
  Sums sums;
};

/// One launch to be checked.
struct TestRun {
  Epilogue epilogue;
  float alpha = 1.0f;
  Placement x = Placement::aligned;
  Placement y = Placement::aligned;
  Placement residual = Placement::aligned;
  bool pdl = false;
  bool repeat = false;  ///< launch twice and compare bit for bit
  std::string mechanism;
};

/// Bytes of workspace that are enough for every plan of the tests.
inline constexpr std::size_t kMaxWorkspace = std::size_t{512} << 20;

/// Launches and checks without waiting; collect() waits and reports.
class Runner {
 public:
  Runner(Arena& arena, cudaStream_t stream, std::size_t max_y_elems, std::size_t max_workspace);

  /// kernel: a kernel or configuration id, or empty for the plan's own choice.
  void run(const TestWeight& weight, const TestInputs& inputs, const std::string& kernel,
           const TestRun& run, bool batch_invariant = false);
  /// A slot for a check of one's own, reported under `name` (only strays, NaNs and differences).
  Findings* extra(const std::string& name);
  /// Waits, then fails the test for each finding that breaks the contract.
  void collect();

  cudaStream_t stream() const { return stream_; }

 private:
  struct Pending {
    std::string name, config, type;
    bool compared = false;
    std::size_t outputs = 0;
  };
  Findings* next(Pending pending);
  Matrix y_matrix(std::uint16_t* allocation, int m, int n, Placement placement) const;

  cudaStream_t stream_;
  std::uint16_t *y_ = nullptr, *y2_ = nullptr;
  std::uint8_t* workspace_ = nullptr;
  std::size_t max_y_elems_, max_workspace_;
  Findings* findings_ = nullptr;
  std::vector<Pending> pending_;
};

/// The contract of docs/correctness.md, applied to what the device found.
void expect_contract(const Findings& found, std::size_t outputs, const std::string& name);

/// A problem for a weight and M tokens.
Problem problem_for(const PackedView& weight, int m, DataType act, const Epilogue& epilogue);

/// One stream and arena for the whole program.
struct Session {
  static Session& instance();
  cudaStream_t stream = nullptr;
  std::unique_ptr<Arena> arena;

 private:
  Session();
};

}  // namespace mixgemm::gpu_test
