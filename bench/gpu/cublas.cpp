// SPDX-License-Identifier: Apache-2.0
#include "gpu/cublas.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <system_error>

namespace mixgemm::bench {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxHeuristics = 6;
constexpr std::size_t kWorkspaceBytes = 64u << 20;
constexpr const char* kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};

void check_cublas(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error(StatusCode::device_error,
              fmt::format("{}: cuBLASLt status {}", what, static_cast<int>(status)));
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : std::string(value);
}

/// Sub-directories of `path` in a stable order; none where it can't be read.
std::vector<fs::path> subdirectories(const fs::path& path) {
  std::vector<fs::path> found;
  std::error_code error;
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    if (it->is_directory(error)) found.push_back(it->path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

/// The prefixes of Python environments: where python3 lies on $PATH, the named environments, the
/// usual places.
std::vector<fs::path> python_prefixes() {
  std::vector<fs::path> prefixes;
  for (const char* name : {"VIRTUAL_ENV", "CONDA_PREFIX"}) {
    if (const std::string value = environment(name); !value.empty()) prefixes.emplace_back(value);
  }
  std::istringstream path(environment("PATH"));
  for (std::string directory; std::getline(path, directory, ':');) {
    std::error_code error;
    if (fs::exists(fs::path(directory) / "python3", error)) {
      prefixes.push_back(fs::path(directory).parent_path());
    }
  }
  for (const char* usual : {"/usr/local", "/usr", "/opt/venv", "/opt/conda"}) {
    prefixes.emplace_back(usual);
  }
  return prefixes;
}

}  // namespace

std::vector<std::string> cublas_candidates() {
  std::vector<std::string> candidates;
  if (const std::string named = environment("MIXGEMM_CUBLASLT"); !named.empty()) {
    if (named == "none") return {};
    candidates.push_back(named);
  }
  for (const char* name : kNames) candidates.emplace_back(name);

  std::vector<fs::path> directories = {"/usr/local/cuda/lib64", "/usr/local/cuda/lib"};
  for (const fs::path& prefix : python_prefixes()) {
    for (const fs::path& python : subdirectories(prefix / "lib")) {
      if (!python.filename().string().starts_with("python3")) continue;
      for (const char* packages : {"site-packages", "dist-packages"}) {
        for (const char* package : {"nvidia/cu13/lib", "nvidia/cublas/lib"}) {
          directories.push_back(python / packages / package);
        }
      }
    }
  }
  for (const fs::path& directory : directories) {
    for (const char* name : kNames) {
      std::error_code error;
      const fs::path file = directory / name;
      if (fs::exists(file, error)) candidates.push_back(file.string());
    }
  }
  return candidates;
}

bool CublasLt::find_functions(const SharedLibrary& library, Functions& f) {
  return library.find("cublasLtCreate", f.create) && library.find("cublasLtDestroy", f.destroy) &&
         library.find("cublasLtGetVersion", f.get_version) &&
         library.find("cublasLtMatmul", f.matmul) &&
         library.find("cublasLtMatmulAlgoGetHeuristic", f.get_heuristic) &&
         library.find("cublasLtMatmulDescCreate", f.desc_create) &&
         library.find("cublasLtMatmulDescDestroy", f.desc_destroy) &&
         library.find("cublasLtMatmulDescSetAttribute", f.desc_set) &&
         library.find("cublasLtMatrixLayoutCreate", f.layout_create) &&
         library.find("cublasLtMatrixLayoutDestroy", f.layout_destroy) &&
         library.find("cublasLtMatmulPreferenceCreate", f.preference_create) &&
         library.find("cublasLtMatmulPreferenceDestroy", f.preference_destroy) &&
         library.find("cublasLtMatmulPreferenceSetAttribute", f.preference_set);
}

std::unique_ptr<CublasLt> CublasLt::load() {
  std::unique_ptr<CublasLt> lt(new CublasLt);
  lt->library_ = SharedLibrary::open_first(cublas_candidates());
  if (lt->library_.empty() || !find_functions(lt->library_, lt->f_)) return nullptr;
  if (lt->f_.create(&lt->handle_) != CUBLAS_STATUS_SUCCESS) return nullptr;
  lt->workspace_.reserve(kWorkspaceBytes, "cuBLASLt's workspace");
  return lt;
}

CublasLt::~CublasLt() {
  if (handle_ != nullptr) f_.destroy(handle_);
}

std::string CublasLt::description() const {
  return fmt::format("{} {}", library_.name(), f_.get_version());
}

CublasLt::Product::Product(const CublasLt& library, std::int64_t m, std::int64_t n, std::int64_t k,
                           DataType type)
    : library_(library) {
  const Functions& f = library_.f_;
  const cudaDataType_t element = type == DataType::bf16 ? CUDA_R_16BF : CUDA_R_16F;
  const auto dim = [](std::int64_t value) { return static_cast<std::uint64_t>(value); };
  try {
    // The library is column-major: row-major W [N, K] is its K × N with leading dimension K, and
    // row-major Y [M, N] its N × M. So it computes Yᵀ = (Wᵀ)ᵀ · Xᵀ.
    check_cublas(f.desc_create(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F), "MatmulDescCreate");
    const cublasOperation_t transpose = CUBLAS_OP_T;
    check_cublas(f.desc_set(operation_, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof transpose),
                 "MatmulDescSetAttribute");
    check_cublas(f.layout_create(&w_, element, dim(k), dim(n), k), "MatrixLayoutCreate");
    check_cublas(f.layout_create(&x_, element, dim(k), dim(m), k), "MatrixLayoutCreate");
    check_cublas(f.layout_create(&y_, element, dim(n), dim(m), n), "MatrixLayoutCreate");

    cublasLtMatmulPreference_t preference = nullptr;
    check_cublas(f.preference_create(&preference), "MatmulPreferenceCreate");
    const std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, decltype(f.preference_destroy)>
        preference_owner(preference, f.preference_destroy);
    const std::size_t workspace_bytes = kWorkspaceBytes;
    check_cublas(f.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                  &workspace_bytes, sizeof workspace_bytes),
                 "MatmulPreferenceSetAttribute");
    heuristics_.resize(kMaxHeuristics);
    int found = 0;
    check_cublas(f.get_heuristic(library_.handle_, operation_, w_, x_, y_, y_, preference,
                                 kMaxHeuristics, heuristics_.data(), &found),
                 "MatmulAlgoGetHeuristic");
    heuristics_.resize(static_cast<std::size_t>(found));
    std::erase_if(heuristics_, [](const cublasLtMatmulHeuristicResult_t& result) {
      return result.state != CUBLAS_STATUS_SUCCESS;
    });
    if (heuristics_.empty()) {
      throw Error(StatusCode::unsupported,
                  fmt::format("cuBLASLt has no algorithm for M={} N={} K={}", m, n, k));
    }
  } catch (...) {
    release();
    throw;
  }
}

CublasLt::Product::~Product() { release(); }

void CublasLt::Product::release() {
  const Functions& f = library_.f_;
  for (cublasLtMatrixLayout_t layout : {x_, w_, y_}) {
    if (layout != nullptr) f.layout_destroy(layout);
  }
  if (operation_ != nullptr) f.desc_destroy(operation_);
}

void CublasLt::Product::run(std::size_t heuristic, const void* x, const void* w, void* y,
                            cudaStream_t stream) const {
  const float one = 1, zero = 0;
  check_cublas(library_.f_.matmul(library_.handle_, operation_, &one, w, w_, x, x_, &zero, y, y_, y,
                                  y_, &heuristics_[heuristic].algo, library_.workspace_.as<>(),
                                  kWorkspaceBytes, stream),
               "Matmul");
}

}  // namespace mixgemm::bench
