// SPDX-License-Identifier: Apache-2.0
#include "cpu/blas.hpp"

#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

namespace mixgemm::cpu {
namespace {

// In the order of preference. libblas.so.3 is whatever the system's administrator chose; it comes
// last because it is often the reference implementation.
constexpr const char* kWellKnown[] = {
    "libopenblas.so.0", "libopenblas.so",
    "libmkl_rt.so.2",   "libmkl_rt.so",
    "libblis.so.4",     "libarmpl_lp64_mp.so",
    "libblas.so.3",     "/System/Library/Frameworks/Accelerate.framework/Accelerate"};

template <class Function>
Function symbol(void* library, const char* name) {
  return reinterpret_cast<Function>(dlsym(library, name));
}

/// Fills in what `library` offers. False: no sgemm in it.
bool inspect(void* library, const std::string& file, Blas& blas) {
  blas.sgemm = symbol<SgemmFunction>(library, "sgemm_");
  if (!blas.sgemm) return false;
  blas.library = library;
  blas.fast = true;
  if (auto config = symbol<char* (*)()>(library, "openblas_get_config")) {
    // "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH ...": the first two words are its name.
    std::string text = config();
    const std::size_t second = text.find(' ', text.find(' ') + 1);
    blas.description = fmt::format("{} ({})", text.substr(0, second), file);
  } else if (dlsym(library, "MKL_Get_Max_Threads") || dlsym(library, "mkl_get_max_threads")) {
    blas.description = fmt::format("MKL ({})", file);
  } else if (dlsym(library, "bli_info_get_version_str")) {
    blas.description = fmt::format("BLIS ({})", file);
  } else if (dlsym(library, "armpl_get_num_threads") || file.find("Accelerate") != file.npos) {
    blas.description = fmt::format("vendor BLAS ({})", file);
  } else {
    blas.fast = false;
    blas.description = fmt::format("unknown BLAS, taken for a slow one ({})", file);
  }
  return true;
}

Blas find(const char* wanted) {
  Blas blas;
  if (wanted && std::string_view(wanted) == "none") {
    blas.description = "none (MIXGEMM_BLAS=none)";
    return blas;
  }
  // The library stays loaded for good: its threads can't be stopped safely.
  constexpr int kFlags = RTLD_LAZY | RTLD_LOCAL | RTLD_NODELETE;
  if (wanted && *wanted) {
    void* library = dlopen(wanted, kFlags);
    if (!library) {
      const char* reason = dlerror();
      blas.description = fmt::format("none (MIXGEMM_BLAS={}: {})", wanted, reason ? reason : "?");
    } else if (!inspect(library, wanted, blas)) {
      blas.description = fmt::format("none (MIXGEMM_BLAS={}: no symbol sgemm_)", wanted);
    }
    return blas;
  }
  for (const char* file : kWellKnown) {
    if (void* library = dlopen(file, kFlags); library && inspect(library, file, blas)) return blas;
  }
  blas.description = "none found (libopenblas, libmkl_rt, libblis, libblas)";
  return blas;
}

}  // namespace

const Blas& blas() {
  static std::mutex mutex;
  static std::map<std::string, std::unique_ptr<const Blas>> found;
  const char* wanted = std::getenv("MIXGEMM_BLAS");
  std::lock_guard lock(mutex);
  auto& entry = found[wanted ? wanted : ""];
  if (!entry) entry = std::make_unique<const Blas>(find(wanted));
  return *entry;
}

}  // namespace mixgemm::cpu
