"""Read safetensors files tensor by tensor.

Files are not mapped into memory, so a checkpoint can be many times as large as the memory.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bge_runtime.errors import ExportError
from bge_runtime.system import check_not_pointer

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""Floating-point types of weights, by their names in a safetensors file."""

_TYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "BOOL": 1}
"""Bytes per number of the types that checkpoints without quantized weights have."""

_PIECE_BYTES = 32 << 20
"""Size of the pieces in which `SafetensorsReader.pieces` reads."""


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Read the header of a safetensors file and check that the file is complete.

    The format: 8 bytes of header length, a JSON header, then the tensors' bytes
    (https://github.com/huggingface/safetensors#format).

    Returns:
        By tensor name: ``dtype``, ``shape`` and ``start``, the offset in the file.

    Raises:
        ExportError: If the file is damaged or short, or its weights are quantized.
    """
    check_not_pointer(path, error=ExportError)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size - 8:
                raise ValueError(f"header of {length:,} bytes in a file of {size:,}")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors, end = {}, 8 + length
        for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            first, last = tensor["data_offsets"]
            dtype, shape = str(tensor["dtype"]), tuple(tensor["shape"])
            if dtype not in _TYPE_BYTES:
                raise ExportError(
                    f"{name} in {path} is of type {dtype}, which quantized weights have. Export "
                    "the checkpoint that it was made from"
                )
            if 8 + length + first != end or last - first != math.prod(shape) * _TYPE_BYTES[dtype]:
                raise ValueError(f"{name} does not lie where the header says")
            tensors[name] = {"dtype": dtype, "shape": shape, "start": end}
            end += last - first
        if end != size:
            raise ValueError(f"{size:,} bytes where the header calls for {end:,}")
    except (
        OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error
    ) as error:  # fmt: skip
        raise ExportError(f"{path} is damaged ({error}); download it again") from error
    return tensors


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
            ExportError: If a file is not a safetensors file, is damaged, or repeats a tensor of
                another file.
        """
        self._places: dict[str, _Place] = {}
        for name in files:
            path = folder / name
            if path.suffix != ".safetensors":
                raise ExportError(
                    f"{path} is not a safetensors file. Decoders are exported from those only, "
                    "because they can be read in parts. Save the model once with "
                    "save_pretrained(FOLDER, safe_serialization=True)"
                )
            for key, value in read_header(path).items():
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
        """Return a tensor's shape."""
        return self._places[name].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return a tensor's type.

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
            first: First row to read.
            rows: Number of rows; None for all the rest.

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
        """Yield a tensor in pieces of some rows, in order.

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


def check_finite(array: NDArray[Any], name: str) -> None:
    """Refuse a weight that holds NaN or infinity, which can turn every vector into NaN.

    Raises:
        ExportError: If it does.
    """
    if not np.isfinite(array).all():
        raise ExportError(
            f"{name} of the checkpoint holds NaN or infinity: its training diverged, or the file "
            "is damaged. Export an earlier checkpoint, or download it again"
        )


def find_common_dtype(reader: SafetensorsReader, names: Mapping[str, str]) -> ir.DataType:
    """Return the smallest type that holds all of these tensors exactly, at most fp32."""
    kinds = {reader.dtype(name) for name in names.values()}
    if len(kinds) == 1 and kinds != {_DTYPES["F64"]}:
        return ir.DataType.from_numpy(kinds.pop())
    return ir.DataType.FLOAT
