"""LlamaIndex's own classes on top of ours, and the values that come out."""

from __future__ import annotations

import asyncio
import copy
import pickle
from pathlib import Path

import numpy as np
import pytest

from bge_runtime import BGEM3FlagModel, FlagModel
from bge_runtime.errors import BundleError
from tests.helpers.integrations import (
    LONG,
    SAME_VECTOR,
    assert_responsive,
    require_two_callers,
    run_watched,
)
from tests.helpers.runtime import TEXTS, assert_fp32_on_cpu
from tests.helpers.texts import NO_LIST, NO_TEXT

pytest.importorskip("llama_index.core", reason="llama-index-core is not installed")

from llama_index.core.schema import TextNode

from bge_runtime.integrations.llama_index import BgeEmbedding, BgeM3SparseEmbedding

QUERY = "how do heat pumps work?"


@pytest.fixture(scope="module")
def embedding(tiny_bundle: Path):
    """Shared: leave its attributes alone."""
    return BgeEmbedding(model_name=str(tiny_bundle))


@pytest.fixture(scope="module")
def sparse(tiny_m3_bundle: Path):
    """Shared: leave its attributes alone."""
    return BgeM3SparseEmbedding(model_name=str(tiny_m3_bundle))


@pytest.fixture(scope="module")
def model(tiny_bundle: Path):
    return FlagModel(str(tiny_bundle), use_fp16=False)


def assert_same(ours, expected):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=SAME_VECTOR)


def test_vectors_are_the_models(embedding: BgeEmbedding, model: FlagModel):
    assert_fp32_on_cpu(embedding.model)
    assert_same(embedding.get_text_embedding_batch(TEXTS), model.encode(TEXTS))
    assert_same(embedding.get_text_embedding(TEXTS[4]), model.encode(TEXTS[4]))
    assert_same(embedding.get_query_embedding(QUERY), model.encode(QUERY))
    assert type(embedding.get_query_embedding(QUERY)[0]) is float
    assert embedding.get_text_embedding_batch([]) == []


def test_queries_get_the_instruction_that_the_models_authors_recommend(full_tiny_bundle: Path):
    model = FlagModel(str(full_tiny_bundle), use_fp16=False)
    instruction = model.bundle.manifest.model.query_instruction
    assert instruction
    for given, put_before in ((None, instruction), ("Find: ", "Find: "), ("", "")):
        embedding = BgeEmbedding(model_name=str(full_tiny_bundle), query_instruction=given)
        expected = model.encode(put_before + QUERY)
        assert_same(embedding.get_query_embedding(QUERY), expected)
        assert_same(embedding.get_text_embedding(QUERY), model.encode(QUERY))


def test_texts_are_passed_in_batches(tiny_bundle: Path, monkeypatch):
    embedding = BgeEmbedding(model_name=str(tiny_bundle), embed_batch_size=5)
    handed_over = []
    encode = embedding.model.encode
    monkeypatch.setattr(
        embedding.model,
        "encode",
        lambda texts, **_: handed_over.append(len(texts)) or encode(texts),
    )
    embedding.get_text_embedding_batch(TEXTS)
    assert handed_over == [5, 5, 2]


def test_long_texts_of_m3_are_read_unless_cut(tiny_m3_bundle: Path):
    text = "a text of more than five hundred and twelve tokens " * 60
    m3 = BGEM3FlagModel(str(tiny_m3_bundle), use_fp16=False)
    for length, expected in ((None, 1024), (64, 64)):
        embedding = BgeEmbedding(model_name=str(tiny_m3_bundle), max_length=length)
        vectors = m3.encode(text, max_length=expected)["dense_vecs"]
        assert_same(embedding.get_text_embedding(text), vectors)


def test_sparse_vectors_are_m3s_lexical_weights(sparse: BgeM3SparseEmbedding, tiny_m3_bundle: Path):
    m3 = BGEM3FlagModel(str(tiny_m3_bundle), use_fp16=False)
    assert_fp32_on_cpu(sparse.model)
    found = [*sparse.get_text_embedding_batch(TEXTS), sparse.get_query_embedding(QUERY)]
    expected = m3.encode([*TEXTS, QUERY], return_sparse=True, max_length=1024)["lexical_weights"]
    assert any(expected)
    for ours, weights in zip(found, expected, strict=True):
        assert {type(key) for key in ours} <= {int}
        assert {type(value) for value in ours.values()} <= {float}
        assert {str(key) for key in ours} == set(weights)
        for key, value in ours.items():
            assert value == pytest.approx(weights[str(key)], abs=SAME_VECTOR)
    assert sparse.similarity(found[2], found[3]) == pytest.approx(1)


def test_a_model_without_lexical_weights_is_rejected(tiny_bundle: Path):
    with pytest.raises(BundleError, match=r"without lexical weights.* Pass an M3 model"):
        BgeM3SparseEmbedding(model_name=str(tiny_bundle))


def test_an_unknown_option_is_refused(tiny_bundle: Path, tiny_m3_bundle: Path):
    with pytest.raises(ValueError, match="normalise"):
        BgeEmbedding(model_name=str(tiny_bundle), normalise=False)
    with pytest.raises(ValueError, match="normalise"):
        BgeM3SparseEmbedding(model_name=str(tiny_m3_bundle), normalise=False)


def test_arguments_of_the_replaced_class_are_accepted(
    tiny_bundle: Path, embedding: BgeEmbedding, tmp_path: Path
):
    ours = BgeEmbedding(
        model_name=str(tiny_bundle),
        device="cpu",
        cache_folder=str(tmp_path),
        trust_remote_code=True,
        normalize=True,
        text_instruction="",
        parallel_process=False,
        target_devices=None,
        show_progress_bar=False,
        num_workers=2,
        callback_manager=None,
    )
    assert ours.get_text_embedding(QUERY) == embedding.get_text_embedding(QUERY)
    assert BgeEmbedding.from_json(ours.to_json()).to_dict() == ours.to_dict()


def test_texts_get_an_instruction(tiny_bundle: Path, model: FlagModel):
    embedding = BgeEmbedding(model_name=str(tiny_bundle), text_instruction="Passage: ")
    assert_same(embedding.get_text_embedding(QUERY), model.encode("Passage: " + QUERY))
    assert_same(embedding.get_query_embedding(QUERY), model.encode(QUERY))


def test_progress_is_shown_when_asked_for(tiny_bundle: Path, capsys):
    shown = BgeEmbedding(model_name=str(tiny_bundle), show_progress_bar=True)
    shown.get_text_embedding_batch(TEXTS)
    assert f"{len(TEXTS)}/{len(TEXTS)}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"revision": "main"}, r"no argument 'revision'.* model_kwargs=\{'revision'"),
        ({"truncate_dim": 16}, r"no argument 'truncate_dim'.* model_kwargs"),
        ({"parallel_process": True}, r"parallel_process .* devices"),
        ({"target_devices": ["cpu", "cpu"]}, r"target_devices .* devices"),
        ({"device": "cpu", "model_kwargs": {"device": "cpu"}}, "device is given twice"),
        ({"pooling": "cls"}, "no argument 'pooling'"),
        ({"model_kwargs": {"backend": "openvino"}}, "backend='openvino'.*engine"),
    ],
)
def test_the_error_for_a_misplaced_argument_says_where_it_goes(tiny_bundle: Path, options, message):
    with pytest.raises(ValueError, match=message):
        BgeEmbedding(model_name=str(tiny_bundle), **options)


def test_model_kwargs_choose_a_faster_precision(full_tiny_bundle: Path):
    fast = BgeEmbedding(model_name=str(full_tiny_bundle), model_kwargs={"use_fp16": True})
    assert fast.model.engine.info == FlagModel(str(full_tiny_bundle)).engine.info


def test_it_survives_serialisation_and_pickling(embedding: BgeEmbedding):
    copies = (
        BgeEmbedding.from_dict(embedding.to_dict()),
        BgeEmbedding.from_json(embedding.to_json()),
        pickle.loads(pickle.dumps(embedding)),
        copy.deepcopy(embedding),
    )
    for one in copies:
        assert one.get_query_embedding(QUERY) == embedding.get_query_embedding(QUERY)
    assert embedding.to_dict()["class_name"] == "BgeEmbedding"


def test_a_sparse_one_survives_pickling(sparse: BgeM3SparseEmbedding):
    again = pickle.loads(pickle.dumps(sparse))
    assert again.get_query_embedding(QUERY) == sparse.get_query_embedding(QUERY)


def test_a_vector_index_finds_with_it(minilm_bundle):
    from llama_index.core import VectorStoreIndex

    passages = ["A heat pump moves warmth.", "Rye is a grain.", "Paris is in France."]
    index = VectorStoreIndex(
        [TextNode(text=text) for text in passages],
        embed_model=BgeEmbedding(model_name=str(minilm_bundle("mean"))),
    )
    (found,) = index.as_retriever(similarity_top_k=1).retrieve("Which cereal do farmers grow?")
    assert found.node.get_content() == "Rye is a grain."


# -- Event loops --------------------------------------------------------------------------


def test_async_vectors_are_the_sync_ones(embedding: BgeEmbedding, sparse: BgeM3SparseEmbedding):
    (texts, text, query), _, _ = run_watched(
        embedding.aget_text_embedding_batch(TEXTS),
        embedding.aget_text_embedding(QUERY),
        embedding.aget_query_embedding(QUERY),
    )
    assert_same(texts, embedding.get_text_embedding_batch(TEXTS))
    assert_same([text, query], [embedding.get_query_embedding(QUERY)] * 2)
    (texts, text, query), _, _ = run_watched(
        sparse.aget_text_embedding_batch(TEXTS),
        sparse.aget_text_embedding(QUERY),
        sparse.aget_query_embedding(QUERY),
    )
    for found, expected in zip(
        [*texts, text, query],
        [*sparse.get_text_embedding_batch(TEXTS), *[sparse.get_query_embedding(QUERY)] * 2],
        strict=True,
    ):
        assert found == pytest.approx(expected, abs=SAME_VECTOR)


@pytest.mark.timeout(60)
def test_two_async_callers_compute_at_once(tiny_bundle: Path, tiny_m3_bundle: Path):
    for one in (
        BgeEmbedding(model_name=str(tiny_bundle)),
        BgeM3SparseEmbedding(model_name=str(tiny_m3_bundle)),
    ):
        require_two_callers(one.model)
        run_watched(one.aget_query_embedding("one"), one.aget_query_embedding("two"))
        run_watched(one.aget_text_embedding("one"), one.aget_text_embedding_batch(["two"]))


def test_the_event_loop_stays_responsive_while_two_callers_embed(
    embedding: BgeEmbedding, sparse: BgeM3SparseEmbedding
):
    for one in (embedding, sparse):
        results, took, longest_pause = run_watched(
            one.aget_text_embedding_batch(LONG), one.aget_text_embedding_batch(LONG)
        )
        assert [len(vectors) for vectors in results] == [len(LONG), len(LONG)]
        assert_responsive(took, longest_pause)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_anything_but_a_list_of_texts_is_rejected(kind, embedding, sparse):
    embed = embedding if kind == "dense" else sparse
    wanted = "must be a list of strings, not"
    for make, message in [*NO_LIST.values(), (lambda: "one", "a string")]:
        with pytest.raises(TypeError, match=f"texts {wanted} {message}"):
            embed.get_text_embedding_batch(make())
    for make, message in NO_TEXT.values():
        with pytest.raises(TypeError, match=rf"texts\[1\] must be a string, not (?:{message})"):
            embed.get_text_embedding_batch(make())
    with pytest.raises(TypeError, match=f"queries {wanted} a string"):
        embed.get_agg_embedding_from_queries("one")
    for of_one in (embed.get_text_embedding, embed.get_query_embedding):
        with pytest.raises(TypeError, match=r"texts\[0\] must be a string, not list"):
            of_one(["one"])
    with pytest.raises(TypeError, match=f"texts {wanted} a string"):
        asyncio.run(embed.aget_text_embedding_batch("one"))
    with pytest.raises(TypeError, match=f"queries {wanted} a string"):
        asyncio.run(embed.aget_agg_embedding_from_queries("one"))


def test_queries_are_embedded_together(embedding: BgeEmbedding):
    apart = [embedding.get_query_embedding(text) for text in TEXTS[1:4]]
    assert_same(embedding.get_agg_embedding_from_queries(TEXTS[1:4]), np.mean(apart, axis=0))
