// SPDX-License-Identifier: Apache-2.0
// A registry without kernels behind it: the tiles of every family, for tests of what is only
// arithmetic.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "registry.hpp"

namespace mixgemm {

class FakeRegistry {
 public:
  FakeRegistry() {
    for (const DataType act : {DataType::f16, DataType::bf16}) {
      for (const WeightType weight : {WeightType::int4, WeightType::int8}) {
        for (const Quant quant : {Quant::column, Quant::group, Quant::group_zero}) {
          for (const bool fine : {false, true}) {
            if (fine && quant == Quant::column) continue;
            KernelConfig c;
            c.act = act;
            c.weight = weight;
            c.quant = quant;
            c.fine_groups = fine;
            add_tiles(c);
            c.arch = 80;
            add_sm80_tiles(c);
          }
        }
      }
    }
  }

  const std::vector<KernelEntry>& entries() const { return entries_; }

 private:
  void add(KernelConfig c, int tile_n, int tile_m, int tile_k, Schedule schedule,
           int warpgroups = 2, int ctas_per_sm = 1) {
    c.tile_n = tile_n;
    c.tile_m = tile_m;
    c.tile_k = tile_k;
    c.schedule = schedule;
    c.consumer_warpgroups = warpgroups;
    c.ctas_per_sm = ctas_per_sm;
    if (!is_legal(c)) return;
    ids_.emplace_back(kernel_id(c).view());
    entries_.push_back({c, ids_.back().c_str(), "standard", "a test", nullptr});
  }

  void add_tiles(const KernelConfig& c) {
    for (const int tile_m : {16, 32, 64, 128, 256}) {
      add(c, 64, tile_m, 64, Schedule::pingpong);
      add(c, 128, tile_m, 64, Schedule::cooperative);
      add(c, 128, tile_m, 128, Schedule::cooperative);
      add(c, 256, tile_m, 64, Schedule::cooperative, 4);
    }
    add(c, 128, 16, 64, Schedule::cooperative, 2, 2);
    for (const int tile_n : {16, 32, 48, 64}) {
      add(c, tile_n, 8, 128, Schedule::streaming);
      add(c, tile_n, 16, 128, Schedule::streaming);
    }
    add(c, 128, 96, 64, Schedule::cooperative);
    add(c, 128, 192, 64, Schedule::cooperative);
    add(c, 256, 128, 64, Schedule::cooperative);
  }

  void add_sm80_tiles(const KernelConfig& c) {
    add(c, 32, 8, 64, Schedule::streaming);
    add(c, 48, 16, 64, Schedule::streaming);
    add(c, 128, 16, 128, Schedule::multistage, 1, 2);
    add(c, 128, 32, 128, Schedule::multistage);
    add(c, 128, 64, 128, Schedule::multistage);
    add(c, 256, 64, 64, Schedule::multistage, 1);
    add(c, 256, 128, 64, Schedule::multistage);
  }

  std::deque<std::string> ids_;
  std::vector<KernelEntry> entries_;
};

}  // namespace mixgemm
