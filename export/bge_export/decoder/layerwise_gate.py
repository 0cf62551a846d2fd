"""Run a decoder part by part, so that a model is proven that never fits into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bge_export.decoder.config import DecoderConfig
from bge_export.decoder.graph import HIDDEN_STATES
from bge_runtime.bundle import SENTENCE_EMBEDDING, Variant, past_names
from bge_runtime.engines import (
    CPU,
    CUDA,
    OpenVinoEngine,
    OrtCpuEngine,
    computing_precision,
    cuda_options,
    open_session,
    pad_batch,
)

Build = Callable[[Sequence[int], bool], ir.Model]
"""Builds some layers, and the embedding before them or not."""

_Run = Callable[[dict[str, NDArray[Any]]], NDArray[np.float32]]


def run_in_parts(
    config: DecoderConfig,
    build: Build,
    folder: Path,
    variant: Variant,
    token_ids: Sequence[NDArray[np.int64]],
) -> tuple[NDArray[np.float32], str]:
    """Compute vectors with the embedding and each layer as a graph of its own.

    The parts are built by the code that built the whole, and read the same file.

    Args:
        config: The decoder.
        build: Builds its parts.
        folder: Folder of their file; the parts are written beside it for a moment.
        variant: Engine and precision to run the parts in.
        token_ids: Tokens of each text.

    Returns:
        Vectors as they leave the graph, shape ``(texts, hidden_size)``; and the engine's
        own name for what executed it.
    """
    ids, mask = pad_batch(token_ids, pad_token_id=0)
    path = folder / "part.onnx"
    empty = np.zeros((1, config.kv_heads, 0, config.head_dim), np.float32)
    hidden: NDArray[np.float32] | None = None
    for layer in range(-1, config.layers):
        layers = [layer] if layer >= 0 else []
        model = build(layers, hidden is None)
        # Only the way to the result: keys and values of a part are of no use.
        del model.graph.outputs[1:]
        output = str(model.graph.outputs[0].name)
        feeds: dict[str, NDArray[Any]] = {"attention_mask": mask}
        feeds |= {HIDDEN_STATES: hidden} if hidden is not None else {"input_ids": ids}
        feeds |= {name: empty for number in layers for name in past_names(number)}
        try:
            ir.save(model, path)
            run, provider = _OPENERS[variant.engine](path, variant, output)
            hidden = run(feeds)
        finally:
            path.unlink(missing_ok=True)
        del run
    assert hidden is not None
    assert output == SENTENCE_EMBEDDING
    return hidden, provider


def _open_ort(path: Path, variant: Variant, output: str) -> tuple[_Run, str]:
    ort = OrtCpuEngine.load()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    # Rearranged copies of the weights pay where a graph runs more than once.
    options.add_session_config_entry("session.disable_prepacking", "1")
    provider = (CPU, {}) if variant.device == "cpu" else (CUDA, cuda_options(0))
    session = open_session(ort, path, options, [provider])
    names = {value.name for value in session.get_inputs()}

    def run(feeds: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        given = {name: array for name, array in feeds.items() if name in names}
        result: NDArray[np.float32] = session.run([output], given)[0]
        return result

    return run, str(session.get_providers()[0])


def _open_openvino(path: Path, variant: Variant, output: str) -> tuple[_Run, str]:
    ov = OpenVinoEngine.load()
    settings = {"INFERENCE_PRECISION_HINT": computing_precision(variant.precision)}
    compiled = ov.Core().compile_model(path, "CPU", settings)
    names = {value.any_name for value in compiled.inputs}
    request = compiled.create_infer_request()

    def run(feeds: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        request.infer({name: array for name, array in feeds.items() if name in names})
        return np.array(request.get_tensor(output).data)

    return run, "OpenVINO CPU"


_OPENERS = {"onnxruntime": _open_ort, "openvino": _open_openvino}
