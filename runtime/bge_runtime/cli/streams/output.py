"""The output of commands: a file that appears once it is complete, or a stream of rows."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, ParamSpec

from bge_runtime.errors import BgeError

Rows = ParamSpec("Rows")
"""What a function that writes rows is given."""

Formats = Mapping[str, Callable[[IO[bytes]], Callable[Rows, object]]]
"""Formats by the suffix of a file: each returns the function that writes rows to it."""


class OutputError(BgeError):
    """The output cannot be written as asked.

    Causes: ``--output`` is a folder, the input itself, or in a folder that does not exist.

    What to do: name another file.
    """


def is_jsonl(name: str) -> bool:
    """Return whether a file name has a suffix of JSONL."""
    return name.endswith((".jsonl", ".ndjson"))


def is_npy(name: str) -> bool:
    """Return whether a file name has the suffix of a NumPy array."""
    return name.endswith(".npy")


def is_descriptor(output: str) -> bool:
    """Return whether an output is an open file of this process, such as ``/dev/stdout``."""
    return _descriptor_of(output) is not None


@contextlib.contextmanager
def open_output(
    output: str, sources: Sequence[IO[bytes]], formats: Formats[Rows]
) -> Iterator[Callable[Rows, None]]:
    """Open an output and check that it can be written.

    A file appears, or is replaced, only if the body ends without an error. A symbolic link stays,
    and its target is written. Standard output, pipes and devices get each row at once.

    Args:
        output: Name of a file, or ``-``.
        sources: The inputs, which must be other files.
        formats: Formats of files. Streams with another name get JSONL.

    Returns:
        The function that writes rows.

    Raises:
        OutputError: If the output cannot be written.
    """
    name = "standard output" if output == "-" else output
    with contextlib.ExitStack() as stack:
        with _translate_errors(name):
            stream = _open_stream(output)
            if stream is None:
                stream = stack.enter_context(_replace(output, sources, list(formats)))
            else:
                if output != "-":
                    stack.enter_context(stream)
                if is_npy(output):
                    raise OutputError(
                        f"{output} is not a regular file, and a .npy cannot be streamed, since it "
                        "begins with the number of rows. Name another file"
                    )
                stream.write(b"")  # fails if it is not open for writing
                with contextlib.suppress(OSError):
                    _check_differs(os.fstat(stream.fileno()), sources, name)
        writer = formats[_suffix_of(output, formats) or ".jsonl"](stream)

        def write(*args: Rows.args, **kwargs: Rows.kwargs) -> None:
            with _translate_errors(name):
                writer(*args, **kwargs)

        yield write


@contextlib.contextmanager
def _translate_errors(name: str) -> Iterator[None]:
    """Raise an `OutputError` for errors of the operating system.

    Raises:
        BrokenPipeError: If the reader of the output is gone.
        OutputError: For all other errors.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {name}: {error.strerror or error}") from error


def _open_stream(output: str) -> IO[bytes] | None:
    """Open a stream, unbuffered; return None for a regular file."""
    if output == "-":
        if sys.stdout is None:
            raise OutputError("standard output is closed; name a file with --output")
        return getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)
    if (descriptor := _descriptor_of(output)) is not None:
        # Opening it by name would start at the beginning, or fail for some sockets and pipes.
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
    """Return N if a path is a link to ``/dev/fd/N`` of this process, such as ``/dev/stdout``."""
    path = os.path.abspath(path)
    for _ in range(40):  # as many links as Linux follows
        folder, name = os.path.split(path)
        if name.isdecimal() and os.path.realpath(folder) == os.path.realpath("/dev/fd"):
            return int(name)
        if not os.path.islink(path):
            break
        path = os.path.join(folder, os.readlink(path))
    return None


def _suffix_of(name: str, suffixes: Iterable[str]) -> str | None:
    return next((suffix for suffix in suffixes if name.endswith(suffix)), None)


def _check_differs(status: os.stat_result, sources: Sequence[IO[bytes]], name: str) -> None:
    """Raise an `OutputError` if the output is an input. A device may be both."""
    if not stat.S_ISREG(status.st_mode):
        return
    for source in sources:
        with contextlib.suppress(OSError):  # not a file of the operating system
            if os.path.samestat(status, os.fstat(source.fileno())):
                raise OutputError(f"{name} is the input itself; name another file")


def write_all(file: IO[bytes], data: bytes) -> None:
    """Write bytes to an unbuffered file, however many it takes at a time."""
    rest = memoryview(data)
    while rest:
        written: Any = file.write(rest)
        if written is None:  # another process has made the file non-blocking
            select.select([], [file], [])
        else:
            rest = rest[written:]


@contextlib.contextmanager
def _replace(
    output: str, sources: Sequence[IO[bytes]], suffixes: Sequence[str]
) -> Iterator[IO[bytes]]:
    """Open a temporary file, and replace the output with it if the body ends without an error."""
    if _suffix_of(output, suffixes) is None:
        wanted = "neither a .npy nor a .jsonl" if ".npy" in suffixes else "no .jsonl"
        raise OutputError(f"--output {output} is {wanted} file")
    target = os.path.realpath(output)
    folder, name = os.path.split(target)
    if not os.path.isdir(folder):
        raise OutputError(f"cannot write {output}: there is no folder {folder}")
    before = None
    with contextlib.suppress(FileNotFoundError):
        os.close(os.open(target, os.O_WRONLY))  # fails for protected files, which could be replaced
        before = os.stat(target)
        _check_differs(before, sources, output)
    draft = os.path.join(folder, f".{name[:50]}.partial-{os.urandom(4).hex()}")
    keep = False
    try:
        with _create_draft(draft, before) as file:
            write_all(file, bytes(4096))  # finds a full disk or a quota before the work
            os.fsync(file.fileno())
            file.seek(0)
            file.truncate()
            yield file
            with _translate_errors(output):
                os.fsync(file.fileno())
                _name_draft(file, draft)
            try:
                os.replace(draft, target)
            except OSError:
                # For example a mount point, or another user's file in a sticky folder.
                keep = True
                _copy(file, target)
                keep = False
    except OSError as error:
        if not keep:
            raise
        raise OutputError(
            f"cannot write {output}: {error.strerror or error}. The complete result is in {draft}"
        ) from error
    finally:
        if not keep:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)


def _create_draft(draft: str, before: os.stat_result | None) -> IO[bytes]:
    """Create an unnamed file, which disappears with the process however that ends.

    On file systems without unnamed files, such as NFS, it has a name.

    Args:
        draft: The name.
        before: Status of the file to replace, for owner and permissions; None if there is none.
    """
    mode = 0o666 if before is None else stat.S_IMODE(before.st_mode)
    descriptor = None
    with contextlib.suppress(AttributeError, OSError):
        if os.path.isdir("/dev/fd"):  # needed to name it later
            descriptor = os.open(os.path.dirname(draft), os.O_TMPFILE | os.O_RDWR, mode)
    if descriptor is None:
        descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)
    file = open(descriptor, "w+b", buffering=0)  # noqa: SIM115
    if before is not None:
        with contextlib.suppress(PermissionError):  # only root may change the owner
            os.chown(descriptor, before.st_uid, before.st_gid)
        os.chmod(descriptor, mode)
    return file


def _name_draft(file: IO[bytes], draft: str) -> None:
    if os.fstat(file.fileno()).st_nlink == 0:
        # Python makes the system call that follows the link only if src_dir_fd is given.
        os.link(f"/dev/fd/{file.fileno()}", draft, src_dir_fd=file.fileno())


def _copy(file: IO[bytes], target: str) -> None:
    file.seek(0)
    with open(target, "r+b") as copy:
        copy.truncate()
        shutil.copyfileobj(file, copy)
