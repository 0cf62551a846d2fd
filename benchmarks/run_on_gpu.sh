#!/usr/bin/env bash
# The whole run on a machine with an NVIDIA GPU: install, export, check, measure.
#
#     benchmarks/run_on_gpu.sh [FOLDER]      results; default: benchmarks/results
#
# A step that fails, or takes longer than STEP_LIMIT, does not keep the next ones from running: each
# leaves its output in FOLDER/gpu-NAME.log and a line in FOLDER/gpu-steps.tsv (name, exit status,
# seconds), and tables are written one by one. Exports go side by side.
#
# TRAINED    a checkpoint of trained weights, for parity at every length; POOLING says how it pools
# MODELS     what is run with random weights, in this order
# LAYERS     of decoders, which are cut down to so many; TOKENIZER is the folder of theirs
# TABLES     those of bge-bench gpu, all if empty; ROUNDS and CALLS of each
# DATA       folder of bge-bench data, for the table of natural lengths
# STEPS      kinds of steps: doctor export parity measure verify
# DEVICE     the GPU
# AFTER_STEP a command to run after each step, which may take the results away
#
# Without a network: put wheels, or archives of unpacked packages, into ./gpu-wheels first, those of
# the baselines by `make gpu-baselines`; where that folder is, nothing is fetched. What is missing of
# the baselines is named as left out. Bundles and packages are kept in BUNDLES for a second run, which
# may bring more of both.
set -uo pipefail
cd "$(dirname "$0")/.."
results=${1:-benchmarks/results}
models=${MODELS-bge-large-en-v1.5 bge-m3 bge-en-icl}
steps=${STEPS:-doctor export parity measure verify}
limit=${STEP_LIMIT:-1h}
device=${DEVICE:-cuda:0}
python=${PYTHON:-python3}
bundles=${BUNDLES:-$(mktemp -d)}
mkdir -p "$results" "$bundles"

. benchmarks/gpu_packages.sh
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} PYTHONUNBUFFERED=1

step() { # KIND NAME LIMIT MODULE ARGUMENTS...
    local kind=$1 name=$2 seconds=$3 start=$SECONDS status
    shift 3
    case " $steps " in *" $kind "*) ;; *) return 0 ;; esac
    timeout "${seconds/-/$limit}" "$python" -W ignore -m "$@" >"$results/gpu-$name.log" 2>&1
    status=$?
    printf '%s\t%s\t%s\n' "$name" "$status" "$((SECONDS - start))" | tee -a "$results/gpu-steps.tsv"
    ${AFTER_STEP:-true}
    return "$status"
}

is_decoder() { [[ $1 == bge-en-icl || $1 == bge-multilingual-gemma2 ]]; }

exported() { # MODEL: its bundle, and the checkpoint that the baselines read
    local model=$1 target=(--target cuda) options=()
    if is_decoder "$model"; then
        target+=(--precision bf16)
        options+=(${LAYERS:+--layers "$LAYERS"} ${TOKENIZER:+--tokenizer "$TOKENIZER"})
    fi
    if [ ! -d "$bundles/$model" ]; then
        step export "$model-export" - bge_export.cli "$model" --random-weights "${target[@]}" \
            "${options[@]}" --output "$bundles/$model" --force &
    fi
    if [ ! -d "$bundles/$model-checkpoint" ]; then
        rm -rf "$bundles/$model-checkpoint.part"
        step export "$model-checkpoint" - bge_bench.cli.main checkpoint "$model" \
            "$bundles/$model-checkpoint" "${options[@]}" &
    fi
    wait
}

step doctor doctor - bge_runtime.cli.doctor doctor
for model in $models; do
    exported "$model" &
done
if [ -n "${TRAINED:-}" ]; then
    step export trained-export - bge_export.cli "$TRAINED" ${POOLING:+--pooling "$POOLING"} \
        --target cuda --output "$bundles/trained" --force
    step parity trained-parity - bge_bench.cli.main parity "$bundles/trained" --checkpoint "$TRAINED" \
        --device "$device" --against transformers --every-length \
        --json "$results/gpu-trained-parity.json"
fi
wait

for model in $models; do
    bundle=$bundles/$model
    folder=$results/gpu-$model
    given=("$bundle" --checkpoint "$bundle-checkpoint" --device "$device")
    mkdir -p "$folder"
    if is_decoder "$model"; then
        step measure "$model-prefix" "${PREFIX_LIMIT:--}" bge_bench.cli.main prefix "${given[@]}" \
            --json "$folder/gpu-prefix.json"
    elif [ "$model" = bge-m3 ]; then
        step measure "$model-speed" "${SPEED_LIMIT:--}" bge_bench.cli.main speed "${given[@]}" \
            --outputs all --sample "${M3_TEXTS:-1000}" --rounds "${M3_ROUNDS:-3}" \
            --baseline-batch-size 64 --json "$folder/gpu-speed.json"
    else
        only=()
        for table in ${TABLES:-}; do only+=(--only "$table"); done
        step measure "$model-tables" "${TABLES_LIMIT:--}" bge_bench.cli.main gpu "${given[@]}" \
            --output "$folder" --rounds "${ROUNDS:-3}" --calls "${CALLS:-100}" \
            ${DATA:+--data "$DATA"} "${only[@]}"
    fi
    step verify "$model-verify" - bge_runtime.cli.doctor doctor --verify "$bundle"
done
echo "bundles: $bundles"
