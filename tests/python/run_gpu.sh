#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything about the Python package that needs a GPU machine, in one command of 5 minutes at most:
#   tests/python/run_gpu.sh OUT_DIR [COMMIT] [STEP...]
# STEP: build tests overhead decoder minilm (all of them where none is named), or decoder-own. Each has
# its own time limit, and all of them LIMIT seconds; one that fails or is late leaves the others alone.
# In OUT_DIR: python_gpu.log, what each step said, and python_gpu.jsonl, its rows and how it ended.
#
# That machine needs Python with PyTorch, NumPy and pytest (transformers for its model); it may lack a
# network and everything else. CARRY (default build/carry) must be carried to it beside the source tree;
# tests/python/prepare_carry.sh makes it on a build machine. Where that machine's Python is of another
# version than the extension in CARRY, the extension is compiled there: with CMake, ninja, nanobind, the
# CUDA headers and Python's.
# Exit status: 0 all done, 1 a step failed, 77 no GPU.
set -uo pipefail

if [ $# -lt 1 ]; then
  sed -n '3,7s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
out=$(mkdir -p "$1" && cd "$1" && pwd) || exit 1
commit=${2:-unknown}
shift $(($# > 1 ? 2 : 1))
cd "$(dirname "$0")/../.." || exit 1
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(build tests overhead decoder minilm)
python=${PYTHON:-python3}
carry=$(cd "${CARRY:-build/carry}" && pwd) || exit 1
build=$PWD/${BUILD:-build/python-gpu}
limit=${LIMIT:-290}
log=$out/python_gpu.log
rows=$out/python_gpu.jsonl
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
failed=0
: >"$log"
: >"$rows"

tag=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))') || exit 1
package=$build
if [ -e "$carry/python/mixgemm/_core$tag" ]; then
  package=$work/python  # the carried extension, with the Python files of this tree
  mkdir -p "$package"
  cp -r python/mixgemm "$package/mixgemm"
  cp "$carry/python/mixgemm/_core"* "$package/mixgemm/"
fi
chmod +x "$carry/bin/mixgemm" 2>/dev/null
export PYTHONPATH=$package:$PWD/tests/python PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false TQDM_DISABLE=1
export XLA_PYTHON_CLIENT_PREALLOCATE=false  # JAX would take three quarters of the GPU's memory
export TORCHINDUCTOR_COMPILE_THREADS=1      # starting a pool costs more than two small kernels

# run SECONDS NAME COMMAND...: its output into the log; its rows are what it writes to $work/NAME.rows
run() {
  local own=$1 name=$2 code=0
  shift 2
  local left=$((limit - SECONDS)) start=$SECONDS
  if [ "$left" -lt 5 ]; then
    echo "run_gpu.sh: $name LEFT OUT, $limit s are over"
    printf '{"step": "%s", "done": "left out"}\n' "$name" >>"$rows"
    failed=1
    return 1
  fi
  [ "$own" -lt "$left" ] || own=$left
  echo "run_gpu.sh: $name, at most $own s"
  timeout -k 5 "$own" "$@" >"$work/$name.log" 2>&1 || code=$?
  { echo "======== $name: exit $code after $((SECONDS - start)) s: $*" && cat "$work/$name.log"; } >>"$log"
  [ ! -e "$work/$name.rows" ] || sed "s/^{/{\"step\": \"$name\", /" "$work/$name.rows" >>"$rows"
  "$python" -c 'import json, sys
lines = [line for line in open(sys.argv[4], errors="replace").read().splitlines() if line.strip()]
print(json.dumps({"step": sys.argv[1], "exit": int(sys.argv[2]), "seconds": int(sys.argv[3]),
                  "commit": sys.argv[5], "last_line": lines[-1][-300:] if lines else ""}))' \
    "$name" "$code" $((SECONDS - start)) "$work/$name.log" "$commit" >>"$rows"
  if [ "$code" = 0 ]; then
    echo "run_gpu.sh: $name done after $((SECONDS - start)) s"
    tail -n 24 "$work/$name.log" | grep -v '^{' | cut -c 1-160
  else
    echo "run_gpu.sh: $name FAILED (exit $code) after $((SECONDS - start)) s"
    failed=1
    tail -n 60 "$work/$name.log" | cut -c 1-200
  fi
  return "$code"
}

step_build() {
  if [ "$package" != "$build" ]; then
    echo "run_gpu.sh: taking the extension of $carry as it is"
    return
  fi
  run 40 configure cmake -S python -B "$build" -G Ninja -DCMAKE_PREFIX_PATH="$carry" \
    -DPython_EXECUTABLE="$(command -v "$python")" &&
    run 120 build cmake --build "$build" -j "$(nproc)"
}

need_gpu() {
  "$python" -c 'import mixgemm
assert any(d["device"] == "cuda" and d["usable"] for d in mixgemm.devices()), mixgemm.devices()' && return
  echo "run_gpu.sh: no GPU that this build has kernels for"
  exit 77
}

step_minilm() {
  if [ ! -e "$carry/minilm.tar.gz" ]; then
    echo "run_gpu.sh: no minilm.tar.gz in $carry, so no minilm"
    return
  fi
  tar -xzf "$carry/minilm.tar.gz" -C "$work"
  run 60 minilm "$python" bench/python/minilm.py --device cuda --commit "$commit" \
    --model "$work/minilm" --rows "$work/minilm.rows"
}

for step in "${steps[@]}"; do
  [ "$step" = build ] || [ "$step" = tests ] || need_gpu
  case "$step" in
    build) step_build ;;
    tests)
      run 130 tests "$python" -m pytest -q -p no:cacheprovider -rfEs --tb=short --maxfail=25 \
        --durations=8 -o faulthandler_timeout=60 tests/python
      ;;
    overhead)
      run 40 overhead "$python" bench/python/eager_overhead.py --commit "$commit" \
        --mixgemm "$carry/bin/mixgemm" -o "$work/overhead.rows"
      ;;
    decoder)
      run 115 decoder "$python" bench/python/decoder.py --commit "$commit" --seconds 80 \
        -o "$work/decoder.rows"
      ;;
    decoder-own)
      run 115 decoder-own "$python" bench/python/decoder.py --model own --commit "$commit" \
        --seconds 80 -o "$work/decoder-own.rows"
      ;;
    minilm) step_minilm ;;
    *)
      echo "run_gpu.sh: step must be build, tests, overhead, decoder, decoder-own or minilm; got $step" >&2
      exit 2
      ;;
  esac
done
[ "$failed" = 0 ] && echo "run_gpu.sh: all done" || echo "run_gpu.sh: FAILED, see $log"
exit $failed
