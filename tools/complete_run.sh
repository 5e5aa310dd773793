#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A complete run on a GPU machine, in about twelve minutes on an H100: tests, tuning of all that the cache
# that ships holds, the rows that are quoted, other families, chains, sanitizers; then the rows against the
# bars. Needs nothing but the static programs `mixgemm` and `mixgemm_gpu_tests` of the bundle preset
# (docs/measurement.md) and this tree.
#   tools/complete_run.sh PROGRAM_DIR OUT_DIR [COMMIT] [CACHE]
# COMMIT is what summary.json will say; rows carry the one that the programs were configured at.
# CACHE is the tuning cache that is extended, tuning/h100.json where not given. SECONDS_LEFT (580): no step
# begins that would likely end later. OUT_DIR gets summary.json, rows.jsonl, more.jsonl, tuning.json and a
# log for each step. Exit status: 0 every step passed, 1 one didn't or was left out, 77 no usable device.
set -uo pipefail

if [ $# -lt 2 ]; then
  sed -n '3,12s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
bin=$1 out=$2 commit=${3:-unknown}
root=$(cd "$(dirname "$0")/.." && pwd)
cache=${4:-$root/tuning/h100.json}
left=${SECONDS_LEFT:-580}
mkdir -p "$out" || exit 1
failed=0

# step NAME SECONDS COMMAND…: SECONDS is when it is given up.
step() {
  local name=$1 limit=$2 code=0
  shift 2
  if ((SECONDS + limit / 3 > left)); then
    echo "complete_run.sh: no time for $name"
    failed=1
    return
  fi
  timeout "$limit" "$@" >"$out/$name.log" 2>&1 || code=$?
  echo "complete_run.sh: $name: exit $code after $SECONDS s"
  if ((code != 0)); then
    tail -n 3 "$out/$name.log"
    failed=1
  fi
  return "$code"
}

step tests 150 "$root/tests/kernels/run.sh" "$bin/mixgemm_gpu_tests" "$out/tests" "$commit" tests
(($? == 77)) && exit 77
cp "$out/tests/summary.json" "$out/summary.json" 2>/dev/null

cp "$cache" "$out/tuning.json" || exit 1
powers=1,2,4,8,16,32,64,128,256,512,1024,2048,4096,8192
tune() {
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" "$bin/mixgemm" tune --device cuda --seconds 0.2 --force -o "$out/tuning.json" "$@"
}
tune tune 330 --act fp16,bf16 --m "${TUNE_M:-$powers,3,6,12,24,48,96,192,384}"
tune tune-more 150 --m $powers --shapes "$root/bench/shapes_more.json"
tune tune-int8 60 --weight int8 --m 1,8,16,32,64,128,1024
tune tune-group32 60 --group 32 --m 1,8,16,128
tune tune-zeros 60 --zero integer --m 1,8,16,128
bench() {
  local name=$1
  shift
  step "$name" 170 "$bin/mixgemm" bench --device cuda --tuning "$out/tuning.json" "$@"
}
bench rows --act fp16,bf16 -o "$out/rows.jsonl"
bench group32 --m 1,16,128 --group 32 -o "$out/group32.jsonl"
bench zeros --m 1,16,128 --zero integer -o "$out/zeros.jsonl"
bench int8 --m 1,8,16,32,64,128,1024 --weight int8 -o "$out/int8.jsonl"
bench nopdl --m 1,4,16 --pdl off -o "$out/nopdl.jsonl"
bench load --m 2048,8192 --layer llama8b.qkv,llama8b.down,llama70b.o,llama70b.gate_up --load-ms 300 -o "$out/load.jsonl"
bench chains --m 1,8,16 --mode chain -o "$out/chains.jsonl"
(cd "$out" && cat load.jsonl group32.jsonl zeros.jsonl int8.jsonl nopdl.jsonl chains.jsonl >more.jsonl)
for tool in initcheck memcheck synccheck racecheck; do
  TOOLS=$tool step "$tool" 180 "$root/tests/kernels/run.sh" "$bin/mixgemm_gpu_tests" "$out/$tool" \
    "$commit" sanitizers
done

python3 "$root/tools/compare_bars.py" "$out/rows.jsonl" || failed=1
exit "$failed"
