"""Graphs in OpenVINO's own format, with weights of 16 bits."""

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

from bge_export.encoder.calibration import run_texts, watch_inputs
from bge_export.passes import CorrectBiases, RoundProducts, check_range
from bge_export.targets import OPENVINO
from bge_runtime.bundle import COLBERT_VECS, SENTENCE_EMBEDDING, compare
from bge_runtime.engines import OpenVinoEngine

_CONSTANT = re.compile(r'offset="(\d+)" size="(\d+)"')
"""Where a graph says that a constant lies in the file of weights."""

_ALIGNMENT = 64


def write_openvino(
    model: ir.Model, folder: Path, *, token_ids: Sequence[NDArray[np.int64]]
) -> tuple[str, str]:
    """Convert a graph to OpenVINO's own format.

    Half the size on disk of the ONNX file, and no conversion when it is opened. Where other biases
    bring vectors in bf16 nearer, there is a second graph, over the same weights: other tools find
    the first one by its name, and may run it in fp32.

    Args:
        model: The graph; weights in files lie in ``onnx`` in the bundle.
        folder: The bundle's.
        token_ids: Tokens of texts that biases may be corrected by.

    Returns:
        Paths inside the bundle of the graph for bf16 and of its weights.

    Raises:
        ExportError: If a weight has no place in fp16.
    """
    first = Path(OPENVINO.file)
    weights = first.with_suffix(".bin")
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT:  # stored in fp16, cut to that
            check_range(tensor.numpy(), name, leave_out="--target openvino")
    (folder / first).parent.mkdir()
    _convert(model, folder / first)
    corrected = for_bf16(model, token_ids, folder=folder / "onnx")
    if corrected is model:
        return str(first), str(weights)
    second = first.with_stem("bf16")  # sentence-transformers warns of two named openvino*.xml
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / second.name
        _convert(corrected, path)
        graph = _over_the_weights_of(folder / first, path)
    (folder / second).write_text(graph, encoding="utf-8")
    return str(second), str(weights)


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


def _convert(model: ir.Model, path: Path) -> None:
    ov = OpenVinoEngine.load()
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        file = Path(scratch) / "model.onnx"
        ir.save(model, file, external_data="model.onnx_data")
        ov.save_model(ov.Core().read_model(file), path, compress_to_fp16=True)


def _over_the_weights_of(other: Path, path: Path) -> str:
    """Give a graph that reads its constants from another one's file, behind which new ones go."""
    with other.with_suffix(".bin").open("r+b") as file, path.with_suffix(".bin").open("rb") as own:
        found = _CONSTANT.finditer(other.read_text("utf-8"))
        places = {_digest(_read(file, constant)): constant[1] for constant in found}

        def moved(constant: re.Match[str]) -> str:
            content = _read(own, constant)
            place = places.get(_digest(content))
            if place is None:
                end = file.seek(0, os.SEEK_END)
                file.write(bytes(-end % _ALIGNMENT))
                place = places[_digest(content)] = str(file.tell())
                file.write(content)
            return f'offset="{place}" size="{constant[2]}"'

        return _CONSTANT.sub(moved, path.read_text("utf-8"))


def _read(file: BinaryIO, constant: re.Match[str]) -> bytes:
    offset, size = map(int, constant.groups())
    file.seek(offset)
    return file.read(size)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
