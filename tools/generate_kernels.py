#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the kernels' translation units and their registry from kernels/manifest.toml.

    generate_kernels.py -a 90 -o DIR                    every kernel, with the headers they need
    generate_kernels.py -a 90 -o DIR --variants minimal --dtype f16 --tile '128x*x64'
    generate_kernels.py --list                          one configuration id per line
    generate_kernels.py --dry-run                       what building would cost

DIR then holds one .cu per family of kernels, registry.cpp, units.json (for tools) and include/, and
    nvcc -std=c++20 --expt-relaxed-constexpr -gencode=arch=compute_90a,code=sm_90a \\
      -I DIR/include DIR/*.cu DIR/registry.cpp main.cu
links. Files that would not change are left alone, so a build recompiles only what did; files that
an earlier run wrote and this one doesn't are deleted. Needs Python 3.11 and nothing else.
"""

import argparse
import dataclasses
import fnmatch
import itertools
import json
import pathlib
import re
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
MANIFEST = ROOT / "kernels" / "manifest.toml"

# The axes of a kernel id, in the order in which families are listed and built.
ACTS = ("f16", "bf16")
WEIGHTS = ("i4", "i8")
QUANTS = ("c", "g", "gz", "fg", "fgz")
SCHEDULES = {"coop": "cooperative", "pp": "pingpong", "mma": "warp_mma", "stream": "streaming",
             "multi": "multistage"}
TEMPLATES = {  # architecture and schedule -> header and kernel template
    (90, "coop"): ("sm90/gemm_tiled.cuh", "gemm_tiled"),
    (90, "pp"): ("sm90/gemm_tiled.cuh", "gemm_tiled"),
    (90, "mma"): ("sm90/gemm_tiled.cuh", "gemm_tiled"),
    (90, "stream"): ("sm90/gemm_streaming.cuh", "gemm_streaming"),
    (80, "multi"): ("sm80/gemm_multistage.cuh", "gemm_multistage"),
    (80, "stream"): ("sm80/gemm_streaming.cuh", "gemm_warp_streaming"),
}
# Shared memory that an architecture gives a CTA, and an SM: for 80 the least of its devices.
SHARED_LIMITS = {80: (99 * 1024, 100 * 1024), 90: (227 * 1024, 228 * 1024)}
GROUP_SIZES = {"c": (0,), "g": (64, 128), "gz": (0, 64, 128), "fg": (16, 32), "fgz": (16, 32)}
# cluster_n x cluster_m, then cluster_k where K is split inside a cluster.
CLUSTERS = ((1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 1), (1, 1, 2), (1, 1, 4))
TILE_PATTERN = re.compile(
    r"t(?P<n>\d+)x(?P<m>\d+)x(?P<k>\d+)_(?P<schedule>[a-z]+)(?:_w(?P<w>\d+))?"
    r"(?:_k(?P<teams>\d+))?(?:_o(?P<o>\d+))?")


class ManifestError(Exception):
    """A rule of the manifest that a row breaks, with the row's name and the value."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One compiled kernel: mixgemm::KernelConfig with an epilogue."""
    arch: int
    act: str
    weight: str
    quant: str
    schedule: str
    tile_n: int
    tile_m: int
    tile_k: int
    consumer_warpgroups: int
    k_teams: int  # of consumer warpgroups
    ctas_per_sm: int
    epilogue: str
    reason: str
    extra: bool  # a tile beyond those of fpA_intB

    @property
    def family(self):
        return f"sm{self.arch}_{self.act}_{self.weight}_{self.quant}"

    @property
    def tile(self):
        warpgroups = f"_w{self.consumer_warpgroups}" if self.consumer_warpgroups != 2 else ""
        teams = f"_k{self.k_teams}" if self.k_teams != 1 else ""
        occupancy = f"_o{self.ctas_per_sm}" if self.ctas_per_sm != 1 else ""
        return (f"t{self.tile_n}x{self.tile_m}x{self.tile_k}_{self.schedule}"
                f"{warpgroups}{teams}{occupancy}")

    @property
    def id(self):
        epilogue = "" if self.epilogue == "standard" else f"_{self.epilogue}"
        return f"{self.family}_{self.tile}{epilogue}"

    @property
    def unit(self):
        """Translation unit: a family, extra tiles apart. Headers cost 2 CPU-s a unit, so that
        smaller units would make a complete build longer."""
        epilogue = "" if self.epilogue == "standard" else f"_{self.epilogue}"
        extra = "_extra" if self.extra else ""
        return f"{self.family}{extra}{epilogue}"

    @property
    def beyond(self):
        """Outside the space of fpA_intB, hence under the budget's second part."""
        return self.extra or self.quant.startswith("f") or self.epilogue != "standard"

    @property
    def threads(self):
        producers = 0 if self.schedule in ("stream", "multi") else 1
        return (self.consumer_warpgroups + producers) * 128

    @property
    def rows_per_warpgroup(self):
        if self.schedule == "pp":
            return self.tile_n
        return self.tile_n * self.k_teams // self.consumer_warpgroups

    @property
    def resident_ctas(self):
        """CTAs per SM that the launch bounds ask for."""
        narrow = (self.tile_n * self.tile_m < (768 if self.quant == "c" else 1024)
                  and not (self.quant.startswith("f") and self.tile_m > 8))
        shares = self.schedule == "stream" and self.consumer_warpgroups <= 2 and narrow
        return self.ctas_per_sm * (2 if shares else 1)

    # Shared memory, as kernels/kernel_config.hpp counts it; a test compares the two for every
    # kernel. Only --list needs it, for the depth of the ring in a configuration id.
    def stage_bytes(self):
        """A ring stage of the CTA: of all warps, each for tile_m tokens, where streaming."""
        bits = 4 if self.weight == "i4" else 8
        codes = self.tile_n * self.tile_k * bits // 8
        scales = 0
        if self.quant != "c":
            scales = self.tile_k // (16 if self.quant.startswith("f") else 64) * self.tile_n * 2
        arrays = 2 if self.quant.endswith("z") else 1
        if self.schedule == "stream":
            padding = 16 if self.arch == 90 else 0  # of each token's row
            tokens = align_up(self.tile_m * (self.tile_k * 2 + padding), 128)
            stage = codes + arrays * align_up(scales, 128) + tokens
            return 4 * self.consumer_warpgroups * (stage + 8)  # with its barrier
        return align_up(self.tile_m * self.tile_k * 2 + codes + arrays * align_up(scales, 128), 1024)

    def fixed_bytes(self):
        if self.schedule == "stream":
            warps = 4 * self.consumer_warpgroups
            return warps * self.tile_m * (self.tile_n + 4) * 4
        if self.schedule == "multi":
            return 0
        rest = 1024
        rows = self.rows_per_warpgroup
        staging = self.consumer_warpgroups // self.k_teams * min(self.tile_m, 64) * (rows + 8) * 2
        left = 227 * 1024 - rest - 3 * self.stage_bytes()
        if self.tile_m >= 64 and staging > left >= staging // 2:  # half, for a third stage
            staging //= 2
        return rest + staging

    def max_stages(self):
        """The deepest ring; Hopper's streaming: that lets two grids share an SM, if two stages do. 0: not
        even two stages fit for tile_m tokens."""
        per_cta, per_sm = SHARED_LIMITS[self.arch]
        shares = self.arch == 90 and self.schedule == "stream"
        shared = min(per_cta, per_sm // (self.ctas_per_sm * (2 if shares else 1)) - 1024)
        stages = (shared - self.fixed_bytes()) // self.stage_bytes()
        if shares and stages < 2:
            stages = (per_cta - self.fixed_bytes()) // self.stage_bytes()
        return min(16, stages) if stages >= 2 else 0

    def takes_cluster(self, cluster_n, cluster_m, cluster_k):
        if self.arch == 80:
            return cluster_n * cluster_m * cluster_k == 1
        if self.schedule == "stream":  # every CTA reads its own weights and all of X
            return cluster_n * cluster_m == 1
        if self.tile_m % (8 * cluster_n) or self.tile_n // 16 % cluster_m:
            return False
        if cluster_k == 1:
            return True
        ring = max(self.max_stages() * self.stage_bytes(),
                   align_up(self.exchange_bytes(cluster_k), 1024))
        return self.schedule != "pp" and self.fixed_bytes() + ring <= 227 * 1024

    def exchange_bytes(self, cluster_k):
        """The sums that a CTA keeps and receives where cluster_k CTAs add up a tile."""
        blocks = (self.tile_m + 15) // 16
        share = -(-blocks // cluster_k)
        return (blocks + (cluster_k - 1) * share) * 16 * self.tile_n * 4

    def configuration_ids(self):
        """Every group size and cluster, each with the deepest ring that fits."""
        for group, (cn, cm, ck) in itertools.product(GROUP_SIZES[self.quant], CLUSTERS):
            if self.max_stages() > 0 and self.takes_cluster(cn, cm, ck):
                split = f"x{ck}" if ck > 1 else ""
                yield f"{self.id}@g{group}_c{cn}x{cm}{split}_s{self.max_stages()}"

    def build_cpu_s(self):
        """CPU-seconds to compile the kernel, without its share of the unit's headers: a fit to
        nvcc 13.0 within a fifth, unit by unit."""
        if self.schedule == "stream":
            cpu_s = 0.7
        elif self.schedule == "multi":
            cpu_s = 0.6 + self.tile_n * self.tile_m / self.threads / 160
        else:
            rows = self.rows_per_warpgroup
            cpu_s = 1.3 + 0.0085 * self.tile_m * rows / 64
        cpu_s *= 1.2 if self.tile_k >= 128 else 1
        cpu_s *= 1.6 if self.quant.startswith("f") else 1  # scales change within a k-block
        return cpu_s * (1.1 if self.quant.endswith("z") else 1)

    def config_initializer(self):
        """The kernel's KernelConfig in C++."""
        quant = {"c": "column", "g": "group", "gz": "group_zero"}[self.quant.removeprefix("f")]
        return (f"{{.arch = {self.arch}, .act = DataType::{self.act}, "
                f".weight = WeightType::{'int4' if self.weight == 'i4' else 'int8'}, "
                f".quant = Quant::{quant}, "
                f".fine_groups = {'true' if self.quant.startswith('f') else 'false'}, "
                f".schedule = Schedule::{SCHEDULES[self.schedule]}, .tile_n = {self.tile_n}, "
                f".tile_m = {self.tile_m}, .tile_k = {self.tile_k}, "
                f".consumer_warpgroups = {self.consumer_warpgroups}, "
                f".k_teams = {self.k_teams}, "
                f".ctas_per_sm = {self.ctas_per_sm}}}")


def align_up(value, alignment):
    return (value + alignment - 1) // alignment * alignment


def expand_braces(pattern):
    """'{f16,bf16}_i4' -> ['f16_i4', 'bf16_i4']."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    return [expanded for choice in match[1].split(",")
            for expanded in expand_braces(pattern[:match.start()] + choice + pattern[match.end():])]


# --- Manifest ------------------------------------------------------------------------------------

@dataclasses.dataclass
class Manifest:
    path: pathlib.Path
    kernels: list  # of Kernel, every one, in registry order
    sets: dict  # name -> list of kernel-id patterns
    epilogues: dict  # name -> {"header": ..., "functor": ...}
    budget: dict
    added: frozenset = frozenset()  # ids of rows that extra manifests add: they are in every set


def check_keys(table, where, required, optional=()):
    for key in table:
        if key not in required and key not in optional:
            raise ManifestError(f"{where}: unknown key {key!r}; known are "
                                f"{', '.join((*required, *optional))}")
    for key in required:
        if key not in table:
            raise ManifestError(f"{where}: key {key!r} is missing")


def check_types(table, where, kinds):
    for key, kind in kinds.items():
        if key in table and type(table[key]) is not kind:
            raise ManifestError(f"{where}: {key} must be a {kind.__name__}; got {table[key]!r}")


def parse_row(row, number, epilogues):
    """The kernels of one [[kernel]] row."""
    where = f"[[kernel]] row {number} ({row.get('tile', 'no tile')})"
    check_keys(row, where, ("tile", "families", "reason"), ("epilogue", "arch", "extra"))
    check_types(row, where, {"tile": str, "families": str, "reason": str, "epilogue": str,
                             "arch": int, "extra": bool})
    if not row["reason"].strip():
        raise ManifestError(f"{where}: every row needs a reason; got an empty one")
    tile = TILE_PATTERN.fullmatch(row["tile"])
    if not tile:
        raise ManifestError(f"{where}: tile must read t<n>x<m>x<k>_<schedule>[_w<warpgroups>]"
                            f"[_k<teams>][_o<CTAs per SM>]; got {row['tile']!r}")
    if tile["schedule"] not in SCHEDULES:
        raise ManifestError(f"{where}: schedule must be one of {', '.join(SCHEDULES)}; "
                            f"got {tile['schedule']!r}")
    epilogue = row.get("epilogue", "standard")
    if epilogue not in epilogues:
        raise ManifestError(f"{where}: epilogue must be one of {', '.join(epilogues)}; "
                            f"got {epilogue!r}")
    kernels = []
    for family in expand_braces(row["families"]):
        parts = family.split("_")
        if len(parts) != 3 or any(part not in known
                                  for part, known in zip(parts, (ACTS, WEIGHTS, QUANTS))):
            raise ManifestError(f"{where}: a family must read {{{','.join(ACTS)}}}_"
                                f"{{{','.join(WEIGHTS)}}}_{{{','.join(QUANTS)}}}; got {family!r}")
        kernel = Kernel(
            arch=row.get("arch", 90), act=parts[0], weight=parts[1], quant=parts[2],
            schedule=tile["schedule"], tile_n=int(tile["n"]), tile_m=int(tile["m"]),
            tile_k=int(tile["k"]), consumer_warpgroups=int(tile["w"] or 2),
            k_teams=int(tile["teams"] or 1), ctas_per_sm=int(tile["o"] or 1), epilogue=epilogue,
            reason=" ".join(row["reason"].split()), extra=row.get("extra", False))
        if (kernel.arch, kernel.schedule) not in TEMPLATES:
            raise ManifestError(f"{where}: arch and schedule must be one of "
                                f"{', '.join(f'{a} {b}' for a, b in TEMPLATES)}; "
                                f"got {kernel.arch} {kernel.schedule}")
        if kernel.tile != row["tile"]:  # leading zeros, or a default spelled out
            raise ManifestError(f"{where}: tile is spelled {kernel.tile!r}; got {row['tile']!r}")
        kernels.append(kernel)
    return kernels


def family_order(kernel):
    return (-kernel.arch, ACTS.index(kernel.act), WEIGHTS.index(kernel.weight),
            QUANTS.index(kernel.quant))


def load_manifest(path):
    try:
        with open(path, "rb") as file:
            data = tomllib.load(file)
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: {error}") from error
    check_keys(data, str(path), ("kernel", "epilogues"), ("sets", "budget"))
    check_types(data, str(path), {"kernel": list, "epilogues": dict, "sets": dict, "budget": dict})
    check_types(data["epilogues"], "[epilogues]", {name: dict for name in data["epilogues"]})
    check_types(data.get("sets", {}), "[sets]", {name: list for name in data.get("sets", {})})
    for name, epilogue in data["epilogues"].items():
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,47}", name):
            raise ManifestError(f"[epilogues.{name}]: a name must be lower-case letters, digits "
                                f"and _, at most 48 of them; got {name!r}")
        check_keys(epilogue, f"[epilogues.{name}]", ("header", "functor"))
        check_types(epilogue, f"[epilogues.{name}]", {"header": str, "functor": str})
    kernels = []
    rows = {}
    for number, row in enumerate(data["kernel"], start=1):
        if not isinstance(row, dict):
            raise ManifestError(f"[[kernel]] row {number}: must be a table; got {row!r}")
        for kernel in parse_row(row, number, data["epilogues"]):
            if kernel.id in rows:
                raise ManifestError(f"[[kernel]] row {number} ({row['tile']}): {kernel.id} is "
                                    f"already in row {rows[kernel.id]}")
            rows[kernel.id] = number
            kernels.append(kernel)
    kernels.sort(key=family_order)  # stable: rows keep their order within a family
    sets = {name: [expanded for pattern in patterns for expanded in expand_braces(str(pattern))]
            for name, patterns in data.get("sets", {}).items()}
    for name, patterns in sets.items():
        for pattern in patterns:
            if not any(fnmatch.fnmatchcase(kernel.id, pattern) for kernel in kernels):
                raise ManifestError(f"set {name}: no kernel matches {pattern!r}")
    sets["all"] = ["*"]
    return Manifest(path, kernels, sets, data["epilogues"], data.get("budget", {}))


def add_manifest(manifest, extra):
    """The rows and epilogues of both."""
    taken = {kernel.id for kernel in manifest.kernels}
    for kernel in extra.kernels:
        if kernel.id in taken:
            raise ManifestError(f"{extra.path}: {kernel.id} is already in {manifest.path}")
    for name, epilogue in extra.epilogues.items():
        if manifest.epilogues.setdefault(name, epilogue) != epilogue:
            raise ManifestError(f"{extra.path}: epilogue {name!r} is already in {manifest.path}")
    return dataclasses.replace(
        manifest, kernels=sorted(manifest.kernels + extra.kernels, key=family_order),
        added=manifest.added | {kernel.id for kernel in extra.kernels})


# --- Selection -----------------------------------------------------------------------------------

def matches(value, patterns):
    return not patterns or any(fnmatch.fnmatchcase(value, pattern) for pattern in patterns)


def select(manifest, options):
    """The kernels that a set and the filters leave, in registry order."""
    if options.variants not in manifest.sets:
        raise ManifestError(f"--variants must be one of {', '.join(manifest.sets)}; "
                            f"got {options.variants!r}")
    kernels = [
        kernel for kernel in manifest.kernels
        if kernel.arch in options.arch
        and (kernel.id in manifest.added or matches(kernel.id, manifest.sets[options.variants]))
        and matches(kernel.id, options.kernel) and matches(kernel.act, options.dtype)
        and matches(kernel.weight, options.weight) and matches(kernel.quant, options.quant)
        and matches(kernel.schedule, options.schedule)
        and matches(kernel.epilogue, options.epilogue)
        and (matches(kernel.tile, options.tile) or
             matches(f"{kernel.tile_n}x{kernel.tile_m}x{kernel.tile_k}", options.tile))]
    filters = {name: getattr(options, name) for name in
               ("kernel", "dtype", "weight", "quant", "schedule", "epilogue", "tile")}
    if not kernels and any(filters.values()):
        given = ", ".join(f"--{name} {','.join(value)}" for name, value in filters.items() if value)
        raise ManifestError(f"no kernel of set {options.variants} for architecture "
                            f"{','.join(map(str, sorted(options.arch)))} matches {given}; "
                            "--list without filters names them all")
    return kernels


# --- Generated code ------------------------------------------------------------------------------

BANNER = """\
// SPDX-License-Identifier: Apache-2.0
// Generated by tools/generate_kernels.py; edit kernels/manifest.toml instead.
"""


def unit_source(kernels, epilogues):
    """A translation unit: a tag type per kernel, and the address of each kernel's host stub.

    A tag instead of the config as template argument: the profiler then shows the kernel's id, and
    nvcc's host stubs can't name a class-type argument inside a namespace.
    """
    headers = {TEMPLATES[kernel.arch, kernel.schedule][0] for kernel in kernels}
    headers |= {epilogues[kernel.epilogue]["header"] for kernel in kernels}
    lines = [BANNER]
    lines += [f'#include "{header}"' for header in sorted(headers)]
    lines += ["", "namespace mixgemm::generated {"]
    for kernel in kernels:
        template = TEMPLATES[kernel.arch, kernel.schedule][1]
        lines += [
            "",
            f"struct {kernel.id} {{",
            f"  static constexpr KernelConfig config = {kernel.config_initializer()};",
            f"  using Epilogue = {epilogues[kernel.epilogue]['functor']};",
            "};",
            f'static_assert(is_legal({kernel.id}::config), "{kernel.id} is illegal; registry.cpp '
            'names the rule");',
            f"extern const void* const stub_{kernel.id};",
            f"const void* const stub_{kernel.id} =",
            f"    reinterpret_cast<const void*>(&{template}<{kernel.id}>);",
        ]
    lines += ["", "}  // namespace mixgemm::generated", ""]
    return "\n".join(lines)


REGISTRY_CHECKS = """
// Text as a template argument, so that a compile error spells it out.
struct Text {
  char chars[112] = {};
  constexpr Text(const char* from) {
    for (int i = 0; from != nullptr && from[i] != 0 && i < 111; ++i) chars[i] = from[i];
  }
};
template <Text Id, Text BrokenRule>
struct Row {
  static_assert(BrokenRule.chars[0] == 0, "illegal kernel: see Row<id, broken rule>");
  static constexpr bool kLegal = true;
};
template <std::size_t... I>
constexpr bool all_legal(std::index_sequence<I...>) {
  return (Row<Text(kRows[I].id), Text(why_illegal(kRows[I].config))>::kLegal && ...);
}
static_assert(all_legal(std::make_index_sequence<std::size(kRows)>()));

constexpr bool ids_agree() {
  for (const KernelRow& row : kRows) {
    if (!(kernel_id(row.config, row.epilogue) == row.id)) return false;
  }
  return true;
}
static_assert(ids_agree(), "kernels/registry.hpp and tools/generate_kernels.py spell ids alike");
"""


def registry_source(kernels):
    lines = [BANNER + "// The table of compiled kernels, and the check that each is legal.",
             '#include "registry.hpp"', "", "#include <iterator>", "#include <utility>", "",
             "namespace mixgemm {"]
    if not kernels:
        lines += ["", "std::span<const KernelEntry> kernel_registry() { return {}; }"]
    else:
        lines += ["namespace generated {"]
        lines += [f"extern const void* const stub_{kernel.id};" for kernel in kernels]
        lines += ["}  // namespace generated", "", "namespace {", "",
                  "struct KernelRow {", "  KernelConfig config;", "  const char* id;",
                  "  const char* epilogue;", "};", "constexpr KernelRow kRows[] = {"]
        for kernel in kernels:
            lines += [f"    {{{kernel.config_initializer()},",
                      f'     "{kernel.id}", "{kernel.epilogue}"}},']
        lines += ["};", REGISTRY_CHECKS, "}  // namespace", "",
                  "std::span<const KernelEntry> kernel_registry() {",
                  "  // Built at the first call, so that static constructors may ask too.",
                  "  static const KernelEntry kEntries[] = {"]
        for index, kernel in enumerate(kernels):
            reason = json.dumps(kernel.reason, ensure_ascii=False)
            lines += [f"      {{kRows[{index}].config, kRows[{index}].id, "
                      f"kRows[{index}].epilogue,",
                      f"       {reason},", f"       generated::stub_{kernel.id}}},"]
        lines += ["  };", "  return kEntries;", "}"]
    lines += ["", "}  // namespace mixgemm", ""]
    return "\n".join(lines)


def units_of(kernels, together=False):
    """Translation unit name -> its kernels, in registry order. Together: a unit per architecture."""
    units = {}
    for kernel in kernels:
        name = f"sm{kernel.arch}_kernels" if together else kernel.unit
        units.setdefault(name, []).append(kernel)
    return units


def units_json(units):
    """What the tools need to know about each unit's kernels."""
    return json.dumps({
        name: [{"id": kernel.id, "tile": kernel.tile, "schedule": kernel.schedule,
                "arch": kernel.arch, "threads": kernel.threads,
                "resident_ctas": kernel.resident_ctas, "ctas_per_sm": kernel.ctas_per_sm,
                "beyond": kernel.beyond, "max_stages": kernel.max_stages(),
                "stage_bytes": kernel.stage_bytes(), "fixed_bytes": kernel.fixed_bytes()} for kernel in kernels]
        for name, kernels in units.items()}, indent=1) + "\n"


def header_closure(roots, search):
    """Every header that the given ones include by quotes, as {path relative to -I: file}."""
    found = {}
    pending = [(name, None) for name in roots]
    while pending:
        name, includer = pending.pop()
        if name in found:
            continue
        file = next((base / name for base in search if (base / name).is_file()), None)
        if file is None:
            raise ManifestError(f"header {name!r} is not under "
                                f"{', '.join(str(base) for base in search)}"
                                + (f" (included from {includer})" if includer else ""))
        found[name] = file
        for included in re.findall(r'^\s*#\s*include\s+"([^"]+)"', file.read_text(), re.M):
            pending.append((included, name))
    return found


# --- Output --------------------------------------------------------------------------------------

LEFTOVER_LIST = ".generated"


def write_tree(directory, files):
    """Makes DIR hold `files` ({relative path: text}); returns (written, deleted) paths."""
    directory.mkdir(parents=True, exist_ok=True)
    record = directory / LEFTOVER_LIST
    # Only what an earlier run wrote is deleted: the user's own files may live beside it.
    before = record.read_text().splitlines() if record.is_file() else []
    deleted = [name for name in before if name not in files and (directory / name).is_file()]
    for name in deleted:
        (directory / name).unlink()
    written = []
    for name, text in files.items():
        path = directory / name
        if path.is_file() and path.read_text() == text:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        written.append(name)
    listing = "".join(f"{name}\n" for name in sorted(files))
    if not record.is_file() or record.read_text() != listing:
        record.write_text(listing)
    return written, deleted


def generated_files(manifest, kernels, with_headers, search, together=False):
    units = units_of(kernels, together)
    files = {f"{name}.cu": unit_source(members, manifest.epilogues)
             for name, members in units.items()}
    files["registry.cpp"] = registry_source(kernels)
    files["units.json"] = units_json(units)
    if with_headers:
        roots = {"registry.hpp"}
        for kernel in kernels:
            roots |= {TEMPLATES[kernel.arch, kernel.schedule][0], manifest.epilogues[kernel.epilogue]["header"]}
        for name, file in header_closure(sorted(roots), search).items():
            files[f"include/{name}"] = file.read_text()
    return files


# --- Command line --------------------------------------------------------------------------------

# CPU-seconds of a unit before its first kernel (headers, host compiler) and of registry.cpp.
UNIT_CPU_S = 2.2
REGISTRY_CPU_S = 2.0


def print_cost(kernels, out, together=False):
    units = units_of(kernels, together)
    total = REGISTRY_CPU_S
    for name, members in units.items():
        cpu_s = UNIT_CPU_S + sum(kernel.build_cpu_s() for kernel in members)
        total += cpu_s
        print(f"{name}: {len(members)} kernels, about {cpu_s:.0f} CPU-s", file=out)
    print(f"total: {len(kernels)} kernels in {len(units)} units, about {total:.0f} CPU-s, "
          f"{total / 2 / 60:.1f} min on 2 cores", file=out)


def print_table(kernels, out):
    """The kernels as a Markdown table, a tile a row, for docs."""
    tiles = {}
    for kernel in kernels:
        tiles.setdefault((kernel.tile, kernel.epilogue, kernel.reason), []).append(kernel)
    print("| tile | activations | weights | quantizations | epilogue | why |", file=out)
    print("|---|---|---|---|---|---|", file=out)
    for (tile, epilogue, reason), members in tiles.items():
        axes = [", ".join(name for name in names if any(getattr(k, axis) == name for k in members))
                for axis, names in (("act", ACTS), ("weight", WEIGHTS), ("quant", QUANTS))]
        print(f"| {' | '.join((tile, *axes, epilogue, reason))} |", file=out)


def parse_arch(text):
    """'90', '90a', '80;90a' -> {80, 90}. Kernels are written for 80 and 90; 86 or 120 run those of
    80."""
    architectures = set()
    for part in re.split(r"[;, ]+", text.strip()):
        match = re.fullmatch(r"(?:sm_?)?(\d+)[af]?(?:-real|-virtual)?", part)
        if not match:
            raise argparse.ArgumentTypeError(f"must be like 90, 90a or '80;90'; got {part!r}")
        number = int(match[1])
        architectures.add(80 if number > 80 and number != 90 else number)
    return architectures


def pattern_list(text):
    return [expanded for pattern in re.split(r"[;,](?![^{]*\})", text) if pattern
            for expanded in expand_braces(pattern)]


def parse_options(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-a", "--arch", type=parse_arch, default={90},
                        help="architectures: 90, 90a or a list such as '80;90' (default 90)")
    parser.add_argument("-o", "--output", type=pathlib.Path, metavar="DIR",
                        help="where the units, the registry and the headers go")
    parser.add_argument("--variants", default="all", metavar="SET",
                        help="set of the manifest: minimal, default or all (default all)")
    parser.add_argument("--manifest", type=pathlib.Path, default=MANIFEST,
                        help="list of kernels (default: kernels/manifest.toml); headers that it "
                             "names are looked for beside it too")
    parser.add_argument("--extra-manifest", type=pathlib.Path, action="append", default=[],
                        metavar="FILE", help="add another list's kernels to whichever set it is")
    for name, example in (("dtype", "f16"), ("weight", "i4"), ("quant", "g,gz"),
                          ("schedule", "coop"), ("tile", "128x256x64 or 't*_pp'"),
                          ("epilogue", "standard"), ("kernel", "'sm90_f16_*'")):
        parser.add_argument(f"--{name}", type=pattern_list, default=[], metavar="PATTERNS",
                            help=f"only kernels whose {'id' if name == 'kernel' else name} matches "
                                 f"one of these, e.g. {example}")
    parser.add_argument("--no-headers", action="store_true",
                        help="don't copy headers to DIR/include: the caller has them already")
    parser.add_argument("--together", action="store_true",
                        help="one unit per architecture: for a few kernels, which compile in less "
                             "time than the headers of a unit for each family")
    parser.add_argument("--list", action="store_true",
                        help="print every configuration id, one a line, and write nothing")
    parser.add_argument("--table", action="store_true",
                        help="print the kernels as a Markdown table, and write nothing")
    parser.add_argument("--dry-run", action="store_true",
                        help="print what building would cost, and write nothing")
    options = parser.parse_args(arguments)
    if not (options.output or options.list or options.table or options.dry_run):
        parser.error("one of -o DIR, --list, --table and --dry-run is needed")
    return options


def main(arguments=None):
    options = parse_options(arguments)
    try:
        manifest = load_manifest(options.manifest)
        for path in options.extra_manifest:
            manifest = add_manifest(manifest, load_manifest(path))
        kernels = select(manifest, options)
        if options.list:
            for kernel in kernels:
                print(*kernel.configuration_ids(), sep="\n")
        if options.table:
            print_table(kernels, sys.stdout)
        if options.dry_run:
            print_cost(kernels, sys.stdout, options.together)
        if options.list or options.table or options.dry_run:
            return 0
        search = [ROOT / "kernels", ROOT / "include"]
        search += [path.resolve().parent for path in (options.manifest, *options.extra_manifest)]
        files = generated_files(manifest, kernels, not options.no_headers, search,
                                options.together)
        written, deleted = write_tree(options.output, files)
    except ManifestError as error:
        print(f"generate_kernels: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 0
    print(f"generate_kernels: {len(kernels)} kernels; {len(files)} files in {options.output}, "
          f"{len(written)} written, {len(deleted)} deleted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
