"""A job over files beside encode: outputs that were not asked for, and a process that ends."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bge_bench.errors import BenchError
from bge_bench.experiments import bulk
from bge_bench.experiments.bulk import BulkPlan, measure_bulk


@pytest.fixture
def make_plan(tiny_m3_bundle: Path) -> Callable[..., BulkPlan]:
    def make(**outputs: Any) -> BulkPlan:
        return BulkPlan(
            bundle=tiny_m3_bundle,
            texts=["one text", "another one of more words"],
            rows=20,
            rounds=1,
            threads=2,
            precision=None,
            outputs=outputs,
        )

    return make


def test_what_is_false_is_not_measured(make_plan: Callable[..., BulkPlan], tmp_path: Path):
    plan = make_plan(return_dense=False, return_sparse=True, return_colbert_vecs=False)
    found = measure_bulk(plan, tmp_path, lambda _: None)
    assert found["parity"] == {}
    assert [each["encode"]["texts"] for each in found["rounds"]] == [20]
    assert (tmp_path / "output" / "part-00000-of-00001.parquet").exists()


def _end(*_: object) -> None:
    os._exit(3)


def test_a_process_that_ends_is_one_error(make_plan: Callable[..., BulkPlan]):
    with bulk._process(_end, make_plan()) as ask:
        for _ in range(2):  # the second one finds that nobody listens
            with pytest.raises(BenchError, match="a process of the benchmark has ended"):
                ask(None)
