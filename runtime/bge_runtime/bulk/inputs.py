"""The input of a job: its columns, where its rows are, and whether it is still the same."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs

from bge_runtime.bulk.files import InputError, InputFile, reading
from bge_runtime.bulk.progress import show_reading
from bge_runtime.bulk.readers import FileIndex, Reader, open_reader
from bge_runtime.bulk.rows import Columns, select_columns
from bge_runtime.system import file_hash

_INDEXING_THREADS = 8
"""Files whose rows are counted at the same time: each waits for its file system."""

_VERSIONS = ("ETag", "etag", "blob_id")
"""Keys under which file systems of fsspec name the content of a file: the web's and the hub's."""

OnBytes = Callable[[int], object]


@dataclass(frozen=True, kw_only=True)
class InputEntry:
    """A file of the input, as the job found it.

    Attributes:
        file: The file.
        index: Where its rows are.
        sha256: Hash of its content, in hexadecimal; None for remote files.
        changed_ns: When its inode was last changed, which nobody can set back; None for remote
            files.
        version: What its file system calls its content, such as an ETag; None if it is local, has
            a time of modification, or has no such name.
    """

    file: InputFile
    index: FileIndex
    sha256: str | None
    changed_ns: int | None
    version: str | None

    @property
    def content(self) -> str | int | None:
        """What tells its content apart, as far as anything does."""
        return self.sha256 or self.version or self.file.modified_ns

    def to_json(self) -> dict[str, Any]:
        """Return it as a part of the description."""
        return {
            "uri": self.file.uri,
            "size_bytes": self.file.size_bytes,
            "modified_ns": self.file.modified_ns,
            "changed_ns": self.changed_ns,
            "sha256": self.sha256,
            "version": self.version,
            **asdict(self.index),
        }


@dataclass(frozen=True, kw_only=True)
class Input:
    """The input of a job.

    Attributes:
        format: Format of its files.
        entries: Its files, in order.
        schema: The columns that are read.
    """

    format: str
    entries: Sequence[InputEntry]
    schema: pa.Schema


def read_schema(
    files: Sequence[InputFile], input_format: str, columns: Columns, *, added: Sequence[str]
) -> pa.Schema:
    """Return the columns of an input that are read.

    Args:
        files: Its files.
        input_format: Their format.
        columns: The columns to read.
        added: Names of the columns that the output adds.

    Raises:
        InputError: If a file cannot be read, or lacks a column.
        ValueError: If a column or the template is wrong.
    """
    schema = open_reader(input_format).schema(files, columns.names)
    columns.check(schema, added=added)
    return select_columns(schema, columns)


def index_inputs(
    files: Sequence[InputFile], input_format: str, schema: pa.Schema, *, show_progress: bool | None
) -> Input:
    """Return an input: where its rows are, and hashes of its files.

    Args:
        files: Its files.
        input_format: Their format.
        schema: The columns to read.
        show_progress: As in `bge_runtime.bulk.progress.Progress`.

    Raises:
        InputError: If a file cannot be read.
    """
    hashed = sum(file.size_bytes for file in files if file.local is not None)
    total = hashed + sum(file.size_bytes for file in files)
    with show_reading(total, show=show_progress) as on_bytes:
        entries = _index(files, open_reader(input_format), on_bytes)
    return Input(format=input_format, entries=entries, schema=schema)


def _index(files: Sequence[InputFile], reader: Reader, on_bytes: OnBytes) -> list[InputEntry]:
    """Return where the rows of files are; ``on_bytes`` is called by several threads."""
    stopped = threading.Event()

    def count(size_bytes: int) -> None:
        if stopped.is_set():
            raise InputError("stopped")  # seen by nobody: another error is being raised
        on_bytes(size_bytes)

    def index(file: InputFile) -> InputEntry:
        changed_ns = _changed_ns(file)
        found = reader.index(file, count)
        sha256 = _sha256(file, file_hash.file_sha256, count)
        return InputEntry(
            file=file,
            index=found,
            sha256=sha256,
            changed_ns=changed_ns,
            version=_version(file),
        )

    with ThreadPoolExecutor(_INDEXING_THREADS, thread_name_prefix="bge-index") as threads:
        try:
            return list(threads.map(index, files))
        except BaseException:
            stopped.set()
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def input_from_document(document: Mapping[str, Any], files: Sequence[InputFile]) -> Input:
    """Return the input of a job that was started before, at the files found now."""
    entries = [
        InputEntry(
            file=file,
            index=FileIndex(
                rows=stored["rows"], stride=stored["stride"], offsets=tuple(stored["offsets"])
            ),
            sha256=stored["sha256"],
            changed_ns=stored["changed_ns"],
            version=stored["version"],
        )
        for stored, file in zip(document["input"], files, strict=True)
    ]
    serialized = pa.py_buffer(base64.b64decode(document["input_schema"]))
    schema = pa.ipc.read_schema(serialized)
    return Input(format=document["input_format"], entries=entries, schema=schema)


def check_same_input(
    document: Mapping[str, Any],
    files: Sequence[InputFile],
    input_format: str,
    *,
    where: str,
    show_progress: bool | None,
) -> None:
    """Check that some files are those with which a job was started.

    A file of the same path, size and times is taken to be the same. If only the path or a time
    differs, the content is compared; its hash is remembered in the cache.

    Raises:
        InputError: If they are not.
    """
    stored = document["input"]
    remedy = "Restore the input, or name a new folder"
    if document["input_format"] != input_format or len(stored) != len(files):
        raise InputError(
            f"the job in {where} was started with {len(stored)} files of "
            f"{document['input_format']}, and now there are {len(files)} of {input_format}"
            f"{_other_files(stored, files)}. {remedy}"
        )
    pairs = list(zip(stored, files, strict=True))
    unsure = [file.size_bytes for entry, file in pairs if not _is_untouched(entry, file)]
    with show_reading(sum(unsure), show=show_progress) as on_bytes:
        for (entry, file), *names in zip(pairs, *_names(stored, files), strict=True):
            change = _changed(entry, file, on_bytes)
            if change is None:
                continue
            if names[0] == names[1]:
                raise InputError(
                    f"{file.uri} has changed since the job in {where} was started: {change}. "
                    f"{remedy}"
                )
            raise InputError(
                f"the job in {where} was started with other files, or in another order"
                f"{_other_files(stored, files)}. {remedy}"
            )


def _other_files(stored: Sequence[Mapping[str, Any]], files: Sequence[InputFile]) -> str:
    """Return which files are missing, new or renamed: the first of each."""
    before, now = _names(stored, files)
    missing = [entry for entry, name in zip(stored, before, strict=True) if name not in now]
    new = [file for file, name in zip(files, now, strict=True) if name not in before]
    known = {(file.size_bytes, file.modified_ns): file for file in new if file.modified_ns}
    found = []
    for entry in missing:
        renamed = known.get((entry["size_bytes"], entry["modified_ns"]))
        if renamed is not None:
            found.append(f"{entry['uri']} seems to be renamed to {renamed.uri}")
            missing.remove(entry)
            new.remove(renamed)
            break
    found += [f"{missing[0]['uri']} is missing"] if missing else []
    found += [f"{new[0].uri} is new"] if new else []
    return ": " + ", ".join(found) if found else ""


def _names(
    stored: Sequence[Mapping[str, Any]], files: Sequence[InputFile]
) -> tuple[dict[str, None], dict[str, None]]:
    """Return the names by which files are compared: without their folder, if all are elsewhere."""
    before, now = [entry["uri"] for entry in stored], [file.uri for file in files]
    if not set(before) & set(now):
        before, now = (
            [uri[os.path.commonprefix(uris).rfind("/") + 1 :] for uri in uris]  # noqa: RUF071
            for uris in (before, now)
        )
    return dict.fromkeys(before), dict.fromkeys(now)


def _is_untouched(entry: Mapping[str, Any], file: InputFile) -> bool:
    times = (file.modified_ns, _changed_ns(file))
    found = (entry["uri"], entry["size_bytes"], (entry["modified_ns"], entry["changed_ns"]))
    return found == (file.uri, file.size_bytes, times)


def _changed(entry: Mapping[str, Any], file: InputFile, on_bytes: OnBytes) -> str | None:
    """Return how a file differs from the one with which a job was started; None for not at all."""
    if entry["size_bytes"] != file.size_bytes:
        return f"it had {entry['size_bytes']:,} bytes, and has {file.size_bytes:,}"
    version = _version(file)
    if version != entry["version"]:
        return f"it was {entry['version']}, and is {version}"
    if _is_untouched(entry, file):
        return None
    if file.local is not None and entry["sha256"] is not None:
        sha256 = _sha256(file, file_hash.remembered_sha256, on_bytes)
        return None if sha256 == entry["sha256"] else f"its SHA-256 was {entry['sha256']}"
    if entry["modified_ns"] != file.modified_ns:
        return "it was modified later"
    known = file.modified_ns is not None or version is not None
    return None if known else "nothing but its path says whether it is the same file"


def _version(file: InputFile) -> str | None:
    """Return what tells contents of a remote file apart, where it has no time of modification."""
    if file.local is not None or file.modified_ns is not None:
        return None
    if not isinstance(file.filesystem, pyarrow.fs.PyFileSystem):
        return None
    with reading(file):
        info = file.filesystem.handler.fs.info(file.path)
    return next((f"{name} {info[name]}" for name in _VERSIONS if info.get(name)), None)


def _changed_ns(file: InputFile) -> int | None:
    if file.local is None:
        return None
    try:
        return file.local.stat().st_ctime_ns
    except OSError as error:
        raise InputError(f"cannot read {file.uri}: {error.strerror}") from error


def _sha256(
    file: InputFile, hash_file: Callable[[Path, OnBytes], str], on_bytes: OnBytes
) -> str | None:
    if file.local is None:
        return None
    try:
        return hash_file(file.local, on_bytes)
    except OSError as error:
        raise InputError(f"cannot read {file.uri}: {error.strerror}") from error
