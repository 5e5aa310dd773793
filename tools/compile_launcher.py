#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs a compiler and keeps, as OBJECT.json beside its object, what it said and what it cost.

    compile_launcher.py [--strict] nvcc ... -o OBJECT

What ptxas says of registers and spills goes to the file only; errors and warnings are shown too.
--strict refuses an object whose wgmma ptxas serialized (C75xx: such a kernel is slow).
"""

import json
import os
import re
import subprocess
import sys
import time

# Lines of `ptxas -v` that say nothing unless a check looks for them.
QUIET = re.compile(r"ptxas info\s+: (?!\(C)|\s+\d+ bytes stack frame|ptxas \.")


def main(arguments):
    strict = "--strict" in arguments[:1]
    command = arguments[1:] if strict else arguments
    if not command:
        print(__doc__, file=sys.stderr)
        return 2
    started = time.monotonic()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        said = process.stderr.read()
        # Of the compiler and all its children: CPU time in sum, memory of the largest.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.monotonic() - started
    code = process.returncode
    shown = [line for line in said.splitlines() if line.strip() and not QUIET.match(line)]
    if shown:
        print(*shown, sep="\n", file=sys.stderr)
    if "-o" not in command or "-c" not in command:
        return code if code >= 0 else 1
    output = command[command.index("-o") + 1]
    serialized = re.findall(r"\(C75\d\d\).*", said)
    if strict and code == 0 and serialized:
        print(f"compile_launcher: {output}: ptxas serializes wgmma or ignores setmaxnreg: "
              f"{serialized[0]}", file=sys.stderr)
        os.unlink(output)
        code = 1
    if code == 0:
        with open(f"{output}.json", "w", encoding="utf-8") as file:
            json.dump({"cpu_s": usage.ru_utime + usage.ru_stime, "wall_s": wall_s,
                       "peak_rss_mb": usage.ru_maxrss / 1024, "said": said}, file)
    return code if code >= 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
