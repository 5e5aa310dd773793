#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks every kernel of a build without a GPU, from what ptxas said and from the machine code.

    static_checks.py BUILD_DIR [--sass] [--json] [--occupancy]

Of each kernel in BUILD_DIR/kernels/generated/units.json: no spill, no stack (local memory), no
C75xx (wgmma serialized, setmaxnreg ignored), registers within what the launch bounds leave. With
--sass also, from cuobjdump: the tensor-core and bulk-copy instructions that its schedule stands for
are there, no instruction touches local memory, and the register budgets of setmaxnreg add up to no more
than the CTA was launched with. Kernels for SM80 are also held against a model of the devices they are
written for, none of which need be at hand: shared memory, registers and threads of SM80, SM86 and SM89
must hold as many CTAs as the kernel's name says, with the deepest ring that the launcher would take
where all of them are to run. --occupancy prints what each device holds. cuobjdump and nvdisasm come from the path, else from .venv, where
`tools/bootstrap.sh sass` installs them. Exit codes: 0 all hold, 1 one doesn't, 2 can't tell.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
REGISTERS_PER_SM = 65536
# What a schedule's machine code must hold: tensor cores fed by wgmma or mma.sync, bulk or asynchronous
# copies.
REQUIRED_SASS = {(90, "coop"): (r"HGMMA", r"UTMALDG"), (90, "pp"): (r"HGMMA", r"UTMALDG"),
                 (90, "mma"): (r"HMMA", r"LDSM", r"UTMALDG"),
                 (90, "stream"): (r"HG?MMA", r"UTMALDG|UBLKCP"),
                 (80, "multi"): (r"HMMA", r"LDGSTS", r"LDSM"),
                 (80, "stream"): (r"HMMA", r"LDGSTS", r"LDSM")}
KERNEL_NAME = re.compile(r"\d(sm\d+_[a-z0-9_]+)E")  # the tag type inside a mangled kernel name


class Device:
    """An SM as far as occupancy goes (CUDA programming guide, "Technical Specifications")."""

    def __init__(self, smem_per_cta_kb, smem_per_sm_kb, max_threads, max_ctas):
        self.smem_per_cta = smem_per_cta_kb * 1024
        self.smem_per_sm = smem_per_sm_kb * 1024
        self.max_threads = max_threads
        self.max_ctas = max_ctas

    def occupancy(self, registers, threads, smem_bytes):
        """CTAs that an SM holds. A warp's registers come in pieces of 256, a CTA's shared memory with
        1 KB of the driver's."""
        if smem_bytes > self.smem_per_cta:
            return 0
        warp_registers = (registers * 32 + 255) // 256 * 256
        by_registers = REGISTERS_PER_SM // warp_registers // (threads // 32)
        by_smem = self.smem_per_sm // (smem_bytes + 1024)
        return min(by_registers, by_smem, self.max_threads // threads, self.max_ctas)


# Compute capability -> model. What a kernel for SM80 must run on.
DEVICES = {"8.0": Device(163, 164, 2048, 32), "8.6": Device(99, 100, 1536, 16),
           "8.9": Device(99, 100, 1536, 24)}


class CannotCheck(Exception):
    """An input of the check is missing: the build isn't complete, or a tool isn't installed."""


def parse_ptxas(text):
    """{kernel id: {registers, spill_bytes, stack_bytes}} and the C75xx lines of one unit."""
    kernels = {}
    current = None
    for line in text.splitlines():
        if match := re.search(r"Compiling entry function '([^']+)'", line):
            name = KERNEL_NAME.search(match[1])
            current = kernels.setdefault(name[1], {}) if name else None
        elif current is None:
            continue
        elif match := re.search(
                r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", line):
            # The worst, where a unit is compiled for several architectures.
            current["stack_bytes"] = max(int(match[1]), current.get("stack_bytes", 0))
            current["spill_bytes"] = max(int(match[2]) + int(match[3]), current.get("spill_bytes", 0))
        elif match := re.search(r"Used (\d+) registers", line):
            current["registers"] = max(int(match[1]), current.get("registers", 0))
    return kernels, [line.strip() for line in text.splitlines() if re.search(r"\(C75\d\d\)", line)]


def parse_sass(text):
    """{kernel id: machine code} of one object."""
    parts = re.split(r"^\s*Function : (\S+)\s*$", text, flags=re.M)
    return {name[1]: code for symbol, code in zip(parts[1::2], parts[2::2])
            if (name := KERNEL_NAME.search(symbol))}


def check_sass(kernel, code):
    """The rules that a kernel's machine code breaks."""
    required = REQUIRED_SASS[kernel["arch"], kernel["schedule"]]
    broken = [f"no {pattern} in its machine code" for pattern in required
              if not re.search(rf"\b(?:{pattern})\b", code)]
    broken += [f"local memory: {match[0]}"
               for match in [re.search(r"\b(?:LDL|STL)\b[^;]*", code)] if match]
    less = [int(value, 16) for value in re.findall(r"USETMAXREG\.DEALLOC\S*\s+(0x[0-9a-f]+)", code)]
    more = [int(value, 16)
            for value in re.findall(r"USETMAXREG\.TRY_ALLOC\S*\s+UP\d+,\s*(0x[0-9a-f]+)", code)]
    if more and kernel.get("registers"):
        warpgroups = kernel["threads"] // 128  # the producer's and the consumers'
        wanted = max(more) * (warpgroups - 1) + min(less, default=kernel["registers"])
        held = kernel["registers"] * warpgroups
        if wanted > held:
            broken.append(f"setmaxnreg asks for {wanted} registers a thread of each warpgroup in "
                          f"sum where the launch holds {held}: consumers would wait for ever")
    return broken


def occupancies(kernel, registers):
    """{compute capability: CTAs per SM} of a kernel for SM80 with the ring of the smallest device."""
    smem = kernel["max_stages"] * kernel["stage_bytes"] + kernel["fixed_bytes"]
    return {name: device.occupancy(registers, kernel["threads"], smem)
            for name, device in DEVICES.items()}


def check_devices(kernel, registers):
    """The rules that a kernel for SM80 breaks on the devices it is written for."""
    broken = [f"a ring of {kernel['max_stages']} stages on {name}: two are needed"
              for name in DEVICES if kernel["max_stages"] < 2]
    return broken + [f"compute capability {name} holds {ctas} CTAs per SM, not {kernel['ctas_per_sm']}"
                     for name, ctas in occupancies(kernel, registers).items()
                     if ctas < kernel["ctas_per_sm"]]


def find_cuobjdump():
    """cuobjdump, and the environment in which it finds nvdisasm."""
    installed = sorted(ROOT.glob(".venv/lib/python*/site-packages/nvidia/*/bin/cuobjdump"))
    path = shutil.which("cuobjdump") or (str(installed[-1]) if installed else None)
    if path is None:
        raise CannotCheck("cuobjdump is neither on the path nor in .venv; "
                          "`tools/bootstrap.sh sass` installs it")
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join([os.path.dirname(path), environment.get("PATH", "")])
    return path, environment


def disassemble(objects):
    """{kernel id: machine code} of all objects."""
    tool, environment = find_cuobjdump()

    def run(path):
        result = subprocess.run([tool, "-sass", str(path)], env=environment, text=True,
                                capture_output=True, check=False)
        if result.returncode != 0:
            raise CannotCheck(f"cuobjdump {path}: {result.stderr.strip()}")
        return parse_sass(result.stdout)

    code = {}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for part in pool.map(run, objects):
            code.update(part)
    return code


def read_units(build):
    """[(unit, its kernels as in units.json, compile record, object)] of a build directory."""
    try:
        units = json.loads((build / "kernels/generated/units.json").read_text())
    except OSError as error:
        raise CannotCheck(f"{build}: no kernels were configured there ({error})") from error
    found = []
    for unit, kernels in units.items():
        objects = list(build.glob(f"**/{unit}.cu.o"))
        record = objects[0].with_suffix(".o.json") if objects else None
        if record is None or not record.is_file():
            raise CannotCheck(f"{unit}: not built yet under {build}")
        found.append((unit, kernels, json.loads(record.read_text()), objects[0]))
    return found


def check_build(build, sass, occupancy=None):
    """Returns (summary, [broken rule]) for every kernel of a build, and fills `occupancy` for those for
    SM80."""
    units = read_units(build)
    code = disassemble([unit[3] for unit in units]) if sass else {}
    broken = []
    summary = {"kernels": 0, "max_registers": 0, "spills": 0, "serialized": 0}
    occupancy = {} if occupancy is None else occupancy
    for unit, kernels, record, _ in units:
        said, serialized = parse_ptxas(record["said"])
        summary["serialized"] += len(serialized)
        broken += [f"{unit}: {line}" for line in serialized]
        for kernel in kernels:
            summary["kernels"] += 1
            facts = said.get(kernel["id"], {})
            if {"registers", "spill_bytes", "stack_bytes"} - facts.keys():
                raise CannotCheck(f"{kernel['id']}: ptxas said nothing of it in {unit}")
            threads, ctas = kernel["threads"], kernel["resident_ctas"]
            most = REGISTERS_PER_SM // ctas // threads // 8 * 8
            rules = []
            if facts["spill_bytes"]:
                summary["spills"] += 1
                rules.append(f"{facts['spill_bytes']} bytes of spills")
            if facts["stack_bytes"]:
                rules.append(f"{facts['stack_bytes']} bytes of stack (local memory)")
            if facts["registers"] > most:
                rules.append(f"{facts['registers']} registers; {threads} threads and "
                             f"{ctas} CTAs per SM leave {most}")
            if kernel["arch"] == 80:
                rules += check_devices(kernel, facts["registers"])
                occupancy[kernel["id"]] = {"registers": facts["registers"],
                                           **occupancies(kernel, facts["registers"])}
            summary["max_registers"] = max(summary["max_registers"], facts["registers"])
            if sass:
                if kernel["id"] not in code:
                    raise CannotCheck(f"{kernel['id']}: not in the machine code of {unit}")
                rules += check_sass({**kernel, **facts}, code[kernel["id"]])
            broken += [f"{kernel['id']}: {rule}" for rule in rules]
    return summary, broken


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=pathlib.Path, metavar="BUILD_DIR")
    parser.add_argument("--sass", action="store_true", help="look at the machine code too")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--occupancy", action="store_true",
                        help="print the registers of each kernel for SM80 and the CTAs per SM")
    options = parser.parse_args(arguments)
    occupancy = {}
    try:
        summary, broken = check_build(options.build, options.sass, occupancy)
    except CannotCheck as error:
        print(f"static_checks: {error}", file=sys.stderr)
        return 2
    if options.occupancy and not options.json:
        for kernel, held in sorted(occupancy.items()):
            print(kernel, f"{held['registers']} registers",
                  *(f"{name}: {held[name]}" for name in DEVICES), sep="  ")
    if options.json:
        print(json.dumps({**summary, "broken": broken}, indent=1))
    else:
        print(*(f"static_checks: {rule}" for rule in broken), sep="\n", end="\n" if broken else "")
        print(f"static_checks: {summary['kernels']} kernels, {len(broken)} broken rules, at most "
              f"{summary['max_registers']} registers at launch, {summary['spills']} with spills, "
              f"{summary['serialized']} serialization warnings"
              f"{', machine code looked at' if options.sass else ''}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
