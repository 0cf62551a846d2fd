"""``examples/ray_batch.py`` runs on the cluster, and goes on where it was stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bge_runtime import FlagModel
from tests.cluster.bundles import ROOT


def test_the_example_embeds_every_row_once(cluster, bundles, tmp_path: Path):
    texts = [f"entry {row}: {'some words ' * (row % 9)}" for row in range(100)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "texts.parquet")
    command = [
        sys.executable, "-W", "ignore", ROOT / "examples" / "ray_batch.py",
        bundles["dense"], tmp_path / "texts.parquet", tmp_path / "vectors",
    ]  # fmt: skip
    for embedded in (100, 0):
        done = subprocess.run(
            list(map(str, command)), env=os.environ | {"RAY_ADDRESS": cluster.address},
            check=False, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.endswith(f"{embedded} rows embedded, complete: True\n")
    found = np.stack(pq.read_table(tmp_path / "vectors")["dense"].to_numpy())
    np.testing.assert_allclose(found, FlagModel(bundles["dense"]).encode(texts), atol=1e-6)
