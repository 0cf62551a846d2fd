"""Input files, and the file systems on which they are."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs
from pyarrow.fs import FileSelector, FileType

from bge_runtime.errors import BgeError

SUFFIXES = {
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow", ".feather", ".ipc"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "csv": (".csv",),
    "tsv": (".tsv",),
    "text": (".txt",),
}
"""The suffixes of each input format."""

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
"""The suffixes of compressed files of lines, and pyarrow's names of the compressions."""

_LINE_FORMATS = ("jsonl", "csv", "tsv", "text")

_ARROW_SCHEMES = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")
"""The schemes that pyarrow has its own file systems for. All others are left to fsspec."""

_OPTIONS = re.compile(r"\?(?=[A-Za-z_]+=)")
"""Where the options of a URI begin, such as ``?region=``. Another ``?`` is a wildcard."""


class InputError(BgeError):
    """The input of a job cannot be read as asked.

    Causes: a file that is missing or has changed since the job began, another column or format, or
    a bad row.

    What to do: restore the file, name ``text`` and ``input_format``, or pass ``on_error='skip'``.
    """


@dataclass(frozen=True, kw_only=True)
class Location:
    """A file or folder that need not exist.

    Attributes:
        uri: Where it is: an absolute path, or a URI such as ``s3://bucket/key``.
        path: Its path on the file system.
        filesystem: The file system.
        local: Its path, if it is on this machine; None otherwise.
    """

    uri: str
    path: str
    filesystem: pyarrow.fs.FileSystem
    local: Path | None


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A file of a job's input. It can be pickled: another process finds the file by its URI.

    Attributes:
        uri: Where it is: an absolute path, or a URI such as ``s3://bucket/key``.
        path: Its path on the file system.
        filesystem: The file system.
        size_bytes: Its size.
        modified_ns: When it was last modified, in nanoseconds since 1970; None if unknown.
        local: Its path, if it is on this machine; None otherwise.
    """

    uri: str
    path: str
    filesystem: pyarrow.fs.FileSystem
    size_bytes: int
    modified_ns: int | None
    local: Path | None

    def __reduce__(self) -> tuple[Callable[..., InputFile], tuple[str, int, int | None]]:
        return input_file, (self.uri, self.size_bytes, self.modified_ns)


def open_location(name: str | Path) -> Location:
    """Return where a path or a URI points to; it need not exist.

    Args:
        name: A path, or a URI: ``file://``, those of pyarrow (``s3://``, ``gs://``, ``hdfs://``,
            ``abfs://``), with its options (``?region=...&endpoint_override=...``), and those of
            fsspec (``hf://``...).

    Raises:
        InputError: If the scheme is unknown, or its file system cannot be opened.
    """
    name = os.fspath(name)
    if "://" not in name:
        return _local(name)
    if name.startswith("file://"):
        return _local(unquote(urlsplit(name).path))
    address, *options = _OPTIONS.split(name, maxsplit=1)
    scheme, _, rest = address.partition("://")
    host, _, path = rest.partition("/")
    user, at, _ = host.rpartition("@")
    if at and (":" in user or scheme in ("s3", "gs", "gcs")):
        raise InputError(
            f"{scheme}://...@{host.rpartition('@')[2]} has a password in it, which would be "
            "written to files: give credentials by environment variables"
        )
    if scheme not in _ARROW_SCHEMES:
        return _fsspec_location(scheme, name)
    # pyarrow reads this variable when a file system is opened.
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    filesystem, base = _arrow_file_system(scheme, host, options[0] if options else "", endpoint)
    path = f"{base.rstrip('/')}/{path}".rstrip("/") or "/"
    return Location(uri=name, path=path, filesystem=filesystem, local=None)


def input_file(uri: str, size_bytes: int, modified_ns: int | None) -> InputFile:
    """Return an input file that was found before, by this process or another one.

    Raises:
        InputError: If its file system cannot be opened.
    """
    location = open_location(uri)
    return InputFile(
        uri=uri,
        path=location.path,
        filesystem=location.filesystem,
        size_bytes=size_bytes,
        modified_ns=modified_ns,
        local=location.local,
    )


def find_inputs(
    inputs: str | Path | Sequence[str | Path],
    *,
    input_format: str | None = None,
    without: Callable[[InputFile], bool] = lambda _: False,
) -> list[InputFile]:
    """Return the files that some names stand for, sorted by URI; each file comes once.

    A name is a file, a pattern (``*``, ``?``, ``[...]``, and ``**`` for any depth), or a folder. Of
    folders, and of those that a pattern matches, all files of a known format are taken, at any
    depth; names that begin with ``_`` or ``.`` are left out, as pyarrow and Spark do. Links are not
    followed to compare files: a file and a link to it are two.

    Args:
        inputs: Names, on this machine or as URIs.
        input_format: The format of all files. Without one it follows from their suffixes. Of
            folders, the files of this format are taken, and those without a suffix.
        without: Returns whether a file is left out all the same.

    Raises:
        InputError: If a name stands for no file, the files have several formats, or cannot be
            listed.
    """
    names = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    if not names:
        raise InputError("no input was named: name files, folders or patterns such as data/*.jsonl")
    if input_format is not None and input_format not in SUFFIXES:
        raise InputError(f"input format {input_format!r} is none of {', '.join(SUFFIXES)}")
    found = {file.uri: file for name in names for file in _find(name, input_format)}
    files = [found[uri] for uri in sorted(found) if not without(found[uri])]
    if not files:
        raise InputError("all files of the input are in the output folder: name another folder")
    if input_format is None:
        format_of(files)
    return files


def format_of(files: Sequence[InputFile]) -> str:
    """Return the format of files by their suffixes: a key of `SUFFIXES`.

    Raises:
        InputError: If a suffix is unknown, or the files have several formats.
    """
    formats: Counter[str] = Counter()
    for file in files:
        name = _suffix_format(file.path)
        if name is None:
            known = " ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
            raise InputError(
                f"the format of {file.uri} does not follow from its name: name it with "
                f"input_format, or use a known suffix: {known}, for lines also followed by "
                f"{' '.join(COMPRESSIONS)}"
            )
        formats[name] += 1
    if len(formats) != 1:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(formats.items()))
        raise InputError(
            f"the input has files of several formats ({counts}): name those of one, for example "
            "with a pattern or with input_format"
        )
    return next(iter(formats))


def block_bytes(file: InputFile) -> int:
    """Return how many bytes to read at a time: each read of a remote file is a request."""
    return 1 << 20 if file.local else 8 << 20


def compression_of(file: InputFile) -> str | None:
    """Return pyarrow's name of a file's compression, by its suffix; None without one."""
    return COMPRESSIONS.get(os.path.splitext(file.path)[1].lower())


def open_file(file: InputFile) -> Any:
    """Open an input file for reading at any position, as a ``pyarrow.NativeFile``.

    Raises:
        InputError: If it is gone, may not be read, or has another size than when it was found.
    """
    with reading(file):
        stream = file.filesystem.open_input_file(file.path)
        size = stream.size()
        if size != file.size_bytes:
            stream.close()
            raise InputError(
                f"{file.uri} has changed: it had {file.size_bytes:,} bytes when it was listed, now "
                f"{size:,}. Restore it, or start a new job"
            )
        return stream


@contextmanager
def reading(file: InputFile) -> Iterator[None]:
    """Raise `InputError` for whatever goes wrong while a file is read."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{file.uri} is gone: restore it, or start a new job") from error
    except PermissionError as error:
        raise InputError(f"cannot read {file.uri}: permission denied") from error
    except (OSError, pa.ArrowException, UnicodeError) as error:
        raise InputError(_damage(file, error)) from error
    except BgeError:
        raise
    except Exception as error:
        if file.local is not None:
            raise
        # fsspec's file systems raise what their clients raise, of no common class.
        raise InputError(f"cannot read {file.uri}: {type(error).__name__}: {error}") from error


def _damage(file: InputFile, error: Exception) -> str:
    return (
        f"cannot read {file.uri}: {_reason(error)}. If it is damaged or incomplete, copy it again"
    )


def _reason(error: Exception) -> str:
    """Return the first line of an error's message."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def _local(name: str) -> Location:
    path = os.path.abspath(os.path.expanduser(name))
    try:
        path.encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise InputError(f"the name {shown} is not UTF-8: rename the file") from error
    return Location(uri=path, path=path, filesystem=_local_file_system(), local=Path(path))


@lru_cache(maxsize=1)
def _local_file_system() -> pyarrow.fs.FileSystem:
    return pyarrow.fs.LocalFileSystem()


@lru_cache(maxsize=64)
def _arrow_file_system(
    scheme: str,
    host: str,
    options: str,
    endpoint: str | None,  # noqa: ARG001  # part of the cache's key
) -> tuple[Any, str]:
    # Opened without the path, since pyarrow would decode its percent signs.
    root = f"{scheme}://{host}/" + (f"?{options}" if options else "")
    try:
        filesystem, base = pyarrow.fs.FileSystem.from_uri(root)
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        raise InputError(f"cannot open {scheme}://{host}: {_reason(error)}") from error
    return filesystem, str(base)


def _fsspec_location(scheme: str, name: str) -> Location:
    from fsspec.core import url_to_fs  # imported late: it takes 50 ms

    try:
        filesystem, path = url_to_fs(name)
    except Exception as error:  # of no common class: each file system raises its own
        raise InputError(f"cannot open {scheme}:// for {name}: {_reason(error)}") from error
    return Location(
        uri=filesystem.unstrip_protocol(path),  # one of several spellings
        path=path,
        filesystem=pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)),
        local=None,
    )


def _suffix_format(path: str) -> str | None:
    """Return the format that follows from a file's name; None without a known suffix."""
    stem, suffix = os.path.splitext(path.rpartition("/")[2].lower())
    compressed = suffix in COMPRESSIONS
    if compressed:
        suffix = os.path.splitext(stem)[1]
    for name, suffixes in SUFFIXES.items():
        if suffix in suffixes and (not compressed or name in _LINE_FORMATS):
            return name
    return None


def _is_hidden(name: str) -> bool:
    return name.startswith(("_", "."))


def _find(name: str | Path, input_format: str | None) -> list[InputFile]:
    location = open_location(name)
    with _listing(location):
        info = location.filesystem.get_file_info(location.path)
        if info.type == FileType.File:
            return [_found(location, info)]
        if info.type == FileType.Directory:
            files = list(_walk(location, info.path, input_format))
            if not files:
                wanted = input_format or ", ".join(SUFFIXES)
                raise InputError(f"the folder {location.uri} has no file of format {wanted}")
            return files
        if info.type == FileType.Unknown:
            raise InputError(f"{location.uri} is neither a file nor a folder")
        if not re.search(r"[*?[]", location.path):
            raise InputError(f"there is no file or folder {location.uri}")
        files = []
        for matched in _match(location):
            if matched.type == FileType.Directory:
                files += _walk(location, matched.path, input_format)
            elif matched.type == FileType.File:
                files.append(_found(location, matched))
        if not files:
            raise InputError(f"no file matches {location.uri}")
        return files


@contextmanager
def _listing(location: Location) -> Iterator[None]:
    try:
        yield
    except UnicodeError as error:
        where = location.uri
        raise InputError(f"a file in {where} has a name that is not UTF-8: rename it") from error
    except PermissionError as error:
        raise InputError(f"cannot list {location.uri}: permission denied") from error
    except BgeError:
        raise
    except Exception as error:
        if location.local is not None and not isinstance(error, OSError):
            raise
        raise InputError(f"cannot list {location.uri}: {_reason(error)}") from error


def _found(location: Location, info: Any) -> InputFile:
    """Return a file of a location: the location itself, or a file below it."""
    return InputFile(
        uri=_uri(location, info.path),
        path=info.path,
        filesystem=location.filesystem,
        size_bytes=info.size,
        modified_ns=info.mtime_ns,
        local=None if location.local is None else Path(info.path),
    )


def _uri(location: Location, path: str) -> str:
    """Return the URI of a path on the file system of a location."""
    if location.local is not None:
        return path
    if path == location.path:
        return location.uri
    if isinstance(location.filesystem, pyarrow.fs.PyFileSystem):
        return str(location.filesystem.handler.fs.unstrip_protocol(path))
    address, *options = _OPTIONS.split(location.uri, maxsplit=1)
    scheme, _, rest = address.partition("://")
    host, _, rest = rest.partition("/")
    base = location.path.removesuffix(rest.rstrip("/")).rstrip("/")
    address = f"{scheme}://{host}/{path.removeprefix(base).lstrip('/')}"
    return "?".join([address, *options])


def _walk(location: Location, folder: str, input_format: str | None) -> Iterator[InputFile]:
    """Yield the files of a folder at any depth, those that are to be read."""
    selector = FileSelector(folder, recursive=True)
    for info in location.filesystem.get_file_info(selector):
        below = info.path[len(folder) :].strip("/")
        if info.type != FileType.File or any(map(_is_hidden, below.split("/"))):
            continue
        suffix_format = _suffix_format(info.path)
        if input_format is None:
            taken = suffix_format is not None
        else:
            taken = suffix_format == input_format or not os.path.splitext(below)[1]
        if taken:
            yield _found(location, info)


def _match(location: Location) -> list[Any]:
    """Return what the pattern of a location matches: one folder is listed for each of its parts."""
    parts = location.path.split("/")
    first = next(number for number, part in enumerate(parts) if re.search(r"[*?[]", part))
    base = "/".join(parts[:first]) or "/"
    infos = [location.filesystem.get_file_info(base)]
    for part in parts[first:]:
        folders = [info.path for info in infos if info.type == FileType.Directory]
        infos = [] if part != "**" else list(infos)
        for folder in folders:
            selector = FileSelector(folder, recursive=part == "**")
            for info in location.filesystem.get_file_info(selector):
                names = info.path[len(folder) :].strip("/").split("/")
                if part != "**" and fnmatchcase(names[0], part):
                    if not _is_hidden(names[0]) or part.startswith(names[0][0]):
                        infos.append(info)
                elif part == "**" and not any(map(_is_hidden, names)):
                    infos.append(info)
    return infos
