"""Reads JSON Lines: each line is an object, whose members are columns."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NoReturn

import pyarrow as pa

from bge_runtime.bulk.files import InputError, InputFile
from bge_runtime.bulk.readers.arrays import (
    JSON_TEXT,
    is_json_text,
    list_names,
    map_files,
    too_large,
)
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
"""Rows of each file whose values decide the types of columns."""

_KINDS = {
    str: "a string", bool: "a boolean", int: "an integer", float: "a fraction", list: "a list",
    dict: "an object", type(None): "null",
}  # fmt: skip

_GROUPS = {
    "a string": "string", "a boolean": "boolean", "an integer": "number", "a fraction": "number",
    "a list": "JSON", "an object": "JSON",
}  # fmt: skip
"""Kinds whose values fit into one column."""


class JsonlReader(ScanningReader):
    """Reads objects; their columns and types are those of the first rows of all files.

    A column has the type of most of its values there; its numbers are integers if all of them are.
    A later value of another type makes its row a bad one. Members that are missing are null.
    Where most values are objects or lists, all become JSON text, and the metadata of the column is
    `JSON_TEXT`.
    """

    def schema(self, files: Sequence[InputFile], columns: Sequence[str] | None = None) -> pa.Schema:
        """Return columns with the types of the first rows of all files."""
        kinds: dict[str, Counter[str]] = {}
        problems = []
        for found, problem in map_files(_first_kinds, files):
            problems += [problem] if problem else []
            for name, counts in found.items():
                kinds.setdefault(name, Counter()).update(counts)
        if not kinds and problems:
            raise InputError(problems[0])
        for name in columns or ():
            if name not in kinds:
                raise InputError(
                    f"the first {_INFERRED_FROM:,} rows of each file have no field {name!r}; "
                    f"their fields are {list_names([*kinds], name)}"
                    if kinds
                    else f"{files[0].uri} has no row, so its fields are unknown"
                )
        return pa.schema(
            [_infer(name, kinds[name]) for name in (kinds if columns is None else columns)]
        )

    def index(self, file: InputFile, on_bytes: OnBytes) -> FileIndex:
        """Return how many lines there are."""
        return index_lines(file, on_bytes)

    def scan(
        self, file: InputFile, index: FileIndex, schema: pa.Schema, *, first: int
    ) -> Iterator[RowBatch]:
        """Yield objects; a line that is not an object of these columns is a bad row."""
        batch = BatchBuilder(schema)
        columns = [(field.name, _converter(field)) for field in schema]
        for row, line in read_lines(file, index, first=first):
            try:
                record = _parse(line)
                if record is None:
                    continue
                values = [convert(record.get(name), name) for name, convert in columns]
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


def _first_kinds(file: InputFile) -> tuple[dict[str, Counter[str]], str | None]:
    """Return how often the members of the first objects have a value of each kind.

    Returns:
        The kinds by the names of members; and what is wrong, if no line can be read.
    """
    kinds: dict[str, Counter[str]] = {}
    first_problem = None
    held = 0
    with open_blocks(file) as blocks:
        for line in islice(split_lines(skip_mark(blocks), MAX_ROW_BYTES), _INFERRED_FROM):
            try:
                record = _parse(line or b"")
            except BadLineError as error:
                first_problem = first_problem or str(error)
                if not kinds and isinstance(line, bytes) and line.lstrip().startswith(b"["):
                    raise InputError(
                        f"{file.uri} is one JSON array, not an object a line: convert it, for "
                        "example with jq -c '.[]'"
                    ) from error
            else:
                for name, value in (record or {}).items():
                    kinds.setdefault(name, Counter())[_KINDS[type(value)]] += 1
            held += len(line or b"")
            if held > BATCH_BYTES:
                break
    if kinds or first_problem is None:
        return kinds, None
    return {}, f"no line of {file.uri} is an object of JSON: the first {first_problem}"


def _infer(name: str, kinds: Counter[str]) -> pa.Field:
    """Return a column with the type of most of its values, string if all are null."""
    groups: Counter[str] = Counter()
    for kind, count in kinds.items():
        if kind in _GROUPS:
            groups[_GROUPS[kind]] += count
    group = groups.most_common(1)[0][0] if groups else "string"
    if group == "JSON":
        return pa.field(name, pa.string(), metadata=JSON_TEXT)
    if group == "number":
        return pa.field(name, pa.float64() if kinds["a fraction"] else pa.int64())
    return pa.field(name, pa.bool_() if group == "boolean" else pa.string())


def _converter(field: pa.Field) -> Callable[[Any, str], Any]:
    """Return a function that checks a value, and returns it as the column holds it.

    pyarrow alone would cut numbers with a fraction.
    """
    return _json_text if is_json_text(field) else _CONVERTERS[field.type]


def _string(value: Any, name: str) -> Any:
    if type(value) is str:
        if not value.isascii():
            check_characters(value, name)
    elif value is not None:
        _refuse(value, name, "a string")
    return value


def _boolean(value: Any, name: str) -> Any:
    if type(value) is not bool and value is not None:
        _refuse(value, name, "a boolean")
    return value


def _integer(value: Any, name: str) -> Any:
    if value is None:
        return value
    if type(value) is float:
        raise BadLineError(
            f"has a fraction in its field {name!r}, whose numbers are integers in the first "
            f"{_INFERRED_FROM:,} rows: write one of those as 1.0, or do not use the field"
        )
    if type(value) is not int:
        _refuse(value, name, "an integer")
    if not -(2**63) <= value < 2**63:
        raise BadLineError(f"has a number beyond 64 bits in its field {name!r}")
    return value


def _number(value: Any, name: str) -> Any:
    if value is None:
        return value
    if type(value) not in (int, float):
        _refuse(value, name, "a number")
    if abs(value) > 2**53 and type(value) is int:
        raise BadLineError(f"has an integer beyond 2^53 among the fractions of its field {name!r}")
    if math.isinf(value):
        raise BadLineError(f"has a number beyond 1.8e308 in its field {name!r}")
    return value


def _json_text(value: Any, name: str) -> Any:
    if value is None:
        return value
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:  # of Infinity, as which 1e999 is read
        raise BadLineError(f"has a number beyond 1.8e308 in its field {name!r}") from error
    except RecursionError as error:
        raise BadLineError("is nested too deeply") from error
    check_characters(text, name)
    return text


def _refuse(value: Any, name: str, wanted: str) -> NoReturn:
    raise BadLineError(
        f"has {_KINDS[type(value)]} in its field {name!r}, where {wanted} is expected"
    )


_CONVERTERS: dict[pa.DataType, Callable[[Any, str], Any]] = {
    pa.string(): _string,
    pa.bool_(): _boolean,
    pa.int64(): _integer,
    pa.float64(): _number,
}
