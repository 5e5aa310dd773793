// SPDX-License-Identifier: Apache-2.0
#include "tuning/active.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "mixgemm/version.hpp"
#include "tuning/shipped.hpp"
#include "util/join.hpp"
#include "util/log.hpp"

namespace mixgemm::tuning {
namespace {

/// All caches in use merged into one, and where they came from. Immutable once published.
struct Active {
  TuningCache cache;
  std::vector<TuningSource> sources;

  /// Takes the entries of this library's series, as if this very version had measured them.
  void add(const TuningCache& from, const std::string& name) {
    TuningSource source;
    source.name = name;
    std::set<std::string> foreign;
    for (TuningEntry entry : from.entries()) {
      if (!tuning_is_current(entry.library)) {
        foreign.insert(entry.library);
        continue;
      }
      entry.library = version();
      cache.add(std::move(entry));
      ++source.num_entries;
    }
    if (!foreign.empty()) {
      source.note =
          fmt::format("ignored: entries of library {}, this is {}", joined(foreign), version());
      log::warn("tuning cache {}: {}", name, source.note);
    }
    log::debug("tuning cache {}: {} entries", name, source.num_entries);
    sources.push_back(std::move(source));
  }
  /// `failure` is set where it still is ok.
  void add(const Result<TuningCache>& from, const std::string& name, Status& failure) {
    if (from) return add(*from, name);
    log::warn("ignored: {}", from.status().message());
    sources.push_back({name, 0, "ignored: " + from.status().message()});
    if (failure.ok()) failure = from.status();
  }
};

/// What a value of MIXGEMM_TUNING asks for; nullptr: the variable isn't set.
std::shared_ptr<const Active> read(const char* files, Status& failure) {
  auto active = std::make_shared<Active>();
  const std::string_view wanted = files == nullptr ? "" : files;
  if (wanted == "off") return active;
  for (const ShippedCache& shipped : shipped_caches()) {
    active->add(TuningCache::parse(shipped.json, shipped.name), shipped.name, failure);
  }
  if (files == nullptr) {
    const std::string path = default_tuning_path();
    std::error_code error;
    if (!path.empty() && std::filesystem::exists(path, error)) {
      active->add(TuningCache::load(path), path, failure);
    }
    return active;
  }
  for (std::size_t begin = 0; begin <= wanted.size();) {
    const std::size_t end = std::min(wanted.find(':', begin), wanted.size());
    const std::string path(wanted.substr(begin, end - begin));
    if (!path.empty()) active->add(TuningCache::load(path), path, failure);
    begin = end + 1;
  }
  return active;
}

/// Never destroyed: plans may be asked for while other statics die.
struct State {
  std::mutex mutex;
  std::shared_ptr<const Active> active;  // null until first asked for
  std::atomic<std::uint32_t> generation{0};

  static State& instance() {
    static auto* state = new State;
    return *state;
  }
  std::shared_ptr<const Active> get() {
    std::lock_guard lock(mutex);
    if (active == nullptr) {
      Status ignored;  // warned of, and in the sources
      active = read(std::getenv("MIXGEMM_TUNING"), ignored);
    }
    return active;
  }
  void set(std::shared_ptr<const Active> now) {
    std::lock_guard lock(mutex);
    active = std::move(now);
    generation.fetch_add(1, std::memory_order_release);
  }
};

}  // namespace

std::optional<Tuned> lookup(const TuningDevice& device, const Problem& problem) {
  const auto active = State::instance().get();
  const TuningEntry* entry = active->cache.lookup(device, problem);
  if (entry == nullptr) return std::nullopt;
  return Tuned{entry->config, entry->us, entry->problem.m};
}

std::optional<TuningEntry> find(const TuningDevice& device, const Problem& problem) {
  const auto active = State::instance().get();
  const TuningEntry* entry = active->cache.find(device, version(), problem);
  return entry == nullptr ? std::nullopt : std::optional(*entry);
}

std::uint32_t generation() { return State::instance().generation.load(std::memory_order_acquire); }

}  // namespace mixgemm::tuning

namespace mixgemm {

using tuning::State;

std::vector<TuningSource> tuning_sources() { return State::instance().get()->sources; }

Status set_tuning(std::string_view files) {
  const std::string wanted(files);
  Status failure;
  State::instance().set(tuning::read(wanted.empty() ? nullptr : wanted.c_str(), failure));
  return failure;
}

void add_tuning(const TuningCache& cache, const std::string& name) {
  auto active = std::make_shared<tuning::Active>(*State::instance().get());
  active->add(cache, name);
  State::instance().set(std::move(active));
}

}  // namespace mixgemm
