"""The folder of a job, local or remote: files that appear once they are complete.

::

    part-00000-of-00010.parquet              a shard
    _manifest/job.json                       what is computed, from what
    _manifest/part-00000-of-00010.json       the record of a complete shard
    _rejects/part-00000-of-00010.jsonl       its rows that were not embedded
    _temporary/                              files that are being written

A shard is written to a local file. On a local file system it is in ``_temporary``, synced and
renamed. Elsewhere it is uploaded to ``_temporary`` and moved, since pyarrow completes an upload
that an error has interrupted. Its record comes last.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.fs

from bge_runtime.bulk.files import InputFile, Location
from bge_runtime.errors import BgeError
from bge_runtime.system import file_hash

MANIFEST = "_manifest"
REJECTS = "_rejects"
_TEMPORARY = "_temporary"
_COPY_BYTES = 1 << 23
_ATTEMPTS = 4
_FIRST_WAIT_S = 1.0
_CHECKSUM = "checksum"
_LOCK_WAIT_S = 10.0
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)

_T = TypeVar("_T")


class OutputError(BgeError):
    """The output cannot be written as asked, or is that of another job.

    Causes: a folder that holds other files or another job's shards, a second process that writes
    there, or a full disk.

    What to do: name a new folder, or run the same command again to go on with the job.
    """


class FileRecord(dict[str, Any]):
    """What a record holds of a file.

    These are ``size_bytes``, ``sha256``, ``modified_ns``, and for local files ``changed_ns``: when
    its inode was last changed, which nobody can set back.
    """


_NAME_ANOTHER = "name another folder, or make this one writable"


class OutputFolder:
    """The folder of a job.

    Attributes:
        location: Where it is.
        uri: The same, for messages.
        local: Its path, if it is on this machine; None otherwise.
    """

    def __init__(self, location: Location) -> None:
        """Take a folder, which need not exist."""
        self.location, self.uri = location, location.uri
        self.local, self._path = location.local, location.path
        self._filesystem = location.filesystem
        self._spool: Path | None = None
        self._stopped = threading.Event()

    def uri_of(self, name: str) -> str:
        """Return where a file of the folder is, for messages."""
        folder, mark, options = self.uri.partition("?" if self.local is None else "\0")
        return f"{folder.rstrip('/')}/{name}{mark}{options}"

    def holds(self, file: InputFile) -> bool:
        """Return whether an input file is in this folder, as a shard of an earlier run may be."""
        inside = f"{file.path}/".startswith(self._join("") + "/")
        return inside and bool(file.filesystem == self._filesystem)

    def stop(self) -> None:
        """Let calls fail at the next error of the network, without further attempts."""
        self._stopped.set()

    def create(self) -> None:
        """Create the folder, and check that it can be written.

        Raises:
            OutputError: If it cannot be.
        """
        with self._errors("write", _NAME_ANOTHER):
            for name in (MANIFEST, REJECTS, _TEMPORARY):
                self._filesystem.create_dir(self._join(name), recursive=True)
        with self.probe():
            pass

    @contextlib.contextmanager
    def probe(self) -> Iterator[str]:
        """Give the name of a new file in the folder, which is deleted at the end.

        Raises:
            OutputError: If it cannot be written.
        """
        name = f"{_TEMPORARY}/probe-{os.urandom(4).hex()}"
        with (
            self._errors("write", _NAME_ANOTHER),
            self._filesystem.open_output_stream(self._join(name)) as stream,
        ):
            stream.write(b"bge")
        try:
            yield name
        finally:
            with self._errors("write"):
                self._delete(name)

    def check_ours(self) -> None:
        """Check that the folder is new, empty or that of a job.

        Raises:
            OutputError: If it is a file, or holds files of something else.
        """
        with self._errors("read"):
            found = self._filesystem.get_file_info(self._path)
            if found.type == pyarrow.fs.FileType.File:
                raise OutputError(f"the output {self.uri} is a file; name a folder")
            if found.type == pyarrow.fs.FileType.NotFound:
                return
            names = [info.base_name for info in self._infos("")]
        foreign = sorted(name for name in names if not name.startswith(("_", ".")))
        if foreign and not self.exists(f"{MANIFEST}/job.json"):
            raise OutputError(
                f"the folder {self.uri} holds files of something else, such as {foreign[0]!r}; "
                "name a new folder"
            )

    @contextlib.contextmanager
    def lock(self, process: str) -> Iterator[None]:
        """Hold the right to write the shards of one process, where the file system has locks.

        Args:
            process: ``"i/n"``, for each n-th shard from the i-th on.

        Raises:
            OutputError: If another process has the right to write one of them.
        """
        if self.local is None:
            yield  # two would write the same bytes twice
            return
        from filelock import FileLock, Timeout

        folder = self.local / MANIFEST
        number, of = map(int, process.split("/"))
        with contextlib.ExitStack() as held:
            try:
                # One at a time looks for others. A deleted file guards nothing: filelock knows.
                guard = folder / "all.lock"
                with FileLock(guard, timeout=_LOCK_WAIT_S), _deleting(guard):
                    for path in sorted(folder.glob("*-of-*.lock")):
                        if _overlap((number, of), _lock_numbers(path)):
                            with FileLock(path, timeout=0), _deleting(path):
                                pass  # of one that was killed
                    path = folder / f"{number}-of-{of}.lock"
                    held.enter_context(FileLock(path, timeout=0))
                    held.enter_context(_deleting(path))
            except Timeout:
                raise OutputError(
                    f"another process is writing to {self.uri}; wait for it, or end it"
                ) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise self._failure("lock", error) from error
            yield

    def clear_temporary(self, names: Sequence[str] = ("",)) -> None:
        """Delete temporary files that a killed process has left.

        Args:
            names: Beginnings of their names, such as those of shards; all by default.
        """
        with self._errors("write"):
            for name in self.list(_TEMPORARY):
                if name.startswith(tuple(names)):
                    self._delete(f"{_TEMPORARY}/{name}")

    def list(self, folder: str) -> list[str]:
        """Return the names of the files in a folder, in order; none if there is no folder.

        Raises:
            OutputError: If it cannot be read.
        """
        with self._errors("read"):
            found = self._retry(lambda: self._infos(folder))
        return sorted(info.base_name for info in found if info.type == pyarrow.fs.FileType.File)

    def exists(self, name: str) -> bool:
        """Return whether there is a file of that name."""
        with self._errors("read"):
            return bool(self._info(name).type == pyarrow.fs.FileType.File)

    def read_json(self, name: str) -> Any:
        """Return the content of a JSON file that was written here.

        Raises:
            OutputError: If it cannot be read, or was changed.
        """

        def read() -> bytes:
            with self._filesystem.open_input_stream(self._join(name)) as stream:
                return bytes(stream.read())

        with self._errors("read"):
            data = self._retry(read)
        try:
            document = json.loads(data)
            damage = None if document.pop(_CHECKSUM) == _checksum(document) else "it was changed"
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            damage = str(error) if isinstance(error, ValueError) else "it is something else"
        if damage is not None:
            remedy = "delete it, and its shard is computed again"
            if name == f"{MANIFEST}/job.json":
                remedy = "restore it, or name a new folder"
            raise OutputError(f"{self.uri_of(name)} is damaged ({damage}); {remedy}")
        return document

    def write_json(self, name: str, document: Mapping[str, Any]) -> None:
        """Write a JSON file, which appears once it is complete."""
        with self._errors("write"):
            self._publish(self._write_draft(name, document), name)

    def create_json(self, name: str, document: Mapping[str, Any]) -> None:
        """Write a JSON file unless it is there, as one that another process has written."""
        with self._errors("write"):
            if self.exists(name):
                return
            draft = self._write_draft(name, document)
            if self.local is None:
                self._publish(draft, name)
                return
            _sync(draft)
            try:
                os.link(draft, self.local / name)  # fails if there is one, unlike a rename
                _sync((self.local / name).parent)
            except FileExistsError:
                pass
            except OSError:  # no hard links there
                self._publish(draft, name)
            draft.unlink(missing_ok=True)

    def draft(self, name: str) -> Path:
        """Return the name of a new local file, which `commit` gives its final place."""
        if self.local is not None:
            folder = self.local / _TEMPORARY
        else:
            if self._spool is None:
                self._spool = Path(tempfile.mkdtemp(prefix="bge-embed-"))
            folder = self._spool
        return folder / f"{name}.{os.urandom(4).hex()}"

    def commit(self, draft: Path, name: str) -> FileRecord:
        """Give a complete file its final name, so that it survives a crash of the machine.

        Raises:
            OutputError: If that fails.
        """
        with self._errors("write"):
            sha256, size = file_hash.file_sha256(draft), draft.stat().st_size
            self._publish(draft, name)
            info = self._info(name)
            if info.size != size:
                raise OutputError(
                    f"{self.uri_of(name)} has {info.size} bytes, and {size} were written; run the "
                    "same command again"
                )
            return FileRecord(size_bytes=size, sha256=sha256, **self._times(name, info))

    def discard(self, drafts: Sequence[Path]) -> None:
        """Delete files that are not to be committed, those that are there; never fails."""
        for draft in drafts:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)

    def draft_failure(self, error: OSError) -> OutputError:
        """Return the error to raise when a draft cannot be written."""
        return self._failure("write", error, where=self._spool or self.uri)

    def check_unchanged(self, name: str, record: Mapping[str, Any]) -> FileRecord:
        """Check that a file is as it was written, and return its record, perhaps with new times.

        A file of the same size and times is taken to be the same. If a time differs, as in a copied
        folder, its content is compared.

        Raises:
            OutputError: If it was changed.
        """
        with self._errors("read"):
            info = self._info(name)
            found = FileRecord(record, **self._times(name, info))
            if info.size != record["size_bytes"]:
                change = f"it has {info.size} bytes, and {record['size_bytes']} were written"
            elif found == record or (sha256 := self._sha256(name)) == record["sha256"]:
                return found
            else:
                change = f"its SHA-256 is {sha256}, and that written {record['sha256']}"
        raise OutputError(
            f"{self.uri_of(name)} was changed after it was written: {change}; restore it, or "
            "delete it, and it is written again"
        )

    def close(self) -> None:
        """Delete local files that were not committed, where the output is remote."""
        if self._spool is not None:
            shutil.rmtree(self._spool, ignore_errors=True)
            self._spool = None

    def _write_draft(self, name: str, document: Mapping[str, Any]) -> Path:
        draft = self.draft(name.rpartition("/")[2])
        document = {**document, _CHECKSUM: _checksum(document)}
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
        draft.write_text(text + "\n", encoding="utf-8")
        return draft

    def _publish(self, draft: Path, name: str) -> None:
        if self.local is not None:
            target = self.local / name
            _sync(draft)
            os.replace(draft, target)
            _sync(target.parent)
            return
        temporary = self._join(f"{_TEMPORARY}/{draft.name}")

        def upload() -> None:
            with draft.open("rb") as source, self._filesystem.open_output_stream(temporary) as to:
                while chunk := source.read(_COPY_BYTES):
                    to.write(chunk)
            # A second attempt uploads again: the first one may have moved the file.
            self._filesystem.move(temporary, self._join(name))

        self._retry(upload)
        draft.unlink()

    def _retry(self, call: Callable[[], _T]) -> _T:
        """Call again after an error of the network, and give up after some attempts."""
        for attempt in range(_ATTEMPTS - 1):
            try:
                return call()
            except OSError:
                if self.local is not None or self._stopped.wait(_FIRST_WAIT_S * 4**attempt):
                    raise
        return call()

    def _sha256(self, name: str) -> str:
        if self.local is not None:
            return file_hash.file_sha256(self.local / name)

        def read() -> str:
            digest = hashlib.sha256()
            with self._filesystem.open_input_stream(self._join(name)) as stream:
                while chunk := stream.read(_COPY_BYTES):
                    digest.update(chunk)
            return digest.hexdigest()

        return self._retry(read)

    def _info(self, name: str) -> pyarrow.fs.FileInfo:
        return self._retry(lambda: self._filesystem.get_file_info(self._join(name)))

    def _infos(self, folder: str) -> Sequence[pyarrow.fs.FileInfo]:
        selector = pyarrow.fs.FileSelector(self._join(folder), allow_not_found=True)
        return list(self._filesystem.get_file_info(selector))

    def _times(self, name: str, info: pyarrow.fs.FileInfo) -> dict[str, int | None]:
        if self.local is None:
            return {"modified_ns": info.mtime_ns, "changed_ns": None}
        stat = (self.local / name).stat()
        return {"modified_ns": stat.st_mtime_ns, "changed_ns": stat.st_ctime_ns}

    def _delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # another process was first
            self._filesystem.delete_file(self._join(name))

    def _join(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}".rstrip("/")

    @contextlib.contextmanager
    def _errors(self, verb: str, remedy: str = "") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._failure(verb, error, remedy) from error

    def _failure(
        self, verb: str, error: OSError, remedy: str = "", *, where: str | Path | None = None
    ) -> OutputError:
        # pyarrow's errors have a number, and a long text instead of that of the number.
        reason = os.strerror(error.errno) if error.errno else str(error).partition("\n")[0]
        remedy = remedy or "complete shards are kept: run the same command again to go on"
        return OutputError(f"cannot {verb} {where or self.uri}: {reason}; {remedy}")


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _deleting(path: Path) -> Iterator[None]:
    """Delete a file at the end."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _checksum(document: Mapping[str, Any]) -> str:
    """Return a hash of a JSON document, which tells when a file was damaged."""
    text = json.dumps(document, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _lock_numbers(path: Path) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)-of-(\d+)\.lock", path.name)
    return (int(found[1]), int(found[2])) if found else (0, 1)


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether two processes ``(i, n)`` have a shard in common."""
    return (one[0] - other[0]) % math.gcd(one[1], other[1]) == 0
