"""What writers do when a file cannot be written: an OSError, and no file left open."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bge_runtime.bulk.vectors import dense_array
from bge_runtime.bulk.writers import open_format
from tests.helpers.arrow import unit_vectors
from tests.helpers.limits import largest_file

FORMATS = ["parquet", "npy", "jsonl"]


def dense_table(rows: int) -> pa.Table:
    return pa.table(
        {"id": np.arange(rows), "dense": dense_array(unit_vectors(rows, 256), "float32")}
    )


def open_files() -> list[str]:
    gc.collect()
    found = []
    for name in os.listdir("/dev/fd"):
        try:
            found.append(os.readlink(f"/dev/fd/{name}"))
        except FileNotFoundError:
            continue
    return found


def check_fails(name: str, paths: list[Path], expected: int, calls: int = 3) -> None:
    """Check that writing some 40 MB a call raises an OSError, and leaves no file open."""
    rows = dense_table(40_000)
    before = open_files()
    writer = None
    with pytest.raises(OSError) as raised:  # noqa: PT011, PT012  # errno is checked
        writer = open_format(name).open(paths, rows.schema)
        for _ in range(calls):
            writer.write(rows)
        writer.close()
    assert raised.value.errno == expected
    if writer is not None:
        writer.abort()
        writer.abort()
    del writer, raised
    assert open_files() == before


def paths_of(name: str, folder: Path) -> list[Path]:
    return [folder / f"part{suffix}" for suffix in open_format(name).suffixes]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is full")
@pytest.mark.parametrize("name", FORMATS)
def test_a_full_device(name: str, tmp_path: Path):
    paths = paths_of(name, tmp_path)
    for path in paths:
        path.symlink_to("/dev/full")
    check_fails(name, paths, errno.ENOSPC)


@pytest.mark.parametrize("megabytes", [0, 1, 60])
@pytest.mark.parametrize("name", FORMATS)
def test_an_error_in_the_middle(name: str, megabytes: int, tmp_path: Path):
    with largest_file((megabytes << 20) + 1):
        check_fails(name, paths_of(name, tmp_path), errno.EFBIG)


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_that_is_not_there(name: str, tmp_path: Path):
    before = open_files()
    with pytest.raises(FileNotFoundError):
        open_format(name).open(paths_of(name, tmp_path / "none"), dense_table(1).schema)
    assert open_files() == before


def test_the_second_file_cannot_be_created(tmp_path: Path):
    vectors, ids = paths_of("npy", tmp_path)
    ids.mkdir()
    before = open_files()
    with pytest.raises(IsADirectoryError):
        open_format("npy").open([vectors, ids], dense_table(1).schema)
    assert open_files() == before


@pytest.mark.parametrize("name", FORMATS)
def test_abort_of_a_shard_that_is_not_complete(name: str, tmp_path: Path):
    before = open_files()
    writer = open_format(name).open(paths_of(name, tmp_path), dense_table(1).schema)
    writer.write(dense_table(10))
    writer.abort()
    assert open_files() == before


def may_mount() -> bool:
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        run = subprocess.run(command, capture_output=True, check=False, timeout=60)
    except FileNotFoundError:
        return False
    return run.returncode == 0


@pytest.mark.parametrize("name", FORMATS)
def test_a_full_disk(name: str, tmp_path: Path):
    if not may_mount():
        pytest.skip("a small disk is mounted, which needs root")
    script = f"""
import errno
from pathlib import Path
from tests.runtime.bulk.writers.test_faults import check_fails, paths_of
check_fails({name!r}, paths_of({name!r}, Path({str(tmp_path)!r})), errno.ENOSPC)
"""
    shell = 'mount -t tmpfs -o size=50m none "$0" && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", shell, str(tmp_path), sys.executable, "-c", script]
    subprocess.run(command, check=True, timeout=120)
