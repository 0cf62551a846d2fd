"""Fixtures of the clients' tests: servers of a tiny dense model, M3 and reranker."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving_clients.servers import (
    Model,
    Reranker,
    make_reference,
    model_at,
    reranker_at,
    running,
)

if importlib.util.find_spec("tei_client") is None:
    # The environment of all other tests: these are run by `make serving-clients`.
    collect_ignore_glob = ["test_*.py"]

# Read when the clients are imported. Without them they ask the internet.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Bundles of the models, and their outputs."""
    return make_reference(tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="session")
def docs(reference: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A dense model that is the only one of its server."""
    folder = tmp_path_factory.mktemp("docs")
    instruction = ["--query-instruction", reference["instruction"]]
    with running(folder, reference, ["docs"], *instruction) as url:
        yield model_at(url, "docs", reference)


@pytest.fixture(scope="session")
def m3(reference: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """M3, the only model of its server."""
    with running(tmp_path_factory.mktemp("m3"), reference, ["m3"]) as url:
        yield model_at(url, "m3", reference)


@pytest.fixture(scope="session")
def ranker(
    reference: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Reranker]:
    """A reranker that is the only model of its server."""
    with running(tmp_path_factory.mktemp("ranker"), reference, ["ranker"]) as url:
        yield reranker_at(url, reference)


@pytest.fixture(scope="session")
def both(reference: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server of both models."""
    with running(tmp_path_factory.mktemp("both"), reference, ["docs", "m3"]) as url:
        yield url


@pytest.fixture(scope="session")
def guarded(
    reference: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Model, str]]:
    """A dense model whose server asks for an API key, and the key."""
    folder = tmp_path_factory.mktemp("guarded")
    keys: Path = folder / "keys.txt"
    keys.write_text("key-of-the-tests\n")
    with running(folder, reference, ["docs"], "--api-keys", str(keys)) as url:
        yield model_at(url, "docs", reference), "key-of-the-tests"
