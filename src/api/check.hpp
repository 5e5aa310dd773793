// SPDX-License-Identifier: Apache-2.0
// The rules of docs/errors.md, checked: one copy for every backend, C++ and C alike.
//
// The good path costs a few tens of nanoseconds (compares only, no allocation, no formatting), so
// that every launch can afford it.
#pragma once

#include <cstddef>

#include "mixgemm/gemm.hpp"
#include "mixgemm/status.hpp"

namespace mixgemm {

/// Alignment of RunArgs::workspace and of PackedView::codes.
inline constexpr std::size_t kWorkspaceAlignment = 256;
inline constexpr std::size_t kCodesAlignment = 16;
/// Alignment of scales and zeros on a CUDA device (to_cuda() and slices keep it); on the CPU they
/// need only that of their element.
inline constexpr std::size_t kCudaScalesAlignment = 16;
/// Alignment of a permutation on a CUDA device, where it is read by vectors.
inline constexpr std::size_t kCudaPermutationAlignment = 16;

/// Is this a problem at all: 1 ≤ M, N, K < 2^31, known enumerators, a known group size, 16-bit
/// activations and scales, and on CUDA scale type = activation type.
Status check_problem(const Problem& problem);

/// Do these arguments fit a legal problem: pointers present and aligned, leading dimensions, the
/// weight's shape, spec and device, workspace, alpha, sizes within the address space, and no output
/// byte that is also an input byte (y == residual with ldy == ldr is allowed: in place).
Status check_args(const Problem& problem, const RunArgs& args, std::size_t workspace_bytes);

/// The same for reference_gemm(): y is double, the weight is a CPU view, no workspace. In-place
/// residuals are refused, since the element sizes differ.
Status check_reference_args(const Problem& problem, const RunArgs& args);

}  // namespace mixgemm
