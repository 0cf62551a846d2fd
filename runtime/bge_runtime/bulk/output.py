"""The folder of a job, local or remote: files that appear once they are complete.

::

    part-00000-of-00010.parquet              a shard
    _manifest/job.json                       what is computed, from what
    _manifest/part-00000-of-00010.json       the record of a complete shard
    _rejects/part-00000-of-00010.jsonl       its rows that were not embedded
    _temporary/                              files that are being written

A shard is written to a local file. On a local file system it is in ``_temporary``, synced and
renamed. Elsewhere it is uploaded to ``_temporary`` and moved, since an object store shows an
interrupted upload as a complete object under some circumstances. Its record comes last.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.fs

from bge_runtime.bulk.files import Location
from bge_runtime.errors import BgeError
from bge_runtime.system import file_hash

MANIFEST = "_manifest"
REJECTS = "_rejects"
_TEMPORARY = "_temporary"
_COPY_BYTES = 1 << 23
_ATTEMPTS = 4
_FIRST_WAIT_S = 1.0

_T = TypeVar("_T")


class OutputError(BgeError):
    """The output cannot be written as asked, or is that of another job."""


class FileRecord(dict[str, Any]):
    """What a record holds of a file: ``size_bytes``, ``sha256`` and ``modified_ns``."""


class OutputFolder:
    """The folder of a job.

    Attributes:
        uri: Where it is, for messages.
        local: Its path, if it is on this machine; None otherwise.
    """

    def __init__(self, location: Location) -> None:
        """Take a folder, which need not exist."""
        self.uri = location.uri
        self.local, self._path = location.local, location.path
        self._filesystem = location.filesystem
        self._spool: Path | None = None

    def create(self) -> None:
        """Create the folder, and check that it can be written.

        Raises:
            OutputError: If it cannot be, or holds files of something else.
        """
        with self._errors("write"):
            for name in (MANIFEST, REJECTS, _TEMPORARY):
                self._filesystem.create_dir(self._join(name), recursive=True)
            probe = f"{_TEMPORARY}/probe-{os.urandom(4).hex()}"
            with self._filesystem.open_output_stream(self._join(probe)) as stream:
                stream.write(b"bge")
            self._filesystem.delete_file(self._join(probe))

    def check_ours(self) -> None:
        """Check that the folder is new, empty or that of a job.

        Raises:
            OutputError: If it is a file, or holds files of something else.
        """
        with self._errors("read"):
            found = self._filesystem.get_file_info(self._path)
            if found.type == pyarrow.fs.FileType.File:
                raise OutputError(f"the output {self.uri} is a file; name a folder")
            if found.type == pyarrow.fs.FileType.NotFound or self.exists(f"{MANIFEST}/job.json"):
                return
            names = [name for name in self.list("") if not name.startswith(("_", "."))]
        if names:
            raise OutputError(
                f"the folder {self.uri} holds files of something else, such as {names[0]!r}; name "
                "a new folder"
            )

    @contextlib.contextmanager
    def lock(self, process: str) -> Iterator[None]:
        """Hold the right to write shards of one process, where the file system has locks.

        Raises:
            OutputError: If another process has it.
        """
        if self.local is None:
            yield  # two would write the same bytes twice
            return
        from filelock import FileLock, Timeout

        lock = FileLock(self.local / MANIFEST / f"{process.replace('/', '-of-')}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise OutputError(
                f"another process is writing to {self.uri}; wait for it, or end it"
            ) from None
        except NotImplementedError:
            yield
            return
        try:
            yield
        finally:
            lock.release()

    def clear_temporary(self, names: Sequence[str]) -> None:
        """Delete temporary files of shards, which a killed process has left."""
        wanted = tuple(names)
        with self._errors("write"):
            for name in self.list(_TEMPORARY):
                if name.startswith(wanted):
                    self._filesystem.delete_file(self._join(f"{_TEMPORARY}/{name}"))

    def list(self, folder: str) -> list[str]:
        """Return the names of the files in a folder, in order; none if there is no folder."""
        selector = pyarrow.fs.FileSelector(self._join(folder), allow_not_found=True)
        found = self._filesystem.get_file_info(selector)
        return sorted(info.base_name for info in found if info.type == pyarrow.fs.FileType.File)

    def exists(self, name: str) -> bool:
        """Return whether there is a file of that name."""
        return bool(self._info(name).type == pyarrow.fs.FileType.File)

    def read_json(self, name: str) -> Any:
        """Return the content of a JSON file.

        Raises:
            OutputError: If it cannot be read.
        """
        with self._errors("read"), self._filesystem.open_input_stream(self._join(name)) as stream:
            data = stream.read()
        try:
            return json.loads(data)
        except ValueError as error:
            raise OutputError(
                f"{self.uri}/{name} is damaged ({error}). Delete it, and the shard is written again"
                if name != f"{MANIFEST}/job.json"
                else f"{self.uri}/{name} is damaged ({error}); name a new folder"
            ) from error

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
                f"{self.uri}/{name} has {info.size:,} bytes, and {size:,} were written; run the "
                "same command again"
            )
        return FileRecord(size_bytes=size, sha256=sha256, modified_ns=info.mtime_ns)

    def changed(self, name: str, record: Mapping[str, Any]) -> str | None:
        """Return how a file differs from its record; None if it does not.

        A file of the same size and time of modification is taken to be the same. If the time
        differs, as in a copied folder, its content is compared.
        """
        with self._errors("read"):
            info = self._info(name)
            if info.size != record["size_bytes"]:
                return f"it has {info.size:,} bytes, and {record['size_bytes']:,} were written"
            if info.mtime_ns == record["modified_ns"]:
                return None
            sha256 = self._sha256(name)
        if sha256 == record["sha256"]:
            return None
        return f"its SHA-256 is {sha256}, and that written {record['sha256']}"

    def close(self) -> None:
        """Delete local files that were not committed, where the output is remote."""
        if self._spool is not None:
            shutil.rmtree(self._spool, ignore_errors=True)
            self._spool = None

    def _write_draft(self, name: str, document: Mapping[str, Any]) -> Path:
        draft = self.draft(name.rpartition("/")[2])
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
        self._retry(lambda: self._upload(draft, temporary))
        self._retry(lambda: self._filesystem.move(temporary, self._join(name)))
        draft.unlink()

    def _upload(self, draft: Path, path: str) -> None:
        with draft.open("rb") as source, self._filesystem.open_output_stream(path) as stream:
            while chunk := source.read(_COPY_BYTES):
                stream.write(chunk)

    def _retry(self, call: Callable[[], _T]) -> _T:
        """Call again after an error of the network, and give up after some attempts."""
        for attempt in range(_ATTEMPTS - 1):
            try:
                return call()
            except OSError:
                time.sleep(_FIRST_WAIT_S * 4**attempt)
        return call()

    def _sha256(self, name: str) -> str:
        if self.local is not None:
            return file_hash.file_sha256(self.local / name)
        import hashlib

        digest = hashlib.sha256()
        with self._filesystem.open_input_stream(self._join(name)) as stream:
            while chunk := stream.read(_COPY_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def _info(self, name: str) -> pyarrow.fs.FileInfo:
        return self._filesystem.get_file_info(self._join(name))

    def _join(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}".rstrip("/")

    @contextlib.contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(f"cannot {verb} {self.uri}: {reason}") from error


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
