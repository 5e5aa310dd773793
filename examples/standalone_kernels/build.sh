#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Generates kernels into an empty directory, builds them with main.cu by nvcc alone and runs the
# program: no CMake, no library, and no Python once the sources are there.
#   build.sh DIR [options of tools/generate_kernels.py; default: --variants minimal]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=${1:?"usage: build.sh DIR [generator options]"}
shift
(($# > 0)) || set -- --variants minimal

python3 "$here/../../tools/generate_kernels.py" -a 90 -o "$dir" "$@"
"${CUDACXX:-nvcc}" -std=c++20 -O3 --expt-relaxed-constexpr --threads "${JOBS:-2}" \
  -gencode=arch=compute_90a,code=sm_90a -I "$dir/include" \
  "$dir"/*.cu "$dir/registry.cpp" "$here/main.cu" -o "$dir/standalone_kernels"
"$dir/standalone_kernels"
