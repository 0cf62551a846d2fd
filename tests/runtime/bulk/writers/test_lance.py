"""The Lance dataset of all shards: written once, and again after an interruption."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest

from bge_runtime.bulk.writers import open_format
from tests.helpers.arrow import embedded_table, write_shard
from tests.helpers.limits import largest_file

lance = pytest.importorskip("lance")


def write_shards(folder: Path, rows: pa.Table, count: int = 3) -> Mapping[str, str]:
    size = rows.num_rows // count
    names = [f"part-{number}" for number in range(count)]
    for number, name in enumerate(names):
        write_shard("lance", folder, rows.slice(number * size, size), stem=name)
    return {f"{name}.parquet": f"digest of {name}" for name in names}


def files(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_the_dataset_has_the_rows_of_all_shards(tmp_path: Path):
    rows = embedded_table(60)
    shards = write_shards(tmp_path, rows)
    form = open_format("lance")
    assert form.result == "vectors.lance"
    form.finish(str(tmp_path), shards)
    dataset = lance.dataset(tmp_path / "vectors.lance")
    assert dataset.to_table().to_pylist() == rows.to_pylist()
    assert dataset.schema.metadata[b"bge_runtime"] == rows.schema.metadata[b"bge_runtime"]


def test_shards_without_rows_become_a_dataset_without_rows(tmp_path: Path):
    shards = write_shards(tmp_path, embedded_table(0))
    open_format("lance").finish(str(tmp_path), shards)
    assert lance.dataset(tmp_path / "vectors.lance").count_rows() == 0


def test_a_complete_dataset_is_kept(tmp_path: Path):
    shards = write_shards(tmp_path, embedded_table(60))
    open_format("lance").finish(str(tmp_path), shards)
    before = files(tmp_path)
    open_format("lance").finish(str(tmp_path), shards)
    assert files(tmp_path) == before


def test_a_dataset_of_other_shards_is_refused_and_kept(tmp_path: Path):
    shards = write_shards(tmp_path, embedded_table(60))
    open_format("lance").finish(str(tmp_path), shards)
    before = files(tmp_path)
    with pytest.raises(OSError, match=r"vectors\.lance was not made of the shards beside it"):
        open_format("lance").finish(str(tmp_path), {**shards, "part-0.parquet": "other"})
    assert files(tmp_path) == before


def test_a_dataset_with_rows_added_later_is_kept(tmp_path: Path):
    shards = write_shards(tmp_path, embedded_table(60))
    open_format("lance").finish(str(tmp_path), shards)
    path = str(tmp_path / "vectors.lance")
    added = lance.dataset(path).to_table().slice(0, 5)
    lance.write_dataset(added, path, mode="append")
    open_format("lance").finish(str(tmp_path), shards)
    assert lance.dataset(path).count_rows() == 65


def test_a_dataset_that_was_killed_is_made_again(tmp_path: Path):
    rows = embedded_table(9_000)
    shards = write_shards(tmp_path, rows)
    script = f"""
from bge_runtime.bulk.writers import lance, open_format
read = lance._read
def slow(paths, schema):
    for number, batch in enumerate(read(paths, schema)):
        yield batch
        if number:
            print("written", flush=True)
            input()
lance._read = slow
open_format("lance").finish({str(tmp_path)!r}, {shards!r})
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"written\n"
        time.sleep(0.1)
        child.kill()
    path = tmp_path / "vectors.lance"
    left = [found for found in path.rglob("*") if found.is_file()]
    assert left
    with pytest.raises(ValueError, match="not found"):
        lance.dataset(path)
    open_format("lance").finish(str(tmp_path), shards)
    assert lance.dataset(path).count_rows() == rows.num_rows
    assert not [found for found in left if found.exists()]


def test_a_dataset_that_cannot_be_written_is_an_os_error(tmp_path: Path):
    shards = write_shards(tmp_path, embedded_table(9_000))
    with largest_file(100_000), pytest.raises(OSError, match=r"cannot write .*vectors\.lance"):
        open_format("lance").finish(str(tmp_path), shards)
    open_format("lance").finish(str(tmp_path), shards)


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match="pip install pylance"):
        open_format("lance")
