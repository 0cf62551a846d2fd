"""Where ``bge-embed`` writes, and what is found out before there is anything to write."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from bge_runtime.cli.embed_output import FORMATS
from bge_runtime.cli.streams.output import OutputError, open_output

VECTORS = np.array([[1, 0.1], [2, 0.2]], dtype=np.float32)
MEMBERS = ['"index": 0', ""]
JSONL = b'{"index": 0, "embedding": [1.0, 0.1]}\n{"embedding": [2.0, 0.2]}\n'


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def write(output: str | Path, *, source: io.BytesIO | io.FileIO | None = None) -> None:
    with open_output(str(output), [source or io.BytesIO()], FORMATS) as put:
        put(iter(MEMBERS), VECTORS)


def check_written(path: Path) -> None:
    if path.suffix == ".npy":
        np.testing.assert_array_equal(np.load(path), VECTORS)
    else:
        assert path.read_bytes() == JSONL


def contents(folder: str = ".") -> list[str]:
    return sorted(os.listdir(folder))


@contextmanager
def as_nobody() -> Iterator[None]:
    """Go on as a user without rights, where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that anybody may come to."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        monkeypatch.chdir(folder)
        yield Path(folder)


UNNAMED = pytest.param(True, id="draft without a name")
NAMED = pytest.param(False, id="draft with a name")


@pytest.fixture(params=[UNNAMED, NAMED])
def _drafts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Both kinds of file systems."""
    if not request.param:
        monkeypatch.delattr(os, "O_TMPFILE")


@pytest.mark.usefixtures("_drafts")
@pytest.mark.parametrize("name", ["out.jsonl", "out.ndjson", "out.npy", f"{'長' * 83}.npy"])
@pytest.mark.parametrize("before", [None, b"", b"an older and longer result" * 10])
def test_a_file_appears_when_it_is_complete(name: str, before: bytes | None):
    path = Path(name)
    if before is not None:
        path.write_bytes(before)
    with open_output(name, [io.BytesIO()], FORMATS) as put:
        put(iter(MEMBERS), VECTORS)
        assert (path.read_bytes() if path.exists() else None) == before
    check_written(path)
    assert contents() == [name]


@pytest.mark.usefixtures("_drafts")
@pytest.mark.parametrize("end", [SystemExit(143), KeyboardInterrupt(), ValueError()])
def test_nothing_is_left_of_an_incomplete_file(end: BaseException):
    Path("out.npy").write_bytes(b"old")

    def write_and_end():
        with open_output("out.npy", [io.BytesIO()], FORMATS) as put:
            put(iter(MEMBERS), VECTORS)
            raise end

    with pytest.raises(type(end)):
        write_and_end()
    assert contents() == ["out.npy"]
    assert Path("out.npy").read_bytes() == b"old"


def test_a_killed_process_leaves_nothing_where_files_need_no_name():
    try:
        os.close(os.open(".", os.O_TMPFILE | os.O_RDWR))
    except (AttributeError, OSError):
        pytest.skip("every file has a name here")
    code = (
        "import io, os; from bge_runtime.cli.embed_output import FORMATS\n"
        "from bge_runtime.cli.streams.output import open_output\n"
        "with open_output('out.npy', [io.BytesIO()], FORMATS): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert contents() == []


@pytest.mark.usefixtures("_drafts")
def test_links_stay_and_their_targets_are_written():
    os.makedirs("store/deep")
    Path("store/old.npy").write_bytes(b"old")
    os.symlink("store/old.npy", "there.npy")
    os.symlink("there.npy", "twice.npy")
    os.symlink("store/deep/new.npy", "dangling.npy")
    os.symlink("store", "folder")
    for name in ("twice.npy", "dangling.npy", "folder/by-folder.npy"):
        write(name)
    for name in ("there.npy", "twice.npy", "dangling.npy", "folder"):
        assert os.path.islink(name)
    for name in ("store/old.npy", "store/deep/new.npy", "store/by-folder.npy"):
        check_written(Path(name))
    assert contents("store") == ["by-folder.npy", "deep", "old.npy"]


def make(what: str) -> None:
    """Put something in the way."""
    if what == "input":
        Path("in.jsonl").write_text('{"text": "a"}\n')
        os.link("in.jsonl", "hard.jsonl")
        os.symlink("in.jsonl", "soft.jsonl")
    elif what == "loop":
        os.symlink("loop.npy", "loop.npy")
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("socket.jsonl")
    elif what == "pipe":
        os.mkfifo("pipe.npy")


WRONG = [
    ("out.csv", None, "neither a .npy nor a .jsonl"),
    ("out", None, "neither a .npy nor a .jsonl"),
    ("", None, "neither a .npy nor a .jsonl"),
    (".", None, "is a folder"),
    ("missing/out.npy", None, "there is no folder .*missing"),
    ("in.jsonl/out.npy", "input", "Not a directory"),
    (f"{'x' * 300}.npy", None, "File name too long"),
    (f"{'x/' * 3000}x.npy", None, "File name too long"),
    ("loop.npy", "loop", "Too many levels of symbolic links"),
    ("in.jsonl", "input", "is the input itself"),
    ("hard.jsonl", "input", "is the input itself"),
    ("soft.jsonl", "input", "is the input itself"),
    ("./../{here}/in.jsonl", "input", "is the input itself"),
    ("socket.jsonl", "socket", "is neither a file nor a pipe"),
    ("pipe.npy", "pipe", "a .npy cannot be streamed"),
    ("/dev/fd/999", None, "Bad file descriptor"),
    ("/dev/fd/{source}", "input", "Bad file descriptor"),  # it is open for reading
    ("/proc/new.npy", None, "cannot write /proc/new.npy"),
]


@pytest.mark.parametrize(
    ("output", "what", "message"), WRONG, ids=[f"{row[0][:20]}: {row[2]}" for row in WRONG]
)
def test_an_unusable_output_is_found_before_anything_is_written(
    output: str, what: str | None, message: str, tmp_path: Path
):
    if what is not None:
        make(what)
    before = contents()
    with ExitStack() as stack:
        source = io.BytesIO()
        if what == "input":
            source = stack.enter_context(open("in.jsonl", "rb", buffering=0))
            output = output.format(here=tmp_path.name, source=source.fileno())
        if what == "pipe":  # or opening it would wait for a reader
            stack.enter_context(open(os.open("pipe.npy", os.O_RDWR), "wb"))
        with pytest.raises(OutputError, match=message), open_output(output, [source], FORMATS):
            pytest.fail("it was opened")
    assert contents() == before


@pytest.mark.parametrize(("folder", "file"), [(0o555, 0o666), (0o777, 0o444)])
def test_a_protected_file_is_not_written(open_folder: Path, folder: int, file: int):
    Path("out.npy").write_bytes(b"old")
    os.chmod("out.npy", file)
    os.chmod(open_folder, folder)
    try:
        with as_nobody(), pytest.raises(OutputError, match=r"cannot write out.npy: Permission"):
            write("out.npy")
    finally:
        os.chmod(open_folder, 0o777)


@contextmanager
def limited(size_bytes: int) -> Iterator[None]:
    """Let no file grow beyond a size, as a full disk or a quota would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("_drafts")
def test_a_disk_that_is_full_is_found_at_once():
    with (
        limited(100),
        pytest.raises(OutputError, match=r"cannot write out.npy: File too large"),
        open_output("out.npy", [io.BytesIO()], FORMATS),
    ):
        pytest.fail("it was opened")
    assert contents() == []


@pytest.mark.usefixtures("_drafts")
def test_a_disk_that_becomes_full_is_one_sentence_and_leaves_nothing():
    def write_while_it_becomes_full():
        with open_output("out.npy", [io.BytesIO()], FORMATS) as put, limited(130):
            put(iter(MEMBERS), VECTORS)

    with pytest.raises(OutputError, match=r"cannot write out.npy: File too large"):
        write_while_it_becomes_full()
    assert contents() == []


@pytest.mark.usefixtures("_drafts")
@pytest.mark.parametrize("name", ["out.npy", "out.jsonl"])
def test_a_file_that_cannot_be_replaced_is_written_in_place(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    """A mount point, as a container's volume of one file is."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    Path(name).write_bytes(b"an older and longer result" * 100)
    before = os.stat(name)
    monkeypatch.setattr(os, "replace", refuse)
    write(name)
    check_written(Path(name))
    assert os.path.samestat(os.stat(name), before)
    assert contents() == [name]


@pytest.mark.usefixtures("_drafts")
def test_a_result_that_cannot_replace_the_file_is_kept(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OutputError, match=r"cannot write out.npy") as raised:
        write("out.npy")
    (draft,) = contents()
    assert f"The complete result is in {Path(draft).absolute()}" in str(raised.value)
    np.testing.assert_array_equal(np.load(draft), VECTORS)


def test_another_user_s_file_in_a_sticky_folder_is_written_in_place(open_folder: Path):
    if os.geteuid() != 0:
        pytest.skip("only root can have another user's file")
    Path("out.npy").touch()
    os.chmod("out.npy", 0o666)
    os.chmod(open_folder, 0o1777)
    with as_nobody():
        write("out.npy")
    check_written(Path("out.npy"))
    assert contents() == ["out.npy"]


@pytest.mark.usefixtures("_drafts")
def test_a_file_has_the_permissions_of_what_it_replaces_or_of_any_new_one():
    Path("private.npy").touch(mode=0o600)
    Path("open.npy").touch()
    os.chmod("open.npy", 0o666)
    before = os.umask(0o027)
    try:
        for name in ("private.npy", "open.npy", "new.npy"):
            write(name)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(os.stat(f"{name}.npy").st_mode) for name in ("private", "open", "new")]
    assert modes == [0o600, 0o666, 0o640]


def test_a_descriptor_is_written_at_its_position():
    """Opened anew by its name it would begin at the beginning."""
    Path("log.txt").write_bytes(b"before\n")
    with open("log.txt", "ab") as log:
        os.symlink(f"/dev/fd/{log.fileno()}", "link.jsonl")
        for name in (f"/dev/fd/{log.fileno()}", f"/proc/self/fd/{log.fileno()}", "link.jsonl"):
            write(name)
        log.write(b"after\n")
    assert Path("log.txt").read_bytes() == b"before\n" + 3 * JSONL + b"after\n"


def test_a_socket_is_written():
    """Standard output is one, where journald or an SSH server listens."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        write(f"/dev/fd/{ours.fileno()}")
        assert theirs.recv(4096) == JSONL


def test_pipes_and_devices_are_written_in_place():
    os.mkfifo("pipe")
    received = []
    reader = threading.Thread(target=lambda: received.append(Path("pipe").read_bytes()))
    reader.start()
    os.symlink("/dev/null", "null.jsonl")
    for name in ("pipe", "/dev/null", "null.jsonl"):
        write(name)
    reader.join()
    assert received == [JSONL]
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(OutputError, match="cannot write /dev/full: No space left"):
        write("/dev/full")


@pytest.mark.parametrize("blocking", [True, False])
def test_a_slow_reader_gets_every_byte(blocking: bool):
    read, end = os.pipe()
    os.set_blocking(end, blocking)
    received = bytearray()

    def receive() -> None:
        with open(read, "rb") as pipe:
            received.extend(pipe.read())

    reader = threading.Thread(target=receive)
    vectors = np.zeros((2, 100_000), dtype=np.float32)  # far more than a pipe holds
    with open_output(f"/dev/fd/{end}", [io.BytesIO()], FORMATS) as put:
        reader.start()
        put(iter(MEMBERS), vectors)
    os.close(end)
    reader.join()
    assert [len(json.loads(line)["embedding"]) for line in received.splitlines()] == [100_000] * 2


def test_standard_output_is_utf_8_whatever_its_encoding(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
):
    with open(1, "w", encoding="utf-16", closefd=False) as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        write("-")
    assert capfdbinary.readouterr().out == JSONL


def test_a_closed_standard_output_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdout", None)
    with pytest.raises(OutputError, match="standard output is closed; name a file"):
        write("-")
    write("out.jsonl")
    check_written(Path("out.jsonl"))
