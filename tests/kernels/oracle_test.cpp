// SPDX-License-Identifier: Apache-2.0
// The fp64 product on the GPU, which every other test trusts, against the CPU oracle; and
// to_cuda().
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "gpu_case.hpp"
#include "layout/packed.hpp"
#include "util/half.hpp"

namespace mixgemm::gpu_test {
namespace {

template <class T>
std::vector<T> download(const T* device, std::size_t count) {
  std::vector<T> values(count);
  check_cuda(cudaMemcpy(values.data(), device, count * sizeof(T), cudaMemcpyDeviceToHost),
             "download");
  return values;
}

TEST(GpuReference, AgreesWithTheCpuOracle) {
  MIXGEMM_NEED_DEVICE();
  Session& session = Session::instance();
  for (const ZeroKind zero : {ZeroKind::none, ZeroKind::integer, ZeroKind::scaled}) {
    for (const WeightType type : {WeightType::int4, WeightType::int8}) {
      for (const int group : {0, 16, 32, 64, 128}) {
        for (const DataType act : {DataType::f16, DataType::bf16}) {
          session.arena->reset();
          const int m = 5, n = 37, k = 201;
          const QuantSpec spec{type, zero, group, act};
          const TestWeight weight(*session.arena, n, k, spec, 99u + static_cast<unsigned>(group),
                                  session.stream);
          const TestInputs in(*session.arena, weight, m, act, 5, session.stream);
          check_cuda(cudaStreamSynchronize(session.stream), "reference");
          const auto x = download(in.x[0].allocation, in.x[0].elems);
          const auto sums = download(in.sums.exact, static_cast<std::size_t>(m) * n);

          Problem problem = problem_for(weight.on_cpu().view(), m, act, {});
          problem.device = Device::cpu;
          std::vector<double> y(static_cast<std::size_t>(m) * n);
          RunArgs args;
          args.x = x.data() + in.x[0].first;
          args.ldx = in.x[0].ld;
          args.weight = weight.on_cpu().view();
          args.y = y.data();
          args.ldy = n;
          const Status status = reference_gemm(problem, args);
          ASSERT_TRUE(status) << status.message();
          for (std::size_t i = 0; i < y.size(); ++i) {
            ASSERT_NEAR(sums[i], y[i], 1e-11 + 1e-12 * std::fabs(y[i]))
                << to_string(type) << " " << to_string(zero) << " group " << group << " at " << i;
          }
        }
      }
    }
  }
}

TEST(GpuReference, ChecksSeeWhatTheyMustSee) {
  MIXGEMM_NEED_DEVICE();
  Session& session = Session::instance();
  session.arena->reset();
  const int m = 64, n = 64, k = 128;
  const QuantSpec spec;
  const TestWeight weight(*session.arena, n, k, spec, 1, session.stream);
  const TestInputs in(*session.arena, weight, m, DataType::f16, 2, session.stream);
  auto* const device = session.arena->allocate_array<Findings>(1);
  const Matrix y = make_matrix(*session.arena, m, n, Placement::aligned);
  // Y as a perfect kernel would leave it, then spoilt in one element.
  const auto look = [&](const std::vector<std::uint16_t>& bits) {
    check_cuda(cudaMemcpyAsync(y.allocation, bits.data(), bits.size() * 2, cudaMemcpyHostToDevice,
                               session.stream),
               "Y");
    check_cuda(cudaMemsetAsync(device, 0, sizeof(Findings), session.stream), "findings");
    check_output(y, DataType::f16, in.sums, k, {}, device, session.stream);
    check_cuda(cudaStreamSynchronize(session.stream), "check");
    return download(device, 1)[0];
  };
  check_cuda(cudaStreamSynchronize(session.stream), "reference");
  const auto rounded = download(in.sums.rounded, static_cast<std::size_t>(m) * n);
  std::vector<std::uint16_t> good(y.elems, 0xffff);
  for (int row = 0; row < m; ++row) {
    for (int col = 0; col < n; ++col) {
      good[y.first + static_cast<std::size_t>(row * y.ld + col)] =
          f16_from_f32(static_cast<float>(rounded[static_cast<std::size_t>(row * n + col)]));
    }
  }
  const Findings clean = look(good);
  EXPECT_EQ(clean.nans + clean.strays, 0u);
  EXPECT_LE(clean.worst_ratio, 1.0f);
  EXPECT_LE(clean.error2, 1.02 * clean.reference_error2);

  // The largest output, changed by a quarter to a half of its value.
  const auto largest = std::max_element(rounded.begin(), rounded.end(),
                                        [](auto a, auto b) { return std::abs(a) < std::abs(b); }) -
                       rounded.begin();
  auto bad = good;
  bad[y.first + static_cast<std::size_t>(largest / n * y.ld + largest % n)] ^= 0x0200;
  EXPECT_GT(look(bad).worst_ratio, 1.0f);
  bad = good;
  bad[y.first + static_cast<std::size_t>(y.ld) + 3] = 0xffff;
  EXPECT_EQ(look(bad).nans, 1u);
  bad = good;
  bad[y.first - 1] = 0;
  bad[y.first + static_cast<std::size_t>(n)] = 0;
  bad[y.elems - 1] = 0;
  EXPECT_EQ(look(bad).strays, 3u);
}

TEST(ToCuda, IntegerZerosBecomeFloatsAndNothingElseChanges) {
  MIXGEMM_NEED_DEVICE();
  for (const ZeroKind zero : {ZeroKind::none, ZeroKind::integer, ZeroKind::scaled}) {
    for (const WeightType type : {WeightType::int4, WeightType::int8}) {
      for (const DataType scale : {DataType::f16, DataType::bf16}) {
        const CanonicalWeight w = random_weight(40, 200, {type, zero, 64, scale}, 3);
        const auto packed = pack(w);
        ASSERT_TRUE(packed);
        const auto on_device = to_cuda(*packed);
        ASSERT_TRUE(on_device) << on_device.status().message();
        const PackedView &a = packed->view(), &b = on_device->view();
        EXPECT_EQ(b.device, Device::cuda);
        EXPECT_EQ(b.n, 40);
        EXPECT_EQ(b.k, 200);
        EXPECT_EQ(b.spec, a.spec);
        const std::size_t code_bytes = static_cast<std::size_t>(3 * a.codes_pitch_bytes);
        const auto codes = download(b.codes, code_bytes);
        EXPECT_EQ(b.codes_pitch_bytes, a.codes_pitch_bytes);
        EXPECT_EQ(std::memcmp(codes.data(), a.codes, code_bytes), 0);
        const std::size_t values = static_cast<std::size_t>(3 * a.groups_pitch) * 16;
        const auto scales = download(b.scales, values);
        EXPECT_EQ(std::memcmp(scales.data(), a.scales, values * 2), 0);
        if (zero == ZeroKind::none) {
          EXPECT_EQ(b.zeros, nullptr);
          continue;
        }
        const auto zeros = download(static_cast<const std::uint16_t*>(b.zeros), values);
        for (std::size_t i = 0; i < values; ++i) {
          if (zero == ZeroKind::scaled) {
            ASSERT_EQ(zeros[i], static_cast<const std::uint16_t*>(a.zeros)[i]);
          } else {
            ASSERT_EQ(f32_from_bits(zeros[i], scale),
                      static_cast<float>(static_cast<const std::uint8_t*>(a.zeros)[i]));
          }
        }
      }
    }
  }
}

TEST(ToCuda, SlicesTravelWithoutTheRest) {
  MIXGEMM_NEED_DEVICE();
  const CanonicalWeight w = random_weight(64, 512, {WeightType::int4, ZeroKind::integer, 64}, 4);
  const auto packed = pack(w);
  ASSERT_TRUE(packed);
  const auto slice = slice_k(packed->view(), 128, 384);
  ASSERT_TRUE(slice);
  const auto on_device = to_cuda(PackedWeight(*slice, nullptr));
  ASSERT_TRUE(on_device) << on_device.status().message();
  EXPECT_EQ(on_device->view().codes_pitch_bytes, layout::strip_bytes(256, 4));
  EXPECT_EQ(on_device->view().groups_pitch, 4);
  const auto row = download(on_device->view().codes + layout::strip_bytes(256, 4), 2048);
  EXPECT_EQ(std::memcmp(row.data(), slice->codes + slice->codes_pitch_bytes, 2048), 0);
}

TEST(ToCuda, RefusesWhatIsNotAPackedWeightOnTheCpu) {
  MIXGEMM_NEED_DEVICE();
  EXPECT_EQ(to_cuda(PackedWeight()).status().code(), StatusCode::invalid_argument);
  const auto packed = pack(random_weight(16, 64, {}, 5));
  ASSERT_TRUE(packed);
  const auto on_device = to_cuda(*packed);
  ASSERT_TRUE(on_device);
  const auto again = to_cuda(*on_device);
  EXPECT_EQ(again.status().code(), StatusCode::invalid_argument);
  EXPECT_NE(again.status().message().find("must be cpu; got cuda"), std::string::npos);
}

}  // namespace
}  // namespace mixgemm::gpu_test
