/* SPDX-License-Identifier: Apache-2.0 */
/* The structs of the C ABI as programs built against version 0.1 of the header see them (LP64). A
 * line that fails means that those programs break: add fields at the end instead, and never change
 * an offset while the SONAME stands. New fields get a line here; SIZE lines grow with them. */
#include <stddef.h>
#include <stdio.h>

#include "mixgemm/mixgemm.h"

static int failures = 0;

static void expect(const char* what, size_t value, size_t expected) {
  if (value == expected) return;
  fprintf(stderr, "%s is %zu; programs in the field expect %zu\n", what, value, expected);
  ++failures;
}

#define OFFSET(type, field, expected) \
  expect("offset of " #type "." #field, offsetof(type, field), expected)
#define SIZE(type, expected) expect("size of " #type, sizeof(type), expected)

int main(void) {
  OFFSET(mixgemm_quant_spec_t, type, 0);
  OFFSET(mixgemm_quant_spec_t, zero, 4);
  OFFSET(mixgemm_quant_spec_t, group_size, 8);
  OFFSET(mixgemm_quant_spec_t, scale_type, 12);
  SIZE(mixgemm_quant_spec_t, 16);
  OFFSET(mixgemm_quantize_options_t, struct_size, 0);
  OFFSET(mixgemm_quantize_options_t, spec, 8);
  OFFSET(mixgemm_quantize_options_t, search_clip, 24);
  OFFSET(mixgemm_quantize_options_t, num_threads, 28);
  SIZE(mixgemm_quantize_options_t, 32);
  OFFSET(mixgemm_canonical_t, struct_size, 0);
  OFFSET(mixgemm_canonical_t, n, 8);
  OFFSET(mixgemm_canonical_t, k, 16);
  OFFSET(mixgemm_canonical_t, spec, 24);
  OFFSET(mixgemm_canonical_t, codes, 40);
  OFFSET(mixgemm_canonical_t, scales, 48);
  OFFSET(mixgemm_canonical_t, zeros, 56);
  OFFSET(mixgemm_canonical_t, scaled_zeros, 64);
  SIZE(mixgemm_canonical_t, 72);
  OFFSET(mixgemm_weight_info_t, struct_size, 0);
  OFFSET(mixgemm_weight_info_t, n, 8);
  OFFSET(mixgemm_weight_info_t, k, 16);
  OFFSET(mixgemm_weight_info_t, spec, 24);
  OFFSET(mixgemm_weight_info_t, device, 40);
  OFFSET(mixgemm_weight_info_t, reserved, 44);
  OFFSET(mixgemm_weight_info_t, size_bytes, 48);
  SIZE(mixgemm_weight_info_t, 56);
  OFFSET(mixgemm_problem_t, struct_size, 0);
  OFFSET(mixgemm_problem_t, m, 8);
  OFFSET(mixgemm_problem_t, n, 16);
  OFFSET(mixgemm_problem_t, k, 24);
  OFFSET(mixgemm_problem_t, act, 32);
  OFFSET(mixgemm_problem_t, weight, 36);
  OFFSET(mixgemm_problem_t, bias, 52);
  OFFSET(mixgemm_problem_t, residual, 56);
  OFFSET(mixgemm_problem_t, activation, 60);
  OFFSET(mixgemm_problem_t, device, 64);
  OFFSET(mixgemm_problem_t, deterministic, 68);
  OFFSET(mixgemm_problem_t, batch_invariant, 72);
  OFFSET(mixgemm_problem_t, columns, 76);
  SIZE(mixgemm_problem_t, 80);
  OFFSET(mixgemm_plan_options_t, struct_size, 0);
  OFFSET(mixgemm_plan_options_t, kernel, 8);
  OFFSET(mixgemm_plan_options_t, num_threads, 16);
  OFFSET(mixgemm_plan_options_t, reserved, 20);
  SIZE(mixgemm_plan_options_t, 24);
  OFFSET(mixgemm_run_args_t, struct_size, 0);
  OFFSET(mixgemm_run_args_t, x, 8);
  OFFSET(mixgemm_run_args_t, ldx, 16);
  OFFSET(mixgemm_run_args_t, weight, 24);
  OFFSET(mixgemm_run_args_t, y, 32);
  OFFSET(mixgemm_run_args_t, ldy, 40);
  OFFSET(mixgemm_run_args_t, bias, 48);
  OFFSET(mixgemm_run_args_t, residual, 56);
  OFFSET(mixgemm_run_args_t, ldr, 64);
  OFFSET(mixgemm_run_args_t, workspace, 72);
  OFFSET(mixgemm_run_args_t, workspace_bytes, 80);
  OFFSET(mixgemm_run_args_t, stream, 88);
  OFFSET(mixgemm_run_args_t, alpha, 96);
  OFFSET(mixgemm_run_args_t, pdl, 100);
  SIZE(mixgemm_run_args_t, 104);
  OFFSET(mixgemm_kernel_info_t, struct_size, 0);
  OFFSET(mixgemm_kernel_info_t, id, 8);
  OFFSET(mixgemm_kernel_info_t, device, 16);
  OFFSET(mixgemm_kernel_info_t, arch, 20);
  OFFSET(mixgemm_kernel_info_t, registers, 24);
  OFFSET(mixgemm_kernel_info_t, reserved, 28);
  OFFSET(mixgemm_kernel_info_t, shared_bytes, 32);
  OFFSET(mixgemm_kernel_info_t, reason, 40);
  SIZE(mixgemm_kernel_info_t, 48);
  OFFSET(mixgemm_device_info_t, struct_size, 0);
  OFFSET(mixgemm_device_info_t, device, 8);
  OFFSET(mixgemm_device_info_t, arch, 12);
  OFFSET(mixgemm_device_info_t, name, 16);
  OFFSET(mixgemm_device_info_t, num_sms, 24);
  OFFSET(mixgemm_device_info_t, usable, 28);
  OFFSET(mixgemm_device_info_t, note, 32);
  SIZE(mixgemm_device_info_t, 40);

  if (mixgemm_packed_format_version() != 1) {
    fprintf(stderr, "packed format version %d\n", (int)mixgemm_packed_format_version());
    ++failures;
  }
  return failures == 0 ? 0 : 1;
}
