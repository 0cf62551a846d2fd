"""Reading, computing and writing at once: failures of each stage, interrupts and memory."""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import threading
import time
import warnings
import weakref
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bge_runtime import FlagModel
from bge_runtime.bulk import InputError, OutputError, embed_dataset, rows, shards
from bge_runtime.bulk import output as output_module
from bge_runtime.bulk.readers import parquet as parquet_reader
from bge_runtime.bulk.vectors import TextEncoder
from bge_runtime.bulk.vectors import encoder as encoder_module
from bge_runtime.bulk.vectors import pipeline as pipeline_module
from bge_runtime.encoding import Batch
from bge_runtime.engines.ort_cpu import OrtCpuEngine
from bge_runtime.errors import InferenceError, NotFiniteError, OutOfMemoryError
from tests.helpers.bulk import (
    data_files,
    in_own_process,
    make_texts,
    run_in_own_process,
    write_parquet,
)

ROWS = 200
BAD = 77
MARK = "~"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """200 rows; the text of row 77 has a mark."""
    texts = make_texts(ROWS)
    texts[BAD] += f" {MARK}"
    return write_parquet(tmp_path_factory.mktemp("input") / "texts.parquet", texts)


@pytest.fixture(scope="module")
def opened(tiny_bundle):
    return FlagModel(str(tiny_bundle), devices="cpu", threads=2, engine="onnxruntime")


@pytest.fixture
def embed(opened, source, tmp_path):
    """Embed the input in windows of 20 texts; check that all threads are over."""

    def call(folder=tmp_path / "job", **options):
        options = {"rows_per_shard": 60, "show_progress": False, **options}
        started_s = time.monotonic()
        try:
            return embed_dataset(opened, source, folder, **options)
        finally:
            assert time.monotonic() - started_s < 20
            assert bulk_threads() == []

    return call


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch):
    monkeypatch.setattr(rows, "WINDOW_TEXTS", 20)


@pytest.fixture
def expected(embed, tmp_path):
    embed(tmp_path / "whole")
    return data_files(tmp_path / "whole")


def bulk_threads():
    """Return the names of our threads that do not end.

    An executor does not know a thread while it starts it, so an interrupt may leave it to itself.
    """
    for _ in range(100):
        names = [thread.name for thread in threading.enumerate()]
        found = [name for name in names if name.startswith("bge-")]
        if not [name for name in found if name.startswith("bge-index")]:
            break
        time.sleep(0.02)
    return found


def replace_run(patch, run):
    """Let the engine call ``run`` with the real function."""
    real = OrtCpuEngine.run
    patch.setattr(
        OrtCpuEngine, "run", lambda self, *args, **kw: run(partial(real, self), *args, **kw)
    )


class TestEngine:
    """What an engine does wrong."""

    @pytest.mark.parametrize("call", [1, 3, 6])
    def test_its_error_ends_the_run_and_the_next_one_goes_on(
        self, embed, expected, monkeypatch, tmp_path, call
    ):
        calls = []

        def run(real, *args, **kw):
            calls.append(None)
            if len(calls) >= call:
                raise InferenceError("broken")
            return real(*args, **kw)

        with monkeypatch.context() as patch:
            replace_run(patch, run)
            with pytest.raises(InferenceError, match="broken"):
                embed()
        assert list((tmp_path / "job" / "_temporary").iterdir()) == []
        embed()
        assert data_files(tmp_path / "job") == expected

    def test_it_is_slow(self, embed, expected, monkeypatch, tmp_path):
        def run(real, *args, **kw):
            time.sleep(0.1)
            return real(*args, **kw)

        replace_run(monkeypatch, run)
        embed()
        assert data_files(tmp_path / "job") == expected

    def test_large_batches_that_do_not_fit_are_halved(self, embed, expected, monkeypatch, tmp_path):
        sizes = []

        def run(real, ids, *args, **kw):
            sizes.append(len(ids))
            if len(ids) > 4:
                raise OutOfMemoryError("out of memory")
            return real(ids, *args, **kw)

        replace_run(monkeypatch, run)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            assert embed().complete
        assert any("two halves" in str(each.message) for each in warned)
        assert max(sizes) > 4
        assert np.allclose(vectors(tmp_path / "job"), vectors(tmp_path / "whole"), atol=1e-6)

    def test_a_single_text_does_not_fit(self, embed, monkeypatch):
        def run(*_, **__):
            raise OutOfMemoryError("out of memory")

        replace_run(monkeypatch, run)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(OutOfMemoryError):
                embed()

    def test_nan_names_the_row_or_rejects_it(
        self, tiny_bundle, embed, expected, source, monkeypatch, tmp_path
    ):
        mark = Tokenizer.from_file(str(tiny_bundle / "tokenizer.json")).token_to_id(MARK)

        def run(real, ids, *args, **kw):
            (found,) = real(ids, *args, **kw)
            found = found.copy()
            found[(ids == mark).any(axis=1)] = np.nan
            return [found]

        replace_run(monkeypatch, run)
        with pytest.raises(InputError) as raised:
            embed()
        assert str(raised.value).startswith(f"row {BAD} (from 0) of {source} ")
        assert "NaN" in str(raised.value)
        assert "on_error='skip'" in str(raised.value)

        summary = embed(on_error="skip")
        assert (summary.embedded, summary.rejected, summary.complete) == (ROWS - 1, 1, True)
        found = pq.read_table(tmp_path / "job" / "part-00001-of-00004.parquet")
        assert found["id"].to_pylist() == [row for row in range(60, 120) if row != BAD]
        others = np.delete(vectors(tmp_path / "whole"), BAD, axis=0)
        assert np.allclose(vectors(tmp_path / "job"), others, atol=1e-6)
        (rejects,) = (tmp_path / "job" / "_rejects").iterdir()
        (reject,) = map(json.loads, rejects.read_text().splitlines())
        assert (reject["file"], reject["row"], reject["id"]) == (str(source), BAD, BAD)
        assert "NaN" in reject["reason"]
        assert len(expected) == 4


def vectors(folder):
    found = pq.read_table(sorted(folder.glob("part-*.parquet")))
    return np.stack(found["dense"].to_numpy())


class TestStages:
    """Failures of reading and writing."""

    @pytest.mark.parametrize("error", [InputError("gone"), OSError("lost"), MemoryError()])
    def test_a_reader_that_fails(self, embed, expected, monkeypatch, tmp_path, error):
        real = parquet_reader.ParquetReader.read

        def read(self, *args, first, **kw):
            for batch in real(self, *args, first=first, **kw):
                if first == 120:
                    raise error
                yield batch

        with monkeypatch.context() as patch:
            patch.setattr(parquet_reader.ParquetReader, "read", read)
            with pytest.raises(type(error)):
                embed()
        assert embed().shards_done_before <= 2
        assert data_files(tmp_path / "job") == expected

    @pytest.mark.parametrize("step", ["open", "write", "close"])
    def test_a_writer_that_fails(self, embed, expected, monkeypatch, tmp_path, step):
        full = OSError(errno.ENOSPC, "a long text of a library")
        formats = shards.open_format("parquet")
        real = formats.open

        def opens(paths, schema):
            if step == "open" and "00002" in paths[0].name:
                raise full
            writer = real(paths, schema)

            def fails(*_):
                raise full

            if step != "open" and "00002" in paths[0].name:
                setattr(writer, step, fails)
            return writer

        class Format:
            suffixes = formats.suffixes
            open = staticmethod(opens)

        with monkeypatch.context() as patch:
            patch.setattr(shards, "open_format", lambda _: Format)
            with pytest.raises(OutputError, match="No space left on device; complete shards are"):
                embed()
        assert list((tmp_path / "job" / "_temporary").iterdir()) == []
        # Another shard may be completed at the same time.
        assert embed().shards_done_before in (2, 3)
        assert data_files(tmp_path / "job") == expected

    def test_progress_that_fails(self, opened, source, tmp_path, monkeypatch):
        def fails(*_, **__):
            raise RuntimeError("progress")

        from bge_runtime.bulk import embed as embed_module

        monkeypatch.setattr(embed_module.Progress, "update", fails)
        with pytest.raises(RuntimeError, match="progress"):
            embed_dataset(opened, source, tmp_path / "job", show_progress=False)
        assert bulk_threads() == []


PHASES = {
    "listing": (shards.OutputFolder, "check_ours"),
    "counting": (parquet_reader.ParquetReader, "index"),
    "opening": (TextEncoder, "__init__"),
    "reading": (rows.WindowReader, "_cut"),
    "tokenizing": (TextEncoder, "prepare"),
    "computing": (TextEncoder, "compute"),
    "making columns": (encoder_module.PreparedWindow, "table"),
    "completing": (shards.ShardSink, "_complete"),
    "publishing": (output_module.OutputFolder, "_publish"),
    "waiting": (shards.ShardSink, "finish"),
}


def test_interrupts_in_a_process_of_their_own():
    run_in_own_process(__file__, "TestInterrupts")


@in_own_process
class TestInterrupts:
    """Ctrl-C, and a handler of SIGTERM that raises."""

    @pytest.mark.parametrize("phase", PHASES)
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_end_a_run_in_any_phase(self, embed, expected, monkeypatch, tmp_path, phase, number):
        owner, name = PHASES[phase]
        real = getattr(owner, name)
        sent = []

        def interrupted(*args, **kw):
            result = real(*args, **kw)
            sent.append(None)
            if len(sent) == 2 or phase in ("listing", "counting", "opening"):
                os.kill(os.getpid(), number)
                time.sleep(0.3)
            return result

        def terminate(*_):
            raise SystemExit(143)

        before = signal.signal(signal.SIGTERM, terminate)
        try:
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, interrupted)
                started_s = time.monotonic()
                with pytest.raises((KeyboardInterrupt, SystemExit)):
                    embed()
                assert time.monotonic() - started_s < 5
        finally:
            signal.signal(signal.SIGTERM, before)
        assert not list((tmp_path / "job").glob("_temporary/*"))
        assert not list((tmp_path / "job").glob("_manifest/*.lock"))
        embed()
        assert data_files(tmp_path / "job") == expected

    def test_do_not_wait_for_further_attempts_of_an_upload(self, embed, monkeypatch):
        # As if the folder was remote.
        started = threading.Event()

        def retried(self, call):
            started.set()
            assert self._stopped.wait(20), "not told that the run ends"
            raise OSError("lost")

        monkeypatch.setattr(
            output_module.OutputFolder,
            "_publish",
            lambda self, draft, name: (
                retried(self, None)
                if name.startswith("part")
                else os.replace(draft, self.local / name)
            ),
        )

        def interrupt():
            assert started.wait(20)
            os.kill(os.getpid(), signal.SIGINT)

        sender = threading.Thread(target=interrupt)
        sender.start()
        started_s = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            embed()
        sender.join()
        assert time.monotonic() - started_s < 5


class FakeWindow:
    """A window of some batches with one text each."""

    def __init__(self, number, batches):
        self.number, self.done = number, []
        mask = np.ones((1, 1), np.int64)
        self.batches = [Batch(np.array([row]), mask, mask) for row in range(batches)]
        self.finished = threading.Event()
        self.left = batches
        self.lock = threading.Lock()
        if not batches:
            self.finished.set()

    def finish(self, texts):
        with self.lock:
            self.left -= texts
            if not self.left:
                self.finished.set()

    def reject(self, text, reason):
        self.done.append((text, reason))


class FakeEncoder:
    """Computes by a function."""

    def __init__(self, engines, prepare, compute):
        self.engines = [object() for _ in range(engines)]
        self.prepare, self.compute = prepare, compute


@settings(max_examples=100)
@given(st.data())
def test_any_failure_of_any_stage_is_raised_and_ends_all_threads(data):
    batches = data.draw(st.lists(st.integers(0, 4), max_size=8), label="batches of windows")
    engines = data.draw(st.integers(1, 5), label="engines")
    names = st.sampled_from(["read", "prepare", "compute", "write", "finish"])
    failing = data.draw(st.dictionaries(names, st.integers(0, 20), max_size=2), label="failing")
    seen = dict.fromkeys(("read", "prepare", "compute", "write", "finish"), 0)
    lock = threading.Lock()
    written, stopped, closed = [], [], []

    def step(name):
        with lock:
            seen[name] += 1
            fails = failing.get(name) == seen[name] - 1
        if fails:
            raise ValueError(name)

    def windows():
        try:
            for number, count in enumerate(batches):
                step("read")
                yield FakeWindow(number, count)
        finally:
            closed.append(None)

    def prepare(window):
        step("prepare")
        return window

    def write(window):
        step("write")
        assert window.left == 0
        written.append(window.number)

    run = pipeline_module.Pipeline(
        windows(),
        FakeEncoder(engines, prepare, lambda *_: step("compute")),
        write,
        finish=lambda: step("finish"),
        on_stop=lambda: stopped.append(None),
    ).run
    work = {"read": len(batches), "prepare": len(batches), "compute": sum(batches)}
    work |= {"write": len(batches), "finish": 1}
    if any(at < work[name] for name, at in failing.items()):
        with pytest.raises(ValueError, match="|".join(failing)):
            run()
        assert stopped
        assert written == list(range(len(written)))
    else:
        run()
        assert written == list(range(len(batches)))
        assert not stopped
    assert closed or not batches or failing.get("read") == 0
    assert bulk_threads() == []


@pytest.mark.parametrize("engines", [1, 4])
@pytest.mark.parametrize("slow", ["compute", "write"])
def test_few_windows_are_in_memory(engines, slow):
    alive = weakref.WeakSet()
    most = 0

    def windows():
        nonlocal most
        for number in range(40):
            window = FakeWindow(number, 3)
            alive.add(window)
            most = max(most, len(alive))
            yield window
            del window

    def wait(name):
        if name == slow:
            time.sleep(0.002)

    run = pipeline_module.Pipeline(
        windows(),
        FakeEncoder(engines, lambda window: window, lambda *_: wait("compute")),
        lambda _: wait("write"),
    ).run
    gc.collect()
    run()
    assert most <= 8


def test_a_text_that_is_not_finite_is_found_among_many():
    window = FakeWindow(0, 0)
    window.finished.clear()
    window.left = 37
    ids = np.arange(37).reshape(-1, 1)
    window.batches = [Batch(np.arange(37), ids, np.ones_like(ids))]
    computed = []

    def compute(engine, window, batch):
        if 23 in batch.input_ids:
            raise NotFiniteError("NaN")
        computed.extend(batch.rows.tolist())

    written = []
    pipeline_module.Pipeline(
        (each for each in [window]), FakeEncoder(1, lambda each: each, compute), written.append
    ).run()
    assert written == [window]
    assert window.done == [(23, "NaN")]
    assert sorted(computed) == [row for row in range(37) if row != 23]


def test_a_batch_is_computed_though_no_second_one_comes_for_a_while():
    windows = (FakeWindow(number, int(number in (0, 20))) for number in range(21))
    written = []
    pipeline_module.Pipeline(
        windows, FakeEncoder(3, lambda each: each, lambda *_: None), written.append
    ).run()
    assert [window.number for window in written] == list(range(21))
