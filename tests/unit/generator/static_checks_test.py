# SPDX-License-Identifier: Apache-2.0
"""Tests of the tools that judge a build: static_checks, check_budget, compile_launcher."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))
import check_budget  # noqa: E402  (the path has to be set first)
import static_checks  # noqa: E402

ID = "sm90_f16_i4_g_t128x128x64_coop"
SYMBOL = f"_ZN7mixgemm10gemm_tiledINS_9generated{len(ID)}{ID}EEEvNS_6ParamsE"
PTXAS = f"""\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{SYMBOL}' for 'sm_90a'
ptxas info    : Function properties for {SYMBOL}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 16 barriers
"""
SERIALIZED = ("ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are "
              f"serialized in function '{SYMBOL}'\n")
SASS = f"""\
\t\tFunction : {SYMBOL}
  /*0010*/ USETMAXREG.DEALLOC.CTAPOOL 0x28 ;
  /*0020*/ UTMALDG.2D [UR8], [UR4] ;
  /*0030*/ USETMAXREG.TRY_ALLOC.CTAPOOL UP0, 0xe8 ;
  /*0040*/ HGMMA.64x128x16.F32 R24, R4, gdesc[UR8], R24 ;
"""


class Build(unittest.TestCase):
    """A build directory of one unit with one kernel, as static_checks reads it."""

    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.build = pathlib.Path(scratch.name)
        (self.build / "kernels/generated").mkdir(parents=True)
        (self.build / "kernels/generated/units.json").write_text(json.dumps({"unit": [
            {"id": ID, "tile": "t128x128x64_coop", "schedule": "coop", "arch": 90, "threads": 384,
             "resident_ctas": 1, "beyond": False}]}))
        (self.build / "unit.cu.o").write_text("")

    def broken(self, said):
        (self.build / "unit.cu.o.json").write_text(json.dumps(
            {"cpu_s": 1, "wall_s": 1, "peak_rss_mb": 1, "said": said}))
        return static_checks.check_build(self.build, sass=False)

    def test_a_clean_kernel_passes(self):
        summary, broken = self.broken(PTXAS)
        self.assertEqual(broken, [])
        self.assertEqual(summary,
                         {"kernels": 1, "max_registers": 168, "spills": 0, "serialized": 0})

    def test_spills_stack_registers_and_serialization_are_found(self):
        for text, rule in ((PTXAS.replace("0 bytes spill loads", "8 bytes spill loads"),
                            f"{ID}: 8 bytes of spills"),
                           (PTXAS.replace("0 bytes stack", "16 bytes stack"),
                            f"{ID}: 16 bytes of stack"),
                           (PTXAS.replace("168", "176"), f"{ID}: 176 registers; 384 threads"),
                           (PTXAS + SERIALIZED, "unit: ptxas info    : (C7510)")):
            with self.subTest(rule=rule):
                broken = self.broken(text)[1]
                self.assertEqual(len(broken), 1)
                self.assertTrue(broken[0].startswith(rule), broken)

    def test_silence_is_no_pass(self):
        for text in ("", PTXAS.replace("Used", "Took"), PTXAS.replace("_coop", "_pp")):
            with self.assertRaises(static_checks.CannotCheck):
                self.broken(text)
        (self.build / "unit.cu.o.json").unlink()
        with self.assertRaises(static_checks.CannotCheck):
            static_checks.check_build(self.build, sass=False)
        self.assertEqual(static_checks.main([str(self.build)]), 2)


class MachineCode(unittest.TestCase):
    KERNEL = {"arch": 90, "schedule": "coop", "threads": 384, "registers": 168}

    def test_rules(self):
        code = static_checks.parse_sass(SASS)[ID]
        self.assertEqual(static_checks.check_sass(self.KERNEL, code), [])
        for old, new, rule in (("HGMMA", "HMMA", "no HGMMA"), ("UTMALDG", "LDG", "no UTMALDG"),
                               ("UTMALDG.2D", "STL.64 [R1], R2 ; UTMALDG.2D", "local memory"),
                               ("0xe8", "0xf0", "setmaxnreg asks for 520")):
            with self.subTest(rule=rule):
                broken = static_checks.check_sass(self.KERNEL, code.replace(old, new))
                self.assertEqual(len(broken), 1, broken)
                self.assertIn(rule, broken[0])


class Devices(unittest.TestCase):
    """The model of the devices that kernels for SM80 must run on."""
    KERNEL = {"arch": 80, "schedule": "multi", "threads": 128, "ctas_per_sm": 2, "max_stages": 2,
              "stage_bytes": 17 * 1024, "fixed_bytes": 0}

    def test_occupancy_is_what_the_scarcest_resource_allows(self):
        small, large = static_checks.DEVICES["8.6"], static_checks.DEVICES["8.0"]
        self.assertEqual(small.occupancy(255, 256, 50 * 1024), 1)  # registers: 64 K of them
        self.assertEqual(small.occupancy(255, 128, 49 * 1024), 2)
        self.assertEqual(small.occupancy(255, 128, 49 * 1024 + 1), 1)  # shared memory, 1 KB more each
        self.assertEqual(large.occupancy(255, 128, 49 * 1024 + 1), 2)
        self.assertEqual(small.occupancy(32, 512, 1024), 3)  # threads
        self.assertEqual(large.occupancy(32, 512, 1024), 4)
        self.assertEqual(small.occupancy(16, 32, 0), 16)  # CTAs
        self.assertEqual(small.occupancy(129, 128, 0), 3)  # a warp's registers in pieces of 256
        self.assertEqual(small.occupancy(64, 128, 100 * 1024), 0)

    def test_a_kernel_must_hold_on_every_device(self):
        self.assertEqual(static_checks.check_devices(self.KERNEL, 255), [])
        self.assertEqual(len(static_checks.check_devices({**self.KERNEL, "threads": 256}, 255)), 3)
        for changes, rule in (({"max_stages": 3}, "8.6 holds 1 CTAs per SM, not 2"),
                              ({"max_stages": 1}, "a ring of 1 stages")):
            broken = static_checks.check_devices({**self.KERNEL, **changes}, 255)
            self.assertTrue(any(rule in line for line in broken), broken)

    def test_the_worst_of_several_architectures_counts(self):
        other = PTXAS.replace("sm_90a", "sm_86").replace("168", "200")
        for text in (PTXAS + other, other + PTXAS):
            kernels, _ = static_checks.parse_ptxas(text)
            self.assertEqual(kernels[ID]["registers"], 200)


class Budget(unittest.TestCase):
    FIGURES = {"variants": "all", "peak_rss_mb": 200, "lib_mb": 9, "core_two_cores_s": 300,
               "beyond_two_cores_s": 400, "sm80_two_cores_s": 200, "two_cores_s": 900}
    BUDGET = {"peak_rss_mb": 1024, "lib_mb": 40, "all_wall_s": 600, "all_beyond_wall_s": 600,
              "all_sm80_wall_s": 360, "default_wall_s": 240}

    def test_each_ceiling_is_enforced(self):
        self.assertEqual(check_budget.over_budget(self.FIGURES, self.BUDGET), [])
        for name in ("peak_rss_mb", "lib_mb", "core_two_cores_s", "beyond_two_cores_s",
                     "sm80_two_cores_s"):
            over = check_budget.over_budget({**self.FIGURES, name: 5000}, self.BUDGET)
            self.assertEqual(len(over), 1)
            self.assertIn(f"{name} is 5000", over[0])
        over = check_budget.over_budget({**self.FIGURES, "variants": "default"}, self.BUDGET)
        self.assertEqual(over, ["two_cores_s is 900; the budget is 240"])

    def test_packing_onto_two_cores(self):
        self.assertEqual(check_budget.two_cores_s([]), 0)
        self.assertEqual(check_budget.two_cores_s([1, 1, 8]), 8)
        self.assertEqual(check_budget.two_cores_s([3, 3, 2, 2, 2]), 7)


class Launcher(unittest.TestCase):
    """compile_launcher.py around a stand-in for nvcc."""

    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.object = pathlib.Path(scratch.name) / "unit.cu.o"

    def launch(self, said, exit_code=0, strict=True):
        script = ("import sys; open(sys.argv[-1], 'w').close(); "
                  f"sys.stderr.write({said!r}); sys.exit({exit_code})")
        return subprocess.run(
            [sys.executable, ROOT / "tools/compile_launcher.py", *(["--strict"] if strict else []),
             sys.executable, "-c", script, "-o", str(self.object)],
            text=True, capture_output=True, check=False)

    def test_keeps_what_ptxas_says_and_shows_what_matters(self):
        result = self.launch(PTXAS + "unit.cu(3): warning: look here\n")
        self.assertEqual(result.returncode, 0)
        self.assertEqual(result.stderr, "unit.cu(3): warning: look here\n")
        record = json.loads(pathlib.Path(f"{self.object}.json").read_text())
        self.assertIn("Used 168 registers", record["said"])
        self.assertGreater(record["peak_rss_mb"], 0)

    def test_strict_refuses_serialized_wgmma(self):
        result = self.launch(PTXAS + SERIALIZED)
        self.assertEqual(result.returncode, 1)
        self.assertIn("C7510", result.stderr)
        self.assertFalse(self.object.exists())
        self.assertEqual(self.launch(PTXAS + SERIALIZED, strict=False).returncode, 0)

    def test_a_failed_compilation_fails(self):
        result = self.launch("unit.cu(1): error: no\n", exit_code=2)
        self.assertEqual(result.returncode, 2)
        self.assertIn("error: no", result.stderr)


if __name__ == "__main__":
    unittest.main()
