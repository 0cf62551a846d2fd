# Sourced by the scripts for a GPU: installs what they need, or unpacks what ./gpu-wheels holds.
# shellcheck shell=bash
: "${python:?}" "${bundles:?}" "${device:?}"
if [ -d gpu-wheels ]; then
    site=$bundles/site
    mkdir -p "$site"
    shopt -s nullglob
    for package in gpu-wheels/*.tar.xz gpu-wheels/*.whl; do
        there=$site/.${package##*/}
        [ "$there" -nt "$package" ] && continue
        case $package in
        *.whl) "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$site" \
            "$package" ;;
        *) tar -xJf "$package" -C "$site" ;;
        esac && touch "$there"
    done
    export PYTHONPATH="$site:$PWD/runtime:$PWD/export:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
elif [ "$device" != cpu ]; then
    "$python" -m pip install --quiet '.[cuda,export,bench]'
    # The extras bring both wheels of ONNX Runtime, which overwrite each other.
    "$python" -m pip uninstall --quiet --yes onnxruntime onnxruntime-gpu
    "$python" -m pip install --quiet 'onnxruntime-gpu[cuda,cudnn]>=1.31'
fi
