"""Models of ours and of FlagEmbedding's, side by side."""

from __future__ import annotations

import gc
import warnings
from types import SimpleNamespace

import pytest

from bge_runtime import FlagModel


@pytest.fixture(scope="session")
def model(tiny_bundle):
    """The tiny model with [CLS] pooling. Shared: leave its attributes alone."""
    return FlagModel(str(tiny_bundle))


@pytest.fixture(scope="session")
def upstream():
    """FlagEmbedding's classes and tables, with its progress bars off."""
    with warnings.catch_warnings():
        # Deprecations in what it imports are not ours to mend.
        warnings.simplefilter("ignore")
        from FlagEmbedding import BGEM3FlagModel, FlagAutoModel, FlagModel
        from FlagEmbedding.abc.inference import AbsEmbedder
        from FlagEmbedding.inference.embedder import model_mapping
        from FlagEmbedding.inference.embedder.encoder_only import base, m3
    import torch
    from tqdm import tqdm, trange

    # On tiny models its threads would only wait for one another.
    torch.set_num_threads(1)
    # Each of its models collects garbage when it goes: half a second, with all this loaded.
    gc.freeze()

    def quiet(bar):
        return lambda *args, **options: bar(*args, **{**options, "disable": True})

    for module in (base, m3):
        module.tqdm, module.trange = quiet(tqdm), quiet(trange)
    return SimpleNamespace(
        BGEM3FlagModel=BGEM3FlagModel,
        FlagAutoModel=FlagAutoModel,
        FlagModel=FlagModel,
        AbsEmbedder=AbsEmbedder,
        model_mapping=model_mapping,
    )


@pytest.fixture(scope="session")
def pair(upstream, tiny_checkpoint, tiny_bundle, tiny_mean_bundle):
    """Makes our model and FlagEmbedding's of the same weights, with the same options."""
    bundles = {"cls": tiny_bundle, "mean": tiny_mean_bundle}

    def make(*, pooling="cls", **options):
        options = {"use_fp16": False, "devices": "cpu", "batch_size": 4, **options}
        options["pooling_method"] = pooling
        ours = FlagModel(str(bundles[pooling]), **options)
        theirs = upstream.FlagModel(str(tiny_checkpoint), **options)
        return ours, theirs

    return make
