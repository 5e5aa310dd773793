/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mixgemm.h: the C ABI. Y[M,N] = epilogue(X[M,K] . dequant(W)[N,K]^T).
 *
 *   mixgemm_checkpoint_t* file = NULL;
 *   mixgemm_weight_t* weight = NULL;
 *   mixgemm_plan_t* plan = NULL;
 *   mixgemm_weight_info_t info = MIXGEMM_WEIGHT_INFO_INIT;
 *   mixgemm_problem_t problem = MIXGEMM_PROBLEM_INIT;
 *   mixgemm_run_args_t args = MIXGEMM_RUN_ARGS_INIT;
 *
 *   if (mixgemm_checkpoint_open("model.int4.safetensors", &file) != MIXGEMM_OK) goto failed;
 *   if (mixgemm_checkpoint_weight(file, "layers.0.q_proj", &weight) != MIXGEMM_OK) goto failed;
 *   mixgemm_weight_get_info(weight, &info);
 *   problem.m = 4; problem.n = info.n; problem.k = info.k; problem.weight = info.spec;
 *   if (mixgemm_plan_create(&problem, NULL, &plan) != MIXGEMM_OK) goto failed;
 *   args.x = x; args.ldx = info.k; args.y = y; args.ldy = info.n; args.weight = weight;
 *   if (mixgemm_plan_run(plan, &args) != MIXGEMM_OK) goto failed;
 *   ...
 * failed:
 *   fprintf(stderr, "%s\n", mixgemm_last_error());
 *
 * Conventions
 *   Errors      Functions that can fail return mixgemm_status_t; mixgemm_last_error() has the
 *               sentence. On failure an output handle is set to NULL and nothing was written.
 *               No C++ exception leaves the library.
 *   Handles     Opaque, owned by the caller, freed by the function of their type; NULL is fine
 *               there. A weight keeps its file mapped, so the checkpoint may be closed first.
 *   Structs     Begin with struct_size and come with an initializer: use it, then set fields. A
 *               library accepts the smaller structs of older headers (missing fields take their
 *               defaults) and larger ones as long as what it doesn't know is zero.
 *   Threads     Handles are immutable: any number of threads may use one, but one thread frees it,
 *               after the others are done. mixgemm_last_error() is per thread.
 *   Enumerators Never renumbered. docs/abi_and_versions.md says what may change when.
 */
#ifndef MIXGEMM_MIXGEMM_H_
#define MIXGEMM_MIXGEMM_H_

#include <stddef.h>
#include <stdint.h>

#include "mixgemm/export.hpp"
#include "mixgemm/version.hpp"

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------ errors and version */

/* What went wrong; the same values as mixgemm::StatusCode. */
typedef enum mixgemm_status {
  MIXGEMM_OK = 0,
  MIXGEMM_INVALID_ARGUMENT = 1, /* a value breaks a documented rule */
  MIXGEMM_UNSUPPORTED = 2,      /* legal, but this build or this machine can't do it */
  MIXGEMM_NOT_FOUND = 3,        /* no such file, layer, kernel */
  MIXGEMM_IO_ERROR = 4,         /* the operating system refused to read or write */
  MIXGEMM_CORRUPT_DATA = 5,     /* a file contradicts itself */
  MIXGEMM_VERSION_MISMATCH = 6, /* written by a format version this library does not read */
  MIXGEMM_OUT_OF_MEMORY = 7,
  MIXGEMM_DEVICE_ERROR = 8, /* CUDA reported an error */
  MIXGEMM_INTERNAL = 9      /* a bug in mixgemm */
} mixgemm_status_t;

/* "invalid_argument", ...; "?" for an unknown code. Never freed. */
MIXGEMM_API const char* mixgemm_status_name(int32_t status);

/* The sentence of this thread's last failed call: names the rule and the value. "" if none failed.
 * Valid until the next call on this thread that fails. */
MIXGEMM_API const char* mixgemm_last_error(void);

/* Version of the loaded library, "major.minor.patch"; the header's is MIXGEMM_VERSION_STRING. */
MIXGEMM_API const char* mixgemm_version(void);

/* Version of the packed format that this library reads and writes. */
MIXGEMM_API int32_t mixgemm_packed_format_version(void);

/* ------------------------------------------------------------------ vocabulary */

typedef enum mixgemm_data_type {
  MIXGEMM_F16 = 0,
  MIXGEMM_BF16 = 1,
  MIXGEMM_F32 = 2
} mixgemm_data_type_t;

typedef enum mixgemm_weight_type { MIXGEMM_INT4 = 0, MIXGEMM_INT8 = 1 } mixgemm_weight_type_t;

/* How a code q becomes a weight. */
typedef enum mixgemm_zero_kind {
  MIXGEMM_ZERO_NONE = 0,    /* (q - 2^(bits-1)) * s */
  MIXGEMM_ZERO_INTEGER = 1, /* (q - z) * s, z a stored code */
  MIXGEMM_ZERO_SCALED = 2   /* q * s - z */
} mixgemm_zero_kind_t;

typedef enum mixgemm_activation {
  MIXGEMM_ACTIVATION_NONE = 0,
  MIXGEMM_ACTIVATION_RELU = 1,
  MIXGEMM_ACTIVATION_GELU = 2, /* tanh form */
  MIXGEMM_ACTIVATION_SILU = 3
} mixgemm_activation_t;

typedef enum mixgemm_device { MIXGEMM_CPU = 0, MIXGEMM_CUDA = 1 } mixgemm_device_t;

/* Whether a packed weight's columns are in the order of the input features, or in that of its
 * permutation. */
typedef enum mixgemm_column_order {
  MIXGEMM_COLUMNS_NATURAL = 0,
  MIXGEMM_COLUMNS_PERMUTED = 1
} mixgemm_column_order_t;

/* How the numbers of a quantized weight are to be read. Fixed size: part of other structs. */
typedef struct mixgemm_quant_spec {
  int32_t type;       /* mixgemm_weight_type_t */
  int32_t zero;       /* mixgemm_zero_kind_t */
  int32_t group_size; /* 16, 32, 64, 128 consecutive k, or 0: per column */
  int32_t scale_type; /* MIXGEMM_F16 or MIXGEMM_BF16; on CUDA the activation type */
} mixgemm_quant_spec_t;

#define MIXGEMM_QUANT_SPEC_INIT \
  { MIXGEMM_INT4, MIXGEMM_ZERO_NONE, 128, MIXGEMM_F16 }

/* ------------------------------------------------------------------ weights */

typedef struct mixgemm_weight mixgemm_weight_t;

/* Options of mixgemm_weight_quantize(). */
typedef struct mixgemm_quantize_options {
  size_t struct_size;
  mixgemm_quant_spec_t spec;
  int32_t search_clip; /* per group, the clipping ratio with the least squared error; default 1 */
  int32_t num_threads; /* 0: all cores */
} mixgemm_quantize_options_t;

#define MIXGEMM_QUANTIZE_OPTIONS_INIT \
  { sizeof(mixgemm_quantize_options_t), MIXGEMM_QUANT_SPEC_INIT, 1, 0 }

/* Quantizes and packs a dense weight in one streaming pass. w: [N, K] row-major, ldw >= K elements
 * of `type`. options NULL: the defaults (int4, symmetric, groups of 128, fp16 scales). */
MIXGEMM_API mixgemm_status_t mixgemm_weight_quantize(const void* w, int32_t type, int64_t n,
                                                     int64_t k, int64_t ldw,
                                                     const mixgemm_quantize_options_t* options,
                                                     mixgemm_weight_t** weight);

/* Codes, scales and zeros of a checkpoint-neutral ("canonical") weight; G groups along K. */
typedef struct mixgemm_canonical {
  size_t struct_size;
  int64_t n;
  int64_t k;
  mixgemm_quant_spec_t spec;
  const uint8_t* codes;         /* [N, K], one code a byte, < 2^bits */
  const uint16_t* scales;       /* [N, G], bits of spec.scale_type */
  const uint8_t* zeros;         /* [N, G] for MIXGEMM_ZERO_INTEGER, else NULL */
  const uint16_t* scaled_zeros; /* [N, G] for MIXGEMM_ZERO_SCALED, else NULL */
} mixgemm_canonical_t;

#define MIXGEMM_CANONICAL_INIT \
  { sizeof(mixgemm_canonical_t), 0, 0, MIXGEMM_QUANT_SPEC_INIT, NULL, NULL, NULL, NULL }

/* Packs a canonical weight; the arrays are copied. num_threads 0: all cores. */
MIXGEMM_API mixgemm_status_t mixgemm_weight_pack(const mixgemm_canonical_t* canonical,
                                                 int32_t num_threads, mixgemm_weight_t** weight);

/* The exact inverse, into the caller's arrays: codes [N, K]; scales [N, G]; zeros [N, G] for
 * MIXGEMM_ZERO_INTEGER, scaled_zeros [N, G] for MIXGEMM_ZERO_SCALED. Pointers for what the weight
 * doesn't have must be NULL. CPU weights only. */
MIXGEMM_API mixgemm_status_t mixgemm_weight_unpack(const mixgemm_weight_t* weight,
                                                   int32_t num_threads, uint8_t* codes,
                                                   uint16_t* scales, uint8_t* zeros,
                                                   uint16_t* scaled_zeros);

/* Output features [begin, end), a view of the same bytes: begin a multiple of 16, end too or N. */
MIXGEMM_API mixgemm_status_t mixgemm_weight_slice_n(const mixgemm_weight_t* weight, int64_t begin,
                                                    int64_t end, mixgemm_weight_t** slice);

/* Reduction range [begin, end), a view: multiples of lcm(64, group size), but end may be K. */
MIXGEMM_API mixgemm_status_t mixgemm_weight_slice_k(const mixgemm_weight_t* weight, int64_t begin,
                                                    int64_t end, mixgemm_weight_t** slice);

/* Copies a CPU weight to the current CUDA device. Synchronous. */
MIXGEMM_API mixgemm_status_t mixgemm_weight_to_cuda(const mixgemm_weight_t* weight,
                                                    mixgemm_weight_t** on_device);

typedef struct mixgemm_weight_info {
  size_t struct_size;
  int64_t n;
  int64_t k;
  mixgemm_quant_spec_t spec;
  int32_t device;      /* mixgemm_device_t */
  int32_t reserved;    /* 0 */
  uint64_t size_bytes; /* codes, scales and zeros, padding included */
} mixgemm_weight_info_t;

#define MIXGEMM_WEIGHT_INFO_INIT \
  { sizeof(mixgemm_weight_info_t), 0, 0, MIXGEMM_QUANT_SPEC_INIT, MIXGEMM_CPU, 0, 0 }

MIXGEMM_API mixgemm_status_t mixgemm_weight_get_info(const mixgemm_weight_t* weight,
                                                     mixgemm_weight_info_t* info);

/* The order of the packed columns, K indices where the weight is, in host memory or on its CUDA
 * device: column j multiplies column permutation[j] of X. NULL where they are in order, which is
 * the rule; checkpoints quantized in activation order have one. A plan with problem.columns =
 * MIXGEMM_COLUMNS_PERMUTED takes such a weight and gathers X's columns itself, in its workspace. Or
 * gather them once for several weights of one order, with mixgemm_weight_gather_columns() in host
 * memory or a kernel of your own, and multiply with mixgemm_weight_for_gathered_x(). Valid as long
 * as the weight. */
MIXGEMM_API const int32_t* mixgemm_weight_permutation(const mixgemm_weight_t* weight);

/* gathered[m, j] = x[m, permutation[j]], or x[m, j] without one. 16-bit elements and the weight in
 * host memory; ldx and ldg >= K elements; the two don't overlap. num_threads 0: all cores. */
MIXGEMM_API mixgemm_status_t mixgemm_weight_gather_columns(const mixgemm_weight_t* weight,
                                                           const void* x, int64_t m, int64_t ldx,
                                                           void* gathered, int64_t ldg,
                                                           int32_t num_threads);

/* The same weight, which shares the memory, for an X that has been gathered: no permutation. */
MIXGEMM_API mixgemm_status_t mixgemm_weight_for_gathered_x(const mixgemm_weight_t* weight,
                                                           mixgemm_weight_t** gathered);

MIXGEMM_API void mixgemm_weight_free(mixgemm_weight_t* weight);

/* ------------------------------------------------------------------ packed checkpoints */

typedef struct mixgemm_checkpoint mixgemm_checkpoint_t;

/* Maps a packed checkpoint (what `mixgemm quantize` writes): a file, an index or a directory. */
MIXGEMM_API mixgemm_status_t mixgemm_checkpoint_open(const char* path,
                                                     mixgemm_checkpoint_t** checkpoint);

/* Number of packed weights; 0 for NULL. */
MIXGEMM_API size_t mixgemm_checkpoint_num_weights(const mixgemm_checkpoint_t* checkpoint);

/* Name of the idx-th packed weight, in order of name; NULL past the end. Valid until closed. */
MIXGEMM_API const char* mixgemm_checkpoint_weight_name(const mixgemm_checkpoint_t* checkpoint,
                                                       size_t idx);

/* A packed weight by name. Its memory is the mapping, which it keeps alive. Checks the checksum the
 * first time. */
MIXGEMM_API mixgemm_status_t mixgemm_checkpoint_weight(const mixgemm_checkpoint_t* checkpoint,
                                                       const char* name, mixgemm_weight_t** weight);

MIXGEMM_API void mixgemm_checkpoint_close(mixgemm_checkpoint_t* checkpoint);

/* Writes packed CPU weights as one packed checkpoint. The file appears whole or not at all. */
MIXGEMM_API mixgemm_status_t mixgemm_checkpoint_save(const char* path, size_t num_weights,
                                                     const char* const* names,
                                                     const mixgemm_weight_t* const* weights);

/* ------------------------------------------------------------------ plans */

typedef struct mixgemm_plan mixgemm_plan_t;

/* y = activation(alpha * (x . w) + bias[n]) + residual[m, n] */
typedef struct mixgemm_problem {
  size_t struct_size;
  int64_t m;   /* tokens, >= 1 */
  int64_t n;   /* output features, >= 1 */
  int64_t k;   /* reduction, >= 1 */
  int32_t act; /* of x, y, bias, residual: MIXGEMM_F16 or MIXGEMM_BF16 */
  mixgemm_quant_spec_t weight;
  int32_t bias;            /* 1: there is one */
  int32_t residual;        /* 1: there is one */
  int32_t activation;      /* mixgemm_activation_t */
  int32_t device;          /* mixgemm_device_t */
  int32_t deterministic;   /* same inputs, same bits, run to run; default 1 */
  int32_t batch_invariant; /* a row of x gives the same bits of y for every M; default 0 */
  int32_t columns;         /* mixgemm_column_order_t, the weight's; default natural */
} mixgemm_problem_t;

#define MIXGEMM_PROBLEM_INIT                                                        \
  {                                                                                 \
    sizeof(mixgemm_problem_t), 0, 0, 0, MIXGEMM_F16, MIXGEMM_QUANT_SPEC_INIT, 0, 0, \
        MIXGEMM_ACTIVATION_NONE, MIXGEMM_CPU, 1, 0, MIXGEMM_COLUMNS_NATURAL         \
  }

typedef struct mixgemm_plan_options {
  size_t struct_size;
  const char* kernel;  /* kernel or configuration id; NULL or "": the plan picks */
  int32_t num_threads; /* CPU plans; 0: all cores */
  int32_t reserved;    /* 0 */
} mixgemm_plan_options_t;

#define MIXGEMM_PLAN_OPTIONS_INIT \
  { sizeof(mixgemm_plan_options_t), NULL, 0, 0 }

/* Decides how to run a problem. options NULL: the defaults. */
MIXGEMM_API mixgemm_status_t mixgemm_plan_create(const mixgemm_problem_t* problem,
                                                 const mixgemm_plan_options_t* options,
                                                 mixgemm_plan_t** plan);

/* Bytes that args.workspace needs; 0 for NULL. */
MIXGEMM_API size_t mixgemm_plan_workspace_bytes(const mixgemm_plan_t* plan);
/* Strings that live as long as the plan; "" for NULL. */
MIXGEMM_API const char* mixgemm_plan_kernel_id(const mixgemm_plan_t* plan);
MIXGEMM_API const char* mixgemm_plan_config_id(const mixgemm_plan_t* plan);
/* Which kernel and why, a few lines. */
MIXGEMM_API const char* mixgemm_plan_explain(const mixgemm_plan_t* plan);

/* The addresses of one call; leading dimensions in elements. */
typedef struct mixgemm_run_args {
  size_t struct_size;
  const void* x; /* [M, K] row-major */
  int64_t ldx;   /* >= K */
  const mixgemm_weight_t* weight;
  void* y;              /* [M, N] row-major */
  int64_t ldy;          /* >= N */
  const void* bias;     /* [N], exactly when the problem has a bias */
  const void* residual; /* [M, N], exactly when the problem has a residual; may be y itself */
  int64_t ldr;          /* >= N */
  void* workspace;      /* mixgemm_plan_workspace_bytes(), aligned to 256 bytes */
  size_t workspace_bytes;
  void* stream; /* cudaStream_t; ignored on the CPU */
  float alpha;  /* default 1 */
  int32_t pdl; /* programmatic dependent launch: no kernel in flight writes the weight; default 0 */
} mixgemm_run_args_t;

#define MIXGEMM_RUN_ARGS_INIT \
  { sizeof(mixgemm_run_args_t), NULL, 0, NULL, NULL, 0, NULL, NULL, 0, NULL, 0, NULL, 1.0f, 0 }

/* Checks the arguments, then multiplies. CUDA: enqueues on args->stream. CPU: y is complete on
 * return. On a failed check nothing has been touched. */
MIXGEMM_API mixgemm_status_t mixgemm_plan_run(const mixgemm_plan_t* plan,
                                              const mixgemm_run_args_t* args);

MIXGEMM_API void mixgemm_plan_free(mixgemm_plan_t* plan);

/* ------------------------------------------------------------------ what there is */

typedef struct mixgemm_kernel_info {
  size_t struct_size;
  const char* id;
  int32_t device;    /* mixgemm_device_t */
  int32_t arch;      /* 90, 80; 0 on the CPU */
  int32_t registers; /* per thread; 0 where unknown */
  int32_t reserved;  /* 0 */
  uint64_t shared_bytes;
  const char* reason; /* why the variant is there */
} mixgemm_kernel_info_t;

#define MIXGEMM_KERNEL_INFO_INIT \
  { sizeof(mixgemm_kernel_info_t), NULL, 0, 0, 0, 0, 0, NULL }

/* Kernels of this build; strings live as long as the library. Fails with not_found past the end. */
MIXGEMM_API size_t mixgemm_num_kernels(void);
MIXGEMM_API mixgemm_status_t mixgemm_kernel_get_info(size_t idx, mixgemm_kernel_info_t* info);

typedef struct mixgemm_device_info {
  size_t struct_size;
  int32_t device; /* mixgemm_device_t */
  int32_t arch;   /* compute capability x 10; 0 on the CPU */
  const char* name;
  int32_t num_sms;  /* or cores */
  int32_t usable;   /* 0: `note` says why */
  const char* note; /* BLAS, SIMD target, driver */
} mixgemm_device_info_t;

#define MIXGEMM_DEVICE_INFO_INIT \
  { sizeof(mixgemm_device_info_t), 0, 0, NULL, 0, 0, NULL }

/* The CPU first, then CUDA devices, as found at the first call. */
MIXGEMM_API size_t mixgemm_num_devices(void);
MIXGEMM_API mixgemm_status_t mixgemm_device_get_info(size_t idx, mixgemm_device_info_t* info);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* MIXGEMM_MIXGEMM_H_ */
