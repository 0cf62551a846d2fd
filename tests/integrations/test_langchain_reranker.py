"""``BgeReranker`` in LangChain sorts as the class that it replaces, with the same scores."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest

from bge_bench.systems.base import quiet
from bge_runtime import FlagReranker
from bge_runtime.errors import BundleError
from tests.helpers.integrations import assert_responsive, require_two_callers, run_watched
from tests.helpers.rerankers import reranker_bundle, reranker_checkpoint
from tests.helpers.runtime import SAME_VALUE, assert_fp32_on_cpu

pytest.importorskip("langchain_core", reason="langchain-core is not installed")

from langchain_core.documents import Document

from bge_runtime.integrations.langchain import BgeReranker

QUERY = "how do heat pumps work?"
TEXTS = ["Rye is a grain.", "A heat pump moves warmth.", "", "热泵如何工作", "Rye is a grain."]
DOCUMENTS = [
    Document(text, id=f"d{number}", metadata={"page": number}) for number, text in enumerate(TEXTS)
]


@pytest.fixture(scope="module")
def bundle(made_once) -> Path:
    return reranker_bundle("xlm-roberta")


@pytest.fixture(scope="module")
def reranker(bundle: Path) -> BgeReranker:
    """Shared: leave its attributes alone."""
    return BgeReranker(model_name=str(bundle), top_n=None)


def scores_of(documents) -> list[float]:
    return [document.metadata["relevance_score"] for document in documents]


def test_order_and_scores_are_those_of_the_class_it_replaces(reranker: BgeReranker):
    pytest.importorskip("langchain_classic", reason="langchain-classic is not installed")
    pytest.importorskip("langchain_community", reason="langchain-community is not installed")
    with quiet():
        from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
        from langchain_community.cross_encoders import HuggingFaceCrossEncoder

        encoder = HuggingFaceCrossEncoder(
            model_name=str(reranker_checkpoint("xlm-roberta")), model_kwargs={"device": "cpu"}
        )
    theirs = CrossEncoderReranker(model=encoder, top_n=5)
    assert_fp32_on_cpu(reranker.model)
    ours = reranker.compress_documents(DOCUMENTS, QUERY)
    expected = theirs.compress_documents(DOCUMENTS, QUERY)
    assert [each.page_content for each in ours] == [each.page_content for each in expected]
    texts = [each.page_content for each in ours]
    scores = encoder.score([(QUERY, text) for text in texts])
    assert np.ptp(scores) > 0.01
    np.testing.assert_allclose(scores_of(ours), scores, rtol=0, atol=SAME_VALUE)


def test_long_documents_are_read_as_far_as_the_model_reads(made_once):
    # Not at FlagEmbedding's 512 tokens.
    bundle = reranker_bundle("long xlm-roberta")
    documents = [Document("a text of more than five hundred and twelve tokens " * 60)]
    model = FlagReranker(str(bundle))
    pairs = [(QUERY, documents[0].page_content)]
    whole, cut = (model.compute_score(pairs, max_length=n) for n in (1024, 512))
    assert abs(whole[0] - cut[0]) > 0.1
    for length, expected in ((None, whole), (512, cut)):
        ours = BgeReranker(model_name=str(bundle), max_length=length, normalize=False)
        found = scores_of(ours.compress_documents(documents, QUERY))
        np.testing.assert_allclose(found, expected, rtol=0, atol=SAME_VALUE)


def test_the_best_documents_are_copies_with_scores(reranker: BgeReranker, bundle: Path):
    before = copy.deepcopy(DOCUMENTS)
    found = BgeReranker(model_name=str(bundle), top_n=2).compress_documents(DOCUMENTS, QUERY)
    expected = reranker.model.rerank(QUERY, TEXTS, 2)
    assert [(each.id, each.metadata["page"]) for each in found] == [
        (f"d{each.index}", each.index) for each in expected
    ]
    assert scores_of(found) == sorted(scores_of(found), reverse=True)
    assert {type(score) for score in scores_of(found)} == {float}
    assert before == DOCUMENTS
    assert len(BgeReranker(model_name=str(bundle)).compress_documents(DOCUMENTS, QUERY)) == 3
    assert reranker.compress_documents([], QUERY) == []


def test_logits_on_request(bundle: Path, reranker: BgeReranker):
    ours = BgeReranker(model_name=str(bundle), top_n=None, normalize=False)
    found = np.array(scores_of(ours.compress_documents(DOCUMENTS, QUERY)))
    assert np.abs(found).max() > 1
    normalized = scores_of(reranker.compress_documents(DOCUMENTS, QUERY))
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), normalized, rtol=0, atol=SAME_VALUE)


def test_model_kwargs_reach_the_model(bundle: Path):
    ours = BgeReranker(
        model_name=str(bundle),
        model_kwargs={"device": "cpu", "batch_size": 7, "query_instruction_for_rerank": "Find: "},
    )
    assert ours.model.batch_size == 7
    assert ours.model.query_instruction_for_rerank == "Find: "
    with pytest.raises(ValueError, match="made_up"):
        BgeReranker(model_name=str(bundle), made_up=True)
    with pytest.raises(ValueError, match=r"backend='openvino'.*engine"):
        BgeReranker(model_name=str(bundle), model_kwargs={"backend": "openvino"})
    with pytest.raises(TypeError, match="normalize is an argument of its own"):
        BgeReranker(model_name=str(bundle), model_kwargs={"normalize": True})
    with pytest.raises(ValueError, match="top_n"):
        BgeReranker(model_name=str(bundle), top_n=0)


def test_an_embedder_is_refused_by_name(tiny_bundle: Path):
    with pytest.raises(BundleError, match=r"no reranker\. Open it with FlagModel"):
        BgeReranker(model_name=str(tiny_bundle))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_sorts_alike(reranker: BgeReranker, duplicate):
    found = duplicate(reranker).compress_documents(DOCUMENTS, QUERY)
    assert found == reranker.compress_documents(DOCUMENTS, QUERY)


def test_a_retriever_compresses_with_it(bundle: Path):
    classic = pytest.importorskip(
        "langchain_classic.retrievers", reason="langchain-classic is not installed"
    )
    from langchain_core.retrievers import BaseRetriever

    class All(BaseRetriever):
        def _get_relevant_documents(self, query, *, run_manager):
            return DOCUMENTS

    retriever = classic.ContextualCompressionRetriever(
        base_retriever=All(), base_compressor=BgeReranker(model_name=str(bundle), top_n=2)
    )
    found = retriever.invoke(QUERY)
    assert scores_of(found) == sorted(scores_of(found), reverse=True)
    (awaited,), _, _ = run_watched(retriever.ainvoke(QUERY))
    assert awaited == found
    assert len(found) == 2


# -- Event loops --------------------------------------------------------------------------


@pytest.mark.timeout(60)
def test_two_async_callers_compute_at_once(bundle: Path):
    ours = BgeReranker(model_name=str(bundle))
    require_two_callers(ours.model)
    run_watched(
        ours.acompress_documents(DOCUMENTS[:1], "one"),
        ours.acompress_documents(DOCUMENTS[:1], "two"),
    )


def test_the_event_loop_stays_responsive(reranker: BgeReranker):
    documents = [Document("heat pumps and their sources of warmth " * n) for n in range(200)]
    (found,), took, longest_pause = run_watched(reranker.acompress_documents(documents, QUERY))
    assert len(found) == 200
    assert_responsive(took, longest_pause)


def test_texts_that_are_none_are_rejected(reranker: BgeReranker):
    with pytest.raises(TypeError, match="query must be a string, not None"):
        reranker.compress_documents(DOCUMENTS, None)


def test_an_argument_that_is_given_twice_is_refused(bundle):
    with pytest.raises(TypeError, match="max_length is an argument of its own; leave it out"):
        BgeReranker(model_name=str(bundle), model_kwargs={"max_length": 100})
