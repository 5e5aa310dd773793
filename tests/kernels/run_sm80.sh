#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The kernels for SM80 on the GPU at hand, in one command: tests and sanitizers, a few tests of what the
# driver makes of their PTX, times of what the plan picks and of the best launch, against Marlin.
#   tests/kernels/run_sm80.sh BIN_DIR OUT_DIR [COMMIT] [quick]
# BIN_DIR holds mixgemm_gpu_tests, mixgemm and bench_variants of a build whose registry has no other
# kernels (on Hopper the plan would pick its own):
#   cmake --preset bundle -B build/sm80 -DMIXGEMM_VARIANTS=all -DMIXGEMM_KERNELS='sm80_*' \
#     -DMIXGEMM_SM80_CODE='sm_90;compute_80' && cmake --build build/sm80
# quick: no sanitizers, fewer times. Exit status: 0 all tests passed and Marlin is met, 1 not, 77 no
# usable device.
set -uo pipefail

if [ $# -lt 2 ]; then
  sed -n '3,11s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
bin=$1 out=$2 commit=${3:-unknown} quick=${4:-}
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$out" || exit 1
failed=0

if [ "$quick" = quick ]; then
  "$bin/mixgemm_gpu_tests" --summary "$out/summary.json" --commit "$commit" \
    >"$out/tests.log" 2>&1 || failed=1
  tail -n 3 "$out/tests.log"
  if grep -q '^mixgemm_gpu_tests: skipped' "$out/tests.log"; then exit 77; fi
else
  "$root/tests/kernels/run.sh" "$bin/mixgemm_gpu_tests" "$out" "$commit"
  case $? in 77) exit 77 ;; 0) ;; *) failed=1 ;; esac
fi

echo "run_sm80.sh: through PTX"
CUDA_FORCE_PTX_JIT=1 "$bin/mixgemm_gpu_tests" \
  --gtest_filter='*Sanitizer.*:Registry.f16_int4_g128_none:Registry.bf16_int8_g64_integer' \
  >"$out/ptx.log" 2>&1 || failed=1
tail -n 3 "$out/ptx.log"

tokens=1,2,4,8,16,32,64,128,256,512,1024,2048,4096,8192
[ "$quick" = quick ] && tokens=1,8,16,32,64,128,256,1024,4096
echo "run_sm80.sh: what the plan picks"
"$bin/mixgemm" bench --device cuda --act fp16 --weight int4 --group 128 --zero none --pdl off \
  --no-baselines --m $tokens -o "$out/auto.jsonl" >"$out/bench.log" 2>&1 || failed=1
python3 "$root/tools/compare_bars.py" "$out/auto.jsonl" --peer marlin --strict || failed=1

echo "run_sm80.sh: the best of every launch, on four layers"
"$bin/bench_variants" --layer llama8b.qkv,llama8b.o,llama8b.gate_up,llama70b.o --m $tokens \
  --kernel 'sm80_*' --pdl off -o "$out/sweep.jsonl" >"$out/sweep.log" 2>&1 || failed=1
python3 "$root/tools/compare_bars.py" "$out/sweep.jsonl" --peer marlin --all
exit $failed
