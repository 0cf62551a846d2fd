"""A job is exact and can be resumed: the same bytes, however it was run."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from bge_runtime.bulk import OutputError, embed_dataset
from tests.helpers.bulk import data_files, make_texts, read_rows, records, write_parquet

ROWS = 700


@pytest.fixture(scope="module")
def texts():
    return [None if row % 97 == 5 else text for row, text in enumerate(make_texts(ROWS))]


@pytest.fixture(scope="module")
def source(texts, tmp_path_factory):
    return write_parquet(tmp_path_factory.mktemp("input") / "texts.parquet", texts)


@pytest.fixture(scope="module")
def embed(tiny_bundle, source):
    def call(output, *, model=tiny_bundle, inputs=source, threads=2, **options):
        model_options = {"threads": threads, **options.pop("model_options", {})}
        options = {"rows_per_shard": 100, "keep": "title", "show_progress": False, **options}
        return embed_dataset(model, inputs, output, model_options=model_options, **options)

    return call


@pytest.fixture(scope="module")
def expected(embed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected") / "job"
    summary = embed(folder)
    assert summary.complete
    assert (summary.rows, summary.empty, summary.shards) == (ROWS, 8, 7)
    return data_files(folder)


@pytest.mark.parametrize("threads", [1, 3, 4])
@pytest.mark.parametrize("parallel", [True, False])
def test_any_number_of_threads_writes_the_same_bytes(embed, expected, tmp_path, threads, parallel):
    embed(tmp_path / "job", threads=threads, model_options={"parallel_batches": parallel})
    assert data_files(tmp_path / "job") == expected
