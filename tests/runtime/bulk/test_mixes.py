"""Shards of other jobs, inputs that change while they are read, other versions and devices."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bge_runtime import FlagModel
from bge_runtime.bulk import InputError, OutputError, embed_dataset
from bge_runtime.bulk import shards as module
from bge_runtime.bulk.vectors import encoder, model
from bge_runtime.system import BackgroundTask
from tests.helpers.bulk import make_texts, write_parquet


@pytest.fixture
def run(tiny_bundle: Path, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that runs a job of ten shards."""
    source = write_parquet(tmp_path / "input.parquet", make_texts(100))
    opened = FlagModel(str(tiny_bundle))

    def call(output: str = "output", **options: Any) -> Any:
        return embed_dataset(
            opened, options.pop("inputs", source), tmp_path / output,
            **{"rows_per_shard": 10, "show_progress": False, **options},
        )  # fmt: skip

    return call


def test_a_shard_of_another_job_is_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    run("one", max_length=8, shard="1/2")
    run("other", max_length=16, shard="2/2")
    for path in (tmp_path / "other").rglob("part-*"):
        shutil.copy2(path, tmp_path / "one" / path.relative_to(tmp_path / "other"))

    with pytest.raises(OutputError, match="part-00001-of-00010 belongs to another job"):
        run("one", max_length=8)
    with pytest.raises(OutputError, match="belongs to another job"):  # seen at the end
        run("one", max_length=8, shard="1/2")


def test_copies_of_a_folder_can_be_put_together(run: Callable[..., Any], tmp_path: Path) -> None:
    run("one", shard="1/2")
    run("other", shard="2/2")
    for path in (tmp_path / "other").rglob("part-*"):
        shutil.copy(path, tmp_path / "one" / path.relative_to(tmp_path / "other"))

    summary = run("one")

    assert summary.complete
    assert summary.shards_done_before == 10


def test_an_input_that_changes_while_it_is_read_stops_the_job(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "input.parquet"
    commit, seen, lock = module.ShardSink._commit, [], threading.Lock()

    def change(self: Any, shard: Any) -> Any:
        with lock:  # two shards are completed at once
            if not seen:
                content = bytearray(source.read_bytes())
                content[8] ^= 1
                source.write_bytes(content)
            seen.append(shard.name)
        return commit(self, shard)

    monkeypatch.setattr(module.ShardSink, "_commit", change)
    with pytest.raises(InputError, match=r"input.parquet (was changed|has changed|is damaged)"):
        run()
    assert len(seen) <= 2


def test_rows_that_were_left_out_count_where_the_job_would_stop(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    source = tmp_path / "input.jsonl"
    lines = [json.dumps({"text": text}) for text in make_texts(20)]
    source.write_text("\n".join([*lines, "no JSON", json.dumps({"text": " "})]))
    run(inputs=source, on_error="skip")

    with pytest.raises(InputError, match="1 rejected rows were left out of the shards"):
        run(inputs=source, on_error="stop")
    with pytest.raises(InputError, match="1 empty rows were left out of the shards"):
        run(inputs=source, on_error="skip", on_empty="stop")


def test_another_version_or_processor_is_a_warning(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(shard="1/2")
    monkeypatch.setattr(model, "vector_extensions", lambda: ("avx",))
    monkeypatch.setattr(model, "__version__", "0.0.1")

    with pytest.warns(UserWarning, match=r"and now 0\.0\.1; instructions .*, and now avx: its"):
        assert run().complete


def test_devices_that_compute_other_numbers_are_refused(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = {"cpu": "cpu-fp32", "cuda:0": "cuda-fp16"}
    describe = model.describe_model

    def pretend(found: encoder.TextEncoder) -> Any:
        class Two:
            target_devices = tuple(devices)

            def __getattr__(self, name: str) -> Any:
                return getattr(found.model, name)

            def parts(self) -> Any:
                class Info:
                    def __init__(self, variant: str) -> None:
                        self.info = type("Info", (), {"variant": variant})

                engines = type("E", (), {"on_device": lambda _, name: Info(devices[name])})()
                return type("P", (), {"engines": engines})

        two: Any = type("Encoder", (), {"model": Two(), "options": found.options})
        return describe(two)

    monkeypatch.setattr("bge_runtime.bulk.embed.describe_model", pretend)
    with pytest.raises(ValueError, match="cpu-fp32 on cpu, cuda-fp16 on cuda:0"):
        run()


def test_a_shard_that_cannot_be_completed_stops_the_next_one(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    start = module.ShardSink._start

    def note(self: Any, number: int) -> Any:
        started.append(number)
        return start(self, number)

    def fail(self: Any, shard: Any) -> Any:
        raise OutputError(f"cannot write {shard.name}")

    monkeypatch.setattr(module.ShardSink, "_start", note)
    monkeypatch.setattr(module.ShardSink, "_commit", fail)
    with pytest.raises(OutputError, match="cannot write part-00000"):
        run()
    assert len(started) < 6


def test_one_text_without_tokens_is_rejected_alone(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tokenize = encoder.TextEncoder._tokenize
    calls: list[int] = []

    def strict(self: Any, prepared: Any, cut: Any) -> Any:
        plan = self._plan

        def refuse(texts: list[str], **options: Any) -> Any:
            calls.append(len(texts))
            if any(text.startswith("13 ") or text == "13" for text in texts):
                raise ValueError("text 0 ('13') has no tokens")
            return plan.tokenize(texts, **options)

        self._plan = type(plan)(refuse, plan.prefix)
        try:
            return tokenize(self, prepared, cut)
        finally:
            self._plan = plan

    monkeypatch.setattr(encoder.TextEncoder, "_tokenize", strict)
    summary = run(on_error="skip", rows_per_shard=100)

    assert (summary.embedded, summary.rejected) == (99, 1)
    assert len(calls) < 20
    rejects = tmp_path / "output" / "_rejects" / "part-00000-of-00001.jsonl"
    reject = json.loads(rejects.read_text())
    assert (reject["row"], reject["reason"]) == (13, "('13') has no tokens")


def test_a_shard_whose_thread_starts_late_is_written(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = BackgroundTask._run

    def late(self: Any) -> None:
        time.sleep(0.05)
        begin(self)

    monkeypatch.setattr(BackgroundTask, "_run", late)
    assert run().complete
