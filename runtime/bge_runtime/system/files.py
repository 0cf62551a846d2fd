"""Read files and paths that users pass. Each fault raises one type of error with one sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bge_runtime.errors import BgeError

_POINTER_START = b"version https://git-lfs.github.com/spec/"
_LARGEST_POINTER_BYTES = 1024  # as Git LFS's specification says
_LONGEST_NAME = 100
_MODEL_NAME = "a model is a folder or a Hub ID such as BAAI/bge-m3"
_KINDS: dict[type, str] = {dict: "object", list: "list"}
_REQUIRED = object()


def read_json(
    path: Path,
    *,
    error: type[BgeError],
    kind: type = dict,
    remedy: str = "download it again",
    encoding: str = "utf-8",
    default: Any = _REQUIRED,
) -> Any:
    """Return the content of a JSON file.

    Args:
        path: The file.
        error: Type of the error if the file cannot be read.
        kind: Type that the content must have: ``dict``, ``list``, or ``object`` for any.
        remedy: What to do about a damaged file, for error messages.
        encoding: Encoding of the file.
        default: Returned if there is no such file. Without it, that is an error.

    Raises:
        FileNotFoundError: If there is no such file and no default.
        BgeError: If it cannot be read, is not JSON, or has another type; of type ``error``.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        if default is _REQUIRED:
            raise
        return default
    except OSError as cause:
        raise error(f"cannot read {path}: {cause.strerror}") from cause
    return parse_json(
        data, where=str(path), error=error, kind=kind, remedy=remedy, encoding=encoding
    )


def parse_json(
    data: bytes | str,
    *,
    where: str,
    error: type[BgeError],
    kind: type = dict,
    remedy: str = "download it again",
    encoding: str = "utf-8",
) -> Any:
    """Return the value in the content of a JSON file.

    Args:
        data: The content.
        where: Path for error messages.
        error: Type of the error if the content is not as expected.
        kind: Type that the value must have: ``dict``, ``list``, or ``object`` for any.
        remedy: What to do about a damaged file, for error messages.
        encoding: Encoding of the content.

    Raises:
        BgeError: If it is not JSON, or has another type; of type ``error``.
    """
    raw = data.encode() if isinstance(data, str) else data
    if raw.startswith(_POINTER_START):
        raise error(_pointer_message(where))
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as cause:
        raise error(f"cannot read {where}: it is not UTF-8 ({cause.reason}); {remedy}") from cause
    try:
        value = json.loads(text)
    except ValueError as cause:
        reason = str(cause) if text.strip() else "the file is empty"
        if text.startswith("\ufeff"):
            reason = "it begins with a byte order mark; save it as UTF-8 without one"
        raise error(f"{where} is not valid JSON ({reason}); {remedy}") from cause
    except RecursionError as cause:
        raise error(f"{where} is nested too deeply to be read as JSON; {remedy}") from cause
    if not isinstance(value, kind):
        raise error(f"{where} is not a JSON {_KINDS.get(kind, kind.__name__)}; {remedy}")
    return value


def check_not_pointer(path: Path, *, error: type[BgeError]) -> None:
    """Check that a file is not a Git LFS pointer, as in a clone made without Git LFS.

    Raises:
        BgeError: If it is; of type ``error``.
    """
    if is_pointer(path):
        raise error(_pointer_message(str(path)))


def is_pointer(path: Path) -> bool:
    """Return whether a file is a Git LFS pointer; False if it cannot be read."""
    try:
        if path.stat().st_size > _LARGEST_POINTER_BYTES:
            return False
        with path.open("rb") as file:
            return file.read(len(_POINTER_START)) == _POINTER_START
    except OSError:
        return False


def _pointer_message(where: str) -> str:
    return (
        f"{where} is a Git LFS pointer instead of the file itself; run `git lfs pull` in its "
        "repository, or download the file"
    )


def local_path(name: object, *, error: type[BgeError]) -> Path:
    """Return a model's name as an absolute path, whether or not the path exists.

    Args:
        name: The model that a user passed.
        error: Type of the error if the path cannot be used.

    Raises:
        TypeError: If it is neither a string nor a path of text.
        BgeError: If it is empty; if it exists and cannot be read; if it names a user without a
            home folder; or if it is not UTF-8, which engines and tokenizers need.
    """
    given = os.fspath(name) if isinstance(name, os.PathLike) else name
    if not isinstance(given, str):
        raise TypeError(f"{_MODEL_NAME}, not {name!r}")
    if not given:
        raise error(f"{_MODEL_NAME}, not ''")
    path = expand_user(given, error=error)
    try:
        path = path.absolute()
    except OSError as cause:  # the current folder has been deleted
        raise error(f"cannot open {given!r}: the current folder no longer exists") from cause
    check_utf8(path, error=error)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in it
        return path
    except OSError as cause:
        raise error(f"cannot open {_shorten(given)}: {cause.strerror}") from cause
    if not os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK):
        raise error(f"cannot read {path}: permission denied")
    return path


def check_utf8(path: Path, *, error: type[BgeError]) -> None:
    """Check that a path is UTF-8, as engines and tokenizers need.

    Raises:
        BgeError: If it is not; of type ``error``.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as cause:
        raise error(
            f"the path {str(path)!r} is not UTF-8, so no engine can open it; rename the folder"
        ) from cause


def expand_user(given: str | Path, *, error: type[BgeError]) -> Path:
    """Return a path with ``~`` or ``~USER`` replaced by the home folder.

    Raises:
        BgeError: If the user has none; of type ``error``.
    """
    try:
        return Path(given).expanduser()
    except RuntimeError as cause:
        user = Path(given).parts[0]
        raise error(f"there is no {given}: {user} has no home folder on this machine") from cause


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}…"
