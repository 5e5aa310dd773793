# SPDX-License-Identifier: Apache-2.0
"""What tools/demo.py says of made-up results of the program, on machines that aren't this one."""

import json
import stat
import subprocess
import sys
import tempfile
import textwrap
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def layer(name, device, us, **dense):
    speedup = next((value / us for value in dense.values() if value), None)
    return {"layer": name, "bits_per_weight": 4.125, "rel_err_weight": 0.1, "rel_err_output": 0.1,
            "us": us, **dense, "speedup": speedup, "device": device, "n": 384, "k": 384,
            "act": "fp16", "weight": "int4", "group": 128}


def total(device, us, count, **dense):
    row = {**layer(f"total of {count} layers", device, us, **dense), "num_layers": count}
    return {key: row[key] for key in row if key not in ("n", "k", "act", "weight", "group")}


def bench_row(m, us, **more):
    return {"m": m, "n": 4096, "k": 4096, "act": "fp16", "us": us, "cublas_us": None, **more}


class Demo(unittest.TestCase):
    def run_demo(self, comparison, bench):
        """The demo's output and its report, with a program that answers as told."""
        with tempfile.TemporaryDirectory() as folder:
            answers = {"verify": [{"num_layers": 2, "num_dense": 0}], "quantize": [],
                       "compare": [{"m": 1, "act": "fp16", **comparison}], "bench": bench}
            (Path(folder) / "bin").mkdir()
            program = Path(folder) / "bin/mixgemm"
            program.write_text(textwrap.dedent(f"""\
                #!{sys.executable}
                import json, sys
                for answer in json.loads({json.dumps(answers)!r})[sys.argv[1]]:
                    print(json.dumps(answer))
                """))
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
            report = Path(folder) / "demo.json"
            done = subprocess.run([sys.executable, ROOT / "tools/demo.py", "--mixgemm", program,
                                   "--model", "model.safetensors", "-o", report],
                                  capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            return done.stdout, json.loads(report.read_text())

    def test_a_gpu_stands_beside_the_dense_product_of_that_gpu(self):
        out, report = self.run_demo(
            {"cublas": "libcublasLt.so.13 130100",
             "layers": [layer("a", "cuda", 2.0, cublas_us=3.0),
                        layer("b", "cuda", 2.0, cublas_us=5.0)],
             "total": total("cuda", 4.0, 2, cublas_us=8.0)},
            [bench_row(1, 4.0, cublas_us=16.0), bench_row(512, 26.0, cublas_us=29.9)])
        self.assertNotIn("BLAS", out.replace("cuBLAS", ""))
        self.assertIn("cuBLAS fp16 µs", out)
        self.assertIn("M=1, N=K=4096: 4.0 µs, 4.00× the speed of fp16 cuBLAS (16.0 µs)", out)
        self.assertIn("1.15× the speed of fp16 cuBLAS (29.9 µs)", out)
        self.assertIn("2.00× the speed of dense fp16 on the GPU", out)
        self.assertEqual(report["speedup_over_cublas"]["m1_n4096_k4096"], 4.0)

    def test_a_gpu_without_cublas_has_no_ratio(self):
        out, report = self.run_demo(
            {"cublas": None, "layers": [layer("a", "cuda", 2.0, cublas_us=None)],
             "total": total("cuda", 2.0, 1, cublas_us=None)}, [bench_row(1, 4.0)])
        self.assertNotIn("×", out.replace("N×K", "").replace("384×384", ""))
        self.assertIn("M=1, N=K=4096: 4.0 µs, no cuBLAS to compare with", out)
        self.assertIsNone(report["speedup_over_cublas"]["m1_n4096_k4096"])

    def test_the_cpu_stands_beside_fp32(self):
        out, report = self.run_demo(
            {"blas": "OpenBLAS 0.3.21", "layers": [layer("a", "cpu", 20.0, blas_f32_us=50.0)],
             "total": total("cpu", 20.0, 1, blas_f32_us=50.0)},
            [bench_row(1, 740.0, device="cpu", blas="OpenBLAS 0.3.21", blas_f32_us=2960.0)])
        self.assertIn("fp32 BLAS µs", out)
        self.assertIn("740 µs, 4.00× the speed of fp32 OpenBLAS 0.3.21 (2960 µs)", out)
        self.assertIn("2.50× the speed of dense fp32", out)
        self.assertEqual(report["speedup_over_blas"]["m1_n4096_k4096"], 4.0)

    def test_layers_of_two_devices_have_a_column_each_and_no_common_ratio(self):
        both = {"blas_f32_us": None, "cublas_us": None}
        out, _ = self.run_demo(
            {"blas": "OpenBLAS", "cublas": "libcublasLt.so.13 130100",
             "layers": [layer("a", "cpu", 20.0, blas_f32_us=50.0),
                        layer("b", "cuda", 2.0, cublas_us=3.0)],
             "total": total(None, 22.0, 2, **both)}, [bench_row(1, 4.0, cublas_us=16.0)])
        rows = {line.split()[0]: line.split() for line in out.splitlines() if "384×384" in line}
        self.assertEqual(rows["a"][-4:], ["20.0", "50.0", "-", "2.50×"])
        self.assertEqual(rows["b"][-4:], ["2.0", "-", "3.0", "1.50×"])
        self.assertIn("2 layers at 4.125 bits per weight; every figure", out)


if __name__ == "__main__":
    unittest.main()
