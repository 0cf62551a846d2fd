"""Write a decoder's weights as external data of its graphs, tensor by tensor.

At most one matrix is in memory at a time, so a checkpoint can be many times as large as the memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bge_export.checkpoint import SafetensorsReader, check_finite
from bge_runtime.errors import ExportError

_PAGE = 4096
"""Each tensor begins on a page, so that engines can map it into memory."""


Transform = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class TensorPlan:
    """How one tensor of the checkpoint is stored in the external data.

    Attributes:
        name: Its name in the graph.
        source: Its name in the checkpoint.
        dtype: Its type in the graph.
        shape: Its shape in the graph.
        transform: Converts the tensor as a whole; None casts it piece by piece.
        rows: Rows that are read, in this order, and transformed; None for all.
    """

    name: str
    source: str
    dtype: ir.DataType
    shape: tuple[int, ...]
    transform: Transform | None = None
    rows: tuple[int, ...] | None = None


def place_tensors(
    plans: Iterable[TensorPlan], *, folder: Path, location: str
) -> dict[str, ir.ExternalTensor]:
    """Return the tensors of an external data file, by name in the graph.

    Args:
        plans: The tensors, in the order in which they are written.
        folder: Folder of the graph.
        location: Name of the data file in that folder.
    """
    tensors, offset = {}, 0
    for plan in plans:
        length = _size_bytes(plan)
        tensors[plan.name] = ir.ExternalTensor(
            location, offset, length, plan.dtype, shape=ir.Shape(plan.shape), name=plan.name,
            base_dir=folder,
        )  # fmt: skip
        offset += -(-length // _PAGE) * _PAGE
    return tensors


def write_external_data(
    plans: Iterable[TensorPlan],
    reader: SafetensorsReader,
    path: Path,
    *,
    advance: Callable[[int], object] = lambda _: None,
) -> None:
    """Stream tensors from a checkpoint into an external data file.

    Args:
        plans: The tensors, in the order passed to `place_tensors`.
        reader: The checkpoint.
        path: The file to write.
        advance: Called with the number of bytes just written.

    Raises:
        ExportError: If a tensor does not have the planned shape, or holds NaN, infinity or numbers
            beyond the range of the planned type.
        OSError: If the file cannot be written.
    """
    with path.open("wb") as file:
        for plan in plans:
            start = file.tell()
            for piece in _read_pieces(plan, reader):
                file.write(np.ascontiguousarray(piece).view(np.uint8).reshape(-1).data)
                advance(piece.nbytes)
            if file.tell() - start != _size_bytes(plan):
                raise ExportError(
                    f"{plan.source} of the checkpoint has the shape {reader.shape(plan.source)}, "
                    f"which does not become {plan.shape} of {plan.name}"
                )
            file.write(b"\0" * (-file.tell() % _PAGE))


def _read_pieces(plan: TensorPlan, reader: SafetensorsReader) -> Iterator[NDArray[Any]]:
    if plan.rows is not None:
        rows = [reader.read(plan.source, first=row, rows=1) for row in plan.rows]
        yield _convert(plan, np.concatenate(rows))
        return
    if plan.transform is not None:
        yield _convert(plan, reader.read(plan.source))
        return
    for array in reader.pieces(plan.source):
        yield _convert(plan, array)


def _convert(plan: TensorPlan, array: NDArray[Any]) -> NDArray[Any]:
    # Checked before conversion: 8 bits cannot represent NaN.
    check_finite(array, plan.source)
    dtype = plan.dtype.numpy()
    # Overflow becomes infinity, which is found below.
    with np.errstate(over="ignore"):
        stored = plan.transform(array) if plan.transform else array.astype(dtype, copy=False)
    if stored.dtype == dtype != array.dtype and not np.isfinite(stored).all():
        largest = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
        raise ExportError(
            f"{plan.source} of the checkpoint holds numbers above {largest:.6g}"
            + (": leave --precision fp16 out" * (dtype == np.float16))
        )
    return stored


def _size_bytes(plan: TensorPlan) -> int:
    return -(-math.prod(plan.shape) * plan.dtype.bitwidth // 8)


def count_bytes(plans: Iterable[TensorPlan]) -> int:
    """Return the total size of the stored tensors."""
    return sum(_size_bytes(plan) for plan in plans)
