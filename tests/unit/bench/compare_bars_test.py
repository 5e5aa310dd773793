# SPDX-License-Identifier: Apache-2.0
"""tools/compare_bars.py on small made-up runs."""

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "tools"))
import compare_bars  # noqa: E402
SHAPES = {s["layer"]: (s["n"], s["k"]) for s in json.loads((ROOT / "bench/shapes.json").read_text())["shapes"]}


def row(layer, m, us, **changes):
    n, k = SHAPES[layer]
    base = {"gpu": "NVIDIA H100 80GB HBM3", "kernel": "k", "config": "k@c", "auto": True, "act": "fp16",
            "weight": "int4", "group": 128, "zero": "none", "pdl": True, "m": m, "n": n, "k": k,
            "layer": layer, "us": us, "floor_us": 10.0, "floor_nopdl_us": 12.5, "cublas_us": 40.0,
            "ideal_us": 10.0, "rel_err": 1e-4, "rel_err_cublas": 1e-4, "commit": "abc", "ok": True}
    return base | changes


class CompareBars(unittest.TestCase):
    def report(self, rows, take_all=False):
        return compare_bars.compare(json.loads(json.dumps(rows)), take_all)

    def run_tool(self, rows, *options):
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            file.write("\n".join(json.dumps(r) for r in rows) + "\n")
            file.flush()
            tool = ROOT / "tools/compare_bars.py"
            return subprocess.run([sys.executable, tool, file.name, *options], capture_output=True,
                                  text=True)

    def test_geometric_mean_and_bar_over_layers(self):
        rows = [row("llama8b.o", 1, 10.0), row("llama70b.o", 1, 15.0)]
        mean, = self.report(rows)["means"]
        self.assertAlmostEqual(mean["floor"], (1.0 * 1.5) ** 0.5)
        self.assertAlmostEqual(mean["cublas"], (10 * 15 / 1600) ** 0.5)
        self.assertEqual((mean["bar_on"], mean["bar"], mean["met"]), ("floor", 1.25, True))
        rows[1]["us"] = 16.0
        self.assertFalse(self.report(rows)["means"][0]["met"])

    def test_bars_by_regime(self):
        cases = [({"m": 64}, ("ideal", 1.75)), ({"m": 64, "act": "bf16"}, ("ideal", 1.75 * 1.05)),
                 ({"m": 4096}, ("cublas", 0.97)), ({"m": 4096, "act": "bf16"}, ("cublas", 1.03)),
                 ({"m": 8, "pdl": False}, ("floor_nopdl", 1.52)), ({"m": 3}, (None, None)),
                 ({"m": 64, "weight": "int8"}, ("ideal", 1.75)), ({"m": 64, "group": 32}, (None, None))]
        for changes, (divisor, bar) in cases:
            m = changes.pop("m")
            mean, = self.report([row("llama8b.o", m, 10.0, **changes)])["means"]
            self.assertEqual(mean["bar_on"], divisor, changes)
            if bar:
                self.assertAlmostEqual(mean["bar"], bar, msg=str(changes))

    def test_only_the_plans_own_choice_counts_unless_asked(self):
        rows = [row("llama8b.o", 1, 20.0), row("llama8b.o", 1, 11.0, auto=False)]
        self.assertAlmostEqual(self.report(rows)["means"][0]["floor"], 2.0)
        self.assertAlmostEqual(self.report(rows, take_all=True)["means"][0]["floor"], 1.1)

    def test_wrong_or_missing_rows_miss_the_bar(self):
        rows = [row("llama8b.o", 1, 11.0), row("llama70b.o", 1, None, ok=False, error="wrong result")]
        report = self.report(rows)
        self.assertFalse(report["means"][0]["met"])
        self.assertEqual(report["means"][0]["missing"], ["llama70b.o"])
        self.assertEqual(len(report["failed_rows"]), 1)
        strict = self.run_tool(rows, "--strict")
        self.assertEqual(strict.returncode, 1, strict.stderr)
        self.assertIn("MISSED", strict.stdout)
        self.assertIn("wrong result", strict.stdout)
        self.assertEqual(self.run_tool(rows).returncode, 0)

    def test_layers_slower_than_the_best_peer_are_named(self):
        text = (ROOT / "bench/baselines/h100_peers.jsonl").read_text()
        peers = [json.loads(line) for line in text.splitlines()]
        best = min(p["us"] for p in peers if p.get("m") == 16 and p["layer"] == "llama8b.o"
                   and p["act"] == "fp16")
        self.assertEqual(self.report([row("llama8b.o", 16, best - 0.1)])["slower_than_peer"], [])
        slow, = self.report([row("llama8b.o", 16, best + 0.1)])["slower_than_peer"]
        self.assertEqual((slow["layer"], slow["peer_us"]), ("llama8b.o", best))

    def test_other_formats_against_plain_int4(self):
        def int8(us, m):
            return row("llama8b.o", m, us, weight="int8", ideal_us=20.0, floor_us=5.0)
        plain = row("llama8b.o", 512, 20.0, ideal_us=20.0, floor_us=3.0)
        relative, = self.report([plain, int8(22.0, 512)])["relative"]
        self.assertEqual((relative["met"], relative["allowed"]), (True, 1.15))
        self.assertFalse(self.report([plain, int8(24.0, 512)])["relative"][0]["met"])
        # Memory decides: group 32 with zeros has 4 096 x 4 096 x (1/2 + 4/32) bytes of weight.
        memory = [row("llama8b.o", 1, 10.0), row("llama8b.o", 1, 12.0, group=32, zero="integer")]
        relative, = self.report(memory)["relative"]
        self.assertAlmostEqual(relative["allowed"], 1.05 * (0.5 + 4 / 32) / (0.5 + 2 / 128))

    def test_one_peer_by_name(self):
        peer = {(r["m"], r["layer"]): r["us"] for r in map(json.loads, (
            ROOT / "bench/baselines/h100_peers.jsonl").read_text().splitlines())
            if r["peer"] == "marlin"}
        rows = [row("llama8b.o", 16, 0.5 * peer[16, "llama8b.o"], pdl=False),
                row("llama70b.o", 16, 2.0 * peer[16, "llama70b.o"], pdl=False),
                row("llama8b.o", 16, 0.1, pdl=False, auto=False)]
        table, missing = compare_bars.compare_to_peer(rows, False, "marlin")
        (m, layers, mean, worst, layer, config), = table
        self.assertEqual((m, layers, layer, config), (16, 2, "llama70b.o", "k@c"))
        self.assertAlmostEqual(mean, 1.0)
        self.assertAlmostEqual(worst, 2.0)
        self.assertIn((32, "llama8b.o"), missing)
        done = self.run_tool(rows, "--peer", "marlin", "--strict")
        self.assertEqual(done.returncode, 1, done.stderr)  # not every problem was measured
        self.assertIn("1.000", done.stdout)
        self.assertIn("no rows of a peer named 'nobody'", self.run_tool(rows, "--peer", "nobody").stderr)

    def test_unreadable_input_is_named(self):
        done = self.run_tool([])
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("no GEMM rows", done.stderr)


if __name__ == "__main__":
    unittest.main()
