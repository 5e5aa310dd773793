// SPDX-License-Identifier: Apache-2.0
#include "api/plan_cache.hpp"

#include <mutex>
#include <shared_mutex>
#include <unordered_map>
#include <utility>

namespace mixgemm {
namespace {

struct Hash {
  std::size_t operator()(const PlanKey& key) const {
    std::uint64_t h = 0;
    for (const std::uint64_t part :
         {static_cast<std::uint64_t>(key.m), static_cast<std::uint64_t>(key.n),
          static_cast<std::uint64_t>(key.k), key.rest, key.extra}) {
      h = (h ^ part) * 0x9e3779b97f4a7c15ull;
      h ^= h >> 32;
    }
    return h;
  }
};

/// Never destroyed: plans may be asked for while other statics die.
struct Shared {
  std::shared_mutex mutex;
  std::unordered_map<PlanKey, PlanCache::ImplPtr, Hash> plans;

  static Shared& instance() {
    static auto* shared = new Shared;
    return *shared;
  }
};

}  // namespace

PlanKey::PlanKey(const Problem& p, int where, std::uint64_t extra_)
    : m(p.m), n(p.n), k(p.k), rest(0), extra(extra_) {
  const auto add = [&](std::uint64_t value, int bits) { rest = rest << bits | value; };
  add(static_cast<std::uint64_t>(where), 16);
  add(static_cast<std::uint64_t>(p.weight.group_size), 16);
  add(static_cast<std::uint64_t>(p.act), 4);
  add(static_cast<std::uint64_t>(p.weight.type), 4);
  add(static_cast<std::uint64_t>(p.weight.zero), 4);
  add(static_cast<std::uint64_t>(p.weight.scale_type), 4);
  add(static_cast<std::uint64_t>(p.epilogue.activation), 4);
  add(static_cast<std::uint64_t>(p.device), 4);
  add(p.epilogue.bias, 1);
  add(p.epilogue.residual, 1);
  add(p.deterministic, 1);
  add(p.batch_invariant, 1);
}

PlanCache::ImplPtr PlanCache::find(const PlanKey& key) {
  Shared& shared = Shared::instance();
  std::shared_lock lock(shared.mutex);
  const auto it = shared.plans.find(key);
  return it == shared.plans.end() ? nullptr : it->second;
}

PlanCache::ImplPtr PlanCache::insert(const PlanKey& key, ImplPtr plan) {
  Shared& shared = Shared::instance();
  std::unique_lock lock(shared.mutex);
  if (shared.plans.size() >= kMaxPlans) shared.plans.clear();
  return shared.plans.emplace(key, std::move(plan)).first->second;
}

}  // namespace mixgemm
