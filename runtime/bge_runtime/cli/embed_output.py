"""Where ``bge-embed`` writes: a file that appears when it is whole, or a stream, row by row."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.errors import BgeError

Write = Callable[[Iterable[str], NDArray[np.float32]], object]
"""Writes rows: members of JSON objects, without the braces, and vectors."""


class OutputError(BgeError):
    """The output cannot be written as asked."""


def is_jsonl(name: str) -> bool:
    """Return whether a file's name is that of JSONL."""
    return name.endswith((".jsonl", ".ndjson"))


def is_npy(name: str) -> bool:
    """Return whether a file's name is that of a NumPy array."""
    return name.endswith(".npy")


@contextlib.contextmanager
def open_output(output: str, source: IO[bytes]) -> Iterator[Write]:
    """Open an output, and find out whether it can be written.

    A file is there, or replaced, only when the body has ended well. A link stays, and the file that
    it leads to is written. Standard output, pipes and devices take each row as it comes.

    Args:
        output: Name of a file, or ``-``.
        source: The input, which must be another file.

    Raises:
        OutputError: If it cannot be written.
    """
    name = "standard output" if output == "-" else output
    with contextlib.ExitStack() as stack:
        with _explained(name):
            stream = _open_stream(output)
            if stream is None:
                stream = stack.enter_context(_replace(output, source))
            else:
                if output != "-":
                    stack.enter_context(stream)
                if is_npy(output):
                    raise OutputError(
                        f"{output} is no regular file, and a .npy cannot be written in one go: the "
                        "number of its rows comes first. Name another file"
                    )
                stream.write(b"")  # fails if it is not open for writing
                with contextlib.suppress(OSError):
                    _check_differs(os.fstat(stream.fileno()), source, name)
        writer = _npy_writer(stream) if is_npy(output) else partial(_write_jsonl, stream)

        def write(members: Iterable[str], vectors: NDArray[np.float32]) -> None:
            with _explained(name):
                writer(members, vectors)

        yield write


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what the system refuses into one sentence.

    Raises:
        BrokenPipeError: Whoever read the output has had enough.
        OutputError: Of anything else.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {name}: {error.strerror or error}") from error


def _open_stream(output: str) -> IO[bytes] | None:
    """Open what is written row by row, without a buffer; None for a regular file."""
    if output == "-":
        if sys.stdout is None:
            raise OutputError("standard output is closed; name a file with --output")
        return getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)
    if (descriptor := _descriptor_of(output)) is not None:
        # Opened by its name it would begin anew, or be refused: a socket, another user's pipe.
        return open(os.dup(descriptor), "wb", buffering=0)
    try:
        mode = os.stat(output).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISREG(mode):
        return None
    if stat.S_ISDIR(mode):
        raise OutputError(f"--output {output} is a folder; name a file in it")
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        return open(os.open(output, os.O_WRONLY), "wb", buffering=0)
    raise OutputError(f"--output {output} is neither a file nor a pipe")


def _descriptor_of(path: str) -> int | None:
    """Return N if a path leads to ``/dev/fd/N`` of this process, as ``/dev/stdout`` does."""
    path = os.path.abspath(path)
    for _ in range(40):  # links that the system follows
        folder, name = os.path.split(path)
        if name.isdecimal() and os.path.realpath(folder) == os.path.realpath("/dev/fd"):
            return int(name)
        if not os.path.islink(path):
            break
        path = os.path.join(folder, os.readlink(path))
    return None


def _check_differs(status: os.stat_result, source: IO[bytes], name: str) -> None:
    """Refuse to write over the input; devices may well be both."""
    if stat.S_ISREG(status.st_mode):
        with contextlib.suppress(OSError):  # no file of the system's
            if os.path.samestat(status, os.fstat(source.fileno())):
                raise OutputError(f"{name} is the input itself; name another file")


def _write_all(file: IO[bytes], data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        written: Any = file.write(rest)
        if written is None:  # set not to block, by another process that has it open
            select.select([], [file], [])
        else:
            rest = rest[written:]


def _write_jsonl(file: IO[bytes], members: Iterable[str], vectors: NDArray[np.float32]) -> None:
    for fields, vector in zip(members, vectors, strict=True):
        # Through str: the shortest text that reads back to the same float32.
        numbers = ", ".join(map(str, vector))
        line = f'{{{fields}{", " if fields else ""}"embedding": [{numbers}]}}\n'
        _write_all(file, line.encode())


def _npy_writer(file: IO[bytes]) -> Write:
    rows = 0

    def write(_: Iterable[str], vectors: NDArray[np.float32]) -> None:
        nonlocal rows
        rows += len(vectors)
        header = {
            "descr": np.lib.format.dtype_to_descr(vectors.dtype),
            "fortran_order": False,
            "shape": (rows, vectors.shape[1]),
        }
        # numpy pads the header so that the first axis can grow in place.
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header)
        file.seek(0, os.SEEK_END)
        _write_all(file, vectors.tobytes())

    return write


@contextlib.contextmanager
def _replace(output: str, source: IO[bytes]) -> Iterator[IO[bytes]]:
    """Open a draft, and put it in the place of a file when the body has ended well."""
    if not (is_jsonl(output) or is_npy(output)):
        raise OutputError(f"--output {output} is neither a .npy nor a .jsonl file")
    target = os.path.realpath(output)
    folder, name = os.path.split(target)
    if not os.path.isdir(folder):
        raise OutputError(f"cannot write {output}: there is no folder {folder}")
    before = None
    with contextlib.suppress(FileNotFoundError):
        os.close(os.open(target, os.O_WRONLY))  # it could be replaced without, but is protected
        before = os.stat(target)
        _check_differs(before, source, output)
    draft = os.path.join(folder, f".{name[:50]}.partial-{os.urandom(4).hex()}")
    keep = False
    try:
        with _create_draft(draft, before) as file:
            _write_all(file, bytes(4096))  # a full disk, or a quota, is found now
            os.fsync(file.fileno())
            file.seek(0)
            file.truncate()
            yield file
            with _explained(output):
                os.fsync(file.fileno())
                _name_draft(file, draft)
            try:
                os.replace(draft, target)
            except OSError:
                # It is a mount point, say, or somebody else's in a sticky folder.
                keep = True
                _copy(file, target)
                keep = False
    except OSError as error:
        if not keep:
            raise
        raise OutputError(
            f"cannot write {output}: {error.strerror or error}. The whole result is in {draft}"
        ) from error
    finally:
        if not keep:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)


def _create_draft(draft: str, before: os.stat_result | None) -> IO[bytes]:
    """Create a file without a name, which goes with the process however that ends.

    Where the file system has none such, as NFS, it has one.

    Args:
        draft: The name.
        before: Of the file that it will replace, whose owner and permissions it gets.
    """
    mode = 0o666 if before is None else stat.S_IMODE(before.st_mode)
    descriptor = None
    with contextlib.suppress(AttributeError, OSError):
        if os.path.isdir("/dev/fd"):  # by which it is named later
            descriptor = os.open(os.path.dirname(draft), os.O_TMPFILE | os.O_RDWR, mode)
    if descriptor is None:
        descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)
    file = open(descriptor, "w+b", buffering=0)  # noqa: SIM115
    if before is not None:
        with contextlib.suppress(PermissionError):  # only root may give a file away
            os.chown(descriptor, before.st_uid, before.st_gid)
        os.chmod(descriptor, mode)
    return file


def _name_draft(file: IO[bytes], draft: str) -> None:
    if os.fstat(file.fileno()).st_nlink == 0:
        # Only with a src_dir_fd, of no other use here, does Python have the link followed.
        os.link(f"/dev/fd/{file.fileno()}", draft, src_dir_fd=file.fileno())


def _copy(file: IO[bytes], target: str) -> None:
    file.seek(0)
    with open(target, "r+b") as copy:
        copy.truncate()
        shutil.copyfileobj(file, copy)
