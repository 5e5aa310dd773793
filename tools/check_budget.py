#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Builds a kernel set from nothing and holds its cost against [budget] in kernels/manifest.toml.

    check_budget.py [--variants all] [--json] [--build DIR] [-j 2] [--if-changed REVISION]

Prints (with --json as an object): kernels, cpu_s (of all compilers), wall_s, peak_rss_mb (of the
largest compiler process), lib_mb (libmixgemm stripped), max_registers, spills, serialized. Wall
time is judged as two_cores_s: the CPU times of the kernels' units packed onto two cores, longest
first, and the rest of the library halved. On an idle two-core machine that is the wall time; on a
busy or wide one the wall time says little.
Exit codes: 0 within the budget, 1 over it, 2 can't build.
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib

import static_checks

ROOT = pathlib.Path(__file__).resolve().parent.parent
# What the cost of a kernel set depends on, as git's path patterns.
MAKES_KERNELS = ("kernels", "tools/generate_kernels.py", "cmake/cuda.cmake", ":(exclude)*.md")


def two_cores_s(cpu_times):
    """Wall time of independent jobs on two cores, longest job first."""
    cores = [0.0, 0.0]
    for cpu_s in sorted(cpu_times, reverse=True):
        cores[cores.index(min(cores))] += cpu_s
    return max(cores)


def run_quietly(command, environment):
    result = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    if result.returncode != 0:
        print(result.stdout[-4000:], result.stderr[-4000:], sep="\n", file=sys.stderr)
        raise static_checks.CannotCheck(f"{' '.join(map(str, command))}: exit {result.returncode}")


def children_cpu_s():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def build_set(variants, build, jobs):
    """Configures libmixgemm, then builds it from nothing, without a compiler cache; returns the
    build's wall and CPU seconds."""
    environment = {**os.environ, "CCACHE_DISABLE": "1"}
    run_quietly(["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
                 "-DMIXGEMM_CUDA=ON", f"-DMIXGEMM_VARIANTS={variants}", "-DMIXGEMM_TESTS=OFF",
                 "-DMIXGEMM_BENCH=OFF", "-DMIXGEMM_CLI=OFF", "-DMIXGEMM_WERROR=OFF"], environment)
    started, cpu_before = time.monotonic(), children_cpu_s()
    run_quietly(["cmake", "--build", build, "-j", str(jobs), "--target", "mixgemm"], environment)
    return time.monotonic() - started, children_cpu_s() - cpu_before


def stripped_mb(build):
    library = next(path for path in build.glob("libmixgemm.so*") if not path.is_symlink())
    with tempfile.NamedTemporaryFile() as file:
        subprocess.run(["strip", "-o", file.name, library], check=True)
        return os.path.getsize(file.name) / 1e6


def measure(variants, build, jobs):
    """Builds a set; returns the figures and the rules that static checks found broken."""
    wall_s, cpu_s = build_set(variants, build, jobs)
    units = static_checks.read_units(build)
    summary, broken = static_checks.check_build(build, sass=False)
    # A unit holds kernels of one part only: those of fpA_intB's space, those beyond it, or those for
    # SM80.
    parts = {"core": [], "beyond": [], "sm80": []}
    for _, kernels, record, _ in units:
        part = "sm80" if kernels[0]["arch"] == 80 else "beyond" if kernels[0]["beyond"] else "core"
        parts[part].append(record["cpu_s"])
    core, beyond, sm80 = parts.values()
    rest = max(0.0, cpu_s - sum(core) - sum(beyond) - sum(sm80))  # the library's C++, linking
    return {
        "variants": variants, "kernels": summary["kernels"],
        "cpu_s": round(cpu_s, 1), "wall_s": round(wall_s, 1),
        "peak_rss_mb": round(max(record["peak_rss_mb"] for _, _, record, _ in units), 1),
        "lib_mb": round(stripped_mb(build), 2), "max_registers": summary["max_registers"],
        "spills": summary["spills"], "serialized": summary["serialized"],
        "two_cores_s": round(two_cores_s(core + beyond + sm80) + rest / 2, 1),
        "core_two_cores_s": round(two_cores_s(core) + rest / 2, 1),
        "beyond_two_cores_s": round(two_cores_s(beyond), 1),
        "sm80_two_cores_s": round(two_cores_s(sm80), 1),
    }, broken


def over_budget(figures, budget):
    """What is above its ceiling, as sentences."""
    ceilings = {"peak_rss_mb": budget["peak_rss_mb"], "lib_mb": budget["lib_mb"]}
    if figures["variants"] == "all":
        ceilings["core_two_cores_s"] = budget["all_wall_s"]
        ceilings["beyond_two_cores_s"] = budget["all_beyond_wall_s"]
        ceilings["sm80_two_cores_s"] = budget["all_sm80_wall_s"]
    else:
        ceilings["two_cores_s"] = budget[f"{figures['variants']}_wall_s"]
    return [f"{name} is {figures[name]}; the budget is {ceiling}"
            for name, ceiling in ceilings.items() if figures[name] > ceiling]


def changed_since(revision):
    result = subprocess.run(["git", "diff", "--quiet", revision, "--", *MAKES_KERNELS],
                            cwd=ROOT, check=False)
    return result.returncode != 0  # an unknown revision counts as a change


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", choices=("minimal", "default", "all"), default="all")
    parser.add_argument("--build", type=pathlib.Path, metavar="DIR",
                        help="scratch build directory, emptied first and kept (default: temporary)")
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count(), metavar="N")
    parser.add_argument("--if-changed", metavar="REVISION",
                        help="do nothing when kernels and generator are as in this git revision")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(arguments)
    if options.if_changed and not changed_since(options.if_changed):
        print(f"check_budget: kernels and generator are as in {options.if_changed}; not built")
        return 0
    with open(ROOT / "kernels/manifest.toml", "rb") as file:
        budget = tomllib.load(file)["budget"]
    build = options.build or pathlib.Path(tempfile.mkdtemp(prefix="mixgemm-budget-"))
    try:
        shutil.rmtree(build, ignore_errors=True)
        figures, broken = measure(options.variants, build, options.jobs)
    except static_checks.CannotCheck as error:
        print(f"check_budget: {error}", file=sys.stderr)
        return 2
    finally:
        if not options.build:
            shutil.rmtree(build, ignore_errors=True)
    broken += over_budget(figures, budget)
    if options.json:
        print(json.dumps({**figures, "broken": broken}, indent=1))
    else:
        print(*(f"{name} {value}" for name, value in figures.items()), sep="\n")
    print(*(f"check_budget: {rule}" for rule in broken), sep="\n", end="\n" if broken else "",
          file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
