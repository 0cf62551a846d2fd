"""Our rerankers and FlagEmbedding's, over the same weights."""

from __future__ import annotations

import contextlib
import io
import warnings
from types import SimpleNamespace

import pytest

from bge_runtime import FlagReranker
from tests.helpers.rerankers import reranker_bundle, reranker_checkpoint


@pytest.fixture(scope="session")
def upstream_rerankers(upstream):
    """FlagEmbedding's classes of rerankers, with its progress bars off."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from FlagEmbedding import FlagAutoReranker, FlagLLMReranker, FlagReranker
        from FlagEmbedding.inference.reranker import model_mapping
    return SimpleNamespace(
        FlagReranker=FlagReranker,
        FlagLLMReranker=FlagLLMReranker,
        FlagAutoReranker=FlagAutoReranker,
        model_mapping=model_mapping,
    )


@pytest.fixture(scope="session", params=["bert", "xlm-roberta", "long xlm-roberta"])
def family(request):
    """A family of encoders."""
    return request.param


@pytest.fixture(scope="session")
def reranker(made_once, family):
    """Our reranker of a family, in fp32 on ONNX Runtime. Shared: leave its attributes alone."""
    model = FlagReranker(str(reranker_bundle(family)), engine="onnxruntime")
    assert (model.engine.info.precision, model.engine.info.provider) == (
        "fp32",
        "CPUExecutionProvider",
    )
    return model


@pytest.fixture(scope="session")
def theirs(upstream_rerankers, made_once, family):
    """A function that returns FlagEmbedding's scores of pairs."""
    model = upstream_rerankers.FlagReranker(str(reranker_checkpoint(family)), devices="cpu")

    def score(pairs, **options):
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model.compute_score(pairs, **options)

    return score
