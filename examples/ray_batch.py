"""Embed files of Parquet on a Ray cluster, and go on where an earlier run was stopped.

    python ray_batch.py MODEL INPUT OUTPUT

INPUT is a file or a folder with a column `text`, OUTPUT a folder; every node must see both, and
the model. It prints how many rows were embedded and whether the job is complete. The shards are
the same as those of `bge-embed MODEL INPUT -o OUTPUT` on one machine. Set RAY_ADDRESS to use a
cluster that is elsewhere. Needs `pip install 'bge-runtime[cpu,ray]'` on every node.
"""

from __future__ import annotations

import sys

from bge_runtime.bulk import embed_dataset


def main(model: str, source: str, output: str) -> None:
    """Run the job, with a processor for each actor."""
    done = embed_dataset(
        model,
        source,
        output,
        engine="ray",
        ray_options={"num_cpus": 1},
        model_options={"precision": "fp32"},  # the same on nodes with other processors
    )
    print(f"{done.embedded} rows embedded, complete: {done.complete}")


if __name__ == "__main__":
    main(*sys.argv[1:])
