"""Reads JSON Lines: each line is an object, whose members are columns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NoReturn

import pyarrow as pa

from bge_runtime.bulk.files import InputError, InputFile
from bge_runtime.bulk.readers.arrays import too_large
from bge_runtime.bulk.readers.base import (
    BATCH_BYTES,
    MAX_ROW_BYTES,
    FileIndex,
    OnBytes,
    RowBatch,
)
from bge_runtime.bulk.readers.batches import BatchBuilder
from bge_runtime.bulk.readers.line_files import index_lines, open_blocks, read_lines
from bge_runtime.bulk.readers.scan import ScanningReader
from bge_runtime.lines import (
    BadLineError,
    LongLine,
    check_characters,
    decode_line,
    is_blank,
    parse_json,
    skip_mark,
    split_lines,
)

_INFERRED_FROM = 1000
"""Rows whose values decide the types of columns."""

_KINDS = {
    str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "a list",
    dict: "an object", type(None): "null",
}  # fmt: skip


class JsonlReader(ScanningReader):
    """Reads objects; their columns and types are those of the first file's first rows.

    A column has the type of most of its values there. A later value of another type makes its row
    a bad one. Members that are missing are null.
    """

    def schema(self, files: Sequence[InputFile], columns: Sequence[str] | None = None) -> pa.Schema:
        """Return columns with the types of the first rows of the first file that has any."""
        records: list[dict[str, Any]] = []
        for file in files:
            records = _first_records(file)
            if records:
                break
        found = dict.fromkeys(name for record in records for name in record)
        if columns is None:
            columns = [*found]
        for name in columns:
            if name not in found:
                where = f"the first {len(records):,} rows of {file.uri}"
                raise InputError(
                    f"{where} have no field {name!r}; their fields are {', '.join(found)}"
                    if records
                    else f"{file.uri} has no row, so its fields are unknown"
                )
        return pa.schema(
            [_infer(file, name, [record.get(name) for record in records]) for name in columns]
        )

    def index(self, file: InputFile, on_bytes: OnBytes) -> FileIndex:
        """Return how many lines there are."""
        return index_lines(file, on_bytes)

    def scan(
        self, file: InputFile, index: FileIndex, schema: pa.Schema, *, first: int
    ) -> Iterator[RowBatch]:
        """Yield objects; a line that is not an object of these columns is a bad row."""
        batch = BatchBuilder(schema)
        columns = [(field.name, _checker(field.type)) for field in schema]
        for row, line in read_lines(file, index, first=first):
            try:
                record = _parse(line)
                if record is None:
                    continue
                values = [record.get(name) for name, _ in columns]
                for value, (name, check) in zip(values, columns, strict=True):
                    check(value, name)
            except BadLineError as error:
                batch.add_bad(row, str(error))
            else:
                batch.add(row, values, len(line))
            if batch.full:
                yield batch.take()
        if batch:
            yield batch.take()


def _parse(line: bytes | LongLine) -> dict[str, Any] | None:
    """Return the object of a line; None for a blank one."""
    if isinstance(line, LongLine):
        raise BadLineError(too_large(line.size_bytes))
    text = decode_line(line)
    if is_blank(text):
        return None
    record = parse_json(text)
    if not isinstance(record, dict):
        raise BadLineError(f"is {_KINDS[type(record)]} of JSON, not an object")
    return record


def _first_records(file: InputFile) -> list[dict[str, Any]]:
    """Return the objects of the first lines, those that can be read."""
    records: list[dict[str, Any]] = []
    first_problem = None
    held = 0
    with open_blocks(file) as blocks:
        for line in islice(split_lines(skip_mark(blocks), MAX_ROW_BYTES), _INFERRED_FROM):
            try:
                record = _parse(line or b"")
            except BadLineError as error:
                first_problem = first_problem or str(error)
                if not records and isinstance(line, bytes) and line.lstrip().startswith(b"["):
                    raise InputError(
                        f"{file.uri} is one JSON array, not an object a line: convert it, for "
                        "example with jq -c '.[]'"
                    ) from error
            else:
                if record is not None:
                    records.append(record)
            held += len(line or b"")
            if held > BATCH_BYTES:
                break
    if first_problem and not records:
        raise InputError(f"no line of {file.uri} is an object of JSON: the first {first_problem}")
    return records


def _infer(file: InputFile, name: str, values: Sequence[Any]) -> pa.Field:
    """Return a column with the type of most of its values, string if all are null."""
    kinds = Counter(_KINDS[type(value)] for value in values if value is not None)
    if not kinds:
        return pa.field(name, pa.string())
    kind = kinds.most_common(1)[0][0]
    try:
        inferred = pa.infer_type([value for value in values if _KINDS[type(value)] == kind])
        _checker(inferred)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InputError(
            f"the field {name!r} of {file.uri} has no type that holds all of its values: {reason}. "
            "Leave it out, or write it as a string"
        ) from error
    return pa.field(name, inferred)


def _checker(kind: pa.DataType) -> Callable[[Any, str], None]:
    """Return a function that checks whether a value is null or fits a type.

    pyarrow alone would cut numbers with a fraction and drop unknown members of objects.

    Raises:
        ValueError: If no JSON value has the type.
    """
    if kind in _SCALAR_CHECKS:
        return _SCALAR_CHECKS[kind]
    if pa.types.is_list(kind):
        return partial(_check_list, check=_checker(kind.value_type))
    if pa.types.is_struct(kind) and kind.num_fields:
        return partial(_check_object, checks={field.name: _checker(field.type) for field in kind})
    raise ValueError(f"{kind} cannot be stored")


def _check_string(value: Any, name: str) -> None:
    if type(value) is str:
        if not value.isascii():
            check_characters(value, name)
    elif value is not None:
        _refuse(value, name, "a string")


def _check_boolean(value: Any, name: str) -> None:
    if type(value) is not bool and value is not None:
        _refuse(value, name, "a boolean")


def _check_integer(value: Any, name: str) -> None:
    if value is None:
        return
    if type(value) is not int:
        _refuse(value, name, "an integer")
    if not -(2**63) <= value < 2**63:
        raise BadLineError(f"has a number beyond 64 bits in its field {name!r}")


def _check_number(value: Any, name: str) -> None:
    if value is None:
        return
    if type(value) not in (int, float):
        _refuse(value, name, "a number")
    if abs(value) > 2**53 and type(value) is int:
        raise BadLineError(f"has an integer beyond 2^53 among the fractions of its field {name!r}")
    if math.isinf(value):
        raise BadLineError(f"has a number beyond 1.8e308 in its field {name!r}")


def _check_null(value: Any, name: str) -> None:
    if value is not None:
        _refuse(value, name, "null")


def _check_list(value: Any, name: str, check: Callable[[Any, str], None]) -> None:
    if value is None:
        return
    if type(value) is not list:
        _refuse(value, name, "a list")
    for item in value:
        check(item, f"{name}[]")


def _check_object(value: Any, name: str, checks: dict[str, Callable[[Any, str], None]]) -> None:
    if value is None:
        return
    if type(value) is not dict:
        _refuse(value, name, "an object")
    for key, item in value.items():
        check = checks.get(key)
        if check is None:
            raise BadLineError(
                f"has a field {f'{name}.{key}'!r}, which the first {_INFERRED_FROM:,} rows of the "
                "input do not have"
            )
        check(item, f"{name}.{key}")


def _refuse(value: Any, name: str, wanted: str) -> NoReturn:
    found = _KINDS[type(value)]
    if wanted == "an integer" and type(value) is float:
        found = "a fraction"
    raise BadLineError(f"has {found} in its field {name!r}, where {wanted} is expected")


_SCALAR_CHECKS: dict[pa.DataType, Callable[[Any, str], None]] = {
    pa.string(): _check_string,
    pa.bool_(): _check_boolean,
    pa.int64(): _check_integer,
    pa.float64(): _check_number,
    pa.null(): _check_null,
}
