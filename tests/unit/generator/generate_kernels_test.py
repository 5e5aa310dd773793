# SPDX-License-Identifier: Apache-2.0
"""Tests of tools/generate_kernels.py, each named for the mechanism it protects."""

import contextlib
import io
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))
import generate_kernels  # noqa: E402  (the path has to be set first)

SMALL_MANIFEST = """
[epilogues.standard]
header = "epilogues/standard.cuh"
functor = "StandardEpilogue"
[sets]
minimal = ["*_f16_*"]
[[kernel]]
tile = "t128x128x64_coop"
families = "{f16,bf16}_i4_{g,gz}"
reason = "one"
[[kernel]]
tile = "t64x32x64_pp"
families = "f16_i4_g"
reason = "two"
"""


def run(*arguments):
    """(exit code, stdout, stderr) of the generator."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = generate_kernels.main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


class InScratch(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.scratch = pathlib.Path(scratch.name)
        self.out = self.scratch / "out"
        self.manifest = self.scratch / "manifest.toml"
        self.manifest.write_text(SMALL_MANIFEST)

    def generate(self, *arguments):
        code, out, err = run("--manifest", self.manifest, "-o", self.out, *arguments)
        self.assertEqual(code, 0, err)
        return out

    def refused(self, text, *arguments):
        """What is said of a manifest that must not be accepted."""
        self.manifest.write_text(text)
        code, _, err = run("--manifest", self.manifest, "-o", self.out, *arguments)
        self.assertEqual(code, 1)
        self.assertFalse(self.out.exists(), "a refused manifest must write nothing")
        return err

    def times(self):
        return {path.name: path.stat().st_mtime_ns for path in self.out.iterdir()}


class Output(InScratch):
    def test_second_run_touches_nothing(self):
        self.generate()
        before = self.times()
        self.assertIn("0 written, 0 deleted", self.generate())
        self.assertEqual(before, self.times())

    def test_editing_one_row_rewrites_one_unit_and_the_registry(self):
        self.generate()
        before = self.times()
        self.manifest.write_text(SMALL_MANIFEST.replace("t64x32x64_pp", "t64x64x64_pp"))
        self.generate()
        after = self.times()
        changed = {name for name in after if after[name] != before.get(name)}
        self.assertEqual(changed, {"sm90_f16_i4_g.cu", "registry.cpp", "units.json"})

    def test_a_reason_recompiles_no_kernel(self):
        self.generate()
        before = self.times()
        self.manifest.write_text(SMALL_MANIFEST.replace('"two"', '"a \\"better\\" reason"'))
        self.generate()
        after = self.times()
        changed = {name for name in after if after[name] != before.get(name)}
        self.assertEqual(changed, {"registry.cpp"})
        self.assertIn(r'"a \"better\" reason"', (self.out / "registry.cpp").read_text())

    def test_together_is_one_unit_with_the_same_kernels(self):
        self.generate()
        ids = sorted(k["id"] for unit in json.loads((self.out / "units.json").read_text()).values()
                     for k in unit)
        registry = (self.out / "registry.cpp").read_text()
        self.generate("--together")
        units = json.loads((self.out / "units.json").read_text())
        self.assertEqual(list(units), ["sm90_kernels"])
        self.assertEqual(sorted(k["id"] for k in units["sm90_kernels"]), ids)
        self.assertEqual([file.name for file in self.out.glob("*.cu")], ["sm90_kernels.cu"])
        self.assertEqual((self.out / "registry.cpp").read_text(), registry)

    def test_leftovers_go_and_foreign_files_stay(self):
        self.generate()
        mine = self.out / "main.cu"
        mine.write_text("int main() {}")
        self.assertTrue((self.out / "sm90_bf16_i4_g.cu").is_file())
        self.generate("--dtype", "f16")
        self.assertFalse((self.out / "sm90_bf16_i4_g.cu").exists())
        self.assertEqual(mine.read_text(), "int main() {}")

    def test_headers_come_along_and_are_complete(self):
        self.generate()
        include = self.out / "include"
        headers = {str(path.relative_to(include)) for path in include.rglob("*.?*") if path.is_file()}
        for wanted in ("registry.hpp", "kernel_config.hpp", "mixgemm/types.hpp"):
            self.assertIn(wanted, headers)
        for path in include.rglob("*"):
            if path.is_file():
                for name in re.findall(r'#include "([^"]+)"', path.read_text()):
                    self.assertIn(name, headers, f"included from {path.name}")

    def test_no_headers_on_request(self):
        self.generate("--no-headers")
        self.assertFalse((self.out / "include").exists())

    def test_an_epilogue_from_outside_the_tree(self):
        (self.scratch / "clamp.cuh").write_text("#pragma once\n")
        self.manifest.write_text(
            SMALL_MANIFEST + '[[kernel]]\ntile = "t64x32x64_pp"\nfamilies = "f16_i4_g"\n'
            'reason = "mine"\nepilogue = "clamp"\n'
            '[epilogues.clamp]\nheader = "clamp.cuh"\nfunctor = "my::Clamp"\n')
        self.generate()
        unit = (self.out / "sm90_f16_i4_g_clamp.cu").read_text()
        self.assertIn("using Epilogue = my::Clamp;", unit)
        self.assertIn("struct sm90_f16_i4_g_t64x32x64_pp_clamp {", unit)
        self.assertTrue((self.out / "include/clamp.cuh").is_file())

    def test_an_extra_manifest_adds_to_every_set(self):
        extra = ROOT / "examples/custom_epilogue/manifest.toml"
        for variants in ("minimal", "all"):
            self.generate("--variants", variants, "--extra-manifest", extra)
            self.assertTrue((self.out / "sm90_bf16_i4_g_softcap.cu").is_file())
            self.assertTrue((self.out / "include/softcap.cuh").is_file())
        code, _, err = run("--manifest", self.manifest, "--extra-manifest", self.manifest, "--list")
        self.assertEqual(code, 1)
        self.assertIn("is already in", err)

    def test_architecture_without_kernels_gives_an_empty_registry(self):
        self.generate("-a", "75")
        self.assertIn("return {};", (self.out / "registry.cpp").read_text())
        self.assertEqual(list(self.out.glob("*.cu")), [])

    def test_other_architectures_take_the_kernels_for_sm80(self):
        for spelling in ("80", "86", "89;90a", "120", "100a"):
            self.assertIn(80, generate_kernels.parse_arch(spelling), spelling)
        self.assertEqual(generate_kernels.parse_arch("86;90a"), {80, 90})
        self.assertEqual(generate_kernels.parse_arch("75"), {75})  # nothing

    def test_spellings_of_hopper(self):
        for spelling in ("90", "90a", "sm_90a", "80;90a", "80,90-real"):
            self.assertIn(90, generate_kernels.parse_arch(spelling), spelling)


class Selection(InScratch):
    def ids(self, *arguments):
        code, out, err = run("--manifest", self.manifest, "--list", *arguments)
        self.assertEqual(code, 0, err)
        return {line.split("@")[0] for line in out.splitlines()}

    def test_filters(self):
        pp = "sm90_f16_i4_g_t64x32x64_pp"
        self.assertEqual(len(self.ids()), 5)
        self.assertEqual(len(self.ids("--variants", "minimal")), 3)
        self.assertEqual(self.ids("--tile", "64x32x64"), {pp})
        self.assertEqual(self.ids("--tile", "t64x32x64_pp"), {pp})
        self.assertEqual(self.ids("--schedule", "pp"), {pp})
        self.assertEqual(self.ids("--kernel", "sm90_{f16,bf16}_i4_gz_*"),
                         {"sm90_f16_i4_gz_t128x128x64_coop", "sm90_bf16_i4_gz_t128x128x64_coop"})
        self.assertEqual(len(self.ids("--dtype", "bf16", "--quant", "g,gz")), 2)

    def test_a_filter_that_matches_nothing_is_an_error(self):
        code, _, err = run("--manifest", self.manifest, "--list", "--tile", "1x2x3")
        self.assertEqual(code, 1)
        self.assertIn("--tile 1x2x3", err)
        code, _, err = run("--manifest", self.manifest, "--list", "--variants", "none")
        self.assertEqual(code, 1)
        self.assertIn("--variants must be one of minimal, all; got 'none'", err)

    def test_list_table_and_dry_run_write_nothing(self):
        code, out, _ = run("--manifest", self.manifest, "--list", "--table", "--dry-run", "-o",
                           self.out)
        self.assertEqual(code, 0)
        self.assertFalse(self.out.exists())
        self.assertIn("sm90_f16_i4_g_t128x128x64_coop@g128_c2x1_s", out)
        self.assertIn("| t128x128x64_coop | f16, bf16 | i4 | g, gz | standard | one |", out)
        self.assertRegex(out, r"total: 5 kernels in 4 units, about \d+ CPU-s")


class BadManifests(InScratch):
    def test_each_rule_names_the_row_and_the_value(self):
        row = '[[kernel]]\ntile = "{}"\nfamilies = "{}"\nreason = "{}"\n'
        cases = [
            (row.format("128x128", "f16_i4_g", "r"), "row 3 (128x128): tile must read", "'128x128'"),
            (row.format("t128x128x64_warp", "f16_i4_g", "r"), "schedule must be one of", "'warp'"),
            (row.format("t128x32x128_multi", "f16_i4_g", "r"), "arch and schedule must be one of",
             "got 90 multi"),
            (row.format("t128x128x64_coop_w2", "f16_i8_g", "r"), "tile is spelled", "coop_w2"),
            (row.format("t128x64x64_coop", "f32_i4_g", "r"), "a family must read", "'f32_i4_g'"),
            (row.format("t128x64x64_coop", "f16_i4_g", " "), "every row needs a reason", "empty"),
            (row.format("t128x128x64_coop", "f16_i4_g", "r"), "is already in row 1", "row 3"),
            (row.format("t128x64x64_coop", "f16_i4_g", "r") + 'color = "red"\n',
             "unknown key 'color'", "row 3"),
            (row.format("t128x64x64_coop", "f16_i4_g", "r") + 'epilogue = "tanh"\n',
             "epilogue must be one of standard", "'tanh'"),
            (row.format("t128x64x64_coop", "f16_i4_g", "r") + 'extra = 1\n',
             "extra must be a bool", "got 1"),
            ('[[kernel]]\ntile = "t128x64x64_coop"\nfamilies = "f16_i4_g"\n', "'reason' is missing",
             "row 3"),
        ]
        for text, rule, value in cases:
            with self.subTest(rule=rule):
                err = self.refused(SMALL_MANIFEST + text)
                self.assertIn(rule, err)
                self.assertIn(value, err)

    def test_a_set_pattern_that_matches_nothing(self):
        self.assertIn("set minimal: no kernel matches '*_f64_*'",
                      self.refused(SMALL_MANIFEST.replace("*_f16_*", "*_f64_*")))

    def test_a_missing_header(self):
        self.assertIn("header 'gone.cuh' is not under",
                      self.refused(SMALL_MANIFEST.replace("epilogues/standard.cuh", "gone.cuh")))

    def test_wrong_types(self):
        head, _, rows = SMALL_MANIFEST.partition("[sets]")
        for text, rule in (("kernel = 3\n" + head, "kernel must be a list; got 3"),
                           ("kernel = [3]\n" + head, "row 1: must be a table; got 3"),
                           ('epilogues = "x"\nkernel = []', "epilogues must be a dict; got 'x'"),
                           ("kernel = []\n[epilogues]\nstandard = 1", "standard must be a dict"),
                           (SMALL_MANIFEST.replace('"StandardEpilogue"', "1"),
                            "functor must be a str; got 1"),
                           (SMALL_MANIFEST.replace('["*_f16_*"]', "1"), "minimal must be a list"),
                           (SMALL_MANIFEST.replace('["*_f16_*"]', "[1]"), "no kernel matches '1'"),
                           ("[[epilogues]]\n" + rows, "epilogues must be a dict")):
            with self.subTest(rule=rule):
                self.assertIn(rule, self.refused(text))
        self.manifest.write_bytes(b"\xff\xfe")
        self.assertEqual(run("--manifest", self.manifest, "--list")[0], 1)

    def test_not_toml_and_not_there(self):
        self.assertIn("manifest.toml", self.refused("[["))
        code, _, err = run("--manifest", self.scratch / "none.toml", "--list")
        self.assertEqual(code, 1)
        self.assertIn("No such file", err)


class TheManifest(unittest.TestCase):
    """kernels/manifest.toml itself, against the rules in kernel_config.hpp."""

    @classmethod
    def setUpClass(cls):
        cls.manifest = generate_kernels.load_manifest(generate_kernels.MANIFEST)
        cls.scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.scratch.cleanup)

    def compile(self, source, *flags):
        path = pathlib.Path(self.scratch.name) / "check.cpp"
        path.write_text(source)
        return subprocess.run(
            [os.environ.get("CXX", "c++"), "-std=c++20", "-O0", f"-I{ROOT}/kernels",
             f"-I{ROOT}/include", str(path), "-o", str(path.with_suffix("")), *flags],
            text=True, capture_output=True, check=False)

    def test_it_spans_the_space_of_the_original(self):
        ids = {kernel.id for kernel in self.manifest.kernels}
        for act in ("f16", "bf16"):
            for weight in ("i4", "i8"):
                for quant in ("c", "g", "gz", "fg", "fgz"):
                    for tokens in (16, 32, 64, 128, 256):
                        family = f"sm90_{act}_{weight}_{quant}"
                        self.assertIn(f"{family}_t64x{tokens}x64_pp", ids)
                        self.assertIn(f"{family}_t128x{tokens}x64_coop", ids)

    def test_the_default_set_serves_every_family(self):
        options = generate_kernels.parse_options(["--list", "--variants", "default", "-a", "80;90a"])
        default = generate_kernels.select(self.manifest, options)
        self.assertEqual({kernel.family for kernel in default},
                         {kernel.family for kernel in self.manifest.kernels})
        # Few tokens alone don't make a family: a kernel with token tiles serves any M.
        self.assertEqual({kernel.family for kernel in default if kernel.schedule != "stream"},
                         {kernel.family for kernel in self.manifest.kernels})

    def test_every_family_for_sm80_has_a_batch_invariant_tile(self):
        whole_k = {kernel.family for kernel in self.manifest.kernels if kernel.arch == 80
                   and kernel.tile.startswith("t256x64x64_multi_w1")}
        self.assertEqual(whole_k, {kernel.family for kernel in self.manifest.kernels
                                   if kernel.arch == 80})

    def test_registry_compiles_hence_every_row_is_legal(self):
        result = self.compile(generate_kernels.registry_source(self.manifest.kernels),
                              "-fsyntax-only")
        self.assertEqual(result.returncode, 0, result.stderr[:2000])

    def test_an_illegal_row_is_refused_by_name_with_the_rule(self):
        kernel = self.manifest.kernels[0]
        illegal = type(kernel)(**{**kernel.__dict__, "tile_k": 96})
        result = self.compile(generate_kernels.registry_source([illegal]), "-fsyntax-only")
        self.assertNotEqual(result.returncode, 0)
        self.assertIn(illegal.id, result.stderr)
        self.assertIn("tile_k must be 64, 128 or 256", result.stderr)

    def test_configuration_ids_agree_with_kernel_config(self):
        """Threads, ring depths and clusters as the header computes them, for every kernel."""
        kernels = self.manifest.kernels
        rows = ",\n".join(f'{{{kernel.config_initializer()}, "{kernel.epilogue}"}}'
                          for kernel in kernels)
        clusters = ", ".join(f"{{{n}, {m}, {k}}}" for n, m, k in generate_kernels.CLUSTERS)
        result = self.compile("""
            #include <cstdio>
            #include "registry.hpp"
            using namespace mixgemm;
            constexpr struct { KernelConfig config; const char* epilogue; } kRows[] = {%s};
            constexpr int kClusters[][3] = {%s};
            int threads(const KernelConfig& c) {
              return c.schedule == Schedule::streaming ? streaming_threads(c) : num_threads(c);
            }
            int resident_ctas(const KernelConfig& c) {
              return c.schedule == Schedule::streaming ? streaming_resident_ctas(c)
                                                       : c.ctas_per_sm;
            }
            int streaming_stages(const KernelConfig& c) {
              const SharedLimits limits = shared_limits(c.arch);
              const int grids = c.arch == 80 ? 1 : 2;  // that share an SM by PDL
              for (const int budget : {limits.share(grids * c.ctas_per_sm), limits.per_cta}) {
                int stages = kMaxStages;
                while (streaming_smem_bytes(c, stages, c.tile_m) > budget) --stages;
                if (stages >= 2) return stages;
              }
              return 0;
            }
            int main() {
              for (const auto& row : kRows) {
                const KernelId id = kernel_id(row.config, row.epilogue);
                const bool tiled = row.config.schedule != Schedule::streaming;
                const int stages = tiled ? max_stages(row.config) : streaming_stages(row.config);
                for (const auto& c : kClusters) {
                  const LaunchConfig launch{.cluster_n = c[0], .cluster_m = c[1],
                                            .cluster_k = c[2], .stages = stages};
                  if (tiled ? why_illegal(row.config, launch, true) != nullptr
                            : c[0] * c[1] > 1 || (row.config.arch == 80 && c[2] > 1)) continue;
                  std::printf("%%.*s %%d threads o%%d c%%dx%%dx%%d s%%d\\n",
                              static_cast<int>(id.view().size()), id.view().data(),
                              threads(row.config), resident_ctas(row.config), c[0], c[1], c[2],
                              launch.stages);
                }
              }
            }""" % (rows, clusters))
        self.assertEqual(result.returncode, 0, result.stderr[:2000])
        header = subprocess.run([str(pathlib.Path(self.scratch.name) / "check")], text=True,
                                capture_output=True, check=True).stdout.splitlines()
        ours = [f"{kernel.id} {kernel.threads} threads o{kernel.resident_ctas} c{n}x{m}x{k} "
                f"s{kernel.max_stages()}" for kernel in kernels
                for n, m, k in generate_kernels.CLUSTERS if kernel.takes_cluster(n, m, k)]
        self.assertEqual(header, ours)
        # A streaming kernel whose ring doesn't fit for all tokens of its tile serves fewer of them.
        self.assertGreaterEqual(min(kernel.max_stages() for kernel in kernels
                                    if kernel.schedule != "stream" or kernel.arch == 80), 2)

    def test_lists_are_unique_and_well_formed(self):
        pattern = re.compile(r"sm[89]0_(bf16|f16)_i[48]_f?(c|gz?)"
                             r"_t\d+x\d+x\d+_(coop|pp|mma|stream|multi)(_w\d)?(_k\d)?"
                             r"(_o\d)?@g(0|16|32|64|128)_c\dx\d(x\d)?_s\d+")
        ids = [id for kernel in self.manifest.kernels for id in kernel.configuration_ids()]
        self.assertEqual(len(ids), len(set(ids)))
        for id in ids:
            self.assertRegex(id, pattern)
            self.assertTrue(pattern.fullmatch(id), id)


class Fuzz(InScratch):
    def test_damaged_manifests_never_crash(self):
        """Random edits either still parse or give a message: never a traceback."""
        seed = 20
        rng = random.Random(seed)
        text = SMALL_MANIFEST
        for case in range(200):
            chars = list(text)
            for _ in range(rng.randint(1, 4)):
                at = rng.randrange(len(chars))
                chars[at] = rng.choice(['"', "x", "[", "]", "{", "}", "\n", "=", "9", "", ","])
            self.manifest.write_text("".join(chars))
            with self.subTest(seed=seed, case=case):
                code, _, err = run("--manifest", self.manifest, "--list")
                self.assertIn(code, (0, 1))
                self.assertEqual(code == 1, bool(err))


if __name__ == "__main__":
    unittest.main()
