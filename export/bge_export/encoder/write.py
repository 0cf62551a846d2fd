"""Lower the traced graphs to the form of each target, and write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from bge_export.bundle import Progress
from bge_export.encoder.int8 import quantize_model
from bge_export.encoder.openvino_ir import write_openvino, write_openvino_beside
from bge_export.encoder.uniform_length import choose_by_length
from bge_export.graph_builder import hash_tensor
from bge_export.targets import PORTABLE, EncoderTarget, Passes
from bge_runtime.bundle import HEAD_OUTPUTS, LOGITS, Graph


def write_graphs(
    traced: ir.Model,
    packed: ir.Model | None,
    folder: Path,
    targets: Sequence[EncoderTarget],
    *,
    token_ids: Sequence[NDArray[np.int64]],
    calibration: Sequence[NDArray[np.int64]],
    progress: Progress,
) -> dict[str, Graph]:
    """Lower the traced graphs to each target's form, and write them.

    The graph that stores the weights is written first. Graphs of the same trace refer to its file;
    graphs in fp16 share another one, and that in int8 has its own.

    Args:
        traced: The graph over padded batches.
        packed: The graph over packed texts, if a target needs it.
        folder: The bundle.
        targets: Forms to write.
        token_ids: Tokens of the texts on which parity is measured.
        calibration: Tokens of the texts from which scales in int8 are chosen.
        progress: Told of the steps of quantization.

    Returns:
        Descriptions of the graphs, by target.
    """
    (folder / "onnx").mkdir()
    first = next((target for target in targets if target.stores_weights), None)
    graphs: dict[str, Graph] = {}
    stored: Mapping[str, ir.Value] = {}
    if first is not None:
        model = _lower(traced, first)
        ir.save(model, folder / first.file, external_data=Path(first.weights).name)
        graphs[first.name] = _describe(model, first)
        stored = ir.load(folder / first.file).graph.initializers
    for target in targets:
        if target is first:
            continue
        source = packed if target.packed else traced
        assert source is not None
        model = _lower(source, target)
        if target.quantization_block is None and target.weights != PORTABLE.weights:
            _save_sharing(model, folder / target.file, folder / target.weights)
            onnx.checker.check_model(str(folder / target.file), full_check=True)
            graphs[target.name] = _describe(model, target)
            continue
        for name, value in model.graph.initializers.items():
            if name in stored and isinstance(stored[name].const_value, ir.ExternalTensor):
                value.const_value = stored[name].const_value
        if target.quantization_block is not None:
            graphs |= _write_quantized(model, target, folder, calibration, progress)
            continue
        graphs[target.name] = _write_over_stored_weights(model, target, folder, token_ids)
    return graphs


def _write_quantized(
    model: ir.Model,
    target: EncoderTarget,
    folder: Path,
    calibration: Sequence[NDArray[np.int64]],
    progress: Progress,
) -> dict[str, Graph]:
    """Write a graph in 8 bits, with its own file of weights, for both engines."""
    found = quantize_model(model, calibration, folder=folder / "onnx", report=progress.describe)
    RemoveUnusedNodesPass()(model)
    ir.save(model, folder / target.file, external_data=Path(target.weights).name)
    graph = replace(
        _describe(model, target),
        quantization_block=target.quantization_block,
        quantization=asdict(found),
    )
    graphs = {target.name: graph}
    if target.openvino_file is not None:
        write_openvino_beside(folder / target.file, folder / target.openvino_file)
        graphs[target.openvino_graph] = replace(graph, file=target.openvino_file)
    return graphs


def _write_over_stored_weights(
    model: ir.Model, target: EncoderTarget, folder: Path, token_ids: Sequence[NDArray[np.int64]]
) -> Graph:
    """Write a graph whose weights are in the file that the first graph has stored."""
    if target.format == "openvino":
        file, weights = write_openvino(model, target, folder, token_ids=token_ids)
        return replace(_describe(model, target), file=file, weights=weights)
    # Constants that only this graph has stay inside it: a few bytes.
    ir.save(model, folder / target.file)
    return _describe(model, target)


def _save_sharing(model: ir.Model, path: Path, weights: Path) -> None:
    """Save a graph with its weights in a file that another graph may have written already.

    Two traces name their weights differently, so they are matched by content.
    """
    if not weights.exists():
        ir.save(model, path, external_data=weights.name)
        return
    written = {}
    for graph in weights.parent.glob("*.onnx"):
        for value in ir.load(graph).graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and tensor.location == weights.name:
                written[hash_tensor(tensor)] = tensor
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            value.const_value = written.get(hash_tensor(value.const_value), value.const_value)
    ir.save(model, path)


def _lower(traced: ir.Model, target: EncoderTarget) -> ir.Model:
    model = _run_passes(traced, target, target.passes)
    if target.uniform_length is not None:
        model = choose_by_length(model, _run_passes(traced, target, target.uniform_length))
    return model


def _run_passes(traced: ir.Model, target: EncoderTarget, passes: Passes) -> ir.Model:
    model = traced.clone()
    for output in list(model.graph.outputs):
        if output.name not in (*target.outputs, *HEAD_OUTPUTS, LOGITS):
            model.graph.outputs.remove(output)
    for graph_pass in passes():
        graph_pass(model)
    RemoveUnusedNodesPass()(model)
    return model


def _describe(model: ir.Model, target: EncoderTarget) -> Graph:
    return Graph(
        file=target.file,
        weights=target.weights,
        opset=model.opset_imports[""],
        inputs=tuple(str(value.name) for value in model.graph.inputs),
        outputs=tuple(str(value.name) for value in model.graph.outputs),
    )
