"""LangChain's own tests, and the values that they leave out."""

from __future__ import annotations

import asyncio
import copy
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from bge_bench.systems.base import quiet
from bge_runtime import FlagModel
from tests.helpers.integrations import (
    LONG,
    SAME_VECTOR,
    assert_responsive,
    require_two_callers,
    run_watched,
)
from tests.helpers.runtime import TEXTS, assert_fp32_on_cpu
from tests.helpers.texts import NO_LIST, NO_TEXT

pytest.importorskip("langchain_core", reason="langchain-core is not installed")
pytest.importorskip("langchain_tests", reason="langchain-tests is not installed")

from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from bge_runtime.integrations.langchain import BgeEmbeddings

QUERY = "how do heat pumps work?"
CHINESE = "为这个句子生成表示以用于检索相关文章："


class OnTheTinyModel:
    """The settings of langchain-tests."""

    @pytest.fixture(autouse=True)
    def _bundle(self, tiny_bundle):
        self.bundle = str(tiny_bundle)

    @property
    def embeddings_class(self):
        return BgeEmbeddings

    @property
    def embedding_model_params(self):
        return {"model_name": self.bundle}


class TestUnit(OnTheTinyModel, EmbeddingsUnitTests):
    """langchain-tests, unmodified."""


@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore:The test .* is marked with '@pytest.mark.asyncio' but")
class TestIntegration(OnTheTinyModel, EmbeddingsIntegrationTests):
    """langchain-tests, unmodified."""


def original(**options):
    """The class of langchain-community that people come from."""
    pytest.importorskip("langchain_community", reason="langchain-community is not installed")
    with quiet():
        from langchain_community.embeddings import HuggingFaceBgeEmbeddings

        return HuggingFaceBgeEmbeddings(**options)


@pytest.fixture(scope="module")
def embeddings(tiny_bundle):
    """Shared: leave its attributes alone."""
    return BgeEmbeddings(model_name=str(tiny_bundle))


@pytest.fixture(scope="module")
def model(tiny_bundle):
    return FlagModel(str(tiny_bundle), use_fp16=False)


INSTRUCTED = {"query_instruction": "Find: ", "embed_instruction": "Passage: "}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {**INSTRUCTED, "encode_kwargs": {"normalize_embeddings": True}},
        {**INSTRUCTED, "encode_kwargs": {"normalize_embeddings": False, "batch_size": 3}},
    ],
    ids=["defaults", "instructions", "not-normalised"],
)
def test_vectors_are_those_of_the_class_it_replaces(published: Path, tiny_bundle: Path, options):
    options = {"model_kwargs": {"device": "cpu"}, **options}
    theirs = original(model_name=str(published), **copy.deepcopy(options))
    ours = BgeEmbeddings(model_name=str(tiny_bundle), **options)
    assert_fp32_on_cpu(ours.model)
    for mine, other in (
        (ours.embed_documents(TEXTS), theirs.embed_documents(TEXTS)),
        ([ours.embed_query(QUERY)], [theirs.embed_query(QUERY)]),
    ):
        np.testing.assert_allclose(mine, other, rtol=0, atol=SAME_VECTOR)


def test_vectors_of_trained_weights_are_those_of_the_class_it_replaces(
    minilm_checkpoint: Path, minilm_bundle
):
    texts = [*TEXTS, "a text of more than 256 tokens, where that checkpoint cuts " * 60]
    theirs = original(model_name=str(minilm_checkpoint))
    ours = BgeEmbeddings(model_name=str(minilm_bundle("mean")))
    expected = theirs.embed_documents(texts)
    np.testing.assert_allclose(ours.embed_documents(texts), expected, rtol=0, atol=SAME_VECTOR)
    # With the other pooling they are not, so that this can fail.
    broken = BgeEmbeddings(model_name=str(minilm_bundle("cls")))
    assert np.abs(np.array(broken.embed_documents(texts)) - expected).max() > 0.01


def test_a_chinese_model_gets_the_chinese_instruction(
    published: Path, tiny_bundle: Path, tmp_path: Path
):
    # The replaced class depends on the name too.
    checkpoint = shutil.copytree(published, tmp_path / "checkpoints" / "bge-small-zh-v1.5")
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundles" / "bge-small-zh-v1.5")
    ours, theirs = BgeEmbeddings(model_name=str(bundle)), original(model_name=str(checkpoint))
    assert ours.query_instruction == theirs.query_instruction == CHINESE
    np.testing.assert_allclose(
        ours.embed_query("热泵"), theirs.embed_query("热泵"), rtol=0, atol=SAME_VECTOR
    )
    # That one overrules what it is given. Ours does not.
    own = BgeEmbeddings(model_name=str(bundle), query_instruction="问：")
    assert own.query_instruction == "问："


def test_the_instruction_may_be_changed_later(tiny_bundle: Path, model: FlagModel):
    embeddings = BgeEmbeddings(model_name=str(tiny_bundle))
    embeddings.query_instruction = "Find: "
    np.testing.assert_allclose(
        embeddings.embed_query(QUERY), model.encode("Find: " + QUERY), rtol=0, atol=SAME_VECTOR
    )
    embeddings.query_instruction = ""
    np.testing.assert_allclose(
        embeddings.embed_query(QUERY), model.encode(QUERY), rtol=0, atol=SAME_VECTOR
    )


def test_dense_vectors_of_m3_are_read_to_its_full_length(tiny_m3_bundle: Path):
    from bge_runtime import BGEM3FlagModel

    texts = ["short", "a text of more than five hundred and twelve tokens " * 60]
    embeddings = BgeEmbeddings(model_name=str(tiny_m3_bundle), query_instruction="")
    m3 = BGEM3FlagModel(str(tiny_m3_bundle), use_fp16=False)
    whole = m3.encode(texts, max_length=1024)["dense_vecs"]
    found = embeddings.embed_documents(texts)
    np.testing.assert_allclose(found, whole, rtol=0, atol=SAME_VECTOR)
    assert np.abs(whole[1] - m3.encode(texts[1])["dense_vecs"]).max() > 0.01
    cut = BgeEmbeddings(model_name=str(tiny_m3_bundle), encode_kwargs={"max_length": 512})
    np.testing.assert_allclose(
        cut.embed_documents(texts), m3.encode(texts)["dense_vecs"], rtol=0, atol=SAME_VECTOR
    )


def test_no_documents_give_no_vectors(embeddings: BgeEmbeddings):
    assert embeddings.embed_documents([]) == []


def test_model_kwargs_reach_the_model(tiny_bundle: Path):
    embeddings = BgeEmbeddings(
        model_name=str(tiny_bundle), model_kwargs={"truncate_dim": 16, "engine": "onnxruntime"}
    )
    assert len(embeddings.embed_query(QUERY)) == 16


def test_model_kwargs_choose_a_faster_precision(full_tiny_bundle: Path):
    fast = BgeEmbeddings(model_name=str(full_tiny_bundle), model_kwargs={"use_fp16": True})
    reference = FlagModel(str(full_tiny_bundle))  # whose default that is
    assert fast.model.engine.info == reference.engine.info
    slow = BgeEmbeddings(model_name=str(full_tiny_bundle))
    assert_fp32_on_cpu(slow.model)


def test_unknown_arguments_are_rejected(tiny_bundle: Path):
    with pytest.raises(ValueError, match=r"'prompt', .* accepts batch_size, max_length"):
        BgeEmbeddings(model_name=str(tiny_bundle), encode_kwargs={"prompt": "query: "})
    with pytest.raises(ValueError, match="made_up"):
        BgeEmbeddings(model_name=str(tiny_bundle), made_up=True)
    with pytest.raises(TypeError, match=r"multiple values .* 'query_instruction_for_retrieval'"):
        BgeEmbeddings(
            model_name=str(tiny_bundle), model_kwargs={"query_instruction_for_retrieval": "Find: "}
        )
    with pytest.warns(UserWarning, match="no option 'made_up'"):
        BgeEmbeddings(model_name=str(tiny_bundle), model_kwargs={"made_up": 1})


CHANGE_NOTHING = [
    {"encode_kwargs": {"convert_to_numpy": True}},
    {"encode_kwargs": {"convert_to_tensor": False}},
    {"encode_kwargs": {"convert_to_tensor": True}},
    {"encode_kwargs": {"device": "cpu"}},
    {"encode_kwargs": {"precision": "float32", "output_value": "sentence_embedding"}},
    {"encode_kwargs": {"prompt": None, "prompt_name": None, "truncate_dim": None, "pool": None}},
    {"encode_kwargs": {"chunk_size": 8}},
    {"model_kwargs": {"device": None}},
    {"model_kwargs": {"revision": None, "token": None, "trust_remote_code": False}},
    {"model_kwargs": {"local_files_only": True, "backend": "torch", "similarity_fn_name": "dot"}},
    {"model_kwargs": {"prompts": None, "default_prompt_name": None, "truncate_dim": None}},
    {"model_kwargs": {"torch_dtype": "float32", "attn_implementation": "eager"}},
    {"model_kwargs": {"tokenizer_kwargs": {}, "config_kwargs": None}},
    {"cache_folder": "cache", "show_progress": False},
]
"""Arguments of the class it replaces that leave vectors as they are."""


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of arguments that have other names by now
@pytest.mark.parametrize("options", CHANGE_NOTHING, ids=str)
def test_an_argument_that_changes_nothing_is_accepted(
    published: Path, tiny_bundle: Path, embeddings: BgeEmbeddings, options
):
    original(model_name=str(published), **copy.deepcopy(options)).embed_query(QUERY)
    ours = BgeEmbeddings(model_name=str(tiny_bundle), **options)
    assert ours.embed_query(QUERY) == embeddings.embed_query(QUERY)


def test_a_torch_device_is_accepted(tiny_bundle: Path, embeddings: BgeEmbeddings):
    import torch

    for name in ("model_kwargs", "encode_kwargs"):
        ours = BgeEmbeddings(model_name=str(tiny_bundle), **{name: {"device": torch.device("cpu")}})
        assert ours.embed_query(QUERY) == embeddings.embed_query(QUERY)
    BgeEmbeddings(model_name=str(tiny_bundle), model_kwargs={"torch_dtype": torch.float32})
    with pytest.raises(ValueError, match=r"torch_dtype=torch.float16 .*use_fp16"):
        BgeEmbeddings(model_name=str(tiny_bundle), model_kwargs={"torch_dtype": torch.float16})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encode_kwargs": {"device": "cuda"}}, r"device='cuda'.* model_kwargs"),
        ({"encode_kwargs": {"precision": "int8"}}, "'precision', .*float32.* model_kwargs"),
        ({"encode_kwargs": {"output_value": "token_embeddings"}}, "'output_value'"),
        ({"encode_kwargs": {"prompt": ""}}, "'prompt', .* query_instruction"),
        ({"encode_kwargs": {"prompt_name": "query"}}, "'prompt_name', .* query_instruction"),
        ({"encode_kwargs": {"truncate_dim": 16}}, "'truncate_dim', .* model_kwargs"),
        ({"encode_kwargs": {"pool": {"processes": []}}}, "'pool', .* model_kwargs"),
        ({"encode_kwargs": {"made_up": None}}, "'made_up', .* accepts batch_size"),
        ({"model_kwargs": {"prompts": {"query": "q"}}}, "prompts=.* instructions have arguments"),
        ({"model_kwargs": {"default_prompt_name": "query"}}, "default_prompt_name='query'"),
        ({"model_kwargs": {"backend": "openvino"}}, "backend='openvino'.*engine"),
        ({"model_kwargs": {"token": "hf_x"}}, "token=.*HF_TOKEN"),
        ({"model_kwargs": {"torch_dtype": "float16"}}, "torch_dtype='float16'.*use_fp16"),
        ({"model_kwargs": {"model_kwargs": {"torch_dtype": "float16"}}}, "torch_dtype.*use_fp16"),
        ({"model_kwargs": {"tokenizer_kwargs": {"use_fast": False}}}, "tokenizer_kwargs=.*own"),
        ({"model_kwargs": {"provider": "CUDAExecutionProvider"}}, "provider=.*device"),
        ({"multi_process": True}, "multi_process=True"),
    ],
    ids=str,
)
def test_an_argument_that_would_have_no_effect_is_rejected_by_name(
    tiny_bundle: Path, options, message
):
    with pytest.raises(ValueError, match=message):
        BgeEmbeddings(model_name=str(tiny_bundle), **options)


def test_local_files_only_is_for_folders():
    with pytest.raises(ValueError, match=r"local_files_only=True .* HF_HUB_OFFLINE=1"):
        BgeEmbeddings(model_name="BAAI/bge-base-en", model_kwargs={"local_files_only": True})


def test_progress_is_shown_when_asked_for(tiny_bundle: Path, embeddings: BgeEmbeddings, capsys):
    embeddings.embed_documents(TEXTS)
    assert capsys.readouterr().err == ""
    BgeEmbeddings(model_name=str(tiny_bundle), show_progress=True).embed_documents(TEXTS)
    assert f"{len(TEXTS)}/{len(TEXTS)}" in capsys.readouterr().err


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_embeds_alike(embeddings: BgeEmbeddings, duplicate):
    assert duplicate(embeddings).embed_query(QUERY) == embeddings.embed_query(QUERY)


def test_a_vector_store_of_langchain_finds_with_it(minilm_bundle):
    from langchain_core.vectorstores import InMemoryVectorStore

    embeddings = BgeEmbeddings(model_name=str(minilm_bundle("mean")), query_instruction="")
    passages = ["A heat pump moves warmth.", "Rye is a grain.", "Paris is in France."]
    store = InMemoryVectorStore.from_texts(passages, embeddings)
    (found,) = store.similarity_search("Which cereal do farmers grow?", k=1)
    assert found.page_content == "Rye is a grain."


# -- Event loops --------------------------------------------------------------------------


def test_async_vectors_are_the_sync_ones(embeddings: BgeEmbeddings):
    (documents, query), _, _ = run_watched(
        embeddings.aembed_documents(TEXTS), embeddings.aembed_query(QUERY)
    )
    np.testing.assert_allclose(
        documents, embeddings.embed_documents(TEXTS), rtol=0, atol=SAME_VECTOR
    )
    np.testing.assert_allclose(query, embeddings.embed_query(QUERY), rtol=0, atol=SAME_VECTOR)


@pytest.mark.timeout(60)
def test_two_async_callers_compute_at_once(tiny_bundle: Path):
    embeddings = BgeEmbeddings(model_name=str(tiny_bundle))
    require_two_callers(embeddings.model)
    run_watched(embeddings.aembed_query("one"), embeddings.aembed_query("two"))


def test_the_event_loop_stays_responsive_while_two_callers_embed(embeddings: BgeEmbeddings):
    results, took, longest_pause = run_watched(
        embeddings.aembed_documents(LONG), embeddings.aembed_documents(LONG)
    )
    assert [len(vectors) for vectors in results] == [len(LONG), len(LONG)]
    assert_responsive(took, longest_pause)

    async def blocking():
        return embeddings.embed_documents(LONG)

    # What holds the loop up is found out.
    _, took, longest_pause = run_watched(blocking())
    with pytest.raises(AssertionError):
        assert_responsive(took, longest_pause)


def test_anything_but_a_list_of_texts_is_rejected(tiny_bundle):
    embeddings = BgeEmbeddings(model_name=str(tiny_bundle))
    for make, message in [*NO_LIST.values(), (lambda: "one", "a string")]:
        with pytest.raises(TypeError, match=f"texts must be a list of strings, not {message}"):
            embeddings.embed_documents(make())
    for make, message in NO_TEXT.values():
        with pytest.raises(TypeError, match=rf"texts\[1\] must be a string, not (?:{message})"):
            embeddings.embed_documents(make())
    for wrong in (None, ["one"], b"one"):
        with pytest.raises(TypeError, match=f"text must be a string, not {_name(wrong)}"):
            embeddings.embed_query(wrong)
    with pytest.raises(TypeError, match="texts must be a list of strings, not a string"):
        asyncio.run(embeddings.aembed_documents("one"))


def _name(value):
    return "None" if value is None else type(value).__name__
