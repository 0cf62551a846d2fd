"""Weights from a checkpoint's safetensors to a graph's external data, tensor by tensor.

Nothing is mapped into memory and no more than one matrix is held at a time, so that a
checkpoint many times the size of the memory can be exported.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bge_export.checkpoint.inspect import read_safetensors_header
from bge_runtime.errors import ExportError

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""safetensors' names of the floating-point types that weights come in."""

_PIECE_BYTES = 32 << 20
"""Tensors that go through row by row are read in pieces of this size."""

_PAGE = 4096
"""External data has to begin on a page for an engine to map it into memory."""

Transform = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class _Place:
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int


class SafetensorsReader:
    """The tensors of a checkpoint's safetensors files."""

    def __init__(self, folder: Path, files: Iterable[str]) -> None:
        """Read the headers of the files.

        Raises:
            ExportError: If there is a file that is not safetensors, is damaged, or holds a
                tensor that another one holds, too.
        """
        self._places: dict[str, _Place] = {}
        for name in files:
            path = folder / name
            if path.suffix != ".safetensors":
                raise ExportError(
                    f"{path} is not a safetensors file, and decoders are exported from those only, "
                    "so that they never have to fit into memory. Save the model once with "
                    "save_pretrained(FOLDER, safe_serialization=True)"
                )
            for key, value in read_safetensors_header(path).items():
                place = _Place(path, str(value["dtype"]), tuple(value["shape"]), value["start"])
                if key in self._places:
                    raise ExportError(
                        f"{key} is in {self._places[key].file} and in {path.name}; keep the files "
                        "of one save only"
                    )
                self._places[key] = place

    def names(self) -> Collection[str]:
        """Return the names of all tensors."""
        return self._places.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Give a tensor's shape."""
        return self._places[name].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """Give a tensor's type.

        Raises:
            ExportError: If it is not a floating-point type of 16 bits or more.
        """
        place = self._places[name]
        if place.dtype not in _DTYPES:
            raise ExportError(
                f"{name} in {place.file} is of type {place.dtype}; weights are exported from "
                f"{', '.join(_DTYPES)}"
            )
        return _DTYPES[place.dtype]

    def read(self, name: str, *, first: int = 0, rows: int | None = None) -> NDArray[Any]:
        """Read a tensor, or some of its rows.

        Args:
            name: The tensor.
            first: The first row to read.
            rows: How many rows; None for all from there on.

        Raises:
            ExportError: If the file cannot be read.
        """
        place, dtype = self._places[name], self.dtype(name)
        row, shape = math.prod(place.shape[1:]), place.shape
        if shape:
            shape = (shape[0] - first if rows is None else rows, *shape[1:])
        array = np.empty(shape, dtype)
        try:
            with place.file.open("rb") as file:
                file.seek(place.start + first * row * dtype.itemsize)
                got = file.readinto(array.view(np.uint8).reshape(-1).data)
        except OSError as error:
            raise ExportError(f"cannot read {place.file}: {error}") from error
        if got != array.nbytes:
            raise ExportError(f"{place.file} ends inside {name}; download it again")
        return array

    def pieces(self, name: str) -> Iterator[NDArray[Any]]:
        """Read a tensor in pieces of some rows, in order.

        Raises:
            ExportError: If the file cannot be read.
        """
        shape = self.shape(name)
        if not shape:
            yield self.read(name)
            return
        width = math.prod(shape[1:]) * self.dtype(name).itemsize
        rows = max(1, _PIECE_BYTES // max(1, width))
        for first in range(0, shape[0], rows):
            yield self.read(name, first=first, rows=min(rows, shape[0] - first))


@dataclass(frozen=True, kw_only=True)
class TensorPlan:
    """One tensor on its way into a graph's external data.

    Attributes:
        name: Its name in the graph.
        source: Its name in the checkpoint.
        dtype: Its type in the graph.
        shape: Its shape in the graph.
        transform: Makes of it what is stored, in its type; None lets it through piece by
            piece.
    """

    name: str
    source: str
    dtype: ir.DataType
    shape: tuple[int, ...]
    transform: Transform | None = None


def external_tensors(
    plans: Iterable[TensorPlan], *, folder: Path, location: str
) -> dict[str, ir.ExternalTensor]:
    """Decide where each tensor lies in an external data file.

    Args:
        plans: The tensors, in the order in which they are written.
        folder: Folder of the graph.
        location: Name of the data file in it.
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
        plans: The tensors, in the order that `external_tensors` was given.
        reader: The checkpoint.
        path: The file to write.
        advance: Told how many more bytes were written.

    Raises:
        ExportError: If a tensor has another shape than its plan, or holds NaN, infinity or what
            its planned type has no place for.
        OSError: If the file cannot be written.
    """
    with path.open("wb") as file:
        for plan in plans:
            start = file.tell()
            for piece in _pieces(plan, reader):
                file.write(np.ascontiguousarray(piece).view(np.uint8).reshape(-1).data)
                advance(piece.nbytes)
            if file.tell() - start != _size_bytes(plan):
                raise ExportError(
                    f"{plan.source} of the checkpoint has the shape {reader.shape(plan.source)}, "
                    f"which does not become {plan.shape} of {plan.name}"
                )
            file.write(b"\0" * (-file.tell() % _PAGE))


def _pieces(plan: TensorPlan, reader: SafetensorsReader) -> Iterator[NDArray[Any]]:
    if plan.transform is not None:
        yield _stored(plan, reader.read(plan.source))
        return
    for array in reader.pieces(plan.source):
        yield _stored(plan, array)


def _stored(plan: TensorPlan, array: NDArray[Any]) -> NDArray[Any]:
    # As it was read: in a matrix of 8 bits nothing is seen of it any more.
    check_finite(array, plan.source)
    dtype = plan.dtype.numpy()
    # What overflows becomes infinity, and is found as such.
    with np.errstate(over="ignore"):
        stored = plan.transform(array) if plan.transform else array.astype(dtype, copy=False)
    if stored.dtype == dtype != array.dtype and not np.isfinite(stored).all():
        largest = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
        raise ExportError(
            f"{plan.source} of the checkpoint holds numbers above {largest:.6g}"
            + (": leave --precision fp16 out" * (dtype == np.float16))
        )
    return stored


def check_finite(array: NDArray[Any], name: str) -> None:
    """Refuse a weight that holds NaN or infinity, of which every vector may become NaN.

    Raises:
        ExportError: If it does.
    """
    if not np.isfinite(array).all():
        raise ExportError(
            f"{name} of the checkpoint holds NaN or infinity: its training diverged, or the file "
            "is damaged. Export an earlier checkpoint, or download it again"
        )


def _size_bytes(plan: TensorPlan) -> int:
    return -(-math.prod(plan.shape) * plan.dtype.bitwidth // 8)


def identity(tensor: ir.TensorProtocol) -> tuple[object, ...]:
    """Say of a tensor what only its equals share."""
    return tensor.dtype, tuple(tensor.shape), hashlib.sha256(tensor.tobytes()).digest()


def total_bytes(plans: Iterable[TensorPlan]) -> int:
    """Add up what the tensors take."""
    return sum(_size_bytes(plan) for plan in plans)


def weight_dtype(reader: SafetensorsReader, names: Mapping[str, str]) -> ir.DataType:
    """Return the one type that holds all of these tensors exactly; fp32 for wider ones."""
    kinds = {reader.dtype(name) for name in names.values()}
    if len(kinds) == 1 and kinds != {_DTYPES["F64"]}:
        return ir.DataType.from_numpy(kinds.pop())
    return ir.DataType.FLOAT
