"""Write graphs in OpenVINO's own format: in 16 bits, or over the weights of an ONNX file."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from bge_export.encoder.calibration import mean_inputs, run_texts
from bge_export.passes import CorrectBiases, RoundProducts, check_range
from bge_export.targets import EncoderTarget
from bge_runtime.bundle import COLBERT_VECS, LOGITS, SENTENCE_EMBEDDING, compare
from bge_runtime.engines import OpenVinoEngine

_CONSTANT = re.compile(r'offset="(\d+)" size="(\d+)"')
"""Place of a constant in the file of weights, in a graph's XML."""

_ALIGNMENT = 64


def write_openvino(
    model: ir.Model, target: EncoderTarget, folder: Path, *, token_ids: Sequence[NDArray[np.int64]]
) -> tuple[str, str]:
    """Convert a graph to OpenVINO's own format.

    The files are half as large as the ONNX file, and opening them needs no conversion. If corrected
    biases bring bf16 vectors closer to PyTorch's, a second graph over the same weights has them.
    Other tools find the first graph by its name and may run it in fp32.

    Args:
        model: The graph, with its weights in ``onnx`` in the bundle.
        target: The target.
        folder: The bundle.
        token_ids: Tokens of the texts that may correct biases.

    Returns:
        Paths inside the bundle: the graph for bf16, and its weights.

    Raises:
        ExportError: If a weight is out of fp16's range.
    """
    first = Path(target.file)
    weights = first.with_suffix(".bin")
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT:  # stored in fp16
            check_range(tensor.numpy(), name, leave_out="--target openvino")
    (folder / first).parent.mkdir(exist_ok=True)
    _convert(model, folder / first)
    corrected = correct_for_bf16(model, token_ids, folder=folder / "onnx")
    if corrected is model:
        return str(first), str(weights)
    second = first.with_stem("bf16")  # sentence-transformers warns of two named openvino*.xml
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / second.name
        _convert(corrected, path)
        with (folder / weights).open("r+b") as file:
            found = _CONSTANT.finditer((folder / first).read_text("utf-8"))
            places = {_digest(_read(file, *constant.groups())): constant[1] for constant in found}
            graph = _reuse_constants(path, file, places)
    (folder / second).write_text(graph, encoding="utf-8")
    return str(second), str(weights)


def write_openvino_beside(onnx_file: Path, file: Path) -> None:
    """Write a graph in OpenVINO's own format, over the weights of its ONNX file.

    Of weights in that format, the runtime keeps no page in memory.

    Args:
        onnx_file: The graph, with its weights in one file beside it.
        file: The file to write.
    """
    ov = OpenVinoEngine.load()
    tensors = [value.const_value for value in ir.load(onnx_file).graph.initializers.values()]
    stored = [tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)]
    file.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        path = Path(scratch) / file.name
        # Without the fusions of `convert_model`, which round other values than ONNX Runtime does.
        ov.save_model(ov.Core().read_model(onnx_file), path, compress_to_fp16=False)
        with Path(stored[0].path).open("r+b") as weights:
            places = {
                _digest(_read(weights, tensor.offset or 0, tensor.nbytes)): str(tensor.offset or 0)
                for tensor in stored
            }
            graph = _reuse_constants(path, weights, places)
    file.write_text(graph, encoding="utf-8")


def correct_for_bf16(
    model: ir.Model, token_ids: Sequence[NDArray[np.int64]], *, folder: Path
) -> ir.Model:
    """Correct a graph's biases for bf16, if that brings its vectors closer to those in fp32.

    It does for random weights, whose hidden states are similar: with `RoundProducts`, the error of
    BGE-M3's ColBERT vectors fell from 6.5 to 4.7 % of the distance between tokens. For the trained
    all-MiniLM-L6-v2 it was a tenth of that, and grew. So half of the texts correct the biases, and
    the other half decide.

    Args:
        model: The graph, with its weights in ``folder``.
        token_ids: Tokens of the texts.
        folder: Folder in which graphs are written for the runs.

    Returns:
        The graph with corrected biases, or the graph as it was.
    """

    def corrected(texts: Sequence[NDArray[np.int64]]) -> ir.Model:
        found = model.clone()
        CorrectBiases(mean_inputs(found, texts, folder=folder))(found)
        RemoveUnusedNodesPass()(found)
        return found

    def vectors(graph: ir.Model) -> list[NDArray[np.float32]]:
        names = (SENTENCE_EMBEDDING, COLBERT_VECS, LOGITS)
        outputs = [value for value in graph.graph.outputs if value.name in names]
        texts = list(run_texts(graph, outputs, token_ids[1::2], folder=folder))
        return [
            np.concatenate([rows.reshape(-1, rows.shape[-1]) for rows in output])
            for output in zip(*texts, strict=True)
        ]

    def closeness(graph: ir.Model) -> list[float]:
        rounded = graph.clone()
        RoundProducts()(rounded)
        pairs = zip(vectors(rounded), exact, strict=True)
        return [
            # Of a reranker's logits, which are no vectors, the error counts.
            compare(ours, theirs).mean_cosine
            if theirs.shape[1] > 1
            else -float(np.abs(ours - theirs).mean())
            for ours, theirs in pairs
        ]

    exact = vectors(model)
    tried = zip(closeness(corrected(token_ids[::2])), closeness(model), strict=True)
    return corrected(token_ids) if all(new > old for new, old in tried) else model


def _convert(model: ir.Model, path: Path) -> None:
    ov = OpenVinoEngine.load()
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        file = Path(scratch) / "model.onnx"
        ir.save(model, file, external_data="model.onnx_data")
        # Half the nodes are fused before they are written: opening takes 25 ms less (bge-base).
        ov.save_model(ov.convert_model(file), path, compress_to_fp16=True)


def _reuse_constants(graph: Path, weights: BinaryIO, places: dict[bytes, str]) -> str:
    """Return a graph that reads its constants from another file.

    Args:
        graph: The graph, with its own constants beside it.
        weights: The other file. Constants that it lacks are appended to it.
        places: Offsets of what the file holds, by digest.
    """
    with graph.with_suffix(".bin").open("rb") as own:

        def moved(constant: re.Match[str]) -> str:
            content = _read(own, *constant.groups())
            place = places.get(_digest(content))
            if place is None:
                end = weights.seek(0, os.SEEK_END)
                weights.write(bytes(-end % _ALIGNMENT))
                place = places[_digest(content)] = str(weights.tell())
                weights.write(content)
            return f'offset="{place}" size="{constant[2]}"'

        return _CONSTANT.sub(moved, graph.read_text("utf-8"))


def _read(file: BinaryIO, offset: str | int, size: str | int) -> bytes:
    file.seek(int(offset))
    return file.read(int(size))


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
