"""From traced graphs to the files of a bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from bge_export.branches import choose_by_length
from bge_export.calibration import run_texts, watch_inputs
from bge_export.passes.bf16_products import CorrectBiases, RoundProducts
from bge_export.passes.quantize_matrices import BLOCK, QuantizeMatrices
from bge_export.targets import INT8, OPENVINO, PORTABLE, Target
from bge_export.weights import identity
from bge_runtime.engines.ov import OpenVinoEngine
from bge_runtime.manifest import COLBERT_VECS, HEAD_OUTPUTS, SENTENCE_EMBEDDING, Graph
from bge_runtime.parity import compare


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
            model = for_bf16(model, token_ids, folder=path.parent)
            graphs[target.name] = write_openvino(model, folder)
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


def for_bf16(model: ir.Model, token_ids: Sequence[NDArray[np.int64]], *, folder: Path) -> ir.Model:
    """Correct a graph's biases for bf16, if that brings vectors nearer to those of fp32.

    It does for seeded weights, whose hidden states are much alike: rounded as by `RoundProducts`,
    ColBERT vectors of BGE-M3 came from 6.5 to 4.7 % of the distance between tokens. Those of
    all-MiniLM-L6-v2, which is trained, were a tenth of that before, and went further away. So
    half of the texts correct the biases, and the other half decide.

    Args:
        model: The graph; weights in files lie in ``folder``.
        token_ids: Tokens of texts.
        folder: Where graphs can be written for a moment.

    Returns:
        The graph with corrected biases, or as it was.
    """

    def corrected(texts: Sequence[NDArray[np.int64]]) -> ir.Model:
        found = model.clone()
        channels = watch_inputs(found, texts, folder=folder)
        CorrectBiases({x: seen.mean for x, seen in channels.items()})(found)
        RemoveUnusedNodesPass()(found)
        return found

    def vectors(graph: ir.Model) -> list[NDArray[np.float32]]:
        names = (SENTENCE_EMBEDDING, COLBERT_VECS)
        outputs = [value for value in graph.graph.outputs if value.name in names]
        texts = list(run_texts(graph, outputs, token_ids[1::2], folder=folder))
        return [
            np.concatenate([rows.reshape(-1, rows.shape[-1]) for rows in output])
            for output in zip(*texts, strict=True)
        ]

    def cosines(graph: ir.Model) -> list[float]:
        rounded = graph.clone()
        RoundProducts()(rounded)
        pairs = zip(vectors(rounded), exact, strict=True)
        return [compare(ours, theirs).mean_cosine for ours, theirs in pairs]

    exact = vectors(model)
    tried = zip(cosines(corrected(token_ids[::2])), cosines(model), strict=True)
    return corrected(token_ids) if all(new > old for new, old in tried) else model


def write_openvino(model: ir.Model, folder: Path) -> Graph:
    """Convert a graph to OpenVINO's own format, with 16-bit weights.

    Half the size on disk of the ONNX file, and no conversion when it is opened.
    """
    ov = OpenVinoEngine.load()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / "model.onnx"
        ir.save(model, path, external_data="model.onnx_data")
        (folder / OPENVINO.file).parent.mkdir()
        ov.save_model(ov.Core().read_model(path), folder / OPENVINO.file, compress_to_fp16=True)
    return replace(_describe(model, OPENVINO), weights=str(Path(OPENVINO.file).with_suffix(".bin")))


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
