"""`serve_app` on Ray Serve: replicas that OpenAI's client uses as it uses bge-serve."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import ray
from ray import serve

from bge_runtime import FlagModel
from bge_runtime.integrations.ray import serve_app
from tests.cluster.conftest import ThreeNodes

URL = "http://127.0.0.1:8000"
TEXTS = [f"entry {number}: {'some words ' * (number % 7)}" for number in range(16)]

SAME_VALUE = 1e-6
"""A request is computed in batches of its own, so that sums have another order."""


@pytest.fixture(scope="module")
def deploy(_cluster: ThreeNodes, bundles: dict[str, str]) -> Iterator[Callable[..., None]]:
    """Deploys the tiny dense model as `docs`, in place of what was deployed before."""
    _cluster.complete()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1"})

    def run(**options: Any) -> None:
        serve.run(serve_app(bundles["dense"], name="docs", **options))

    yield run
    serve.shutdown()


@pytest.fixture(scope="module")
def expected(bundles: dict[str, str]) -> np.ndarray:
    """The vectors of a model in this process."""
    return FlagModel(bundles["dense"]).encode(TEXTS)


def client() -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{URL}/v1", api_key="none", timeout=60)


def vectors(answer: Any) -> np.ndarray:
    return np.array([one.embedding for one in answer.data])


def replicas() -> dict[str, str]:
    """Return the states of the replicas by their names."""
    (deployment,) = serve.status().applications["default"].deployments.values()
    return deployment.replica_states


def actors_of_replicas() -> list[Any]:
    """Return the actors of the replicas."""
    found = ray.util.list_named_actors(all_namespaces=True)
    names = [each["name"] for each in found if each["name"].startswith("SERVE_REPLICA::")]
    return [ray.get_actor(name, namespace="serve") for name in names]


def test_two_replicas_answer_and_the_loss_of_one_loses_no_request(deploy, expected):
    deploy(replicas=2)
    assert replicas() == {"RUNNING": 2}
    with client() as one:
        np.testing.assert_allclose(
            vectors(one.embeddings.create(model="docs", input=TEXTS)), expected, atol=SAME_VALUE
        )
    info = httpx.get(f"{URL}/info").json()
    assert info["engine"].endswith(", 1 threads")  # as many as a replica was granted

    until, killed = time.monotonic() + 60, []

    def ask(number: int) -> int:
        asked = 0
        with client() as own:
            # Until a while after the loss, so that requests were on their way.
            while not killed or time.monotonic() < killed[0] + 4:
                assert time.monotonic() < until
                row = (number + asked) % len(TEXTS)
                answer = own.embeddings.create(model="docs", input=TEXTS[row : row + 1])
                np.testing.assert_allclose(vectors(answer)[0], expected[row], atol=SAME_VALUE)
                asked += 1
        return asked

    with ThreadPoolExecutor(6) as threads:
        asking = [threads.submit(ask, number) for number in range(6)]
        time.sleep(2)
        ray.kill(actors_of_replicas()[0], no_restart=False)
        killed.append(time.monotonic())
        answered = [each.result() for each in asking]
    assert min(answered) > 10


def test_requests_without_room_get_429(deploy):
    deploy(replicas=1, max_ongoing_requests=1, max_queued_requests=1)
    body = {"model": "docs", "input": ["a text of many words " * 100] * 500}

    def ask(_: int) -> httpx.Response:
        return httpx.post(f"{URL}/v1/embeddings", json=body, timeout=60)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, range(8)))
    assert {answer.status_code for answer in answers} == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1


def test_the_number_of_replicas_may_be_a_range(bundles):
    with pytest.raises(ValueError, match="the least and the most"):
        serve_app(bundles["dense"], replicas=(3, 2))
    with pytest.raises(ValueError, match="the least and the most"):
        serve_app(bundles["dense"], replicas=(0, 0))


def test_replicas_are_added_with_the_load(deploy):
    quick = {"upscale_delay_s": 0.2, "look_back_period_s": 1, "metrics_interval_s": 0.2}
    deploy(
        autoscaling_config={
            "min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 2, **quick
        }
    )  # fmt: skip
    assert replicas() == {"RUNNING": 1}
    stop: list[bool] = []

    def ask(_: int) -> None:
        with client() as own:
            while not stop:
                own.embeddings.create(model="docs", input=TEXTS * 10)

    with ThreadPoolExecutor(8) as threads:
        asking = [threads.submit(ask, number) for number in range(8)]
        deadline = time.monotonic() + 60
        while replicas().get("RUNNING", 0) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        stop.append(True)
        for each in asking:
            each.result()
    assert replicas().get("RUNNING", 0) == 2
