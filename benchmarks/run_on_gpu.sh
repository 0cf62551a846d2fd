#!/usr/bin/env bash
# The whole run on a machine with an NVIDIA GPU (Hopper was in mind): install, export, check,
# measure. Not run on a GPU yet.
#
#     benchmarks/run_on_gpu.sh [FOLDER]      results; default: benchmarks/results
#
# A step that fails, or takes longer than STEP_LIMIT, does not keep the next ones from running: each
# leaves its output in FOLDER/gpu-NAME.log and a line in FOLDER/gpu-steps.tsv (name, exit status,
# seconds), and tables are written one by one.
#
# TRAINED    a checkpoint of trained weights, for parity at every length; POOLING says how it pools
# MODELS     what is run with random weights, in this order; LAYERS cuts decoders down
# TABLES     those of bge-bench gpu, all if empty
# STEPS      kinds of steps: doctor export parity measure verify
#
# Without a network: put wheels, or onnxruntime-gpu unpacked, into ./gpu-wheels first. What is
# missing of the baselines is named as left out. Bundles are kept in BUNDLES for a second run.
set -uo pipefail
cd "$(dirname "$0")/.."
results=${1:-benchmarks/results}
models=${MODELS-bge-large-en-v1.5 bge-m3 bge-en-icl}
steps=${STEPS:-doctor export parity measure verify}
limit=${STEP_LIMIT:-1h}
python=${PYTHON:-python3}
bundles=${BUNDLES:-$(mktemp -d)}
mkdir -p "$results" "$bundles"

if [ -d gpu-wheels ]; then
    site=$bundles/site
    if [ ! -d "$site" ]; then
        mkdir -p "$site"
        shopt -s nullglob
        for archive in gpu-wheels/*.tar.xz; do
            tar -xJf "$archive" -C "$site"
        done
        for wheel in gpu-wheels/*.whl; do
            "$python" -m pip install --quiet --no-index --no-deps --target "$site" "$wheel"
        done
    fi
    export PYTHONPATH="$site:$PWD/runtime:$PWD/export:$PWD/benchmarks"
else
    "$python" -m pip install --quiet '.[cuda,export,bench]'
    # The extras bring both wheels of ONNX Runtime, which overwrite each other.
    "$python" -m pip uninstall --quiet --yes onnxruntime onnxruntime-gpu
    "$python" -m pip install --quiet 'onnxruntime-gpu[cuda,cudnn]>=1.31'
fi
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} PYTHONUNBUFFERED=1

step() { # KIND NAME MODULE ARGUMENTS...
    local kind=$1 name=$2 start=$SECONDS status
    shift 2
    case " $steps " in *" $kind "*) ;; *) return 0 ;; esac
    echo "== $name"
    timeout "$limit" "$python" -W ignore -m "$@" 2>&1 | tee "$results/gpu-$name.log"
    status=${PIPESTATUS[0]}
    printf '%s\t%s\t%s\n' "$name" "$status" "$((SECONDS - start))" | tee -a "$results/gpu-steps.tsv"
    return "$status"
}

step doctor doctor bge_runtime.doctor doctor

if [ -n "${TRAINED:-}" ]; then
    step export trained-export bge_export.cli "$TRAINED" ${POOLING:+--pooling "$POOLING"} \
        --target cuda --output "$bundles/trained" --force
    step parity trained-parity bge_bench.cli parity "$bundles/trained" --checkpoint "$TRAINED" \
        --device cuda:0 --against transformers --every-length --json "$results/gpu-trained-parity.json"
fi

for model in $models; do
    bundle=$bundles/$model
    folder=$results/gpu-$model
    mkdir -p "$folder"
    case $model in
    bge-en-icl | bge-multilingual-gemma2)
        step export "$model-export" bge_export.cli "$model" --random-weights \
            ${LAYERS:+--layers "$LAYERS"} --target cuda --precision bf16 --output "$bundle" --force
        step measure "$model-prefix" bge_bench.cli prefix "$bundle" --device cuda:0 \
            --json "$folder/gpu-prefix.json"
        ;;
    bge-m3)
        step export "$model-export" bge_export.cli "$model" --random-weights --target cuda \
            --output "$bundle" --force
        step measure "$model-speed" bge_bench.cli speed "$bundle" --device cuda:0 --outputs all \
            --baseline-batch-size 64 --json "$folder/gpu-speed.json"
        ;;
    *)
        step export "$model-export" bge_export.cli "$model" --random-weights --target cuda \
            --output "$bundle" --force
        only=()
        for table in ${TABLES:-}; do only+=(--only "$table"); done
        step measure "$model-tables" bge_bench.cli gpu "$bundle" --output "$folder" "${only[@]}"
        ;;
    esac
    step verify "$model-verify" bge_runtime.doctor doctor --verify "$bundle"
done
echo "bundles: $bundles"
