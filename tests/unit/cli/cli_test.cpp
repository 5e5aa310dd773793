// SPDX-License-Identifier: Apache-2.0
// Runs the program itself, as a shell would: exit codes, standard output, one-line errors, files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "mixgemm/checkpoint.hpp"
#include "util/half.hpp"

namespace mixgemm {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;
using testing::HasSubstr;

std::string read_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string quoted(const std::string& word) {
  std::string text = "'";
  for (const char c : word) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return text + "'";
}

struct Outcome {
  int exit_code = -1;
  std::string out, err;
  ordered_json json() const { return ordered_json::parse(out); }
};

class Cli : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("mixgemm_cli_" + std::to_string(getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  /// Runs `mixgemm words…`; stdout_to replaces the file that standard output goes to.
  Outcome run(const std::vector<std::string>& words, const std::string& stdout_to = "",
              const std::string& environment = "") const {
    std::string command = environment + " " + quoted(MIXGEMM_PROGRAM);
    for (const auto& word : words) command += " " + quoted(word);
    const std::string out = stdout_to.empty() ? path("stdout") : stdout_to;
    command += " >" + quoted(out) + " 2>" + quoted(path("stderr")) + " </dev/null";
    Outcome outcome;
    const int status = std::system(command.c_str());
    outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    if (stdout_to.empty()) outcome.out = read_text(out);
    outcome.err = read_text(path("stderr"));
    return outcome;
  }

  /// A failure is one line that says what; nothing on standard output.
  void expect_failure(const std::vector<std::string>& words, int exit_code,
                      const std::vector<std::string>& parts) const {
    const Outcome outcome = run(words);
    EXPECT_EQ(outcome.exit_code, exit_code) << outcome.err;
    EXPECT_EQ(outcome.out, "");
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
    EXPECT_TRUE(outcome.err.starts_with("mixgemm")) << outcome.err;
    for (const auto& part : parts) EXPECT_THAT(outcome.err, HasSubstr(part));
  }

  /// Two linear layers, an embedding and a bias. `change` may spoil the values of layer b.
  std::string write_model(const std::string& name = "model.safetensors", unsigned seed = 1,
                          const std::function<void(std::vector<float>&)>& change = {}) const {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    const auto values = [&](std::size_t count) {
      std::vector<float> v(count);
      for (float& x : v) x = 0.05f * normal(rng);
      return v;
    };
    const auto a = values(48 * 256), embedding = values(10 * 256), bias = values(48);
    auto b = values(20 * 96);
    if (change) change(b);
    auto writer = SafetensorsWriter::create(path(name)).value();
    writer.declare("a.weight", "F32", {48, 256}).throw_if_error();
    writer.declare("b.weight", "F32", {20, 96}).throw_if_error();
    writer.declare("embeddings.weight", "F32", {10, 256}).throw_if_error();
    writer.declare("a.bias", "F32", {48}).throw_if_error();
    writer.write("a.weight", a.data(), 4 * a.size()).throw_if_error();
    writer.write("b.weight", b.data(), 4 * b.size()).throw_if_error();
    writer.write("embeddings.weight", embedding.data(), 4 * embedding.size()).throw_if_error();
    writer.write("a.bias", bias.data(), 4 * bias.size()).throw_if_error();
    writer.finish().throw_if_error();
    return path(name);
  }

  std::string write_packed(const std::vector<std::string>& more = {}) const {
    std::vector<std::string> words = {"quantize", write_model(), "-o", path("packed.safetensors")};
    words.insert(words.end(), more.begin(), more.end());
    const Outcome outcome = run(words);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    return path("packed.safetensors");
  }

  std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_)) {
      names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  fs::path folder_;
};

TEST_F(Cli, HelpAndVersionSucceedOnStandardOutput) {
  for (const auto& words : std::vector<std::vector<std::string>>{
           {"--help"}, {"--version"}, {"quantize", "--help"}, {"bench", "--help"}}) {
    const Outcome outcome = run(words);
    EXPECT_EQ(outcome.exit_code, 0);
    EXPECT_THAT(outcome.out, HasSubstr("mixgemm"));
    EXPECT_EQ(outcome.err, "");
  }
}

TEST_F(Cli, UsageErrorsAreOneLineAndExitWithTwo) {
  expect_failure({}, 2, {"subcommand is required"});
  expect_failure({"qantize"}, 2, {"qantize"});
  expect_failure({"quantize"}, 2, {"mixgemm quantize", "input is required"});
  expect_failure({"quantize", "x", "-o", "y", "--group", "48"}, 2, {"--group", "48"});
  expect_failure({"quantize", "x", "-o", "y", "--weight", "int3"}, 2, {"--weight", "int3"});
  expect_failure({"quantize", "x", "-o", "y", "--max-shard-size", "4XB"}, 2,
                 {"--max-shard-size", "xb"});
  expect_failure({"run", "x", "--layer", "a", "--m", "0"}, 2, {"--m", "0"});
  expect_failure({"run", "x", "--layer", "a", "--m", "99999999999999999999"}, 2, {"--m"});
  expect_failure({"verify", "x", "--max-error", "-1"}, 2, {"--max-error", "-1"});
  expect_failure({"info", "surplus"}, 2, {"surplus"});
}

TEST_F(Cli, InfoAndKernelsDescribeTheCpu) {
  const auto info = run({"info", "--json"}).json();
  EXPECT_EQ(info["packed_format_version"], kPackedFormatVersion);
  EXPECT_EQ(info["devices"][0]["device"], "cpu");
  const auto kernels = run({"kernels", "--json", "--device", "cpu"}).json()["kernels"];
  ASSERT_FALSE(kernels.empty());
  for (const auto& kernel : kernels) {
    EXPECT_THAT(kernel["id"].get<std::string>(), HasSubstr("cpu_"));
    EXPECT_NE(kernel["reason"], "");
  }
  EXPECT_EQ(run({"info"}).exit_code, 0);
  EXPECT_EQ(run({"kernels"}).exit_code, 0);
  expect_failure({"kernels", "--filter", "no_such_id"}, 3, {"no_such_id"});
}

TEST_F(Cli, QuantizePacksLinearWeightsAndCopiesTheRest) {
  const auto model = write_model();
  const Outcome outcome = run({"quantize", model, "-o", path("q.safetensors"), "--json"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "") << "progress belongs on a terminal";
  EXPECT_EQ(outcome.json()["num_layers"], 2);

  const auto listing = run({"inspect", path("q.safetensors"), "--json"}).json();
  ASSERT_EQ(listing["layers"].size(), 2u);
  EXPECT_EQ(listing["layers"][0]["name"], "a");
  EXPECT_EQ(listing["layers"][0]["group"], 128);
  EXPECT_EQ(listing["layers"][1]["name"], "b");
  EXPECT_EQ(listing["layers"][1]["group"], 32) << "K = 96 is no multiple of 128 or 64";
  EXPECT_EQ(listing["dense"].size(), 2u);
  // Scales count: 4 bits + 16 bits per 128 k.
  EXPECT_DOUBLE_EQ(listing["layers"][0]["bits_per_weight"].get<double>(), 4.125);

  const Outcome verified = run({"verify", path("q.safetensors"), "--against", model, "--json"});
  EXPECT_EQ(verified.exit_code, 0) << verified.out;
  EXPECT_TRUE(verified.json()["matches"].get<bool>());
  EXPECT_EQ(run({"inspect", path("q.safetensors")}).exit_code, 0);
  EXPECT_EQ(run({"inspect", model}).exit_code, 0);
  EXPECT_FALSE(run({"inspect", model, "--json"}).json()["packed"].get<bool>());
}

TEST_F(Cli, QuantizeOptionsReachTheFile) {
  const auto packed = write_packed({"--weight", "int8", "--group", "0", "--zero", "integer",
                                    "--scale-type", "bf16", "--drop-dense", "--exclude", "^b"});
  const auto listing = run({"inspect", packed, "--json"}).json();
  // Without the default --exclude, the embedding is a weight like any other.
  ASSERT_EQ(listing["layers"].size(), 2u);
  EXPECT_EQ(listing["layers"][1]["name"], "embeddings");
  const auto& layer = listing["layers"][0];
  EXPECT_EQ(layer["weight"], "int8");
  EXPECT_EQ(layer["group"], 0);
  EXPECT_EQ(layer["zero"], "integer");
  EXPECT_EQ(layer["scale_type"], "bf16");
  EXPECT_TRUE(listing["dense"].empty());
  EXPECT_EQ(run({"verify", packed, "--against", path("model.safetensors")}).exit_code, 0);
}

TEST_F(Cli, StrictGroupKeepsAPartialLastGroup) {
  const auto packed = write_packed({"--strict-group"});
  EXPECT_EQ(run({"inspect", packed, "--json"}).json()["layers"][1]["group"], 128);
  EXPECT_EQ(run({"run", packed, "--layer", "b", "--m", "2", "--check"}).exit_code, 0);
}

TEST_F(Cli, ShardsAreOneCheckpoint) {
  const auto packed = write_packed({"--max-shard-size", "4KB"});
  EXPECT_FALSE(fs::exists(packed));
  EXPECT_TRUE(fs::exists(packed + ".index.json"));
  EXPECT_EQ(run({"verify", packed, "--against", path("model.safetensors")}).exit_code, 0);
}

TEST_F(Cli, DryRunWritesNothing) {
  const auto model = write_model();
  const Outcome outcome = run({"quantize", model, "--dry-run"});
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_THAT(outcome.out, HasSubstr("a.weight"));
  EXPECT_EQ(run({"quantize", model, "--dry-run", "--json"}).json()["layers"].size(), 2u);
  EXPECT_THAT(files(), testing::ElementsAre("model.safetensors", "stderr", "stdout"));
}

TEST_F(Cli, QuantizeRefusesWhatItCannotDo) {
  const auto model = write_model();
  expect_failure({"quantize", model}, 2, {"--output"});
  expect_failure({"quantize", path("absent.safetensors"), "-o", path("q.safetensors")}, 3,
                 {"absent.safetensors"});
  expect_failure({"quantize", model, "-o", model}, 2, {"--output must not be the input", model});
  expect_failure({"quantize", model, "-o", path("q.safetensors"), "--include", "("}, 2,
                 {"--include", "("});
  expect_failure({"quantize", model, "-o", path("q.safetensors"), "--include", "nothing"}, 2,
                 {"4 tensors", "--include"});
  expect_failure({"quantize", write_packed(), "-o", path("q.safetensors")}, 2, {"packed already"});
  EXPECT_FALSE(fs::exists(path("q.safetensors")));
}

TEST_F(Cli, NonFiniteWeightsAreNamedAndLeaveNoFile) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const auto model =
        write_model("bad.safetensors", 1, [&](std::vector<float>& b) { b[3 * 96 + 17] = bad; });
    expect_failure({"quantize", model, "-o", path("q.safetensors")}, 2, {"b.weight", "3", "17"});
    EXPECT_THAT(files(), testing::ElementsAre("bad.safetensors", "stderr", "stdout"));
  }
}

TEST_F(Cli, WeightsOfSizeZeroAreNamedAndLeaveNoFile) {
  const std::string header =
      R"({"a.weight": {"dtype": "F32", "shape": [0, 128], "data_offsets": [0, 0]}})";
  const std::uint64_t length = header.size();
  std::ofstream(path("empty.safetensors"), std::ios::binary)
          .write(reinterpret_cast<const char*>(&length), sizeof(length))
      << header;
  expect_failure({"quantize", path("empty.safetensors"), "-o", path("q.safetensors")}, 5,
                 {"empty.safetensors", "a.weight", "at least 1", "[0, 128]"});
  EXPECT_FALSE(fs::exists(path("q.safetensors")));
}

TEST_F(Cli, AnExistingOutputSurvivesAFailure) {
  const auto packed = write_packed();
  const auto before = read_text(packed);
  const auto bad = write_model("bad.safetensors", 1, [](std::vector<float>& b) { b[0] = NAN; });
  expect_failure({"quantize", bad, "-o", packed}, 2, {"b.weight"});
  EXPECT_EQ(read_text(packed), before);
}

TEST_F(Cli, AnInterruptLeavesAWholeFileOrNone) {
  constexpr int kLayers = 96;
  const std::vector<float> values(256 * 512, 0.5f);
  auto writer = SafetensorsWriter::create(path("large.safetensors")).value();
  for (int i = 0; i < kLayers; ++i) {
    writer.declare(std::to_string(i) + ".weight", "F32", {256, 512}).throw_if_error();
  }
  for (int i = 0; i < kLayers; ++i) {
    writer.write(std::to_string(i) + ".weight", values.data(), 4 * values.size()).throw_if_error();
  }
  writer.finish().throw_if_error();
  // Whatever the machine's speed, some of these signals meet the work.
  // --foreground: else the program gets each signal twice, and the second ends it at once.
  for (const char* seconds : {"0.02", "0.05", "0.1", "0.2"}) {
    const std::string command = std::string("timeout --foreground --signal=INT ") + seconds + " " +
                                quoted(MIXGEMM_PROGRAM) + " quantize " +
                                quoted(path("large.safetensors")) + " -o " +
                                quoted(path("q.safetensors")) + " >/dev/null 2>&1";
    (void)!std::system(command.c_str());
    if (fs::exists(path("q.safetensors"))) {
      EXPECT_EQ(run({"verify", path("q.safetensors")}).exit_code, 0);
      fs::remove(path("q.safetensors"));
    }
    for (const auto& name : files()) EXPECT_THAT(name, testing::Not(HasSubstr(".tmp"))) << seconds;
  }
}

TEST_F(Cli, TruncatedAndLyingFilesAreCorrupt) {
  const auto model = write_model();
  fs::resize_file(model, fs::file_size(model) - 100);
  expect_failure({"inspect", model}, 5, {"model.safetensors"});
  std::ofstream(path("tiny.safetensors")) << "abc";
  expect_failure({"inspect", path("tiny.safetensors")}, 5, {"tiny.safetensors"});
  std::ofstream(path("huge.safetensors")) << std::string(8, '\x7f') << "{}";
  expect_failure({"quantize", path("huge.safetensors"), "-o", path("q.safetensors")}, 5,
                 {"huge.safetensors"});
}

TEST_F(Cli, VerifyFindsAFlippedBit) {
  const auto packed = write_packed();
  EXPECT_EQ(run({"verify", packed}).exit_code, 0);
  auto bytes = read_text(packed);
  bytes[bytes.size() - 1000] ^= 1;
  std::ofstream(packed, std::ios::binary) << bytes;
  expect_failure({"verify", packed}, 5, {"checksum"});
}

TEST_F(Cli, VerifyAgainstAnotherModelDiffers) {
  const auto packed = write_packed();
  const auto other = write_model("other.safetensors", 2);
  const Outcome outcome = run({"verify", packed, "--against", other, "--json"});
  EXPECT_EQ(outcome.exit_code, 7);
  EXPECT_FALSE(outcome.json()["matches"].get<bool>());
  EXPECT_FALSE(outcome.json()["layers"][0]["good"].get<bool>());
  EXPECT_EQ(outcome.json()["different_dense"].size(), 2u);
  EXPECT_THAT(run({"verify", packed, "--against", other}).out, HasSubstr("does NOT match"));
  // Rounding to 4 bits can't be as close as this.
  EXPECT_EQ(run({"verify", packed, "--against", path("model.safetensors"), "--max-error", "0.001"})
                .exit_code,
            7);
}

TEST_F(Cli, VerifyRefusesAFileWithoutPackedLayers) {
  const auto model = write_model();
  const auto without = [](const std::string& what) {
    return std::vector<std::string>{"must have", what, "this file has none"};
  };
  expect_failure({"verify", model}, 5, without(model));
  expect_failure({"verify", model}, 5, without("mixgemm.format_version"));
  auto writer = PackedCheckpointWriter::create(path("empty.safetensors")).value();
  writer.finish().throw_if_error();
  expect_failure({"verify", path("empty.safetensors")}, 5, without("empty.safetensors"));
  expect_failure({"verify", path("empty.safetensors")}, 5, without("at least one packed layer"));
}

TEST_F(Cli, RunMultipliesWhatTheFileHolds) {
  const auto packed = write_packed();
  std::vector<float> x(3 * 256);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 7) - 3.0f;
  auto writer = SafetensorsWriter::create(path("x.safetensors")).value();
  writer.declare("activations", "F32", {3, 256}).throw_if_error();
  writer.write("activations", x.data(), 4 * x.size()).throw_if_error();
  writer.finish().throw_if_error();

  const Outcome outcome =
      run({"run", packed, "--layer", "a.weight", "--m", "3", "--x", path("x.safetensors"), "-o",
           path("y.safetensors"), "--check", "--explain", "--json"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_LT(outcome.json()["rel_err"].get<double>(), 1e-3);
  EXPECT_EQ(outcome.json()["layer"], "a");
  EXPECT_NE(outcome.json()["explain"], "");

  const auto weight =
      dequantize(unpack(PackedCheckpoint::open(packed).value().find("a").value().view()).value());
  const auto file = SafetensorsFile::open(path("y.safetensors")).value();
  const auto y = file.find("y").value();
  ASSERT_EQ(y.info.shape, (std::vector<std::int64_t>{3, 48}));
  ASSERT_EQ(y.info.dtype, "F16");
  for (int m = 0; m < 3; ++m) {
    for (int n = 0; n < 48; ++n) {
      double want = 0.0;
      for (int k = 0; k < 256; ++k) want += x[m * 256 + k] * weight.value()[n * 256 + k];
      const double got = f32_from_f16(static_cast<const std::uint16_t*>(y.data)[m * 48 + n]);
      EXPECT_NEAR(got, want, 2e-3 * std::max(1.0, std::abs(want))) << "m " << m << ", n " << n;
    }
  }
}

TEST_F(Cli, RunRefusesWhatDoesNotFit) {
  const auto packed = write_packed();
  const auto model = path("model.safetensors");
  expect_failure({"run", packed, "--layer", "c", "--m", "1"}, 3, {"no packed layer c", "a, b"});
  expect_failure({"run", packed, "--layer", "a", "--m", "1", "--x", model}, 3, {"tensor named x"});
  expect_failure({"run", model, "--layer", "a", "--m", "1"}, 5, {"model.safetensors"});
  expect_failure({"run", packed, "--layer", "a", "--m", "1", "--kernel", "no_such_kernel"}, 3,
                 {"no_such_kernel"});
  const auto write_x = [&](const std::vector<float>& x, std::int64_t rows) {
    auto writer = SafetensorsWriter::create(path("x.safetensors")).value();
    writer.declare("x", "F32", {rows, 256}).throw_if_error();
    writer.write("x", x.data(), 4 * x.size()).throw_if_error();
    writer.finish().throw_if_error();
  };
  write_x(std::vector<float>(512), 2);
  expect_failure({"run", packed, "--layer", "a", "--m", "1", "--x", path("x.safetensors")}, 2,
                 {"[1, 256]", "[2, 256]"});
  std::vector<float> large(256);
  large[5] = 1e6f;
  write_x(large, 1);
  expect_failure({"run", packed, "--layer", "a", "--m", "1", "--x", path("x.safetensors")}, 2,
                 {"[0, 5]", "fp16"});
  EXPECT_EQ(run({"run", packed, "--layer", "a", "--m", "1", "--act", "bf16", "--x",
                 path("x.safetensors")})
                .exit_code,
            0);
  expect_failure({"run", packed, "--layer", "a", "--m", "1", "-o", path("no_folder/y.safetensors")},
                 3, {"no_folder"});
}

TEST_F(Cli, TheReadmeExampleMultipliesWithAPackedFile) {
  const auto packed = write_packed();
  EXPECT_EQ(std::system((quoted(MIXGEMM_README_EXAMPLE) + " " + quoted(packed) + " a").c_str()), 0);
}

TEST_F(Cli, CompareMeasuresEveryLayer) {
  const auto packed = write_packed();
  const auto model = path("model.safetensors");
  std::vector<std::string> words = {"compare", packed, "--against", model, "--device", "cpu"};
  EXPECT_THAT(run(words).out, HasSubstr("fp32 BLAS µs"));
  words.push_back("--json");
  const auto without = run(words, "", "MIXGEMM_BLAS=none").json();
  EXPECT_TRUE(without["blas"].is_null());
  EXPECT_TRUE(without["total"]["speedup"].is_null());
  words.insert(words.end(), {"--m", "2"});
  const auto report = run(words).json();
  EXPECT_TRUE(report.contains("blas"));
  ASSERT_EQ(report["layers"].size(), 2u);
  for (const auto& layer : report["layers"]) {
    EXPECT_EQ(layer["device"], "cpu");
    EXPECT_TRUE(layer.contains("blas_f32_us"));
    EXPECT_FALSE(layer.contains("cublas_us"));
    EXPECT_GT(layer["us"].get<double>(), 0.0);
    for (const char* key : {"rel_err_weight", "rel_err_output"}) {
      EXPECT_GT(layer[key].get<double>(), 0.02);
      EXPECT_LT(layer[key].get<double>(), 0.3);
    }
  }
  EXPECT_EQ(report["total"]["num_weights"], 48 * 256 + 20 * 96);
}

TEST_F(Cli, CompareHoldsATimeAgainstItsOwnDeviceOnly) {
  const auto packed = write_packed();
  const std::vector<std::string> words = {"compare", packed, "--against", path("model.safetensors"),
                                          "--json"};
  const auto report = run(words).json();
  if (report["total"]["device"] == "cpu") GTEST_SKIP() << "no GPU that this build has kernels for";
  const auto without = run(words, "", "MIXGEMM_BLAS=none MIXGEMM_CUBLASLT=none").json();
  for (std::size_t i = 0; i < report["layers"].size(); ++i) {
    const auto& layer = report["layers"][i];
    const bool cuda = layer["device"] == "cuda";
    EXPECT_EQ(layer.contains("cublas_us"), cuda);
    EXPECT_EQ(layer.contains("blas_f32_us"), !cuda);
    if (cuda && !report["cublas"].is_null()) {
      EXPECT_GT(layer["cublas_us"].get<double>(), 0.0);
      EXPECT_DOUBLE_EQ(layer["speedup"].get<double>(),
                       layer["cublas_us"].get<double>() / layer["us"].get<double>());
    }
    EXPECT_TRUE(without["layers"][i]["speedup"].is_null());
    EXPECT_GT(without["layers"][i]["us"].get<double>(), 0.0);
  }
}

TEST_F(Cli, CompareNeedsTheSameShapes) {
  const auto packed = write_packed();
  auto writer = SafetensorsWriter::create(path("other.safetensors")).value();
  writer.declare("a.weight", "F32", {1, 2}).throw_if_error();
  const float values[2] = {1.0f, 2.0f};
  writer.write("a.weight", values, sizeof(values)).throw_if_error();
  writer.finish().throw_if_error();
  expect_failure({"compare", packed, "--against", path("other.safetensors")}, 2,
                 {"a.weight", "[48, 256]", "[1, 2]"});
}

TEST_F(Cli, BenchRowsHaveTheDocumentedKeys) {
  std::ofstream(path("shapes.json"))
      << R"({"shapes": [{"n": 32, "k": 128, "layer": "tiny"}, {"n": 17, "k": 100}]})";
  const Outcome outcome =
      run({"bench", "--shapes", path("shapes.json"), "--m", "1,3", "--act", "fp16,bf16", "--zero",
           "integer", "--group", "64", "-o", path("rows.jsonl"), "--json"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(outcome.out, read_text(path("rows.jsonl")));
  std::istringstream lines(outcome.out);
  int num_rows = 0;
  for (std::string line; std::getline(lines, line); ++num_rows) {
    const auto row = ordered_json::parse(line);
    for (const char* key :
         {"gpu",       "kernel", "config",   "auto",      "act",      "weight",  "group",
          "zero",      "pdl",    "m",        "n",         "k",        "layer",   "us",
          "tflops",    "gbps",   "floor_us", "cublas_us", "ideal_us", "rel_err", "rel_err_cublas",
          "clock_mhz", "commit"}) {
      EXPECT_TRUE(row.contains(key)) << key;
    }
    EXPECT_TRUE(row["ok"].get<bool>()) << line;
  }
  EXPECT_EQ(num_rows, 2 * 2 * 2);
  EXPECT_EQ(
      run({"bench", "--shapes", path("shapes.json"), "--layer", "tiny", "--m", "1"}).exit_code, 0);
}

TEST_F(Cli, BenchRefusesWrongShapes) {
  expect_failure({"bench", "--shapes", path("absent.json")}, 3, {"absent.json"});
  std::ofstream(path("bad.json")) << R"({"shapes": [{"n": 32, "k": 0}]})";
  expect_failure({"bench", "--shapes", path("bad.json")}, 5, {"bad.json", "k"});
  expect_failure({"bench", "--layer", "gpt5.qkv"}, 3, {"llama8b.qkv", "gpt5.qkv"});
  expect_failure({"bench", "--act", "fp8"}, 2, {"--act", "fp8"});
  expect_failure({"bench", "--device", "cpu", "--load-ms", "100"}, 2, {"load_ms", "CPU", "100"});
  expect_failure({"bench", "--layer", "llama8b.o", "-o", path("no_folder/rows.jsonl")}, 4,
                 {"no_folder"});
}

TEST_F(Cli, AFileBeyondTheSizeLimitLeavesNothingBehind) {
  const std::string model = write_model();
  for (const char* command : {"quantize", "convert"}) {
    const Outcome outcome = run({command, model, "-o", path("q.safetensors")}, "", "ulimit -f 2;");
    EXPECT_EQ(outcome.exit_code, 4) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr("q.safetensors"));
    for (const auto& name : files()) EXPECT_THAT(name, testing::Not(HasSubstr("q.safetensors")));
  }
}

TEST_F(Cli, AFileShortenedWhileItIsReadIsAnError) {
  // Whatever the machine's speed, some of these meet the reading.
  for (const char* seconds : {"0.01", "0.03", "0.1"}) {
    auto writer = SafetensorsWriter::create(path("large.safetensors")).value();
    writer.declare("0.weight", "F32", {4096, 2048}).throw_if_error();
    const std::vector<float> values(4096 * 2048, 0.5f);
    writer.write("0.weight", values.data(), 4 * values.size()).throw_if_error();
    writer.finish().throw_if_error();
    const std::string shorten = std::string("(sleep ") + seconds + "; truncate -s 9000 " +
                                quoted(path("large.safetensors")) + ") & ";
    const Outcome outcome =
        run({"quantize", path("large.safetensors"), "-o", path("q.safetensors")}, "", shorten);
    EXPECT_THAT(outcome.exit_code, testing::AnyOf(0, 3, 4, 5)) << seconds << " " << outcome.err;
    (void)!std::system("sleep 0.2");
  }
}

TEST_F(Cli, AFullDiskUnderStandardOutputIsAnError) {
  const Outcome outcome = run({"info"}, "/dev/full");
  EXPECT_EQ(outcome.exit_code, 4);
  EXPECT_THAT(outcome.err, HasSubstr("standard output"));
}

/// A checkpoint that a published tool wrote.
std::string fixture(const std::string& name) {
  return std::string(MIXGEMM_IMPORT_FIXTURES) + "/" + name;
}

TEST_F(Cli, ConvertedCheckpointsAreTheirSourcesExactlyAndMultiply) {
  int permuted = 0;
  for (const auto& entry : fs::directory_iterator(MIXGEMM_IMPORT_FIXTURES)) {
    if (!entry.is_directory()) continue;
    SCOPED_TRACE(entry.path().filename());
    const std::string out = path("converted.safetensors");
    const Outcome converted = run({"convert", entry.path(), "-o", out, "--json"});
    ASSERT_EQ(converted.exit_code, 0) << converted.err;
    EXPECT_EQ(converted.json()["num_layers"], 1);
    EXPECT_EQ(converted.json()["num_continued"], 0);
    const Outcome verified = run({"verify", out, "--against", entry.path(), "--json"});
    ASSERT_EQ(verified.exit_code, 0) << verified.err << verified.out;
    EXPECT_EQ(verified.json()["layers"][0]["rel_err"], 0.0);
    EXPECT_EQ(verified.json()["num_dropped"], 0);
    const Outcome product =
        run({"run", out, "--layer", "model.fc", "--m", "3", "--check", "--json"});
    ASSERT_EQ(product.exit_code, 0) << product.err;
    EXPECT_LT(product.json()["rel_err"], 1e-3);
    const auto layer = run({"inspect", out, "--json"}).json()["layers"][0];
    EXPECT_EQ(layer["permuted"], converted.json()["layers"][0]["permuted"]);
    permuted += layer["permuted"] == true ? 1 : 0;
  }
  EXPECT_EQ(permuted, 4);  // of the fixtures
}

TEST_F(Cli, ConvertQuantizesADenseModelAsQuantizeDoes) {
  const std::string model = write_model();
  ASSERT_EQ(run({"quantize", model, "-o", path("a.safetensors"), "--group", "32"}).exit_code, 0);
  const Outcome outcome = run({"convert", model, "-o", path("b.safetensors"), "--group", "32"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("2 layers from dense"));
  EXPECT_EQ(read_text(path("a.safetensors")), read_text(path("b.safetensors")));
}

TEST_F(Cli, ConvertRefusesWhatItCantHonour) {
  const std::string gptq = fixture("gptq_int4_g64_asym_desc_act_v1");
  expect_failure({"convert", gptq, "-o", path("o"), "--group", "32"}, 2,
                 {"--group must not be given", "gptq"});
  expect_failure({"convert", gptq}, 2, {"--output must be given"});
  expect_failure({"convert", write_packed(), "-o", path("o")}, 2, {"packed already"});
  expect_failure({"convert", path("none"), "-o", path("o")}, 3, {"none"});
  const std::string config = read_text(gptq + "/config.json");
  fs::create_directories(path("bad"));
  fs::copy_file(gptq + "/model.safetensors", path("bad/model.safetensors"));
  std::string three = config;
  three.replace(three.find("\"bits\": 4"), 9, "\"bits\": 3");
  std::ofstream(path("bad/config.json")) << three;
  expect_failure({"convert", path("bad"), "-o", path("o")}, 6, {"bits must be 4 or 8; got 3"});
  for (const std::string& file : files()) EXPECT_EQ(file.find("o."), std::string::npos) << file;
}

TEST_F(Cli, KilledConvertIsContinued) {
  // Layers that take long enough to quantize that the program is found at work.
  constexpr int kLayers = 24;
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(256 * 1024);
  for (float& v : values) v = 0.05f * normal(rng);
  auto writer = SafetensorsWriter::create(path("model.safetensors")).value();
  for (int i = 0; i < kLayers; ++i) {
    writer.declare(std::to_string(i) + ".weight", "F32", {256, 1024}).throw_if_error();
  }
  for (int i = 0; i < kLayers; ++i) {
    values[static_cast<std::size_t>(i)] = 1.0f;
    writer.write(std::to_string(i) + ".weight", values.data(), 4 * values.size()).throw_if_error();
  }
  writer.finish().throw_if_error();
  const std::string out = path("out.safetensors");
  const std::string journal = out + ".partial.journal";
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::execl(MIXGEMM_PROGRAM, "mixgemm", "convert", path("model.safetensors").c_str(), "-o",
            out.c_str(), "--threads", "1", nullptr);
    ::_exit(127);
  }
  // Until two layers (of two tensors each) are in the journal, behind its first line.
  const auto lines = [&] {
    const std::string text = read_text(journal);
    return std::count(text.begin(), text.end(), '\n');
  };
  int status = 0;
  while (lines() < 5 && ::waitpid(child, &status, WNOHANG) == 0) ::usleep(200);
  ::kill(child, SIGKILL);
  ::waitpid(child, &status, 0);
  const bool killed = !fs::exists(out);
  const Outcome outcome =
      run({"convert", path("model.safetensors"), "-o", out, "--json", "--threads", "1"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  if (killed) {
    EXPECT_GE(outcome.json()["num_continued"], 2);
    EXPECT_LT(outcome.json()["num_continued"], kLayers + 1);
  }
  EXPECT_FALSE(fs::exists(journal));
  EXPECT_FALSE(fs::exists(out + ".partial"));
  ASSERT_EQ(run({"convert", path("model.safetensors"), "-o", path("once.safetensors")}).exit_code,
            0);
  EXPECT_EQ(read_text(out), read_text(path("once.safetensors")));
}

}  // namespace
}  // namespace mixgemm
