#!/usr/bin/env bash
# The whole run on a machine with an NVIDIA GPU (Hopper was in mind): install, export, check,
# measure. Not run on a GPU yet.
#
#     benchmarks/run_on_gpu.sh [FOLDER]      results as JSON; default: benchmarks/results
#
# Without a network: put wheels, or onnxruntime-gpu unpacked, into ./gpu-wheels first. What
# is missing of the baselines is named as left out. MODELS chooses what is run, LAYERS cuts the
# decoder down.
set -euo pipefail
cd "$(dirname "$0")/.."
results=${1:-benchmarks/results}
models=${MODELS:-bge-large-en-v1.5 bge-m3 bge-en-icl}
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if [ -d gpu-wheels ]; then
    shopt -s nullglob
    for archive in gpu-wheels/*.tar.xz; do
        tar -xJf "$archive" -C "$scratch"
    done
    for wheel in gpu-wheels/*.whl; do
        "$python" -m pip install --quiet --no-index --no-deps --target "$scratch" "$wheel"
    done
    export PYTHONPATH="$scratch:$PWD/runtime:$PWD/export:$PWD/benchmarks"
else
    "$python" -m pip install --quiet '.[cuda,export,bench]'
    # The extras bring both wheels of ONNX Runtime, which overwrite each other.
    "$python" -m pip uninstall --quiet --yes onnxruntime onnxruntime-gpu
    "$python" -m pip install --quiet 'onnxruntime-gpu[cuda,cudnn]>=1.31'
fi
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}

mkdir -p "$results"
"$python" -m bge_runtime.doctor doctor | tee "$results/gpu-doctor.txt"
for model in $models; do
    bundle=$scratch/$model
    folder=$results/gpu-$model
    mkdir -p "$folder"
    case $model in
    bge-en-icl | bge-multilingual-gemma2)
        "$python" -m bge_export.cli "$model" --random-weights ${LAYERS:+--layers "$LAYERS"} \
            --target cuda --precision bf16 --output "$bundle"
        "$python" -m bge_bench.cli prefix "$bundle" --device cuda:0 --json "$folder/gpu-prefix.json"
        ;;
    bge-m3)
        "$python" -m bge_export.cli "$model" --random-weights --target cuda --output "$bundle"
        "$python" -m bge_bench.cli speed "$bundle" --device cuda:0 --outputs all \
            --baseline-batch-size 64 --json "$folder/gpu-speed.json" || true # says itself why
        ;;
    *)
        "$python" -m bge_export.cli "$model" --random-weights --target cuda --output "$bundle"
        "$python" -m bge_bench.cli gpu "$bundle" --output "$folder"
        ;;
    esac
    "$python" -m bge_runtime.doctor doctor --verify "$bundle" | tee "$folder/gpu-verify.txt"
done
