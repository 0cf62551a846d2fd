"""The parity gate for decoders: layer by layer, so that a model need not fit into memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bge_export.bundle import VariantReport, check_variant, make_report, require_parity
from bge_export.decoder.config import DecoderConfig
from bge_export.decoder.external_data import count_bytes
from bge_export.decoder.graph import HIDDEN_STATES
from bge_export.decoder.planned_graph import PlannedGraph
from bge_export.passes import EmulateHalfPrecision
from bge_runtime.bundle import (
    LOGITS,
    SENTENCE_EMBEDDING,
    Bundle,
    PairReference,
    Parity,
    Reference,
    ScoreParity,
    Variant,
    compare,
    compare_scores,
    past_names,
)
from bge_runtime.engines import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    OpenVinoEngine,
    OrtCpuEngine,
    computing_precision,
    cuda_options,
    open_session,
    pad_batch,
    unavailable_reason,
)

_WHOLE_BYTES = 64 << 20
"""Weights of at most this size are checked in one piece, by the engines that will run them. Larger
ones are checked layer by layer, in graphs that the same code builds over the same file."""

Build = Callable[[Sequence[int], bool], ir.Model]
"""Builds a graph of some layers, with or without the embedding before them."""

_Run = Callable[[dict[str, NDArray[Any]]], NDArray[np.float32]]


def check_layerwise(
    graph: PlannedGraph, bundle: Bundle, variant: Variant, reference: Reference | PairReference
) -> VariantReport:
    """Compare one variant's vectors or scores with PyTorch's, for a model of any size.

    Small models are checked in one piece by `check_variant`. A graph for a GPU that this machine
    does not have runs on the CPU, with the GPU's rounding emulated. That shows whether it computes
    what PyTorch does and whether its numbers fit into 16 bits; it is not recorded as its parity.

    Raises:
        ExportError: If the parity is outside the tolerance of the variant's precision.
    """
    reason = unavailable_reason(variant.requirement)
    emulated = reason is not None and variant.device != "cpu"
    if not emulated and (reason is not None or count_bytes(graph.plan) <= _WHOLE_BYTES):
        return check_variant(bundle, variant, reference)
    start = time.perf_counter()

    def build(layers: Sequence[int], embed: bool) -> ir.Model:
        model = graph.build(bundle.path, layers, embed=embed)
        if emulated:
            EmulateHalfPrecision()(model)
        return model

    outputs, provider = run_in_parts(
        graph.config,
        build,
        (bundle.path / graph.data).parent,
        replace(variant, device="cpu", engine="onnxruntime") if emulated else variant,
        reference.token_ids,
    )
    parity: Parity | ScoreParity
    if isinstance(reference, PairReference):
        parity = compare_scores(outputs[:, 0], reference.logits)
    else:
        parity = compare(outputs, reference.vectors)
    finite = np.isfinite(outputs).all()
    require_parity(
        parity,
        bundle.graph(variant.graph),
        variant,
        provider=provider,
        reason="" if finite else f"Its numbers exceed the range of {variant.precision}.",
        option="--precision",
    )
    return make_report(
        bundle,
        variant,
        start=start,
        provider=None if emulated else provider,
        parity=None if emulated else parity,
        skipped_reason=reason,
        emulated=parity if emulated else None,
    )


def run_in_parts(
    config: DecoderConfig,
    build: Build,
    folder: Path,
    variant: Variant,
    token_ids: Sequence[NDArray[np.int64]],
) -> tuple[NDArray[np.float32], str]:
    """Compute vectors or scores with a separate graph for the embedding and for each layer.

    The code that built the whole graph builds these parts too, over the same weights.

    Args:
        config: The decoder.
        build: Builds a part.
        folder: Folder of the weights. Each part is written there while it runs.
        variant: Engine and precision to run the parts in.
        token_ids: Tokens of each text.

    Returns:
        What leaves the graph, shape ``(texts, hidden_size)`` or ``(pairs, 1)``; and the execution
        provider.
    """
    ids, mask = pad_batch(token_ids, pad_token_id=0)
    path = folder / "part.onnx"
    empty = np.zeros((1, config.kv_heads, 0, config.head_dim), np.float32)
    hidden: NDArray[np.float32] | None = None
    for layer in range(-1, config.layers):
        layers = [layer] if layer >= 0 else []
        model = build(layers, hidden is None)
        # Only hidden states are needed, not keys and values.
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
    assert output in (SENTENCE_EMBEDDING, LOGITS)
    return hidden, provider


def _open_ort(path: Path, variant: Variant, output: str) -> tuple[_Run, str]:
    ort = OrtCpuEngine.load()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    # Prepacked copies of the weights only pay if a graph runs more than once.
    options.add_session_config_entry("session.disable_prepacking", "1")
    provider = (CPU_PROVIDER, {}) if variant.device == "cpu" else (CUDA_PROVIDER, cuda_options(0))
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
