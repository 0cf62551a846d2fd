"""A job is exact and can be resumed: the same bytes, however it was run."""

from __future__ import annotations

import os
import random
import signal
import threading
from functools import partial
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_runtime import BGEM3FlagModel, FlagLLMModel, FlagModel
from bge_runtime.bulk import OutputError, embed_dataset
from bge_runtime.bulk import output as output_module
from tests.helpers.bulk import data_files, make_texts, read_rows, records, run_jobs, write_parquet

ROWS = 700
KILLS = int(os.environ.get("BGE_KILLS", "5"))
"""Moments at which a job is killed; 20 take two minutes on 2 cores."""


@pytest.fixture(scope="module")
def texts():
    return [None if row % 97 == 5 else text for row, text in enumerate(make_texts(ROWS))]


@pytest.fixture(scope="module")
def source(texts, tmp_path_factory):
    return write_parquet(tmp_path_factory.mktemp("input") / "texts.parquet", texts)


@pytest.fixture(scope="module")
def few(texts, tmp_path_factory):
    """A smaller input, for slower models."""
    return write_parquet(tmp_path_factory.mktemp("few") / "texts.parquet", texts[:150])


@pytest.fixture(scope="module")
def embed(tiny_bundle, source):
    """Embed the input into a folder."""

    def call(output, *, model=tiny_bundle, inputs=source, model_options=None, **options):
        options = {"rows_per_shard": 100, "keep": "title", "show_progress": False, **options}
        return embed_dataset(model, inputs, output, model_options=model_options, **options)

    return call


@pytest.fixture(scope="module")
def opened(tiny_bundle):
    """The model, for jobs that need not open it."""
    return FlagModel(str(tiny_bundle), devices="cpu", threads=2)


@pytest.fixture(scope="module")
def expected(embed, tmp_path_factory):
    """The files of a job that ran in one go."""
    folder = tmp_path_factory.mktemp("expected") / "job"
    summary = embed(folder)
    assert summary.complete
    assert (summary.rows, summary.embedded, summary.empty, summary.shards) == (ROWS, 692, 8, 7)
    assert read_rows(folder)["id"].to_pylist() == [n for n in range(ROWS) if n % 97 != 5]
    return data_files(folder)


class TestBytes:
    """The bytes of shards depend on the input and options alone."""

    @pytest.mark.parametrize("threads", [1, 3, 4])
    @pytest.mark.parametrize("parallel", [True, False])
    def test_not_on_threads(self, embed, expected, tmp_path, threads, parallel):
        embed(tmp_path / "job", model_options={"threads": threads, "parallel_batches": parallel})
        assert data_files(tmp_path / "job") == expected

    def test_not_on_threads_of_openvino(self, embed, tmp_path):
        for threads, parallel in ((1, True), (3, True), (4, False)):
            options = {"threads": threads, "parallel_batches": parallel, "engine": "openvino"}
            embed(tmp_path / f"{threads}", model_options=options)
        one, three, four = (data_files(tmp_path / f"{threads}") for threads in (1, 3, 4))
        assert one == three
        assert one == four

    @pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
    def test_not_on_threads_with_the_outputs_of_m3(
        self, embed, few, tiny_m3_bundle, tmp_path, engine
    ):
        found = []
        for threads, parallel in ((1, True), (3, True), (4, False)):
            model = BGEM3FlagModel(
                str(tiny_m3_bundle),
                devices="cpu",
                threads=threads,
                parallel_batches=parallel,
                engine=engine,
            )
            folder = tmp_path / f"{threads}"
            outputs = {"return_sparse": True, "return_colbert_vecs": True}
            embed(folder, model=model, inputs=few, **outputs)
            found.append(data_files(folder))
        assert found[0] == found[1] == found[2]

    @pytest.mark.parametrize("query", [False, True])
    def test_not_on_threads_of_a_decoder(self, embed, few, decoder, tmp_path, query):
        found = []
        for threads in (1, 3):
            model = FlagLLMModel(decoder.bundle, devices="cpu", threads=threads)
            if query:
                model.query_instruction_for_retrieval = "Given a question, find passages. " * 8
            folder = tmp_path / f"{threads}"
            embed(folder, model=model, inputs=few, query=query)
            found.append(data_files(folder))
        assert found[0] == found[1]

    def test_not_on_the_shards_that_a_decoder_computed_before(self, embed, few, decoder, tmp_path):
        # Its cache of prefixes must not matter.
        model = FlagLLMModel(decoder.bundle, devices="cpu", threads=2)
        model.query_instruction_for_retrieval = "Given a question, find passages. " * 8
        options = {"model": model, "inputs": few, "query": True, "rows_per_shard": 40}
        embed(tmp_path / "one", **options)
        for shard in ("3/3", "1/3", "2/3"):
            embed(tmp_path / "three", shard=shard, **options)
        assert data_files(tmp_path / "one") == data_files(tmp_path / "three")

    def test_not_on_the_order_of_processes(self, embed, opened, expected, tmp_path):
        shards = [f"{number}/9" for number in range(1, 10)]  # more than there are shards
        random.Random(0).shuffle(shards)
        summaries = [embed(tmp_path / "job", model=opened, shard=shard) for shard in shards]
        assert [summary.complete for summary in summaries].index(True) >= 6
        assert sum(summary.rows for summary in summaries) == ROWS
        assert sorted(summary.shards for summary in summaries) == [0, 0, *[1] * 7]
        assert data_files(tmp_path / "job") == expected

    def test_not_on_processes_at_the_same_time(self, tiny_bundle, source, expected, tmp_path):
        arguments = job_arguments(tiny_bundle, source, tmp_path / "job")
        jobs = [{"arguments": {**arguments, "shard": f"{n}/3"}} for n in (1, 2, 3)]
        answers = run_jobs(jobs, together=True)
        assert [answer["status"] for answer in answers] == [0, 0, 0], answers[0]["stderr"]
        embed_dataset(**{**arguments, "shard": "1/3"})  # clears, if two of them ended at once
        assert data_files(tmp_path / "job") == expected

    @settings(max_examples=12)
    @given(st.data())
    def test_not_on_how_rows_are_divided_among_files(
        self, embed, opened, texts, tmp_path_factory, data
    ):
        texts = texts[:150]
        cuts = data.draw(st.lists(st.integers(0, 150), max_size=6).map(sorted), label="cuts")
        groups = data.draw(st.integers(1, 200), label="rows of a row group")
        folder = tmp_path_factory.mktemp("divided")
        for number, (start, end) in enumerate(pairwise([0, *cuts, 150])):
            path = folder / "input" / f"{number}.parquet"
            write_parquet(path, texts[start:end], first=start, row_group=groups)
        write_parquet(folder / "whole.parquet", texts)
        run = partial(embed, model=opened, rows_per_shard=40)
        run(folder / "one", inputs=folder / "whole.parquet")
        run(folder / "several", inputs=folder / "input")
        one, several = (data_files(folder / name) for name in ("one", "several"))
        assert {n: b for n, b in one.items() if "_rejects" not in n} == {
            n: b for n, b in several.items() if "_rejects" not in n
        }
        assert one.keys() == several.keys()  # those name the files


def job_arguments(bundle, source, folder):
    return {
        "model": str(bundle),
        "inputs": str(source),
        "output": str(folder),
        "rows_per_shard": 100,
        "keep": "title",
        "show_progress": False,
    }


class TestInterrupted:
    """A job that was stopped goes on, and ends as if it had not been."""

    def test_killed_at_random_moments(self, tiny_bundle, source, expected, tmp_path):
        seed = random.randrange(1 << 32)
        print("seed", seed)  # of a failure
        chosen = random.Random(seed)
        arguments = partial(job_arguments, tiny_bundle, source)
        (whole,) = run_jobs([{"arguments": arguments(tmp_path / "whole"), "event": -1}])
        jobs = []
        for number in range(KILLS):
            folder = tmp_path / f"{number}"
            moment = (
                {"after_s": chosen.uniform(0, 1.1 * whole["seconds"])}
                if number % 3 == 2
                else {"event": chosen.randrange(whole["events"])}
            )
            again = {"event": chosen.randrange(whole["events"])}
            jobs += [{"arguments": arguments(folder), **when} for when in (moment, again, {})]
        answers = run_jobs(jobs)
        for number in range(KILLS):
            when = [job.get("event", job.get("after_s")) for job in jobs[3 * number :][:2]]
            first, second, last = answers[3 * number :][:3]
            assert first["status"] in (0, -signal.SIGKILL), (seed, when, first["stderr"])
            assert second["status"] in (0, -signal.SIGKILL), (seed, when, second["stderr"])
            assert last["status"] == 0, (seed, when, last["stderr"])
            assert data_files(tmp_path / f"{number}") == expected, (seed, when)
        assert sum(answer["status"] != 0 for answer in answers) >= KILLS

    @pytest.mark.parametrize("output_format", ["jsonl", "npy", "lance"])
    def test_killed_while_other_formats_are_written(
        self, tiny_bundle, few, tmp_path, output_format
    ):
        if output_format == "lance":
            pytest.importorskip("lance")

        def arguments(folder):
            return {
                **job_arguments(tiny_bundle, few, folder),
                "keep": (),
                "output_format": output_format,
            }

        (whole,) = run_jobs([{"arguments": arguments(tmp_path / "whole"), "event": -1}])
        jobs = []
        for back in (6, 16, whole["events"] // 3):
            job = {"arguments": arguments(tmp_path / f"{back}")}
            jobs += [{**job, "event": whole["events"] - back}, job]
        answers = run_jobs(jobs)
        assert [answer["status"] for answer in answers[1::2]] == [0, 0, 0], answers[0]["stderr"]
        assert sum(answer["status"] == -signal.SIGKILL for answer in answers) >= 2
        for job in jobs[1::2]:
            folder = Path(job["arguments"]["output"])
            assert data_files(folder) == data_files(tmp_path / "whole")
            if output_format == "lance":  # its files have random names
                import lance

                written = [
                    lance.dataset(each / "vectors.lance").to_table().sort_by("id")
                    for each in (folder, tmp_path / "whole")
                ]
                assert written[0] == written[1]

    def test_stopped_at_any_step(self, embed, few, opened, tmp_path, monkeypatch):
        run = partial(embed, model=opened, inputs=few)
        run(tmp_path / "whole")
        whole, written = data_files(tmp_path / "whole"), records(tmp_path / "whole")
        steps = [(os, "replace"), (os, "link"), (output_module, "_sync")]
        for stop_at in range(100):
            passed = 0

            def stops(call, stop_at=stop_at):
                def step(*arguments):
                    nonlocal passed
                    passed += 1
                    if passed == stop_at + 1:
                        raise Interrupted
                    return call(*arguments)

                return step

            folder = tmp_path / f"{stop_at}"
            with monkeypatch.context() as patch:
                for module, name in steps:
                    patch.setattr(module, name, stops(getattr(module, name)))
                try:
                    run(folder)
                except Interrupted:
                    done = len(list(folder.glob("_manifest/part-*.json")))
                else:
                    assert data_files(folder) == whole
                    break
            assert run(folder).shards_done_before == done
            assert data_files(folder) == whole
            assert records(folder) == written
        assert stop_at > 15

    def test_threads_of_one_process_do_not_share_a_lock(self, embed, opened, tmp_path):
        folder = tmp_path / "job"
        held = threading.Event()
        free = threading.Event()

        def hold():
            location = output_module.OutputFolder(output_location(folder))
            location.create()
            with location.lock("1/1"):
                held.set()
                free.wait(20)

        holder = threading.Thread(target=hold)
        holder.start()
        assert held.wait(20)
        try:
            for shard in (None, "1/1", "2/2", "5/7"):
                with pytest.raises(OutputError, match="another process is writing to"):
                    embed(folder, model=opened, shard=shard)
        finally:
            free.set()
            holder.join()
        assert embed(folder, model=opened).complete


class Interrupted(BaseException):
    """As KeyboardInterrupt, which pytest treats in another way."""


def output_location(folder):
    from bge_runtime.bulk.files import open_location

    return open_location(folder)


def test_processes_with_other_shards_have_their_own_locks(tmp_path):
    folder = output_module.OutputFolder(output_location(tmp_path))
    folder.create()
    with folder.lock("1/4"), folder.lock("2/4"), folder.lock("3/8"):
        for taken in ("1/4", "1/2", "5/8", "7/8", "1/1", "2/3"):
            if taken == "7/8":
                with folder.lock(taken):
                    continue
            with pytest.raises(OutputError, match="wait for it, or end it"), folder.lock(taken):
                pass
    assert not list(tmp_path.glob("_manifest/*"))


def test_a_lock_is_free_once_its_process_was_killed(tiny_bundle, source, tmp_path):
    arguments = job_arguments(tiny_bundle, source, tmp_path / "job")
    (whole,) = run_jobs([{"arguments": job_arguments(tiny_bundle, source, tmp_path / "whole")}])
    jobs = [
        {"arguments": arguments, "event": 2 * whole["events"] // 3},
        {"arguments": {**arguments, "shard": "1/2"}},
        {"arguments": {**arguments, "shard": "2/2"}},
    ]
    answers = run_jobs(jobs)
    assert [answer["status"] for answer in answers] == [-signal.SIGKILL, 0, 0]
    data_files(tmp_path / "job")


class TestNothing:
    """Inputs without a row that can be embedded make a shard without rows."""

    @pytest.mark.parametrize("rows", [[], ["", None, "  "]])
    @pytest.mark.parametrize("shard", [None, "1/3"])
    def test_is_a_shard_without_rows(self, embed, opened, tmp_path, rows, shard):
        import duckdb

        path = write_parquet(tmp_path / "empty.parquet", rows)
        folder = tmp_path / "job"
        if shard:
            assert not embed(folder, model=opened, inputs=path, shard="2/3").complete
        summary = embed(folder, model=opened, inputs=path, shard=shard)
        assert summary.complete
        assert (summary.rows, summary.embedded, summary.empty) == (len(rows), 0, len(rows))
        table = pq.read_table(folder / "part-00000-of-00001.parquet")
        assert table.num_rows == 0
        assert table.schema.names == ["id", "title", "dense"]
        ((count,),) = duckdb.sql(f"select count(*) from '{folder}/*.parquet'").fetchall()
        assert count == 0
        assert embed(folder, model=opened, inputs=path).shards_done_before == 1
