# SPDX-License-Identifier: Apache-2.0
"""tools/compare_variants.py on small made-up sweeps."""

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

TOOL = Path(__file__).resolve().parents[3] / "tools/compare_variants.py"


def row(layer, m, us, tile="t128x16x64_coop", **changes):
    base = {"config": f"sm90_f16_i4_g_{tile}@g128_c1x1_s4", "act": "fp16", "weight": "int4", "group": 128,
            "zero": "none", "m": m, "layer": layer, "us": us, "ideal_us": 4.0, "ok": True}
    return base | changes


class CompareVariants(unittest.TestCase):
    def run_tool(self, *sweeps):
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for i, rows in enumerate(sweeps):
                paths.append(Path(folder) / f"sweep{i}.jsonl")
                text = rows if isinstance(rows, str) else "\n".join(json.dumps(r) for r in rows) + "\n"
                paths[-1].write_text(text)
            return subprocess.run([sys.executable, TOOL, *paths], capture_output=True, text=True)

    def test_best_of_each_problem_and_means(self):
        done = self.run_tool([row("o", 1, 8.0), row("o", 1, 9.0, "t64x8x64_stream"), row("qkv", 1, 5.0)],
                             [row("o", 1, 4.0), row("qkv", 1, 10.0)])
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("M=1 o: 8.00 us t128x16x64_coop@g128_c1x1_s4 | 4.00 us", done.stdout)
        self.assertIn("sweep1: 1.000 of the first's time, 1.581 times ideal", done.stdout)

    def test_failed_rows_are_named_and_left_out(self):
        failed = row("o", 1, 1.0, ok=False, error="wrong sums")
        done = self.run_tool([row("o", 1, 8.0)], [row("o", 1, 6.0), failed])
        self.assertEqual(done.returncode, 1)
        self.assertIn("| 6.00 us", done.stdout)
        self.assertIn("FAILED in sweep1", done.stdout)
        self.assertIn("wrong sums", done.stdout)

    def test_missing_problems_are_counted(self):
        done = self.run_tool([row("o", 1, 8.0), row("o", 2, 8.0)], [row("o", 1, 6.0)])
        self.assertEqual(done.returncode, 1)
        self.assertIn("sweep1 lacks 1 problems", done.stdout)

    def test_what_is_no_sweep_is_refused_with_its_line(self):
        for text in ("{}\n", "not json\n", '["list"]\n', json.dumps(row("o", 1, 0.0))):
            done = self.run_tool([row("o", 1, 8.0)], text)
            self.assertEqual(done.returncode, 2, text)
            self.assertIn("sweep1.jsonl:1: not a row of bench_variants", done.stderr)
            self.assertNotIn("Traceback", done.stderr)

    def test_one_sweep_is_a_usage_error(self):
        self.assertEqual(self.run_tool([row("o", 1, 8.0)]).returncode, 2)


if __name__ == "__main__":
    unittest.main()
