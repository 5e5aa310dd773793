// SPDX-License-Identifier: Apache-2.0
// One product with the buffers it needs, on the CPU or a CUDA device: what `run` and `compare`
// call.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "command.hpp"
#include "mixgemm/gemm.hpp"
#include "mixgemm/weight.hpp"

namespace mixgemm::cli {

/// Options of both commands.
struct ProductOptions {
  std::string file;
  std::int64_t m = 1;
  std::optional<DataType> act;
  std::optional<Device> device;
  int num_threads = 0;
  bool json = false;

  DataType act_for(const QuantSpec& spec) const { return act.value_or(spec.scale_type); }
};

/// Adds the options to a command; M is at most max_m.
void add_product_options(Command& command, ProductOptions& options, std::int64_t max_m,
                         Command::Need need_m);

/// Where a layer is multiplied: as asked; else on the GPU, unless there is none or this build lacks
/// a kernel for the layer, then on the CPU.
Device device_for(const PackedWeight& weight, const ProductOptions& options, DataType act);

/// Bytes on a device, aligned to 256, freed with the object. Failures throw mixgemm::Error.
class Buffer {
 public:
  Buffer(Device device, std::size_t bytes);
  void* data() const { return data_.get(); }
  /// Copy from and to memory of the host; both wait for the device.
  void upload(const void* source, std::size_t bytes);
  void download(void* target, std::size_t bytes) const;

 private:
  Device device_;
  std::shared_ptr<void> data_;
};

/// Y[M,N] = X[M,K] · dequant(W)ᵀ for a fixed weight, M, activation type and device.
class Product {
 public:
  /// weight: on the CPU; it is copied to the device where that is another.
  Product(const PackedWeight& weight, std::int64_t m, DataType act, Device device,
          const PlanOptions& options);

  const Plan& plan() const { return plan_; }
  const Problem& problem() const { return plan_.problem(); }
  /// The addresses of run(), on the product's device.
  const RunArgs& args() const { return args_; }
  /// x: M·K values in the activation type, columns in the order of the input features: they are
  /// gathered here where the weight has a permutation.
  void set_x(const std::vector<std::uint16_t>& x);
  /// One product; returns when Y is complete.
  void run();
  /// The last result, M·N values in the activation type.
  std::vector<std::uint16_t> y() const;

 private:
  Device device_;
  PackedWeight source_;  // as given
  PackedWeight weight_;  // as multiplied
  Plan plan_;
  Buffer x_, y_, workspace_;
  RunArgs args_;
};

}  // namespace mixgemm::cli
