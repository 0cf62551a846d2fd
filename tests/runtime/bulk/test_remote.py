"""Jobs on an object store: they resume, and nobody sees a file that is not complete."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from bge_runtime import FlagModel
from bge_runtime.bulk import InputError, OutputError, embed_dataset
from bge_runtime.bulk import output as output_module
from bge_runtime.bulk.files import open_location
from bge_runtime.bulk.output import OutputFolder
from tests.helpers.bulk import (
    data_files,
    in_own_process,
    make_texts,
    run_in_own_process,
    run_jobs,
    write_parquet,
)
from tests.helpers.s3 import BUCKET, s3_network

ROWS = 300
OPTIONS = {"rows_per_shard": 50, "keep": "title", "show_progress": False}


@pytest.fixture(scope="module")
def network():
    with s3_network() as network:
        open_location(network.uri("")).filesystem.create_dir(BUCKET)
        yield network


@pytest.fixture(autouse=True)
def _reset(network, monkeypatch):
    """Let two attempts follow one another soon, and the network work again afterwards.

    Each lasts about 6 s where a server refuses connections, since pyarrow tries again, too.
    """
    monkeypatch.setattr(output_module, "_ATTEMPTS", 2)
    monkeypatch.setattr(output_module, "_FIRST_WAIT_S", 0.01)
    yield
    network.refuse, network.cut_after = False, None


@pytest.fixture(scope="module")
def opened(tiny_bundle):
    return FlagModel(str(tiny_bundle), devices="cpu", threads=2)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    texts = make_texts(ROWS)
    texts[7] = None
    return write_parquet(tmp_path_factory.mktemp("input") / "texts.parquet", texts)


@pytest.fixture(scope="module")
def expected(opened, source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected") / "job"
    embed_dataset(opened, source, folder, **OPTIONS)
    return data_files(folder)


@pytest.fixture
def run(opened, source, network, request):
    """Run a job into a folder of the bucket, which has the name of the test."""

    def call(**options):
        uri = network.uri(request.node.name)
        return embed_dataset(opened, options.pop("inputs", source), uri, **{**OPTIONS, **options})

    return call


@pytest.fixture
def files(network, request):
    """Return the complete files of that folder, and check that all is tidy."""

    def call(name=request.node.name):
        found = objects(network, name)
        assert not [each for each in found if each.startswith("_temporary")]
        assert not [each for each in found if each.endswith(".lock")]
        return {each: data for each, data in found.items() if not each.startswith("_manifest")}

    return call


def objects(network, name, *, recursive=True):
    """Return the content of all objects of a folder; those directly in it are the shards."""
    location = open_location(network.uri(name))
    selector = pyarrow.fs.FileSelector(
        f"{BUCKET}/{name}", recursive=recursive, allow_not_found=True
    )
    found = {}
    for info in location.filesystem.get_file_info(selector):
        if info.type == pyarrow.fs.FileType.File:
            with location.filesystem.open_input_stream(info.path) as stream:
                found[info.path.removeprefix(f"{BUCKET}/{name}/")] = stream.read()
    return found


def test_files_are_those_of_a_local_job(run, files, expected, network, request):
    first = run(shard="2/2")
    assert not first.complete
    second = run()
    assert (second.complete, second.shards_done_before) == (True, 3)
    assert run().shards_done_before == 6
    assert files() == expected
    for name, data in objects(network, request.node.name).items():
        assert b"a-key-that-is-secret" not in data, name
        assert b"a-secret" not in data, name


def test_the_input_is_remote_too(run, files, expected, network, source, request):
    location = open_location(network.uri("input/texts.parquet"))
    with location.filesystem.open_output_stream(location.path) as stream:
        stream.write(source.read_bytes())
    run(inputs=network.uri("input"))
    found = files()
    (rejects,) = (name for name in found if name.startswith("_rejects"))
    assert b"s3://bucket/input/texts.parquet" in found.pop(rejects)
    assert found == {name: data for name, data in expected.items() if name != rejects}
    assert run(inputs=network.uri("input")).shards_done_before == 6


def test_an_input_that_was_written_again_is_refused(run, network, source):
    location = open_location(network.uri("again/texts.parquet"))
    for expected in (contextlib.nullcontext(), pytest.raises(InputError, match="modified later")):
        with location.filesystem.open_output_stream(location.path) as stream:
            stream.write(source.read_bytes())
        time.sleep(1.1)  # S3's times are in seconds
        with expected:
            run(inputs=network.uri("again"))


def test_an_altered_shard_is_refused(run, network, request):
    run()
    name = f"{BUCKET}/{request.node.name}/part-00001-of-00006.parquet"
    filesystem = open_location(network.uri("")).filesystem
    with filesystem.open_input_stream(name) as stream:
        data = bytearray(stream.read())
    data[500] ^= 1
    time.sleep(1.1)
    with filesystem.open_output_stream(name) as stream:
        stream.write(bytes(data))
    with pytest.raises(OutputError, match=r"/part-00001-of-00006\.parquet\?region.* SHA-256"):
        run()
    filesystem.delete_file(name)
    assert run().shards_done_before == 5


def test_a_killed_job_goes_on(tiny_bundle, source, network, files, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    jobs = []
    for number, event in enumerate((3, 60, 110)):
        arguments = {
            "model": str(tiny_bundle),
            "inputs": str(source),
            "output": network.uri(f"killed-{number}"),
            **OPTIONS,
        }
        jobs += [{"arguments": arguments, "event": event}, {"arguments": arguments}]
        jobs.insert(-1, {"arguments": arguments, "after_s": 0.5 + 0.2 * number})
    answers = run_jobs(jobs)
    assert all(answer["status"] == 0 for answer in answers[2::3]), answers[0]["stderr"]
    assert sum(answer["status"] == -signal.SIGKILL for answer in answers) >= 3
    for number in range(3):
        assert files(f"killed-{number}") == expected


def test_connections_that_are_cut_are_tried_again(run, files, expected, network):
    stopped = threading.Event()

    def cut_again_and_again():
        while not stopped.wait(0.05):
            if network.cut_after is None:
                network.cut(20_000)

    cutter = threading.Thread(target=cut_again_and_again)
    cutter.start()
    before = network.cuts
    try:
        assert run().complete
    finally:
        stopped.set()
        cutter.join()
    network.cut_after = None
    assert network.cuts - before >= 2
    assert files() == expected


def test_a_network_that_is_gone_is_one_error(run, files, expected, network, request):
    run(shard="1/3")
    folder = rf"s3://bucket/{request.node.name}"
    real = OutputFolder.commit

    def lose(self, draft, name):
        if "00004" in name:
            network.refuse = True
        return real(self, draft, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OutputFolder, "commit", lose)
        with pytest.raises(OutputError) as raised:
            run()
    message = str(raised.value)
    assert message.startswith(f"cannot write {folder}")
    assert message.endswith("complete shards are kept: run the same command again to go on")
    assert "secret" not in message
    with pytest.raises(OutputError, match=f"cannot read {folder}"):
        run()
    network.refuse = False
    assert run().shards_done_before >= 3
    assert files() == expected


def test_interrupts_in_a_process_of_their_own():
    run_in_own_process(__file__, "test_an_interrupt_does_not_wait")


@in_own_process
def test_an_interrupt_does_not_wait_for_further_attempts(run, network, monkeypatch):
    monkeypatch.setattr(output_module, "_FIRST_WAIT_S", 30)
    real = OutputFolder.commit

    def lose(self, draft, name):
        network.refuse = True
        threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
        return real(self, draft, name)

    monkeypatch.setattr(OutputFolder, "commit", lose)
    started_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run()
    assert time.monotonic() - started_s < 25  # pyarrow's own attempts end first
    network.refuse = False


def test_there_is_no_bucket(opened, source, network):
    uri = (
        network.uri("job")
        .replace("/bucket/", "/nowhere/")
        .replace("allow_bucket_creation=true&", "")
    )
    with pytest.raises(OutputError, match="cannot write s3://nowhere/job"):
        embed_dataset(opened, source, uri, **OPTIONS)


class TestLargeFiles:
    """Files that are uploaded in several parts."""

    SIZE = 24 << 20

    @pytest.fixture
    def folder(self, network, request):
        folder = OutputFolder(open_location(network.uri(request.node.name)))
        folder.create()
        yield folder
        folder.close()

    @pytest.fixture
    def draft(self, folder):
        path = folder.draft("part")
        path.write_bytes(os.urandom(1 << 20) * (self.SIZE >> 20))
        return path

    def test_a_cut_upload_is_never_seen(self, folder, draft, network):
        sizes, stopped = set(), threading.Event()

        def look():
            while not stopped.is_set():
                info = folder._info("part")
                if info.type == pyarrow.fs.FileType.File:
                    sizes.add(info.size)

        looking = threading.Thread(target=look)
        looking.start()
        network.cut(self.SIZE // 2)
        cuts = network.cuts
        whole = draft.read_bytes()
        try:
            record = folder.commit(draft, "part")
        finally:
            stopped.set()
            looking.join()
        assert network.cuts == cuts + 1
        assert sizes <= {self.SIZE}
        assert record["size_bytes"] == self.SIZE
        with folder._filesystem.open_input_stream(folder._join("part")) as stream:
            assert stream.read() == whole
        assert folder.list("_temporary") == []

    def test_an_upload_that_fails_for_good_is_never_seen(self, folder, draft, network):
        real = folder._filesystem

        class Filesystem:
            def __getattr__(self, name):
                return getattr(real, name)

            def open_output_stream(self, path):
                network.refuse = False
                stream = real.open_output_stream(path)
                stream.write(os.urandom(11 << 20))
                network.refuse = True
                return stream

        folder._filesystem = Filesystem()
        with pytest.raises(OutputError, match="cannot write s3://bucket"):
            folder.commit(draft, "part")
        network.refuse = False
        folder._filesystem = real
        assert not folder.exists("part")
        folder.clear_temporary()
        assert folder.list("_temporary") == []

    def test_a_killed_upload_is_never_seen(self, folder, network, request):
        program = """
import os, sys
from bge_runtime.bulk.files import open_location
from bge_runtime.bulk.output import OutputFolder
folder = OutputFolder(open_location(sys.argv[1]))
path = folder.draft("part")
path.write_bytes(os.urandom(24 << 20))
print("go", flush=True)
folder.commit(path, "part")
"""
        uri = network.uri(request.node.name)
        for wait_s in (0.05, 0.15, 0.3):
            with subprocess.Popen(
                [sys.executable, "-c", program, uri],
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            ) as process:
                assert process.stdout.readline() == b"go\n"
                time.sleep(wait_s)
                process.kill()
            assert folder._info("part").size in (None, 24 << 20)
        for _ in range(40):  # the last request of a killed process may still be on its way
            folder.clear_temporary()
            if not folder.list("_temporary"):
                break
            time.sleep(0.25)
        assert folder.list("_temporary") == []


def test_every_file_that_is_seen_is_complete(run, network, expected, request):
    seen, stopped = [], threading.Event()

    def look():
        while not stopped.is_set():
            for name, data in objects(network, request.node.name, recursive=False).items():
                seen.append(name)
                assert pq.read_table(io.BytesIO(data)).num_rows
                assert data == expected[name]

    errors = []

    def guarded():
        try:
            look()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    looking = threading.Thread(target=partial(guarded))
    looking.start()
    try:
        run()
    finally:
        stopped.set()
        looking.join()
    assert errors == []
    assert seen
