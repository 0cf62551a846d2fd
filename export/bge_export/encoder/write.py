"""From traced graphs to the files of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from bge_export.checkpoint import identity
from bge_export.encoder.calibration import watch_inputs
from bge_export.encoder.conditional import choose_by_length
from bge_export.encoder.openvino_ir import write_openvino
from bge_export.passes import BLOCK, QuantizeMatrices
from bge_export.targets import INT8, OPENVINO, PORTABLE, Target
from bge_runtime.bundle import HEAD_OUTPUTS, Graph


def write_graphs(
    traced: ir.Model,
    packed: ir.Model | None,
    folder: Path,
    targets: Sequence[Target],
    *,
    token_ids: Sequence[NDArray[np.int64]],
) -> dict[str, Graph]:
    """Bring the traced graph into each target's form and write it.

    The portable graph is written first, with all weights in one file that the other
    graphs refer to. Those in fp16 share another one.

    Args:
        traced: The graph.
        packed: Its form over texts that lie behind each other, if a target wants it.
        folder: The bundle's.
        targets: Forms to write.
        token_ids: Tokens of texts that quantisation may look at.

    Returns:
        Descriptions of the graphs, by target.
    """
    (folder / "onnx").mkdir()
    graphs = {}
    portable = _lowered(traced, PORTABLE)
    path = folder / PORTABLE.file
    ir.save(portable, path, external_data=Path(PORTABLE.weights).name)
    graphs[PORTABLE.name] = _describe(portable, PORTABLE)
    written = ir.load(path).graph.initializers
    for target in targets:
        if target.name == PORTABLE.name:
            continue
        source = packed if target.packed else traced
        assert source is not None
        model = _lowered(source, target)
        if target.weights != PORTABLE.weights:
            _save_sharing(model, folder / target.file, folder / target.weights)
            onnx.checker.check_model(str(folder / target.file), full_check=True)
            graphs[target.name] = _describe(model, target)
            continue
        for name, value in model.graph.initializers.items():
            if name in written and isinstance(written[name].const_value, ir.ExternalTensor):
                value.const_value = written[name].const_value
        if target is OPENVINO:
            file, weights = write_openvino(model, folder, token_ids=token_ids)
            graphs[target.name] = replace(_describe(model, target), file=file, weights=weights)
            continue
        block = None
        if target.name == INT8.name:
            channels = watch_inputs(model, token_ids, folder=path.parent)
            QuantizeMatrices({x: found.largest for x, found in channels.items()})(model)
            RemoveUnusedNodesPass()(model)
            block = BLOCK
        # What only this graph has stays inside it: a few bytes, or matrices in 8 bits.
        ir.save(model, folder / target.file)
        graphs[target.name] = replace(_describe(model, target), quantization_block=block)
    return graphs


def _save_sharing(model: ir.Model, path: Path, weights: Path) -> None:
    """Save a graph with its weights in a file that another one may have written already.

    Two traces name their weights unlike: they are found by what they hold.
    """
    if not weights.exists():
        ir.save(model, path, external_data=weights.name)
        return
    written = {}
    for graph in weights.parent.glob("*.onnx"):
        for value in ir.load(graph).graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and tensor.location == weights.name:
                written[identity(tensor)] = tensor
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            value.const_value = written.get(identity(value.const_value), value.const_value)
    ir.save(model, path)


def _lowered(traced: ir.Model, target: Target) -> ir.Model:
    model = traced.clone()
    for output in list(model.graph.outputs):
        if output.name not in (*target.outputs, *HEAD_OUTPUTS):
            model.graph.outputs.remove(output)
    for graph_pass in target.passes():
        graph_pass(model)
    RemoveUnusedNodesPass()(model)
    if target.for_one_length is not None:
        model = choose_by_length(model, _lowered(traced, target.for_one_length))
    return model


def _describe(model: ir.Model, target: Target) -> Graph:
    return Graph(
        file=target.file,
        weights=target.weights,
        opset=model.opset_imports[""],
        inputs=tuple(str(value.name) for value in model.graph.inputs),
        outputs=tuple(str(value.name) for value in model.graph.outputs),
    )
