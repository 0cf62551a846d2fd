"""What `/health` says of engines that work, and of those that do not."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("starlette", reason="the extra serve is not installed")

from starlette.testclient import TestClient

from bge_runtime import FlagModel
from bge_runtime.serving import ServeOptions, create_app, health
from bge_runtime.serving.scheduling import EngineGroup


def wait_for(condition):
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_a_long_batch_is_healthy_until_it_has_stalled(tiny_bundle, monkeypatch):
    monkeypatch.setattr(health, "_LATELY_S", 0.0)
    compute, released = EngineGroup._compute, threading.Event()

    def blocked(*arguments):
        assert released.wait(30)
        compute(*arguments)

    app = create_app(FlagModel(str(tiny_bundle)), ServeOptions(engine_timeout_s=3.0))
    with TestClient(app) as client, ThreadPoolExecutor(1) as threads:
        assert client.get("/health").status_code == 200
        monkeypatch.setattr(EngineGroup, "_compute", blocked)
        asked = threads.submit(client.post, "/embed", json={"inputs": "a long text"})
        wait_for(lambda: app.state.models[0].scheduler.running_batches)
        assert client.get("/health").status_code == 200
        wait_for(lambda: client.get("/health").status_code == 503)
        assert asked.result().status_code == 503
        released.set()
        monkeypatch.setattr(EngineGroup, "_compute", compute)
        wait_for(lambda: client.get("/health").status_code == 200)
