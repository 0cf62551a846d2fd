"""What a job refuses, with the reason: changed files, another job, a disk that is full."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import fsspec
import pytest

from bge_runtime import FlagModel
from bge_runtime.bulk import InputError, OutputError, embed_dataset
from bge_runtime.bulk import embed as embed_module
from bge_runtime.bulk import inputs as inputs_module
from bge_runtime.bulk.output import OutputFolder
from bge_runtime.engines import openvino
from bge_runtime.errors import BgeError
from bge_runtime.system import file_hash
from tests.helpers.bulk import data_files, make_texts, records, write_parquet

ROWS = 120


@pytest.fixture(scope="module")
def opened(tiny_bundle):
    return FlagModel(str(tiny_bundle), devices="cpu", threads=2)


@pytest.fixture(scope="module")
def made(opened, tmp_path_factory):
    """A folder with an input of three files, and a finished job of it."""
    root = tmp_path_factory.mktemp("made")
    texts = make_texts(ROWS)
    texts[7] = None
    for number in range(3):
        part = texts[40 * number : 40 * number + 40]
        write_parquet(root / "input" / f"{number}.parquet", part, first=40 * number)
    embed_dataset(opened, root / "input", root / "job", **OPTIONS)
    return root


OPTIONS = {"rows_per_shard": 50, "keep": "title", "show_progress": False}


@pytest.fixture
def root(made, tmp_path):
    """A copy of it, which a test may damage."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def rerun(opened, root):
    """Run the job of the copy again."""

    def call(*, model=opened, inputs=root / "input", output=root / "job", **options):
        return embed_dataset(model, inputs, output, **{**OPTIONS, **options})

    return call


def flip(path: Path, position: int) -> None:
    """Change one bit of a file, and set its time back."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


class TestCopies:
    """What may be different in a rerun."""

    def test_a_copied_folder_is_the_same_job(self, rerun, root):
        assert rerun().shards_done_before == 3

    def test_content_is_read_once_if_only_times_differ(self, rerun, root, monkeypatch):
        rerun()  # the first one after copying: hashes are remembered
        read = []
        whole = file_hash.file_sha256
        monkeypatch.setattr(
            file_hash, "file_sha256", lambda path, *rest: read.append(path) or whole(path, *rest)
        )
        assert rerun().shards_done_before == 3
        assert not read
        os.utime(root / "job" / "part-00001-of-00003.parquet")
        os.utime(root / "input" / "1.parquet")
        for _ in range(2):
            assert rerun().shards_done_before == 3
            names = sorted(path.name for path in read)
            assert names == ["1.parquet", "part-00001-of-00003.parquet"]

    @pytest.mark.parametrize(
        "options",
        [
            {"on_error": "skip"},
            {"input_format": "parquet"},
            {"dtype": "float32"},
            {"max_length": 512},
            {"text": ["text"]},
            {"shard": "1/1"},
        ],
        ids=str,
    )
    def test_options_without_a_difference(self, rerun, options):
        assert rerun(**options).shards_done_before == 3

    def test_another_path_threads_and_batches_in_parallel(self, rerun, root, tiny_bundle):
        moved = Path(shutil.copytree(tiny_bundle, root / "bundle"))
        os.utime(moved / "bge.json")
        options = {"threads": 1, "parallel_batches": False, "devices": "cpu"}
        assert rerun(model=moved, model_options=options).shards_done_before == 3

    def test_an_input_elsewhere_named_in_another_order(self, rerun, root):
        shutil.move(root / "input", root / "moved")
        names = [root / "moved" / f"{number}.parquet" for number in (2, 0, 1)]
        assert rerun(inputs=names).shards_done_before == 3

    def test_deleted_shards_are_computed_again(self, rerun, root):
        run = partial(rerun, output=root / "other")
        run()
        whole, written = data_files(root / "other"), records(root / "other")
        (root / "other" / "part-00000-of-00003.parquet").unlink()
        (root / "other" / "_manifest" / "part-00002-of-00003.json").unlink()
        assert run().shards_done_before == 1
        (root / "other" / "_rejects" / "part-00000-of-00003.jsonl").unlink()
        assert run().shards_done_before == 2
        assert data_files(root / "other") == whole
        assert records(root / "other") == written

    def test_an_output_in_the_folder_of_the_input(self, opened, root):
        run = partial(embed_dataset, opened, root / "input", root / "input" / "out", **OPTIONS)
        assert run().complete
        assert run().shards_done_before == 3


class TestOutput:
    """Changed files of the output."""

    @pytest.mark.parametrize("position", [0, 4, 700, -1])
    def test_a_shard_with_another_bit(self, rerun, root, position):
        rerun()
        path = root / "job" / "part-00001-of-00003.parquet"
        flip(path, position % path.stat().st_size)
        with pytest.raises(
            OutputError, match=r"part-00001-of-00003\.parquet was changed .*SHA-256"
        ):
            rerun()
        path.unlink()
        assert rerun().shards_done_before == 2

    @pytest.mark.parametrize("size", [0, 100])
    def test_a_truncated_shard(self, rerun, root, size):
        os.truncate(root / "job" / "part-00001-of-00003.parquet", size)
        with pytest.raises(OutputError, match=rf"it has {size} bytes, and \d+ were written"):
            rerun()

    def test_changed_rejects(self, rerun, root):
        path = root / "job" / "_rejects" / "part-00000-of-00003.jsonl"
        path.write_text(path.read_text().replace("no text", "no test"))
        with pytest.raises(OutputError, match=r"_rejects/part-00000-of-00003\.jsonl was changed"):
            rerun()

    def test_any_damage_of_a_record(self, rerun, root):
        path = root / "job" / "_manifest" / "part-00001-of-00003.json"
        self.check_damages(path, rerun, "delete it, and its shard is computed again")
        path.unlink()
        assert rerun().shards_done_before == 2

    def test_any_damage_of_the_description(self, rerun, root):
        path = root / "job" / "_manifest" / "job.json"
        self.check_damages(path, rerun, "restore it, or name a new folder")
        path.unlink()
        with pytest.raises(OutputError, match="holds files of something else, such as 'part-"):
            rerun()

    @staticmethod
    def check_damages(path, rerun, remedy):
        whole = path.read_bytes()
        digit = next(at for at, byte in enumerate(whole) if chr(byte) in "12345")
        for damaged in (
            b"",
            whole[:-100],
            whole[: len(whole) // 2],
            b"{}",
            b"[]",
            b"null",
            b"\xff\xfe",
            b"[" * 100_000,
            b"\0" * len(whole),
            whole[:digit] + b"9" + whole[digit + 1 :],
        ):
            path.write_bytes(damaged)
            with pytest.raises(OutputError, match=rf"{path.name} is damaged .*; {remedy}"):
                rerun()
        path.write_bytes(whole)
        assert rerun().shards_done_before == 3

    def test_a_description_of_a_newer_version(self, rerun, root):
        path = root / "job" / "_manifest" / "job.json"
        document = json.loads(path.read_text())
        for change, message in (
            ({"format_version": 2}, "format version 2"),
            ({"format": "something else"}, "does not describe a job"),
        ):
            changed = {**document, **change}
            del changed["checksum"]
            from bge_runtime.bulk.output import _checksum

            path.write_text(json.dumps({**changed, "checksum": _checksum(changed)}))
            with pytest.raises(OutputError, match=message):
                rerun()

    def test_files_of_something_else(self, opened, root, tmp_path):
        (tmp_path / "mine" / "photos").mkdir(parents=True)
        for kind in ("mkdir", "touch"):
            folder = tmp_path / kind
            folder.mkdir()
            getattr(folder / "photos", kind)()
            with pytest.raises(OutputError, match="something else, such as 'photos'"):
                embed_dataset(opened, root / "input", folder, **OPTIONS)
            assert [path.name for path in folder.iterdir()] == ["photos"]

    def test_a_file(self, opened, root):
        with pytest.raises(OutputError, match="is a file; name a folder"):
            embed_dataset(opened, root / "input", root / "input" / "0.parquet", **OPTIONS)

    def test_a_folder_below_a_file(self, opened, root):
        path = root / "input" / "0.parquet" / "job"
        with pytest.raises(OutputError, match="Not a directory"):
            embed_dataset(opened, root / "input", path, **OPTIONS)

    def test_parents_are_created(self, opened, root):
        assert embed_dataset(opened, root / "input", root / "a" / "b" / "c", **OPTIONS).complete


class TestInput:
    """An input that was changed between two runs."""

    def test_content_of_the_same_size_and_time(self, rerun, root, made, opened, tmp_path):
        # In place, with the times set back: the change time of the inode tells.
        path = root / "input" / "1.parquet"
        embed_dataset(opened, root / "input", tmp_path / "job", **OPTIONS)
        flip(path, 100)
        with pytest.raises(InputError, match=r"1\.parquet has changed since .* its SHA-256 was"):
            rerun(output=tmp_path / "job")
        with pytest.raises(InputError, match=r"1\.parquet has changed since .* its SHA-256 was"):
            rerun()

    def test_another_size(self, rerun, root):
        write_parquet(root / "input" / "1.parquet", ["short"] * 40)
        with pytest.raises(InputError, match=r"1\.parquet has changed .*: it had \d"):
            rerun()

    def test_one_file_more(self, rerun, root):
        write_parquet(root / "input" / "3.parquet", ["more"])
        with pytest.raises(InputError, match=r"with 3 files .* are 4 .*/3\.parquet is new\. Rest"):
            rerun()

    def test_one_file_less(self, rerun, root):
        (root / "input" / "2.parquet").unlink()
        with pytest.raises(InputError, match=r"3 files .* are 2 .*/2\.parquet is missing\. Rest"):
            rerun()

    def test_another_order(self, rerun, root):
        folder = root / "input"
        (folder / "0.parquet").rename(folder / "9.parquet")
        message = r"/0\.parquet seems to be renamed to .*/9\.parquet\. Restore"
        with pytest.raises(InputError, match=message):
            rerun()
        write_parquet(folder / "7.parquet", ["more"])
        message = r"there are 4 .*seems to be renamed to .*/9\.parquet, .*/7\.parquet is new\."
        with pytest.raises(InputError, match=message):
            rerun()

    def test_another_file_instead_of_one(self, rerun, root):
        (root / "input" / "1.parquet").unlink()
        write_parquet(root / "input" / "4.parquet", ["more"] * 40)
        message = r"other files, .*: .*/1\.parquet is missing, .*/4\.parquet is new\. Restore"
        with pytest.raises(InputError, match=message):
            rerun()

    def test_a_remote_file_without_a_time(self, rerun, root):
        files = fsspec.filesystem("memory")
        run = partial(rerun, output=root / "other", rows_per_shard=2)
        files.pipe("/without-time/a.txt", b"one\ntwo\nsix\n")
        run(inputs="memory:///without-time", keep=())
        assert run(inputs="memory:///without-time", keep=()).shards_done_before == 2
        files.mv("/without-time/a.txt", "/without-time/b.txt")
        with pytest.raises(InputError, match=r"/a\.txt is missing, .*/b\.txt is new"):
            run(inputs="memory:///without-time", keep=())

    def test_a_remote_file_with_a_version(self, rerun, root, monkeypatch):
        files = fsspec.filesystem("memory")
        files.pipe("/versions/a.txt", b"one\n")
        info, tag = files.info, "1"
        monkeypatch.setattr(files, "info", lambda path: {**info(path), "ETag": tag})
        run = partial(rerun, output=root / "other", inputs="memory:///versions", keep=())
        run()
        files.mv("/versions/a.txt", "/versions/b.txt")
        assert run().shards_done_before == 1
        files.mv("/versions/b.txt", "/versions/a.txt")
        tag = "2"
        with pytest.raises(InputError, match="it was ETag 1, and is ETag 2"):
            run()

    def test_no_file(self, rerun, root):
        shutil.rmtree(root / "input")
        with pytest.raises(InputError, match="there is no file or folder"):
            rerun()

    def test_another_format(self, rerun, root):
        (root / "texts").mkdir()
        for number in range(3):
            (root / "texts" / f"{number}.txt").write_text("a text\n" * 40)
        with pytest.raises(InputError, match="files of parquet, and now there are 3 of text"):
            rerun(inputs=root / "texts")


class TestJob:
    """Another job than the one of the folder."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rows_per_shard": 60}, "rows_per_shard=50, and now rows_per_shard=60"),
            ({"keep": ()}, "keep"),
            ({"keep": ["title", "name"]}, "keep"),
            ({"id": "name"}, "id"),
            ({"text": ["text", "title"]}, "text"),
            ({"template": "{text}."}, "template"),
            ({"output_format": "jsonl"}, "output_format='parquet', and now output_format='jsonl'"),
            ({"on_empty": "embed"}, "on_empty='skip', and now on_empty='embed'"),
            ({"chunk_tokens": 64}, "chunk_tokens=None, and now chunk_tokens=64"),
            ({"query": True}, "query=False, and now query=True"),
            ({"max_length": 17}, "max_length=512, and now max_length=17"),
            ({"batch_size": 3}, "batch_size=256, and now batch_size=3"),
            ({"dtype": "float16"}, "dtype='float32', and now dtype='float16'"),
        ],
        ids=lambda value: str(value) if isinstance(value, dict) else "",
    )
    def test_with_other_options(self, rerun, root, options, message):
        before = data_files(root / "job")
        with pytest.raises(OutputError, match=r"the job in .* was started with ") as raised:
            rerun(**options)
        assert message in str(raised.value)
        assert str(raised.value).endswith("Ask for the same, or name a new folder")
        assert data_files(root / "job") == before

    def test_with_several_other_options_names_all(self, rerun):
        with pytest.raises(OutputError, match=r"rows_per_shard=50.*; .*on_empty='embed'"):
            rerun(rows_per_shard=60, on_empty="embed")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"normalize_embeddings": False}, "model normalized=True, and now normalized=False"),
            ({"truncate_dim": 16}, "model dim=48, and now dim=16"),
            ({"engine": "openvino"}, "model engine="),
            ({"passage_instruction_for_retrieval": "Read: "}, "model instruction=None"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_with_a_model_opened_in_another_way(self, rerun, tiny_bundle, options, message):
        options = {"devices": "cpu", "engine": "onnxruntime", **options}
        with pytest.raises(OutputError) as raised:
            rerun(model=tiny_bundle, model_options=options)
        assert message in str(raised.value)

    def test_with_another_bundle(self, rerun, tiny_mean_bundle, full_tiny_bundle):
        with pytest.raises(OutputError, match=r"model bundle='[0-9a-f]{64}', and now bundle='"):
            rerun(model=full_tiny_bundle)
        with pytest.raises(OutputError, match="model pooling='cls', and now pooling='mean'"):
            rerun(model=tiny_mean_bundle)

    def test_with_another_precision(self, root, full_tiny_bundle, tmp_path):
        if "BF16" not in openvino.cpu_capabilities():
            pytest.skip("this processor does not compute in bf16")
        run = partial(embed_dataset, full_tiny_bundle, root / "input", tmp_path / "job", **OPTIONS)
        run(model_options={"precision": "fp32", "devices": "cpu"})
        with pytest.raises(OutputError, match="model precision='fp32', and now precision="):
            run(model_options={"precision": "bf16", "devices": "cpu"})

    def test_with_another_instruction(self, root, full_tiny_bundle, tmp_path):
        run = partial(embed_dataset, full_tiny_bundle, root / "input", tmp_path / "job", **OPTIONS)
        run(query=True)
        with pytest.raises(OutputError, match="model instruction="):
            run(query=True, instruction="Find: ")
        assert run(query=True).shards_done_before == 3


@pytest.fixture
def no_counting(monkeypatch):
    """Let a job fail if it reads its input."""

    def fail(*_, **__):
        raise AssertionError("the input is read")

    monkeypatch.setattr(embed_module, "index_inputs", fail)


@pytest.mark.usefixtures("no_counting")
class TestBeforeTheInputIsRead:
    """Other mistakes are reported first, since the input may take minutes."""

    def test_a_wrong_model(self, rerun, root):
        with pytest.raises(BgeError, match="no-such-model"):
            rerun(model="./no-such-model", output=root / "other")

    def test_a_model_without_an_output(self, rerun, root):
        with pytest.raises(ValueError, match="are for BGE-M3"):
            rerun(return_sparse=True, output=root / "other")

    def test_an_output_that_cannot_be_written(self, root, monkeypatch):
        def fail(_):
            raise OutputError("cannot write")

        monkeypatch.setattr(OutputFolder, "create", fail)
        with pytest.raises(OutputError, match="cannot write"):  # and before the model is opened
            embed_dataset("./no-such-model", root / "input", root / "other", **OPTIONS)

    def test_columns_that_the_format_cannot_hold(self, rerun, root):
        with pytest.raises(ValueError, match="npy"):
            rerun(output_format="npy", output=root / "other")


def test_all_bytes_that_are_read_are_shown(opened, root, monkeypatch):
    shown = []

    @contextmanager
    def show(total, *, show):
        counts = []
        yield counts.append
        shown.append((total, sum(counts)))

    monkeypatch.setattr(inputs_module, "show_reading", show)
    embed_dataset(opened, root / "input", root / "other", **OPTIONS)
    size = sum(path.stat().st_size for path in (root / "input").iterdir())
    assert shown[0] == (2 * size, 2 * size)  # counted and hashed
    os.utime(root / "input" / "1.parquet")
    embed_dataset(opened, root / "input", root / "other", **OPTIONS)
    touched = (root / "input" / "1.parquet").stat().st_size
    assert shown[-1] == (touched, touched)


def test_an_interrupt_ends_the_hashing_of_a_large_input(opened, root, monkeypatch):
    reading, ended = threading.Event(), threading.Event()

    def endless(path, on_bytes):
        try:
            while True:
                on_bytes(1)
                if path.name == "0.parquet":
                    raise KeyboardInterrupt
                reading.set()
        finally:
            ended.set()

    monkeypatch.setattr(inputs_module.file_hash, "file_sha256", endless)
    with pytest.raises(KeyboardInterrupt):
        embed_dataset(opened, root / "input", root / "other", **OPTIONS)
    assert not [each for each in threading.enumerate() if each.name.startswith("bge-index")]


def in_namespace(body: str, *arguments: object) -> list[str]:
    """Run a program that may mount file systems, which nobody else sees; return its lines."""
    probe = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        allowed = subprocess.run(probe, capture_output=True, timeout=20, check=False)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if allowed.returncode:
        pytest.skip(f"mounting is not permitted: {allowed.stderr.decode().strip()}")
    found = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", body, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()


PRELUDE = """
import os, sys
from bge_runtime import FlagModel
from bge_runtime.bulk import OutputError, embed_dataset

def mount(*arguments):
    if os.spawnlp(os.P_WAIT, "mount", "mount", *arguments):
        sys.exit(f"mount {arguments}")

bundle, source, folder = sys.argv[1:4]
model = FlagModel(bundle, devices="cpu")

def run(output=folder + "/job", **options):
    options = {"rows_per_shard": 50, "show_progress": False, **options}
    try:
        summary = embed_dataset(model, source, output, **options)
    except OutputError as error:
        print(error)
    else:
        print(f"done before: {summary.shards_done_before}, complete: {summary.complete}")
"""


class TestDisk:
    """File systems that are full or cannot be written."""

    @pytest.mark.parametrize("output_format", ["parquet", "jsonl", "npy"])
    def test_full(self, tiny_bundle, root, tmp_path, output_format):
        folder = tmp_path / "disk"
        folder.mkdir()
        lines = in_namespace(
            PRELUDE
            + """
kind = sys.argv[4]
run(folder + "/../whole", output_format=kind)
for size in range(4, 200, 8):
    mount("-t", "tmpfs", "-o", f"size={size}k", "tmpfs", folder)
    run(output_format=kind)
    left = os.listdir(folder + "/job/_temporary") if os.path.isdir(folder + "/job") else []
    print([name for name in left if "parquet" in name])
    mount("-o", "remount,size=9M", folder)
    run(output_format=kind)
    same = os.spawnlp(
        os.P_WAIT, "diff", "diff", "-r", "-x", "_manifest", folder + "/job", folder + "/../whole"
    )
    print(same)
    os.spawnlp(os.P_WAIT, "umount", "umount", folder)
""",
            *(tiny_bundle, root / "input", folder, output_format),
        )
        assert lines.pop(0) == "done before: 0, complete: True"
        first, left, again, same = (lines[start::4] for start in range(4))
        assert set(left) == {"[]"}
        assert set(same) == {"0"}
        failed = [line for line in first if not line.startswith("done")]
        for line in failed:
            assert line.startswith(f"cannot write {folder}/job"), line
            assert "No space left on device; " in line
        assert 3 < len(failed) < len(first)  # from a disk for nothing to one that is large enough
        assert all(line.endswith("complete: True") for line in again)
        assert {"done before: 1, complete: True", "done before: 2, complete: True"} & set(again)

    def test_read_only(self, tiny_bundle, root, tmp_path):
        folder = tmp_path / "disk"
        folder.mkdir()
        lines = in_namespace(
            PRELUDE
            + """
mount("--bind", folder, folder)
mount("-o", "remount,bind,ro", folder)
run()
run(output=folder)
mount("-o", "remount,bind,rw", folder)
run(shard="1/2")
mount("-o", "remount,bind,ro", folder)
run()
mount("-o", "remount,bind,rw", folder)
run()
""",
            *(tiny_bundle, root / "input", folder),
        )
        remedy = "Read-only file system; name another folder, or make this one writable"
        assert lines == [
            f"cannot write {folder}/job: {remedy}",
            f"cannot write {folder}: {remedy}",
            "done before: 0, complete: False",
            f"cannot write {folder}/job: {remedy}",
            "done before: 2, complete: True",
        ]

    @pytest.mark.parametrize("step", ["fsync", "replace", "link"])
    def test_that_fails_to_write(self, opened, root, monkeypatch, step):
        run = partial(embed_dataset, opened, root / "input", root / "other", **OPTIONS)

        def fails(*_):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            patch.setattr(os, step, fails)
            if step == "link":  # no hard links there
                assert run().complete
            else:
                with pytest.raises(OutputError, match="Input/output error; complete shards are"):
                    run()
        assert run().complete
        embed_dataset(opened, root / "input", root / "whole", **OPTIONS)
        assert data_files(root / "other") == data_files(root / "whole")

    def test_full_or_read_only_is_one_line_of_the_command(self, tiny_bundle, root, tmp_path):
        folder = tmp_path / "disk"
        folder.mkdir()
        lines = in_namespace(
            PRELUDE
            + """
import subprocess

def command():
    found = subprocess.run(
        [sys.executable, "-m", "bge_runtime.cli.embed", bundle, source, "-o", folder + "/job",
         "--rows-per-shard", "30"],
        capture_output=True, text=True
    )
    print(found.returncode)
    print(found.stderr.strip().splitlines()[-1])
    print("Traceback" in found.stderr)
    print(found.stdout == "")

mount("-t", "tmpfs", "-o", "size=48k", "tmpfs", folder)
command()
mount("-o", "remount,size=9M,ro", folder)
command()
mount("-o", "remount,rw", folder)
command()
""",
            *(tiny_bundle, root / "input", folder),
        )
        full, read_only, done = (lines[start : start + 4] for start in (0, 4, 8))
        assert full[0] == read_only[0] == "1"
        assert full[1].startswith(
            f"bge-embed: cannot write {folder}/job: No space left on device; "
        )
        assert read_only[1].startswith(
            f"bge-embed: cannot write {folder}/job: Read-only file system; "
        )
        assert done[0] == "0"
        assert full[2:] == read_only[2:] == done[2:] == ["False", "True"]
