// SPDX-License-Identifier: Apache-2.0
// The CPU backend: which method, how much workspace, and the product itself. Plan (src/api) checks
// the arguments and calls in here.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "mixgemm/gemm.hpp"
#include "mixgemm/status.hpp"

namespace mixgemm::cpu {

/// How a product is computed.
enum class Method {
  simd,  ///< codes go from packed bytes to registers to FMA; any M, batch-invariant by construction
  blas,  ///< panels of the weight are dequantized to fp32 and multiplied by a BLAS's sgemm
};

/// "simd", "blas": the last part of a kernel id.
std::string_view to_string(Method method);

/// The fastest method that keeps the problem's promises (batch_invariant) on this machine.
Method choose(const Problem& problem);

/// One sentence that says why choose() picks what it picks.
std::string explain_choice(const Problem& problem);

/// The instruction set that the simd method runs with: "avx512", "avx2", "sse4", "neon" or
/// "portable". The best that the machine has, unless MIXGEMM_CPU_TARGET names a lesser one.
std::string simd_target();

/// Whether Method::blas can run: a BLAS was found at run time. MIXGEMM_BLAS names a library to use,
/// or "none".
bool blas_available();

/// The BLAS, e.g. "OpenBLAS 0.3.21 (libopenblas.so.0)", or why there is none.
std::string blas_description();

/// Bytes that RunArgs::workspace must have for this problem and method. Bounded: large M and K are
/// worked off in blocks.
std::size_t workspace_bytes(const Problem& problem, Method method);

/// Y = epilogue(X · dequant(W)ᵀ). The problem is legal and the arguments were checked: non-null
/// where required, leading dimensions large enough, view equal to the problem's N, K and spec,
/// workspace of workspace_bytes() aligned to 64 bytes. Same inputs, same bits, for any number of
/// threads (0 = all cores; Method::blas leaves its own number of threads to the BLAS).
/// Fails only with unsupported, when Method::blas is asked for and there is none.
Status gemm(const Problem& problem, const RunArgs& args, Method method, int num_threads);

}  // namespace mixgemm::cpu
