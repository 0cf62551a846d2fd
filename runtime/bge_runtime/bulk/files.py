"""Input files, and the file systems on which they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs

from bge_runtime.errors import BgeError


class InputError(BgeError):
    """The input of a job cannot be read as asked."""


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A file of a job's input.

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
