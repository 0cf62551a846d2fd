"""``docs/guides/ray.md``: its code is run on the cluster. That for Spark is in tests/spark."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray import serve

from bge_runtime import BGEM3FlagModel, FlagModel
from tests.cluster.bundles import ROOT
from tests.helpers.guides import code_of

TEXTS = [f"entry {row}: {'some words ' * (row % 9)}" for row in range(300)]


@pytest.fixture
def run(cluster, bundles, tmp_path: Path):
    """Returns the names that the code of a section defines, once it was run."""
    table = pa.table({"id": range(len(TEXTS)), "text": TEXTS})
    pq.write_table(table, tmp_path / "articles.parquet")

    def run_section(name: str) -> dict[str, Any]:
        code = code_of("guides/ray.md", name)
        for old, new in (
            ("/models/bge-small-en-v1.5", bundles["dense"]),
            ("/models/bge-m3", bundles["m3"]),
            ("/data/", f"{tmp_path}/"),
        ):
            code = code.replace(old, new)
        scope: dict[str, Any] = {}
        exec(compile(code, "docs/guides/ray.md", "exec"), scope)
        return scope

    return run_section


def test_the_job_is_run(run, bundles, tmp_path, capsys):
    run("A bulk job")
    assert capsys.readouterr().out.startswith(f"{len(TEXTS)} True")
    found = pq.read_table(tmp_path / "vectors")
    expected = FlagModel(bundles["dense"]).encode(TEXTS)
    np.testing.assert_allclose(np.stack(found["dense"].to_numpy()), expected, atol=1e-6)


def test_the_dataset_is_embedded(run, bundles, tmp_path):
    run("Ray Data")
    found = pq.read_table(tmp_path / "ray-vectors").sort_by("id")
    assert found.column_names == ["id", "dense", "sparse"]
    expected = BGEM3FlagModel(bundles["m3"]).encode(TEXTS, return_sparse=True)
    np.testing.assert_allclose(found["dense"].to_pylist(), expected["dense_vecs"], atol=1e-6)
    for one, weights in zip(found["sparse"].to_pylist(), expected["lexical_weights"], strict=True):
        assert one["indices"] == sorted(map(int, weights))


def test_the_application_is_served(run, bundles):
    run("Ray Serve")
    try:
        answer = httpx.post("http://127.0.0.1:8000/embed", json={"inputs": TEXTS[:2]}, timeout=60)
        expected = FlagModel(bundles["dense"]).encode(TEXTS[:2])
        np.testing.assert_allclose(answer.json(), expected, atol=1e-6)
    finally:
        serve.shutdown()


def test_public_names_are_those_of_the_page():
    # In a process of its own, since Ray gives the methods of actors another argument.
    program = (
        "from tests.runtime.test_public_surface import PAGE, section\n"
        "assert section('bge_runtime.integrations.ray') in PAGE.read_text('utf-8')\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
