"""What a checkpoint's sentence-transformers folder says is followed by all that opens the bundle.

The oracle is sentence-transformers on the checkpoint itself. What cannot be followed is refused.
"""

from __future__ import annotations

import inspect
import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_bench.systems.base import quiet
from bge_export.checkpoint.sentence_transformers import read_folder
from bge_runtime import FlagModel
from bge_runtime.errors import ExportError
from tests.helpers.bundles import export, write_tiny_bert
from tests.helpers.decoders import MISTRAL, export_decoder, write_tiny_decoder
from tests.helpers.flag_embedding import flag_embedding
from tests.helpers.integrations import SAME_VECTOR

TEXTS = [
    "heat pumps",
    "Heat PUMPS move warmth",
    "a long text that goes on and on " * 20,
    "热泵如何工作",
    "two\nlines",
    "",
]
ONE_LAYER = {"architecture": "qwen3", "layers": 1, "head_dim": 32, "rms_norm_eps": 1e-6}
OLD, NEW = "sentence_transformers.models", "sentence_transformers.sentence_transformer.modules"
PROMPTS = {"query": "Query: ", "document": "Document: ", "passage": "Passage: ", "STS": "Same: "}


def modules(*kinds: str, package: str = OLD, first: str = "") -> list[dict[str, Any]]:
    paths = [first, *(f"{index}_{kind}" for index, kind in enumerate(kinds[1:], start=1))]
    return [
        {"idx": index, "name": str(index), "path": path, "type": f"{package}.{kind}"}
        for index, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]


def pooled(mode: str, **further: Any) -> dict[str, Any]:
    return {"word_embedding_dimension": 48, f"pooling_mode_{mode}": True, **further}


PLAIN: dict[str, Any] = {
    "modules.json": modules("Transformer", "Pooling", "Normalize"),
    "1_Pooling/config.json": pooled("cls_token"),
}
"""The files of a folder of which nothing else is said."""

FOLDERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cut-and-prompts": {
        "sentence_bert_config.json": {"max_seq_length": 20, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": PROMPTS, "similarity_fn_name": "dot"},
    },
    "default-prompt": {
        "config_sentence_transformers.json": {
            "prompts": {"passage": "Passage: ", "other": "Other: "},
            "default_prompt_name": "other",
            "__version__": {"sentence_transformers": "2.2.2"},
        },
    },
    "not-scaled": {
        "modules.json": modules("Transformer", "Pooling", "Dropout"),
        "2_Dropout/config.json": {"dropout": 0.5},
        "sentence_bert_config.json": None,
        "sentence_roberta_config.json": {"max_seq_length": 30, "do_lower_case": None},
    },
    "fewer-components": {
        "config_sentence_transformers.json": {"truncate_dim": 16, "prompts": {"query": "Q: "}},
        "sentence_bert_config.json": {
            "max_seq_length": 40,
            "do_lower_case": True,  # as its tokenizer does anyway
            "tokenizer_args": {"model_max_length": 25},
            "model_args": {"add_pooling_layer": False},
        },
    },
    "fewer-components-not-scaled": {
        "modules.json": modules("Transformer", "Pooling"),
        "config_sentence_transformers.json": {"truncate_dim": 16},
    },
    "of-version-5": {
        "modules.json": [
            {**module, "type": kind}
            for module, kind in zip(
                modules("Transformer", "Pooling", "Normalize"),
                (
                    "sentence_transformers.base.modules.transformer.Transformer",
                    f"{NEW}.pooling.Pooling",
                    f"{NEW}.normalize.Normalize",
                ),
                strict=True,
            )
        ],
        "1_Pooling/config.json": {
            "embedding_dimension": 48, "pooling_mode": "cls", "include_prompt": True
        },
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": {
                "text": {"method": "forward", "method_output_name": "last_hidden_state"}
            },
            "module_output_name": "token_embeddings",
        },
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": {"query": "Query: ", "document": "Document: "},
            "default_prompt_name": "document",
        },
    },
    "in-a-folder-of-its-own": {
        "modules.json": modules("Transformer", "Pooling", "Normalize", first="0_Transformer"),
        "1_Pooling/config.json": pooled("mean_tokens"),
        "0_Transformer/sentence_bert_config.json": {"max_seq_length": 16},
    },
    # BAAI's Chinese models ask for lowercase, and their tokenizers keep capital letters.
    "bge-small-zh-v1.5": {
        "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": True},
        "config_sentence_transformers.json": {"prompts": {"query": "问："}},
    },
}  # fmt: skip


def write_files(folder: Path, files: Mapping[str, Any]) -> None:
    for name, document in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if document is not None:
            path.write_text(json.dumps(document), "utf-8")


def write_folder(folder: Path, base: Path, files: Mapping[str, Any]) -> Path:
    """Write a checkpoint with the files of a sentence-transformers folder."""
    files = {**PLAIN, **files}
    shutil.copytree(base, folder / files["modules.json"][0]["path"])
    write_files(folder, files)
    if folder.name == "bge-small-zh-v1.5":
        keep_capitals(folder)
    return folder


def keep_capitals(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text("utf-8"))
    tokenizer["normalizer"]["lowercase"] = False
    path.write_text(json.dumps(tokenizer), "utf-8")


@pytest.fixture(scope="module")
def one_layer(made_once: Callable[..., Path]) -> Path:
    return made_once("tiny-of-one-layer", partial(write_tiny_bert, layers=1))


@pytest.fixture(scope="module", params=list(FOLDERS))
def opened(request, one_layer: Path, made_once: Callable[..., Path], tmp_path_factory):
    """A folder's path, sentence-transformers' model of it, and its bundle."""
    name = request.param
    root = tmp_path_factory.mktemp("folders")
    folder = write_folder(root / name, one_layer, FOLDERS[name])
    bundle = export(folder, root / "bundle", pooling=None)
    return folder, sentence_transformer(folder), bundle


def sentence_transformer(folder: Path, **options: Any) -> Any:
    with quiet():
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(folder), device="cpu", **options)


def assert_same(ours, theirs) -> None:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    scale = max(1.0, float(np.abs(theirs).max()))  # of vectors that are not scaled
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=SAME_VECTOR * scale)


def test_the_bundle_in_sentence_transformers(opened):
    _, theirs, bundle = opened
    ours = sentence_transformer(bundle, backend="onnx", model_kwargs={"file_name": "model.onnx"})
    assert ours.max_seq_length == theirs.max_seq_length
    assert ours.similarity_fn_name == theirs.similarity_fn_name
    assert (ours.prompts, ours.default_prompt_name) == (theirs.prompts, theirs.default_prompt_name)
    for method in ("encode", "encode_query", "encode_document"):
        for options in ({}, {"normalize_embeddings": True}):
            assert_same(
                getattr(ours, method)(TEXTS, **options), getattr(theirs, method)(TEXTS, **options)
            )
    for name in theirs.prompts:
        assert_same(ours.encode(TEXTS, prompt_name=name), theirs.encode(TEXTS, prompt_name=name))


@pytest.mark.parametrize("scaled", [False, True])
def test_langchain(opened, scaled: bool):
    pytest.importorskip("langchain_community", reason="langchain-community is not installed")
    from bge_runtime.integrations.langchain import BgeEmbeddings

    folder, _, bundle = opened
    options: dict[str, Any] = {
        "query_instruction": "Find: ",
        "embed_instruction": "Passage: ",
        "model_kwargs": {"device": "cpu"},
        "encode_kwargs": {"normalize_embeddings": scaled},
    }
    ours = BgeEmbeddings(model_name=str(bundle), **options)
    with quiet():
        from langchain_community.embeddings import HuggingFaceBgeEmbeddings

        theirs = HuggingFaceBgeEmbeddings(model_name=str(folder), **options)
    theirs.query_instruction = "Find: "  # which it overrules in a Chinese model
    assert_same(ours.embed_documents(TEXTS), theirs.embed_documents(TEXTS))
    for text in TEXTS:
        assert_same(ours.embed_query(text), theirs.embed_query(text))


@pytest.mark.parametrize("scaled", [False, True])
def test_llama_index(opened, scaled: bool):
    pytest.importorskip("llama_index.core", reason="llama-index-core is not installed")
    from bge_runtime.integrations.llama_index import BgeEmbedding

    _, theirs, bundle = opened
    ours = BgeEmbedding(model_name=str(bundle), normalize=scaled)
    assert_same(
        ours.get_text_embedding_batch(TEXTS),
        theirs.encode_document(TEXTS, normalize_embeddings=scaled),
    )
    for text in TEXTS:
        expected = theirs.encode_query(text, normalize_embeddings=scaled)
        assert_same(ours.get_query_embedding(text), expected)


@pytest.mark.parametrize("scaled", [False, True])
def test_chroma(opened, scaled: bool):
    pytest.importorskip("chromadb", reason="chromadb is not installed")
    from bge_runtime.integrations.chroma import BgeEmbeddingFunction

    _, theirs, bundle = opened
    ours = BgeEmbeddingFunction(str(bundle), normalize_embeddings=scaled)
    options = {"normalize_embeddings": scaled}
    assert_same(ours(TEXTS), theirs.encode_document(TEXTS, **options))
    assert_same(ours.embed_query(TEXTS), theirs.encode_query(TEXTS, **options))


def test_mteb(opened):
    mteb = pytest.importorskip("mteb", reason="mteb is not installed")
    from datasets import Dataset
    from mteb.models import SentenceTransformerEncoderWrapper
    from mteb.types import PromptType
    from torch.utils.data import DataLoader

    from bge_runtime.integrations.mteb import BgeEncoder

    _, model, bundle = opened
    ours = BgeEncoder(str(bundle))
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it knows no prompt called "passage"
        theirs = SentenceTransformerEncoderWrapper(model)
    batches = DataLoader(Dataset.from_dict({"text": TEXTS}), batch_size=4)
    for name in ("NFCorpus", "STSBenchmark"):
        for prompt_type in (None, PromptType.query, PromptType.document):
            options = {
                "task_metadata": mteb.get_task(name).metadata,
                "hf_split": "test",
                "hf_subset": "default",
                "prompt_type": prompt_type,
            }
            expected = theirs.encode(batches, **options)
            assert_same(ours.encode(batches, **options), expected)
            assert_same(ours.similarity(expected, expected), theirs.similarity(expected, expected))


def test_flag_model_ignores_the_folders_settings_as_flag_embedding_does(opened):
    folder, _, bundle = opened
    model = FlagModel(str(bundle), use_fp16=False)
    said = read_folder(folder, str(folder))
    theirs = flag_embedding(said.transformer, TEXTS, pooling=said.pooling)
    assert_same(model.encode(TEXTS), theirs)


@pytest.mark.parametrize("name", ["Qwen3-Embedding-0.6B", "mine"])
def test_a_language_models_prompt_is_added_once(tmp_path: Path, name: str):
    # Of the first the form of an instruction is known, of the second it is not.
    pytest.importorskip("llama_index.core", reason="llama-index-core is not installed")
    from bge_runtime.integrations.llama_index import BgeEmbedding

    prompts = {"query": "Instruct: Find what answers the query\nQuery:", "document": "Read: "}
    folder = write_tiny_decoder(tmp_path / name, "qwen3", shape=replace(MISTRAL, **ONE_LAYER))
    files = {
        **PLAIN,
        "1_Pooling/config.json": {"word_embedding_dimension": 64, "pooling_mode_lasttoken": True},
        "config_sentence_transformers.json": {"prompts": prompts},
        "sentence_bert_config.json": {"max_seq_length": 24},
    }
    write_files(folder, files)
    theirs = sentence_transformer(folder)
    bundle = export_decoder(folder, tmp_path / "bundles" / name)
    ours = BgeEmbedding(model_name=str(bundle))
    texts = [text for text in TEXTS if text]
    assert_same(ours.get_text_embedding_batch(texts), theirs.encode_document(texts))
    for text in texts:
        assert_same(ours.get_query_embedding(text), theirs.encode_query(text))


# -- What cannot be followed ---------------------------------------------------------------

FIRST, TOP = "sentence_bert_config.json", "config_sentence_transformers.json"
POOLING, SCALING = "1_Pooling/config.json", "2_Normalize/config.json"
IN_TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}

LOST = [
    (FIRST, {"do_upper_case": True}),
    (FIRST, {"model_args": {"rotary_scaling_factor": 2}}),
    (FIRST, {"model_args": {"default_task": "retrieval"}}),
    (FIRST, {"tokenizer_args": {"padding_side": "left"}}),
    (FIRST, {"tokenizer_args": {"do_lower_case": True}}),
    (FIRST, {"processor_kwargs": {"add_special_tokens": False}}),
    (FIRST, {"config_args": {"hidden_act": "relu"}}),
    (FIRST, {"config_kwargs": {"use_cache": 1}}),
    (FIRST, {"tokenizer_name_or_path": "bert-base-cased"}),
    (FIRST, {"transformer_task": "fill-mask"}),
    (FIRST, {"modality_config": {"text": IN_TEXT, "message": IN_TEXT}}),
    (FIRST, {"modality_config": {"text": {**IN_TEXT, "method_output_name": "pooler_output"}}}),
    (FIRST, {"module_output_name": "sentence_embedding"}),
    (FIRST, {"processing_kwargs": {"text": {"max_length": 8}}}),
    (FIRST, {"query_length": 32}),
    (FIRST, {"query_expansion": {"strategy": "pad"}}),
    (FIRST, {"max_seq_length": "64"}),
    (FIRST, {"max_seq_length": 1.5}),
    (FIRST, {"max_seq_length": 0}),
    (FIRST, {"do_lower_case": "true"}),
    ("sentence_xlm-roberta_config.json", {"do_upper_case": True}),
    (TOP, {"prompts": "query: "}),
    (TOP, {"prompts": {"query": 1}}),
    (TOP, {"default_prompt_name": "missing"}),
    (TOP, {"truncate_dim": -1}),
    (TOP, {"similarity_fn_name": "angle"}),
    (TOP, {"model_type": "SparseEncoder"}),
    (TOP, {"pooling": "max"}),
    (POOLING, pooled("cls_token", include_prompt=False)),
    (POOLING, pooled("cls_token", normalise=True)),
    (POOLING, pooled("cls_token", pooling_mode_max_tokens="yes")),
    (POOLING, {"pooling_mode": "cls", "word_embedding_dimension": "48"}),
    (SCALING, {"module_input_name": "token_embeddings"}),
    (SCALING, {"p": 1}),
]


@pytest.mark.parametrize(("file", "document"), LOST)
def test_settings_that_would_be_lost_are_an_error_that_names_them(
    tmp_path: Path, file: str, document: Any
):
    write_files(tmp_path, {**PLAIN, file: document})
    with pytest.raises(ExportError) as raised:
        read_folder(tmp_path, "me/mine")
    *_, (key, value) = leaves(document)
    for part in (file, key, json.dumps(value)):
        assert part.strip('"') in str(raised.value)


def leaves(document: Mapping[str, Any]):
    """Return the keys and values of a document, with nested arguments expanded."""
    for key, value in document.items():
        if key.endswith(("_args", "config_kwargs", "processor_kwargs")):
            yield from leaves(value)
        else:
            yield key, value.get("query") if key == "prompts" and isinstance(value, dict) else value


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (modules("Transformer", "Pooling", "Dense"), "modules Dense"),
        (modules("Transformer", "Pooling", "LayerNorm", "Normalize"), "modules LayerNorm"),
        (modules("Router", "Pooling"), "modules Router"),
        (modules("Transformer", "Pooling", package="custom_st"), "modules custom_st.Pooling"),
        (modules("Transformer", "Normalize", "Pooling"), "Transformer, Normalize, Pooling"),
        (modules("Transformer", "Pooling", "Pooling"), "Transformer, Pooling, Pooling"),
        (modules("Transformer", "Dropout", "Pooling"), "in this order"),
        (modules("Transformer"), "in this order"),
        ([], "has the modules none"),
        ([{"path": ""}], "each with a type and a path"),
        ([{**modules("Transformer")[0], "weights": "x"}], "weights"),
        ({}, "not a JSON list"),
    ],
)
def test_modules_that_would_be_lost_are_an_error(tmp_path: Path, modules, message: str):
    write_files(tmp_path, {**PLAIN, "modules.json": modules})
    with pytest.raises(ExportError, match=message):
        read_folder(tmp_path, "me/mine")


def test_lowercase_that_only_sentence_transformers_would_do_is_an_error(
    one_layer: Path, tmp_path: Path
):
    settings = {FIRST: {"max_seq_length": 64, "do_lower_case": True}}
    folder = write_folder(tmp_path / "mine", one_layer, settings)
    keep_capitals(folder)
    with pytest.raises(ExportError, match=r"do_lower_case .* keeps capital letters.*Lowercase"):
        export(folder, tmp_path / "bundle", pooling=None)
    assert not (tmp_path / "bundle").exists()


def test_pooling_for_another_width_is_an_error(one_layer: Path, tmp_path: Path):
    wide = {POOLING: {**pooled("cls_token"), "word_embedding_dimension": 384}}
    folder = write_folder(tmp_path / "mine", one_layer, wide)
    with pytest.raises(ExportError, match=r"384 components.* hidden_size is 48"):
        export(folder, tmp_path / "bundle", pooling=None)


def test_a_given_pooling_replaces_the_folders(tmp_path: Path):
    write_files(tmp_path, {**PLAIN, POOLING: pooled("cls_token", include_prompt=False)})
    assert read_folder(tmp_path, "me/mine", pooling="mean").pooling == "mean"


def test_every_key_of_the_installed_version_is_handled():
    from sentence_transformers.sentence_transformer.modules import (
        Dropout,
        Normalize,
        Pooling,
        Transformer,
    )

    from bge_export.checkpoint import sentence_transformers_keys as table

    for kind, known in (
        (Transformer, table.TRANSFORMER_KEYS),
        (Pooling, table.POOLING_KEYS),
        (Normalize, table.NORMALIZE_KEYS),
        (Dropout, table.OPTIONAL_MODULES["Dropout"]),
    ):
        arguments = set(inspect.signature(inspect.unwrap(kind.__init__)).parameters)
        # The last two are a path and what opens the file.
        keys = {*kind.config_keys, *arguments} - {"self", "args", "kwargs"}
        assert keys - {"model_name_or_path", "backend"} <= set(known)


def test_a_bundle_without_settings_is_read_as_before(tiny_bundle: Path, tmp_path: Path):
    from bge_runtime.integrations._models import dense_vectors, open_model
    from tests.helpers.runtime import edit_manifest

    old = Path(shutil.copytree(tiny_bundle, tmp_path / "old"))
    edit_manifest(old, lambda data: data["model"].pop("sentence_transformers"))
    texts = ["a text of more than five hundred and twelve tokens " * 60, *TEXTS]
    vectors = dense_vectors(open_model(str(old)), texts)
    assert_same(vectors, FlagModel(str(tiny_bundle), use_fp16=False).encode(texts))
