#!/usr/bin/env bash
# bge-serve on a machine with an NVIDIA GPU: export, put the server under load, write JSON.
#
#     benchmarks/serve_on_gpu.sh [FOLDER]    results; default: benchmarks/results
#
# About five minutes: bge-large's shape with random weights in fp16, beside the plain handler and
# `encode` alone, then half a minute at twice its capacity. A step that fails does not keep the next
# from running; FOLDER/gpu-serve-NAME.log has what it said.
#
# MODEL      which; OPTIONS of its export, such as --layers 2
# DEVICE     the GPU; TARGET and PRECISION of the bundle on it
# DATA       folder of bge-bench data, for XQuAD's texts; without it texts are made here
# CLIENTS, SECONDS_EACH, OVERLOAD_S  numbers of clients, and seconds of each measurement
# INFINITY   virtual environment of infinity on that machine, to be measured as well
# BUNDLES    folder of the bundle, which a second run finds there
#
# Without a network: put packages into ./gpu-wheels first, as for run_on_gpu.sh, and those of the
# server by `make gpu-serve`.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
results=${1:-benchmarks/results}
model=${MODEL:-bge-large-en-v1.5}
device=${DEVICE:-cuda:0}
python=${PYTHON:-python3}
bundles=${BUNDLES:-$(mktemp -d)}
seconds=${SECONDS_EACH:-4}
mkdir -p "$results" "$bundles"
. benchmarks/gpu_packages.sh
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} PYTHONUNBUFFERED=1
bundle=$bundles/$model
failed=0

step() { # NAME LIMIT MODULE ARGUMENTS...
    local name=$1 limit=$2 start=$SECONDS status
    shift 2
    timeout "$limit" "$python" -W ignore -m "$@" >"$results/gpu-serve-$name.log" 2>&1
    status=$?
    ((status == 0)) || failed=1
    printf '%s\t%s\t%s s\n' "$name" "$status" "$((SECONDS - start))"
    return "$status"
}

if [ ! -d "$bundle" ]; then
    read -ra options <<<"${OPTIONS:-}"
    step export 4m bge_export.cli "$model" --random-weights --target "${TARGET:-cuda}" \
        "${options[@]}" --output "$bundle" --force || exit
fi
if [ -n "${DATA:-}" ]; then
    texts=(--data "$DATA")
else
    made='from bge_bench.datasets.corpus import short_texts
print(*short_texts(240, words=12), sep="\n")'
    "$python" -c "$made" >"$bundles/questions.txt" || exit
    texts=(--texts mixed --texts "$bundles/questions.txt" --queries "$bundles/questions.txt"
        --passages mixed)
fi
texts+=(--device "$device" --precision "${PRECISION:-auto}" --count "${COUNT:-1200}")
systems=(--system bge-serve --system plain)
if [ -n "${INFINITY:-}" ]; then
    systems+=(--system infinity --infinity "$INFINITY" --infinity-engine torch)
fi
loops=()
for clients in ${CLIENTS:-1 8 64 256}; do loops+=(--clients "$clients"); done

step tables 5m bge_bench.cli.main serve "$bundle" "${texts[@]}" "${systems[@]}" "${loops[@]}" \
    --seconds "$seconds" --rounds 1 --client-processes "${CLIENT_PROCESSES:-4}" \
    --json "$results/gpu-serve-$model.json"
step overload 2m bge_bench.cli.main serve "$bundle" "${texts[@]}" "${loops[@]}" \
    --overload "${OVERLOAD_S:-30}" --client-processes "${CLIENT_PROCESSES:-4}" \
    --json "$results/gpu-serve-$model-overload.json"
exit "$failed"
