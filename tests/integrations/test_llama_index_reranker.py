"""``BgeReranker`` in LlamaIndex sorts as the class that it replaces, with the same scores."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest

from bge_bench.systems.base import quiet
from bge_runtime.errors import BundleError
from tests.helpers.integrations import require_two_callers, run_watched
from tests.helpers.rerankers import reranker_bundle, reranker_checkpoint
from tests.helpers.runtime import SAME_VALUE, assert_fp32_on_cpu

pytest.importorskip("llama_index.core", reason="llama-index-core is not installed")

from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from bge_runtime.integrations.llama_index import BgeReranker

QUERY = "how do heat pumps work?"
TEXTS = ["Rye is a grain.", "A heat pump moves warmth.", "", "热泵如何工作", "Rye is a grain."]


@pytest.fixture(scope="module")
def bundle(made_once) -> Path:
    return reranker_bundle("xlm-roberta")


@pytest.fixture(scope="module")
def reranker(bundle: Path) -> BgeReranker:
    """Shared: leave its attributes alone."""
    return BgeReranker(model_name=str(bundle), top_n=5)


def found_nodes() -> list[NodeWithScore]:
    return [
        NodeWithScore(
            node=TextNode(id_=f"n{number}", text=text, metadata={"title": f"Title {number}"}),
            score=0.1 * number,
        )
        for number, text in enumerate(TEXTS)
    ]


def facts(nodes: list[NodeWithScore]) -> list[tuple[str, float]]:
    return [(node.node.node_id, node.score) for node in nodes]


def test_order_and_scores_are_those_of_the_class_it_replaces(reranker: BgeReranker):
    with quiet():
        from llama_index.core.postprocessor import SentenceTransformerRerank

        theirs = SentenceTransformerRerank(
            model=str(reranker_checkpoint("xlm-roberta")), top_n=5, device="cpu"
        )
    assert_fp32_on_cpu(reranker.model)
    nodes = found_nodes()
    ours = facts(reranker.postprocess_nodes(nodes, query_str=QUERY))
    assert facts(nodes) == facts(found_nodes())
    expected = facts(theirs.postprocess_nodes(found_nodes(), query_str=QUERY))
    assert [name for name, _ in ours] == [name for name, _ in expected]
    scores = [score for _, score in expected]
    assert np.ptp(scores) > 0.01
    np.testing.assert_allclose([score for _, score in ours], scores, rtol=0, atol=SAME_VALUE)


def test_the_best_nodes_are_returned(bundle: Path, reranker: BgeReranker):
    everything = reranker.postprocess_nodes(found_nodes(), query_str=QUERY)
    ours = BgeReranker(model_name=str(bundle))
    assert facts(ours.postprocess_nodes(found_nodes(), QueryBundle(QUERY))) == facts(everything[:2])
    assert {type(node.score) for node in everything} == {float}
    assert ours.postprocess_nodes([], query_str=QUERY) == []
    with pytest.raises(ValueError, match="needs the query"):
        ours.postprocess_nodes(found_nodes())


def test_scores_are_logits_on_request(bundle: Path, reranker: BgeReranker):
    ours = BgeReranker(model_name=str(bundle), top_n=5, normalize=False)
    logits = np.array([node.score for node in ours.postprocess_nodes(found_nodes(), None, QUERY)])
    assert np.abs(logits).max() > 1
    normalized = [node.score for node in reranker.postprocess_nodes(found_nodes(), None, QUERY)]
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), normalized, rtol=0, atol=SAME_VALUE)


def test_options_reach_the_model(bundle: Path, tmp_path: Path):
    ours = BgeReranker(
        model_name=str(bundle),
        max_length=64,
        device="cpu",
        cache_folder=str(tmp_path),
        trust_remote_code=True,
        model_kwargs={"batch_size": 7},
    )
    assert (ours.model.max_length, ours.model.batch_size) == (64, 7)
    with pytest.raises(ValueError, match="made_up"):
        BgeReranker(model_name=str(bundle), made_up=1)
    with pytest.raises(TypeError, match="device is an argument of its own"):
        BgeReranker(model_name=str(bundle), device="cpu", model_kwargs={"device": "cpu"})


def test_an_embedder_is_refused_by_name(tiny_bundle: Path):
    with pytest.raises(BundleError, match=r"no reranker\. Open it with FlagModel"):
        BgeReranker(model_name=str(tiny_bundle))


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        lambda it: pickle.loads(pickle.dumps(it)),
        lambda it: BgeReranker.from_json(it.to_json()),
    ],
)
def test_a_copy_sorts_alike(reranker: BgeReranker, duplicate):
    found = duplicate(reranker).postprocess_nodes(found_nodes(), query_str=QUERY)
    assert facts(found) == facts(reranker.postprocess_nodes(found_nodes(), query_str=QUERY))


def test_callbacks_see_the_reranking(bundle: Path):
    handler = LlamaDebugHandler(print_trace_on_end=False)
    ours = BgeReranker(model_name=str(bundle), callback_manager=CallbackManager([handler]))
    found = ours.postprocess_nodes(found_nodes(), query_str=QUERY)
    ((start, end),) = handler.get_event_pairs(CBEventType.RERANKING)
    assert start.payload["query_str"] == QUERY
    assert end.payload["nodes"] == found


@pytest.mark.timeout(60)
def test_two_async_callers_compute_at_once(bundle: Path, reranker: BgeReranker):
    ours = BgeReranker(model_name=str(bundle), top_n=5)
    require_two_callers(ours.model)
    (one, two), _, _ = run_watched(
        ours.apostprocess_nodes(found_nodes()[:1], query_str=QUERY),
        ours.apostprocess_nodes(found_nodes()[1:2], query_str=QUERY),
    )
    expected = dict(facts(reranker.postprocess_nodes(found_nodes(), query_str=QUERY)))
    for name, score in facts([*one, *two]):
        assert score == pytest.approx(expected[name], abs=SAME_VALUE)
