"""Fixtures of the tests on a cluster: three nodes of Ray on this machine, and tiny bundles."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.cluster.bundles import ROOT, make_bundles

if importlib.util.find_spec("ray") is None:
    # The environment of all other tests: these are run by `make cluster`.
    collect_ignore_glob = ["test_*.py"]

SETTINGS = {
    "RAY_AUTH_MODE": "disabled",  # it would write a token to the home folder
    "RAY_USAGE_STATS_ENABLED": "0",
    # By default, Ray's processes give way to all others: on a busy machine they would hardly run.
    "RAY_worker_niceness": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    # A killed node is missed within 2 s, and not within 10.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "2",
    "HF_HUB_OFFLINE": "1",
    # Those of tests/helpers/s3.py. Each node has credentials of its own.
    "AWS_ACCESS_KEY_ID": "a-key-that-is-secret",
    "AWS_SECRET_ACCESS_KEY": "a-secret",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""Read by Ray's processes when they are started."""


@pytest.fixture(autouse=True, scope="session")
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "runtime")]))
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def bundles(_environment: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of a tiny dense model and of a tiny M3."""
    return make_bundles(tmp_path_factory.mktemp("bundles"))


def patiently(start: Callable[[], Any]) -> Any:
    """Start a node; again if it fails: Ray gives it 30 s, which a busy machine may not have."""
    for _ in range(2):
        with suppress(Exception):
            return start()
    return start()


class ThreeNodes:
    """A cluster of three nodes with a processor each, of which two may be killed and come back."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "include_dashboard": False}
        self._cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        self.address = self._cluster.address
        self.workers: list[Any] = []
        self.complete()

    def complete(self) -> None:
        """Start nodes until there are three."""
        while len(self.workers) < 2:
            self.workers.append(patiently(lambda: self._cluster.add_node(num_cpus=1)))

    def kill_a_node(self) -> None:
        """Kill all processes of a node at once."""
        self._cluster.remove_node(self.workers.pop(), allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="session")
def _cluster(_environment: None) -> Iterator[ThreeNodes]:
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own code
        cluster = ThreeNodes()
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.close()


@pytest.fixture
def cluster(_cluster: ThreeNodes) -> ThreeNodes:
    """Three nodes, all of them alive."""
    _cluster.complete()
    return _cluster
