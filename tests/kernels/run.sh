#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# All GPU checks in one command: the tests, then compute-sanitizer's four tools over a few kernels.
#   tests/kernels/run.sh PROGRAM OUT_DIR [COMMIT] [tests|sanitizers]
# PROGRAM is mixgemm_gpu_tests. Writes OUT_DIR/summary.json, tests.log and sanitizer-<tool>.log. The
# sanitizer is COMPUTE_SANITIZER or the one on the path; without it that part is skipped, and said so.
# Exit status: 0 all passed, 1 something failed, 77 no usable device.
set -uo pipefail

if [ $# -lt 2 ]; then
  sed -n '3,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
program=$1 out=$2 commit=${3:-unknown} only=${4:-}
mkdir -p "$out" || exit 1
failed=0

if [ "$only" != sanitizers ]; then
  echo "run.sh: tests"
  "$program" --summary "$out/summary.json" --commit "$commit" >"$out/tests.log" 2>&1 || failed=1
  tail -n 3 "$out/tests.log"
  if grep -q '^mixgemm_gpu_tests: skipped' "$out/tests.log"; then
    echo "run.sh: nothing was tested"
    exit 77
  fi
fi

sanitizer=${COMPUTE_SANITIZER:-$(command -v compute-sanitizer || true)}
if [ "$only" = tests ]; then
  echo "run.sh: no sanitizer, as asked"
elif [ -z "$sanitizer" ]; then
  echo "run.sh: skipped the sanitizer, no compute-sanitizer found (set COMPUTE_SANITIZER)"
else
  # Each piece of memory an allocation of its own, so that memcheck and initcheck see its bounds.
  # initcheck must see every kernel: to it, what an unwatched kernel wrote is uninitialized.
  # The test has eight shares, which run side by side: a sanitizer keeps one core busy, not the GPU.
  shards=$(($(nproc) < 16 ? 4 : 8))
  for tool in ${TOOLS:-memcheck racecheck synccheck initcheck}; do
    echo "run.sh: compute-sanitizer $tool"
    watched=(--kernel-regex kns=gemm_)
    [ "$tool" = initcheck ] && watched=()
    pids=()
    for ((shard = 0; shard < shards; ++shard)); do
      GTEST_TOTAL_SHARDS=$shards GTEST_SHARD_INDEX=$shard \
        "$sanitizer" --tool "$tool" --error-exitcode 9 "${watched[@]}" \
        "$program" --exact-allocations --gtest_filter='*Sanitizer.*' \
        >"$out/sanitizer-$tool-$shard.log" 2>&1 &
      pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
    cat "$out/sanitizer-$tool"-*.log >"$out/sanitizer-$tool.log"
    rm -f "$out/sanitizer-$tool"-*.log
    grep -hE "ERROR SUMMARY|RACECHECK SUMMARY" "$out/sanitizer-$tool.log" | sort | uniq -c
    grep -hcE "\[       OK \].*Sanitizer" "$out/sanitizer-$tool.log" | sed 's/$/ shares passed/'
  done
fi
[ "$failed" = 0 ] && echo "run.sh: all passed" || echo "run.sh: FAILED, see $out"
exit $failed
