"""The recipe for Spark in docs/guides/spark.md: its code is run with a tiny M3."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bge_runtime import BGEM3FlagModel
from tests.cluster.bundles import make_bundles
from tests.helpers.guides import blocks

TEXTS = [f"entry {row}: {'some words ' * (row % 9)}" for row in range(500)]


def recipe() -> tuple[str, str]:
    """Return the page's module, and the program that uses it."""
    module, program = (
        block.text for block in blocks("guides/spark.md") if block.language == "python"
    )
    return module, program


def test_rows_get_the_vectors_of_encode(tmp_path: Path, monkeypatch):
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    bundle = make_bundles(tmp_path)["m3"]
    module, program = recipe()
    for old, new in (
        ("/data/", f"{tmp_path}/"),
        ('"/models/bge-m3"', repr(bundle)),
        (".getOrCreate()", '.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()'),
    ):
        assert old in program
        program = program.replace(old, new)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    (tmp_path / "bge_spark.py").write_text(module)
    table = pa.table({"id": pa.array(range(len(TEXTS)), pa.int64()), "text": [None, *TEXTS[1:]]})
    pq.write_table(table, tmp_path / "articles.parquet")

    scope: dict[str, Any] = {}
    try:
        exec(compile(program, "docs/guides/spark.md", "exec"), scope)
    finally:
        if "spark" in scope:
            scope["spark"].stop()

    found = pq.read_table(tmp_path / "spark-vectors").sort_by("id")
    assert found["id"].to_pylist() == list(range(len(TEXTS)))
    dense, sparse = found["dense"].to_pylist(), found["sparse"].to_pylist()
    assert dense[0] is None
    expected = BGEM3FlagModel(bundle).encode(TEXTS[1:], return_sparse=True)
    np.testing.assert_allclose(dense[1:], expected["dense_vecs"], atol=1e-6)
    for one, weights in zip(sparse[1:], expected["lexical_weights"], strict=True):
        assert one["indices"] == sorted(map(int, weights))
        by_id = [weights[str(token)] for token in one["indices"]]
        np.testing.assert_allclose(one["values"], by_id, atol=1e-6)
