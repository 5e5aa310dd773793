// SPDX-License-Identifier: Apache-2.0
// The C ABI's own duties: structs by size, enumerators from outside, handles, errors per thread.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "call.hpp"
#include "mixgemm/checkpoint.hpp"
#include "mixgemm/mixgemm.h"

namespace {

using ::testing::HasSubstr;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitizedAllocator = true;
#else
constexpr bool kSanitizedAllocator = false;
#endif

constexpr std::int64_t kN = 32, kK = 128;

/// A symmetric int4 weight whose codes count up.
mixgemm_weight_t* make_weight() {
  std::vector<std::uint8_t> codes(kN * kK);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i % 16);
  std::vector<std::uint16_t> scales(kN, 0x3c00);  // 1.0 in fp16
  mixgemm_canonical_t canonical = MIXGEMM_CANONICAL_INIT;
  canonical.n = kN;
  canonical.k = kK;
  canonical.codes = codes.data();
  canonical.scales = scales.data();
  mixgemm_weight_t* weight = nullptr;
  EXPECT_EQ(mixgemm_weight_pack(&canonical, 1, &weight), MIXGEMM_OK) << mixgemm_last_error();
  return weight;
}

mixgemm_problem_t make_problem() {
  mixgemm_problem_t problem = MIXGEMM_PROBLEM_INIT;
  problem.m = 2;
  problem.n = kN;
  problem.k = kK;
  return problem;
}

/// Arguments over static buffers, large enough for make_problem().
mixgemm_run_args_t make_args(const mixgemm_weight_t* weight, const mixgemm_plan_t* plan) {
  static std::vector<std::uint16_t> x(2 * kK, 0x3c00), y(2 * kN);
  alignas(256) static unsigned char workspace[1 << 22];
  EXPECT_LE(mixgemm_plan_workspace_bytes(plan), sizeof(workspace));
  mixgemm_run_args_t args = MIXGEMM_RUN_ARGS_INIT;
  args.x = x.data();
  args.ldx = kK;
  args.weight = weight;
  args.y = y.data();
  args.ldy = kN;
  args.workspace = workspace;
  args.workspace_bytes = sizeof(workspace);
  return args;
}

void expect_failed(mixgemm_status_t status, mixgemm_status_t expected, const std::string& words) {
  EXPECT_EQ(status, expected) << mixgemm_last_error();
  EXPECT_THAT(mixgemm_last_error(), HasSubstr(words));
}

/// The current struct with bytes that a newer header would have added.
template <class T>
struct Newer {
  T known;
  unsigned char added[24] = {};
};

TEST(CStructs, UninitializedSizeIsRefused) {
  mixgemm_plan_t* plan = nullptr;
  for (const std::size_t size : {std::size_t{0}, std::size_t{8}, ~std::size_t{0}}) {
    mixgemm_problem_t problem = make_problem();
    problem.struct_size = size;
    expect_failed(mixgemm_plan_create(&problem, nullptr, &plan), MIXGEMM_INVALID_ARGUMENT,
                  "mixgemm_problem_t.struct_size must be");
    EXPECT_THAT(mixgemm_last_error(), HasSubstr("MIXGEMM_PROBLEM_INIT"));
    EXPECT_THAT(mixgemm_last_error(), HasSubstr(std::to_string(size)));
  }
}

TEST(CStructs, OlderHeadersGetDefaultsForWhatTheyLack) {
  mixgemm_problem_t problem = make_problem();
  problem.struct_size = offsetof(mixgemm_problem_t, bias);
  problem.bias = 77;  // beyond the struct: must not be read
  problem.device = 99;
  problem.columns = 5;
  mixgemm_plan_t* plan = nullptr;
  ASSERT_EQ(mixgemm_plan_create(&problem, nullptr, &plan), MIXGEMM_OK) << mixgemm_last_error();

  mixgemm_weight_t* weight = make_weight();
  mixgemm_run_args_t args = make_args(weight, plan);
  args.struct_size = offsetof(mixgemm_run_args_t, alpha);
  args.alpha = 0.0f;  // beyond the struct: 1 is the default
  ASSERT_EQ(mixgemm_plan_run(plan, &args), MIXGEMM_OK) << mixgemm_last_error();
  std::uint16_t y0 = 0;
  std::memcpy(&y0, args.y, 2);
  EXPECT_NE(y0 & 0x7fff, 0);  // Σ (q − 8) over 8 runs of 0..15 is −64
  EXPECT_EQ(y0, 0xd400);
  mixgemm_weight_free(weight);
  mixgemm_plan_free(plan);
}

TEST(CStructs, NewerHeadersPassWhileTheirFieldsAreZero) {
  Newer<mixgemm_problem_t> newer{make_problem()};
  newer.known.struct_size = sizeof(newer);
  mixgemm_plan_t* plan = nullptr;
  EXPECT_EQ(mixgemm_plan_create(&newer.known, nullptr, &plan), MIXGEMM_OK) << mixgemm_last_error();
  mixgemm_plan_free(plan);
  newer.added[5] = 1;
  expect_failed(mixgemm_plan_create(&newer.known, nullptr, &plan), MIXGEMM_UNSUPPORTED,
                "mixgemm_problem_t: byte " + std::to_string(sizeof(mixgemm_problem_t) + 5));
  EXPECT_EQ(plan, nullptr);
}

TEST(CStructs, OutputsAreFilledAsFarAsTheCallerKnows) {
  mixgemm_weight_t* weight = make_weight();
  mixgemm_weight_info_t older = MIXGEMM_WEIGHT_INFO_INIT;
  older.struct_size = offsetof(mixgemm_weight_info_t, device);
  older.size_bytes = 123;
  ASSERT_EQ(mixgemm_weight_get_info(weight, &older), MIXGEMM_OK) << mixgemm_last_error();
  EXPECT_EQ(older.struct_size, offsetof(mixgemm_weight_info_t, device));
  EXPECT_EQ(older.n, kN);
  EXPECT_EQ(older.spec.group_size, 128);
  EXPECT_EQ(older.size_bytes, 123u);

  Newer<mixgemm_weight_info_t> newer{MIXGEMM_WEIGHT_INFO_INIT};
  newer.known.struct_size = sizeof(newer);
  newer.added[0] = 9;
  ASSERT_EQ(mixgemm_weight_get_info(weight, &newer.known), MIXGEMM_OK);
  EXPECT_EQ(newer.known.k, kK);
  EXPECT_EQ(newer.known.size_bytes, 2u * 2 * 512 + 32 * 2);
  EXPECT_EQ(newer.added[0], 9);
  mixgemm_weight_free(weight);
}

TEST(CValues, EnumeratorsFromOutsideDontWrap) {
  // 256 + 1 would be a legal value in the C++ enum's single byte.
  mixgemm_plan_t* plan = nullptr;
  const auto refuse = [&](std::int32_t mixgemm_problem_t::*field, std::int32_t value,
                          const char* words) {
    mixgemm_problem_t problem = make_problem();
    problem.*field = value;
    expect_failed(mixgemm_plan_create(&problem, nullptr, &plan), MIXGEMM_INVALID_ARGUMENT, words);
  };
  refuse(&mixgemm_problem_t::act, 257, "act must be 0 .. 2; got 257");
  refuse(&mixgemm_problem_t::activation, -1, "activation must be 0 .. 3; got -1");
  refuse(&mixgemm_problem_t::device, 2, "device must be 0 .. 1; got 2");
  refuse(&mixgemm_problem_t::bias, 2, "bias must be 0 or 1; got 2");
  refuse(&mixgemm_problem_t::deterministic, -1, "deterministic must be 0 or 1; got -1");
  refuse(&mixgemm_problem_t::columns, 2, "columns must be 0 .. 1; got 2");
  mixgemm_problem_t problem = make_problem();
  problem.weight.type = 256;
  expect_failed(mixgemm_plan_create(&problem, nullptr, &plan), MIXGEMM_INVALID_ARGUMENT,
                "spec.type must be 0 .. 1; got 256");
  EXPECT_STREQ(mixgemm_status_name(MIXGEMM_CORRUPT_DATA), "corrupt_data");
  EXPECT_STREQ(mixgemm_status_name(-7), "?");
}

TEST(CHandles, NullIsRefusedOrHarmless) {
  mixgemm_weight_t* weight = nullptr;
  mixgemm_plan_t* plan = nullptr;
  mixgemm_checkpoint_t* file = nullptr;
  const mixgemm_problem_t problem = make_problem();
  const auto refused = [](mixgemm_status_t status, const char* what) {
    expect_failed(status, MIXGEMM_INVALID_ARGUMENT, std::string(what) + " must not be null");
  };
  refused(mixgemm_plan_create(nullptr, nullptr, &plan), "problem");
  refused(mixgemm_plan_create(&problem, nullptr, nullptr), "plan");
  refused(mixgemm_plan_run(nullptr, nullptr), "plan");
  refused(mixgemm_weight_quantize(nullptr, MIXGEMM_F32, 1, 1, 1, nullptr, &weight), "w");
  refused(mixgemm_weight_pack(nullptr, 0, &weight), "canonical");
  refused(mixgemm_weight_unpack(nullptr, 0, nullptr, nullptr, nullptr, nullptr), "weight");
  refused(mixgemm_weight_slice_n(nullptr, 0, 1, &weight), "weight");
  refused(mixgemm_weight_slice_k(nullptr, 0, 1, nullptr), "slice");
  refused(mixgemm_weight_to_cuda(nullptr, &weight), "weight");
  refused(mixgemm_weight_get_info(nullptr, nullptr), "weight");
  refused(mixgemm_checkpoint_open(nullptr, &file), "path");
  refused(mixgemm_checkpoint_weight(nullptr, "a", &weight), "checkpoint");
  refused(mixgemm_checkpoint_save(nullptr, 1, nullptr, nullptr), "path");
  refused(mixgemm_kernel_get_info(0, nullptr), "info");
  refused(mixgemm_device_get_info(0, nullptr), "info");
  EXPECT_EQ(mixgemm_plan_workspace_bytes(nullptr), 0u);
  EXPECT_STREQ(mixgemm_plan_kernel_id(nullptr), "");
  EXPECT_STREQ(mixgemm_plan_config_id(nullptr), "");
  EXPECT_STREQ(mixgemm_plan_explain(nullptr), "");
  EXPECT_EQ(mixgemm_checkpoint_num_weights(nullptr), 0u);
  EXPECT_EQ(mixgemm_checkpoint_weight_name(nullptr, 0), nullptr);
  mixgemm_plan_free(nullptr);
  mixgemm_weight_free(nullptr);
  mixgemm_checkpoint_close(nullptr);
}

TEST(CHandles, FailureLeavesNull) {
  auto* const stale = reinterpret_cast<mixgemm_plan_t*>(0x10);
  mixgemm_plan_t* plan = stale;
  mixgemm_problem_t problem = make_problem();
  problem.k = 0;
  expect_failed(mixgemm_plan_create(&problem, nullptr, &plan), MIXGEMM_INVALID_ARGUMENT,
                "k must be 1 ..");
  EXPECT_EQ(plan, nullptr);
  auto* weight = reinterpret_cast<mixgemm_weight_t*>(0x10);
  mixgemm_canonical_t canonical = MIXGEMM_CANONICAL_INIT;
  expect_failed(mixgemm_weight_pack(&canonical, 0, &weight), MIXGEMM_INVALID_ARGUMENT,
                "n must be 1 ..");
  EXPECT_EQ(weight, nullptr);
}

TEST(CHandles, SliceOutlivesItsParent) {
  mixgemm_weight_t* weight = make_weight();
  mixgemm_weight_t* slice = nullptr;
  ASSERT_EQ(mixgemm_weight_slice_n(weight, 16, 32, &slice), MIXGEMM_OK) << mixgemm_last_error();
  mixgemm_weight_free(weight);
  std::vector<std::uint8_t> codes(16 * kK);
  std::vector<std::uint16_t> scales(16);
  ASSERT_EQ(mixgemm_weight_unpack(slice, 1, codes.data(), scales.data(), nullptr, nullptr),
            MIXGEMM_OK)
      << mixgemm_last_error();
  for (std::size_t i = 0; i < codes.size(); ++i) ASSERT_EQ(codes[i], i % 16);
  std::uint8_t zeros = 0;
  expect_failed(mixgemm_weight_unpack(slice, 1, codes.data(), scales.data(), &zeros, nullptr),
                MIXGEMM_INVALID_ARGUMENT, "zeros must be null where the zero-point kind is none");
  mixgemm_weight_t* bad = nullptr;
  expect_failed(mixgemm_weight_slice_k(slice, 1, 64, &bad), MIXGEMM_INVALID_ARGUMENT, "128");
  mixgemm_weight_free(slice);
}

TEST(CHandles, WeightOutlivesItsCheckpoint) {
  const std::string path =
      (std::filesystem::temp_directory_path() /
       ("mixgemm_c_api_" + std::to_string(::testing::UnitTest::GetInstance()->random_seed()) + "_" +
        std::to_string(static_cast<long>(getpid())) + ".safetensors"))
          .string();
  mixgemm_weight_t* weight = make_weight();
  const char* const names[] = {"b", "a"};
  const mixgemm_weight_t* const weights[] = {weight, weight};
  ASSERT_EQ(mixgemm_checkpoint_save(path.c_str(), 2, names, weights), MIXGEMM_OK)
      << mixgemm_last_error();
  mixgemm_checkpoint_t* file = nullptr;
  ASSERT_EQ(mixgemm_checkpoint_open(path.c_str(), &file), MIXGEMM_OK) << mixgemm_last_error();
  ASSERT_EQ(mixgemm_checkpoint_num_weights(file), 2u);
  EXPECT_STREQ(mixgemm_checkpoint_weight_name(file, 0), "a");
  EXPECT_STREQ(mixgemm_checkpoint_weight_name(file, 1), "b");
  EXPECT_EQ(mixgemm_checkpoint_weight_name(file, 2), nullptr);
  mixgemm_weight_t* loaded = nullptr;
  expect_failed(mixgemm_checkpoint_weight(file, "c", &loaded), MIXGEMM_NOT_FOUND, "c");
  ASSERT_EQ(mixgemm_checkpoint_weight(file, "a", &loaded), MIXGEMM_OK) << mixgemm_last_error();
  mixgemm_checkpoint_close(file);
  std::filesystem::remove(path);
  std::vector<std::uint8_t> codes(kN * kK);
  std::vector<std::uint16_t> scales(kN);
  ASSERT_EQ(mixgemm_weight_unpack(loaded, 1, codes.data(), scales.data(), nullptr, nullptr),
            MIXGEMM_OK);
  for (std::size_t i = 0; i < codes.size(); ++i) ASSERT_EQ(codes[i], i % 16);
  mixgemm_weight_free(loaded);
  mixgemm_weight_free(weight);
  expect_failed(mixgemm_checkpoint_open(path.c_str(), &file), MIXGEMM_NOT_FOUND, path);
  EXPECT_EQ(file, nullptr);
}

TEST(CHandles, PermutedWeightIsRefusedUntilXIsGathered) {
  mixgemm::CanonicalWeight canonical;
  canonical.n = 16;
  canonical.k = 32;
  canonical.spec.group_size = 0;
  canonical.codes.assign(16 * 32, 9);
  canonical.scales.assign(16, 0x3c00);
  for (int j = 0; j < 32; ++j) canonical.permutation.push_back(31 - j);
  const std::string path = (std::filesystem::temp_directory_path() /
                            ("mixgemm_c_permuted_" + std::to_string(static_cast<long>(getpid()))))
                               .string();
  const auto packed = mixgemm::pack(canonical, 1).value();
  auto writer = mixgemm::PackedCheckpointWriter::create(path).value();
  writer.declare_packed("w", 16, 32, canonical.spec, mixgemm::ColumnOrder::permuted)
      .throw_if_error();
  writer.write_packed("w", packed.view()).throw_if_error();
  writer.finish().throw_if_error();
  mixgemm_checkpoint_t* file = nullptr;
  ASSERT_EQ(mixgemm_checkpoint_open(path.c_str(), &file), MIXGEMM_OK) << mixgemm_last_error();
  mixgemm_weight_t* weight = nullptr;
  ASSERT_EQ(mixgemm_checkpoint_weight(file, "w", &weight), MIXGEMM_OK) << mixgemm_last_error();
  mixgemm_checkpoint_close(file);
  std::filesystem::remove(path);
  ASSERT_NE(mixgemm_weight_permutation(weight), nullptr);
  EXPECT_EQ(mixgemm_weight_permutation(weight)[0], 31);
  EXPECT_EQ(mixgemm_weight_permutation(nullptr), nullptr);

  std::vector<std::uint8_t> codes(16 * 32);
  std::vector<std::uint16_t> scales(16), x(32), gathered(32);
  expect_failed(mixgemm_weight_unpack(weight, 1, codes.data(), scales.data(), nullptr, nullptr),
                MIXGEMM_UNSUPPORTED, "permutation");
  x[31] = 1;
  ASSERT_EQ(mixgemm_weight_gather_columns(weight, x.data(), 1, 32, gathered.data(), 32, 1),
            MIXGEMM_OK);
  EXPECT_EQ(gathered[0], 1);
  expect_failed(mixgemm_weight_gather_columns(weight, x.data(), 1, 31, gathered.data(), 32, 1),
                MIXGEMM_INVALID_ARGUMENT, "ldx must be at least K = 32; got 31");
  mixgemm_weight_t* for_gathered = nullptr;
  ASSERT_EQ(mixgemm_weight_for_gathered_x(weight, &for_gathered), MIXGEMM_OK);

  // A plan for permuted columns gathers by itself.
  std::fill(x.begin(), x.end(), 0x3c00);
  x[31] = 0x4000;
  mixgemm_weight_gather_columns(weight, x.data(), 1, 32, gathered.data(), 32, 1);
  mixgemm_problem_t problem = MIXGEMM_PROBLEM_INIT;
  problem.m = 1;
  problem.n = 16;
  problem.k = 32;
  problem.weight.group_size = 0;
  std::vector<std::uint16_t> products[2];
  for (const int columns : {MIXGEMM_COLUMNS_NATURAL, MIXGEMM_COLUMNS_PERMUTED}) {
    problem.columns = columns;
    mixgemm_plan_t* plan = nullptr;
    ASSERT_EQ(mixgemm_plan_create(&problem, nullptr, &plan), MIXGEMM_OK) << mixgemm_last_error();
    mixgemm::AlignedBuffer workspace(mixgemm_plan_workspace_bytes(plan));
    products[columns].resize(16);
    mixgemm_run_args_t args = MIXGEMM_RUN_ARGS_INIT;
    args.x = columns == MIXGEMM_COLUMNS_PERMUTED ? x.data() : gathered.data();
    args.ldx = 32;
    args.weight = columns == MIXGEMM_COLUMNS_PERMUTED ? weight : for_gathered;
    args.y = products[columns].data();
    args.ldy = 16;
    args.workspace = workspace.get();
    args.workspace_bytes = mixgemm_plan_workspace_bytes(plan);
    EXPECT_EQ(mixgemm_plan_run(plan, &args), MIXGEMM_OK) << mixgemm_last_error();
    args.weight = columns == MIXGEMM_COLUMNS_PERMUTED ? for_gathered : weight;
    expect_failed(mixgemm_plan_run(plan, &args), MIXGEMM_INVALID_ARGUMENT, "weight.permutation");
    mixgemm_plan_free(plan);
  }
  EXPECT_EQ(products[0], products[1]);
  EXPECT_EQ(mixgemm_weight_permutation(for_gathered), nullptr);
  mixgemm_weight_free(weight);
  EXPECT_EQ(mixgemm_weight_unpack(for_gathered, 1, codes.data(), scales.data(), nullptr, nullptr),
            MIXGEMM_OK);
  mixgemm_weight_free(for_gathered);
}

TEST(CErrors, BelongToTheirThread) {
  mixgemm_plan_t* plan = nullptr;
  mixgemm_problem_t problem = make_problem();
  problem.m = -3;
  expect_failed(mixgemm_plan_create(&problem, nullptr, &plan), MIXGEMM_INVALID_ARGUMENT, "got -3");
  std::thread([] {
    EXPECT_STREQ(mixgemm_last_error(), "");
    mixgemm_plan_t* other = nullptr;
    mixgemm_plan_create(nullptr, nullptr, &other);
    EXPECT_THAT(mixgemm_last_error(), HasSubstr("problem"));
  }).join();
  EXPECT_THAT(mixgemm_last_error(), HasSubstr("got -3"));
}

TEST(CErrors, ExhaustedMemoryIsAStatus) {
  if (kSanitizedAllocator) GTEST_SKIP() << "the sanitizers' allocator ends the process instead";
  std::uint8_t code = 0;
  std::uint16_t scale = 0;
  mixgemm_canonical_t canonical = MIXGEMM_CANONICAL_INIT;
  canonical.n = canonical.k = INT32_MAX;
  canonical.codes = &code;
  canonical.scales = &scale;
  mixgemm_weight_t* weight = nullptr;
  expect_failed(mixgemm_weight_pack(&canonical, 1, &weight), MIXGEMM_OUT_OF_MEMORY,
                "out of memory");
}

TEST(CPlans, RunAndExplain) {
  mixgemm_plan_t* plan = nullptr;
  const mixgemm_problem_t problem = make_problem();
  mixgemm_plan_options_t options = MIXGEMM_PLAN_OPTIONS_INIT;
  options.kernel = "cpu_f16_i4_g_simd@g128_t2";
  ASSERT_EQ(mixgemm_plan_create(&problem, &options, &plan), MIXGEMM_OK) << mixgemm_last_error();
  EXPECT_STREQ(mixgemm_plan_kernel_id(plan), "cpu_f16_i4_g_simd");
  EXPECT_STREQ(mixgemm_plan_config_id(plan), "cpu_f16_i4_g_simd@g128_t2");
  EXPECT_THAT(mixgemm_plan_explain(plan), HasSubstr("cpu_f16_i4_g_simd@g128_t2"));
  mixgemm_weight_t* weight = make_weight();
  mixgemm_run_args_t args = make_args(weight, plan);
  EXPECT_EQ(mixgemm_plan_run(plan, &args), MIXGEMM_OK) << mixgemm_last_error();
  args.ldx = 3;
  expect_failed(mixgemm_plan_run(plan, &args), MIXGEMM_INVALID_ARGUMENT, "ldx must be at least K");
  args = make_args(nullptr, plan);
  expect_failed(mixgemm_plan_run(plan, &args), MIXGEMM_INVALID_ARGUMENT, "weight must not be null");
  mixgemm_weight_free(weight);
  mixgemm_plan_free(plan);
}

TEST(CListing, KernelsAndDevices) {
  ASSERT_GT(mixgemm_num_kernels(), 0u);
  mixgemm_kernel_info_t kernel = MIXGEMM_KERNEL_INFO_INIT;
  ASSERT_EQ(mixgemm_kernel_get_info(0, &kernel), MIXGEMM_OK);
  EXPECT_THAT(kernel.id, HasSubstr("cpu_"));
  EXPECT_STRNE(kernel.reason, "");
  expect_failed(mixgemm_kernel_get_info(mixgemm_num_kernels(), &kernel), MIXGEMM_NOT_FOUND,
                "kernels, so idx must be below");
  ASSERT_GT(mixgemm_num_devices(), 0u);
  mixgemm_device_info_t device = MIXGEMM_DEVICE_INFO_INIT;
  ASSERT_EQ(mixgemm_device_get_info(0, &device), MIXGEMM_OK);
  EXPECT_EQ(device.device, MIXGEMM_CPU);
  EXPECT_EQ(device.usable, 1);
  EXPECT_STRNE(device.name, "");
  EXPECT_STREQ(mixgemm_version(), MIXGEMM_VERSION_STRING);
  EXPECT_EQ(mixgemm_packed_format_version(), 1);
}

}  // namespace
