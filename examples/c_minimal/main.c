/* SPDX-License-Identifier: Apache-2.0 */
/* Quantizes a small weight to int4, saves it, loads it by mmap, multiplies, and compares with a
 * product over the unpacked codes. Usage: c_minimal [FILE], the file to write. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mixgemm/mixgemm.h"

enum { M = 3, N = 64, K = 256, GROUP = 64, GROUPS = K / GROUP };

/* bf16 is the upper half of an fp32. */
static uint16_t to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return (uint16_t)((bits + 0x8000u) >> 16);
}

static float from_bf16(uint16_t half) {
  uint32_t bits = (uint32_t)half << 16;
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

/* Uniform in [-1, 1), the same numbers on every machine. */
static float next_random(uint32_t* state) {
  *state = *state * 1664525u + 1013904223u;
  return (float)(int32_t)*state / 2147483648.0f;
}

static float w[N * K];
static uint16_t x[M * K], y[M * N];
static uint8_t codes[N * K];
static uint16_t scales[N * GROUPS];

/* Relative Frobenius error of y against a product in double over the unpacked weight. */
static double relative_error(void) {
  double error = 0, norm = 0;
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) {
      double sum = 0;
      for (int k = 0; k < K; ++k) {
        const double scale = from_bf16(scales[n * GROUPS + k / GROUP]);
        sum += (double)from_bf16(x[m * K + k]) * (codes[n * K + k] - 8) * scale;
      }
      const double difference = from_bf16(y[m * N + n]) - sum;
      error += difference * difference;
      norm += sum * sum;
    }
  }
  return sqrt(error / norm);
}

int main(int argc, char** argv) {
  const char* path = argc > 1 ? argv[1] : "c_minimal.safetensors";
  const char* const name = "layer";
  uint32_t state = 1;
  int result = 1;
  double error;
  void* memory = NULL;
  size_t workspace_bytes;
  mixgemm_weight_t* quantized = NULL;
  mixgemm_weight_t* weight = NULL;
  mixgemm_checkpoint_t* file = NULL;
  mixgemm_plan_t* plan = NULL;
  mixgemm_quantize_options_t quantize = MIXGEMM_QUANTIZE_OPTIONS_INIT;
  mixgemm_weight_info_t info = MIXGEMM_WEIGHT_INFO_INIT;
  mixgemm_problem_t problem = MIXGEMM_PROBLEM_INIT;
  mixgemm_run_args_t args = MIXGEMM_RUN_ARGS_INIT;

  for (int i = 0; i < N * K; ++i) w[i] = 0.05f * next_random(&state);
  for (int i = 0; i < M * K; ++i) x[i] = to_bf16(next_random(&state));

  /* Once: quantize, pack, save. */
  quantize.spec.group_size = GROUP;
  quantize.spec.scale_type = MIXGEMM_BF16;
  if (mixgemm_weight_quantize(w, MIXGEMM_F32, N, K, K, &quantize, &quantized)) goto failed;
  {
    const mixgemm_weight_t* const weights[] = {quantized};
    if (mixgemm_checkpoint_save(path, 1, &name, weights)) goto failed;
  }

  /* When the model is loaded: map the file. The weight keeps the mapping alive. */
  if (mixgemm_checkpoint_open(path, &file)) goto failed;
  if (mixgemm_checkpoint_weight(file, name, &weight)) goto failed;
  if (mixgemm_weight_get_info(weight, &info)) goto failed;

  /* Once per shape: plan. */
  problem.m = M;
  problem.n = info.n;
  problem.k = info.k;
  problem.act = MIXGEMM_BF16;
  problem.weight = info.spec;
  if (mixgemm_plan_create(&problem, NULL, &plan)) goto failed;
  printf("mixgemm %s\n%s", mixgemm_version(), mixgemm_plan_explain(plan));

  /* As often as you like, from any thread: run. The workspace is aligned to 256 bytes by hand,
   * since C99 has no aligned allocation. */
  workspace_bytes = mixgemm_plan_workspace_bytes(plan);
  memory = malloc(workspace_bytes + 256);
  if (memory == NULL) goto failed;
  args.workspace = (void*)(((uintptr_t)memory + 255) / 256 * 256);
  args.workspace_bytes = workspace_bytes;
  args.x = x;
  args.ldx = K;
  args.weight = weight;
  args.y = y;
  args.ldy = N;
  if (mixgemm_plan_run(plan, &args)) goto failed;

  if (mixgemm_weight_unpack(weight, 0, codes, scales, NULL, NULL)) goto failed;
  error = relative_error();
  printf("relative error against double: %.2e\n", error);
  result = error < 4e-3 ? 0 : 1; /* bf16 rounds to 8 bits */
  goto cleanup;

failed:
  fprintf(stderr, "c_minimal: %s\n", mixgemm_last_error());
cleanup:
  free(memory);
  mixgemm_plan_free(plan);
  mixgemm_weight_free(weight);
  mixgemm_checkpoint_close(file);
  mixgemm_weight_free(quantized);
  return result;
}
