#!/bin/bash
# The GPU tests, probes and benchmark on a bare machine: this source tree, and python3 with torch,
# transformers, accelerate, pytest and numpy. From the root of the tree:
#
#     OUT=some/empty/folder bash tests/gpu/run.sh first     300 s at most
#     OUT=some/empty/folder bash tests/gpu/run.sh second    240 s at most
#
# Every step has a limit of its own, writes to $OUT as it goes, and does not stop the next one.
# GRAPHS_TEST_DEVICE=cpu checks all of it without a GPU, on tiny models. PYTHON, SHARDS (processes
# that share the tests) and SLOWER (a factor of all limits, for a busy machine) may be set.
set -u
PART=${1:?first or second}
: "${OUT:?set it to an empty folder}"
mkdir -p "$OUT"
PYTHON=${PYTHON:-python3}
SLOWER=${SLOWER:-1}
HERE=tests/gpu
export GRAPHS_TEST_DEVICE=${GRAPHS_TEST_DEVICE:-cuda}
export OUT PYTHONPATH=$PWD/hf_cudagraph_asr/src:$PWD/$HERE PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if [ "$GRAPHS_TEST_DEVICE" = cpu ]; then
  BASE=tiny LARGE=tiny BOTH=(tiny) MANY=4 SHARDS=${SHARDS:-2}
  QUERIES=(--queries 10 --repeats 2) DTYPES=(fp32)
else
  BASE=base LARGE=large BOTH=(large base) MANY=16 SHARDS=${SHARDS:-6}
  QUERIES=(--queries 300 --repeats 30) DTYPES=(bf16 fp32)
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

tests() {  # seconds, processes, -k; each line of the log begins with the number of its process
  local limit=$(($1 * SLOWER)) shards=$2 chosen=$3 i pids=()
  echo "== $(date +%T) at most $limit s: tests of $chosen, in $shards processes"
  for ((i = 1; i <= shards; i++)); do
    (
      set -o pipefail
      timeout -k 5 "$limit" "$PYTHON" -m pytest -c "$HERE/gpu.ini" --rootdir . --noconftest \
        -p gpu_plugin --shard "$i/$shards" -v --durations 5 "$HERE/test_graphs_gpu.py" \
        -k "$chosen" 2>&1 | sed -u "s/^/$i| /" >>"$OUT/tests.log"
    ) &
    pids+=($!)
  done
  for i in "${pids[@]}"; do
    wait "$i" || { echo "-- a process of the tests: rc $?"; failed=1; }
  done
  echo "-- $(date +%T)"
}

probe() {  # seconds, sections
  local limit=$1; shift
  step "$limit" probe.log "$PYTHON" $HERE/probe.py --device "$GRAPHS_TEST_DEVICE" \
    --geometry $BASE --large $LARGE --out "$OUT/probe.jsonl" --budget $((limit * SLOWER - 5)) --only "$@"
}

bench() {  # seconds, file, options
  local limit=$1 file=$2; shift 2
  step "$limit" bench.log "$PYTHON" tests/benchmarks/bench_graphs.py \
    --device "$GRAPHS_TEST_DEVICE" --out "$OUT/$file" "$@"
}

environment() {
  nvidia-smi
  "$PYTHON" -V
  "$PYTHON" -m pip list 2>/dev/null | grep -iE "^(torch|triton|transformers|numpy|pytest|nvidia-c)"
  nproc
}
export -f environment
export PYTHON

case $PART in
first)
  step 15 environment.log bash -c environment
  probe 90 environment smoke after_a_failure latency kernels parts
  tests 110 "$SHARDS" "not compiled_forward"
  bench 60 graphs.json --geometry $BASE --dtype "${DTYPES[0]}" --graphs 4 --seconds 1 2 5 "${QUERIES[@]}"
  ;;
second)
  probe 110 latency_large batches streams serving swap first_replay new_lengths compiled
  tests 45 2 compiled_forward
  bench 70 graphs-large.json --geometry "${BOTH[@]}" --dtype "${DTYPES[@]}" --graphs $MANY \
    --seconds 1 2 5 8 --rows 4 "${QUERIES[@]}"
  ;;
*) echo "first or second, not $PART" >&2; exit 2 ;;
esac

# The end of the output is what is read first: what failed, then what was found.
grep -hE "(FAILED|ERROR) tests|[0-9]+ (passed|failed|skipped).* in " "$OUT/tests.log" 2>/dev/null
tail -n 20 "$OUT/bench.log" 2>/dev/null
cut -c1-1200 "$OUT/probe.jsonl" 2>/dev/null
exit $failed
