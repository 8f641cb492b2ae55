#!/bin/bash
# daam_diffusers on a GPU, in at most 360 s: its tests, the kernels' log-sum-exp, and what tracing
# costs Stable Diffusion 1.5 and XL, Stable Diffusion 3 and FLUX in bfloat16. From the root of the
# tree, on a machine with torch, transformers, accelerate, pytest and rich:
#
#     OUT=some/empty/folder bash tests/gpu/daam.sh
#
# Where diffusers is not installed and nothing can be fetched, bring it as wheels of the machine's
# Python, beside this tree, and let the script find them:
#
#     pip download --no-deps --only-binary=:all: --python-version 3.12 -d .whl \
#         diffusers==0.42.1 importlib-metadata==8.7.0
#     pip install --no-index --no-deps --target /tmp/site .whl/*.whl    (there)
#     OUT=... PYTHONPATH=/tmp/site bash tests/gpu/daam.sh               (there)
#
# Every step has a limit of its own, writes to $OUT as it goes, and does not stop the next one.
# TRACING_TEST_DEVICE=cpu checks all of it without a GPU, on tiny models. PYTHON, SHARDS (processes
# that share the tests) and SLOWER (a factor of all limits, for a busy machine) may be set.
set -u
: "${OUT:?set it to an empty folder}"
mkdir -p "$OUT"
export PYTHON=${PYTHON:-python3}
SLOWER=${SLOWER:-1}
HERE=tests/gpu
export OUT TRACING_TEST_DEVICE=${TRACING_TEST_DEVICE:-cuda} PYTHONUNBUFFERED=1
export PYTHONPATH=$PWD/daam_diffusers/src:$PWD/$HERE${PYTHONPATH:+:$PYTHONPATH}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
TIMES=(--device "$TRACING_TEST_DEVICE" --no-memory)
if [ "$TRACING_TEST_DEVICE" = cpu ]; then
  SHARDS=${SHARDS:-1} CHOSEN="tiny-sd3 or joint_attention"
  SCORES=(--device cpu --layers "sd15 16²" --repeats 2)
  UNETS=(tiny-sd --pairs 2) TRANSFORMERS=(tiny-sd3 tiny-flux --pairs 2)
else
  SHARDS=${SHARDS:-4} CHOSEN="test"
  SCORES=(--device cuda --dtype bfloat16 --repeats 20 --budgets)
  UNETS=(sd15 sdxl --steps 20 --pairs 6) TRANSFORMERS=(sd3 flux --full --steps 5 --pairs 6)
fi
failed=0

step() {  # seconds, log, command
  local limit=$(($1 * SLOWER)) log=$2 rc; shift 2
  echo "== $(date +%T) at most $limit s: $*"
  timeout -k 5 "$limit" "$@" >>"$OUT/$log" 2>&1
  rc=$?
  echo "-- $(date +%T) rc $rc"
  [ $rc = 0 ] || failed=1
}

environment() {
  nvidia-smi
  "$PYTHON" -V
  "$PYTHON" -m pip list 2>/dev/null | grep -iE "^(torch|transformers|accelerate|nvidia-cudnn) "
  "$PYTHON" -c "import diffusers; print('diffusers', diffusers.__version__)"
}
export -f environment

tests() {  # seconds; each line of the log begins with the number of its process
  local limit=$(($1 * SLOWER)) i pids=()
  echo "== $(date +%T) at most $limit s: tests in $SHARDS processes"
  for ((i = 1; i <= SHARDS; i++)); do
    (
      set -o pipefail
      timeout -k 5 "$limit" "$PYTHON" -m pytest -c "$HERE/gpu.ini" --rootdir . --noconftest \
        -p gpu_plugin --shard "$i/$SHARDS" -v -rP --durations 5 "$HERE/test_tracing_gpu.py" \
        -k "$CHOSEN" 2>&1 | sed -u "s/^/$i| /" >>"$OUT/tests.log"
    ) &
    pids+=($!)
  done
  for i in "${pids[@]}"; do
    wait "$i" || { echo "-- a process of the tests: rc $?"; failed=1; }
  done
  echo "-- $(date +%T)"
}

step 15 environment.log bash -c environment
step 45 scores.log "$PYTHON" tests/benchmarks/bench_scores.py "${SCORES[@]}" --json "$OUT/scores.json"
step 75 unets.log "$PYTHON" tests/benchmarks/bench_tracing.py "${TIMES[@]}" \
  --json "$OUT/unets.json" --geometry "${UNETS[@]}"
step 105 transformers.log "$PYTHON" tests/benchmarks/bench_tracing.py "${TIMES[@]}" \
  --json "$OUT/transformers.json" --geometry "${TRANSFORMERS[@]}"
tests 110

# The end of the output is what is read first: what failed, then what was found.
cat "$OUT/environment.log"
grep -hE "(FAILED|ERROR) tests|[0-9]+ (passed|failed|skipped).* in |log-sum-exp (True|False)" \
  "$OUT/tests.log" | sort -u
cat "$OUT/scores.log" "$OUT/unets.log" "$OUT/transformers.log" | grep -v "^\[transformers\]"
exit $failed
