"""A Celery worker that embeds texts in several processes, for which it opens one model.

    MODEL=bge-small-en-v1.5 celery -A celery_worker worker --concurrency 2
    python celery_worker.py "a heat pump" "rye"

The second command sends a task and prints the shape of its answer, `(2, 384)`. The worker opens the
model before Celery forks its processes. A model survives that: each child opens an engine of its
own at its first task. CELERY_CONFIG names a module with other settings than a Redis server on this
machine. Needs `pip install 'bge-runtime[cpu]' 'celery[redis]'`.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from celery import Celery
from celery.signals import worker_init

from bge_runtime import FlagModel

REDIS = "redis://localhost:6379/0"
app = Celery("celery_worker")
app.config_from_object(
    os.environ.get("CELERY_CONFIG") or {"broker_url": REDIS, "result_backend": REDIS}
)
models: dict[str, FlagModel] = {}


@worker_init.connect
def open_model(**_: Any) -> None:
    """Open the model, with one thread for each process that Celery will fork."""
    models["default"] = FlagModel(os.environ["MODEL"], threads=1)


@app.task(name="embed")
def embed(texts: list[str]) -> list[list[float]]:
    """Return the vectors of some texts, as JSON has them."""
    vectors: list[list[float]] = models["default"].encode(texts).tolist()
    return vectors


if __name__ == "__main__":
    print(np.shape(embed.delay(sys.argv[1:]).get(timeout=60)))
