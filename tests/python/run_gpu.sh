#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything about the Python package that needs a GPU machine, in one command:
#   tests/python/run_gpu.sh OUT_DIR [COMMIT] [STEP...]
# STEP: build tests overhead decoder decoder-own minilm; all but minilm where none is named. Each has
# its own time limit, and what it made is in OUT_DIR even if a later one fails.
#
# That machine needs Python with PyTorch, NumPy and pytest (transformers for its model); it may lack a
# network and everything else. What must be carried to it beside the source tree is CARRY (default
# build/carry), a static install of the library, made on a build machine by
#   cmake --preset bundle && cmake --build --preset bundle --target mixgemm mixgemm_cli
#   cmake --install build/bundle --prefix build/carry --component mixgemm
#   install -D build/bundle/bin/mixgemm build/carry/bin/mixgemm
# There only the extension's own files are compiled, against CARRY: with CMake, ninja, nanobind, the
# CUDA headers and Python's. Where one of these lacks there, build for that Python here too, and carry
# the result, which is then taken as it is:
#   cmake -S python -B build/carry/python -G Ninja -DCMAKE_PREFIX_PATH=$PWD/build/carry \
#     -DPython_EXECUTABLE=/path/to/python3.12 && cmake --build build/carry/python
# minilm needs MODEL, a folder made by `bench/python/minilm.py --export-half FOLDER` (45 MB).
# Exit status: 0 all done, 1 a step failed, 77 no GPU.
set -uo pipefail

if [ $# -lt 1 ]; then
  sed -n '3,6s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
out=$(mkdir -p "$1" && cd "$1" && pwd) || exit 1
commit=${2:-unknown}
shift $(($# > 1 ? 2 : 1))
cd "$(dirname "$0")/../.." || exit 1
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(build tests overhead decoder decoder-own)
python=${PYTHON:-python3}
carry=$(cd "${CARRY:-build/carry}" && pwd) || exit 1
build=${BUILD:-build/python-gpu}
failed=0

tag=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
if [ -e "$carry/python/mixgemm/_core$tag" ]; then
  package=$carry/python
  # The package's Python files there are links into the tree that it was built in.
  for file in $(cd python/mixgemm && find . -name '*.py'); do
    mkdir -p "$(dirname "$package/mixgemm/$file")"
    ln -sf "$PWD/python/mixgemm/$file" "$package/mixgemm/$file"
  done
else
  package=$build
fi
export PYTHONPATH=$package:tests/python PYTHONDONTWRITEBYTECODE=1
chmod +x "$carry/bin/mixgemm" 2>/dev/null

# run SECONDS NAME COMMAND...: its output in OUT_DIR/NAME.log
run() {
  local limit=$1 name=$2
  shift 2
  echo "run_gpu.sh: $name"
  local start=$SECONDS
  if timeout -k 10 "$limit" "$@" >"$out/$name.log" 2>&1; then
    echo "run_gpu.sh: $name done after $((SECONDS - start)) s"
  else
    echo "run_gpu.sh: $name FAILED (exit $?) after $((SECONDS - start)) s"
    failed=1
  fi
  tail -n 4 "$out/$name.log"
}

build() {
  [ "$package" != "$build" ] && echo "run_gpu.sh: taking $package as it is" && return
  run 60 configure cmake -S python -B "$build" -G Ninja -DCMAKE_PREFIX_PATH="$carry" \
    -DPython_EXECUTABLE="$(command -v "$python")"
  run 240 build cmake --build "$build" -j "$(nproc)"
}

need_gpu() {
  "$python" -c 'import mixgemm
assert any(d["device"] == "cuda" and d["usable"] for d in mixgemm.devices()), mixgemm.devices()' && return
  echo "run_gpu.sh: no GPU that this build has kernels for; nothing was run"
  exit 77
}

for step in "${steps[@]}"; do
  case "$step" in
    build) build ;;
    tests)
      run 420 tests "$python" -m pytest -q -p no:cacheprovider -rs --durations=5 \
        --junit-xml="$out/tests.xml" tests/python
      ;;
    overhead)
      need_gpu
      run 150 overhead "$python" bench/python/eager_overhead.py --commit "$commit" \
        --mixgemm "$carry/bin/mixgemm" -o "$out/eager_overhead.jsonl"
      ;;
    decoder)
      need_gpu
      run 360 decoder "$python" bench/python/decoder.py --commit "$commit" \
        -o "$out/decoder.jsonl"
      ;;
    decoder-own)
      need_gpu
      run 300 decoder-own "$python" bench/python/decoder.py --model own --commit "$commit" \
        -o "$out/decoder_own.jsonl"
      ;;
    minilm)
      need_gpu
      run 150 minilm "$python" bench/python/minilm.py --device cuda --commit "$commit" \
        --model "${MODEL:?a folder made by minilm.py --export-half}" -o "$out/minilm.json"
      ;;
    *)
      echo "run_gpu.sh: step must be build, tests, overhead, decoder, decoder-own or minilm; got $step" >&2
      exit 2
      ;;
  esac
done
[ "$failed" = 0 ] && echo "run_gpu.sh: all done" || echo "run_gpu.sh: FAILED, see $out"
exit $failed
