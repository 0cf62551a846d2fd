"""What is a reranker is exported as one, and what is not gets one clear error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bge_export.checkpoint.inspect import inspect_checkpoint
from bge_runtime.errors import ExportError
from bge_runtime.sources import RERANKER_DECODER, RERANKER_ENCODER, identify
from tests.helpers.rerankers import reranker_checkpoint

ONE_LABEL = {"id2label": {"0": "LABEL_0"}}


def write(folder: Path, model_type: str, *architectures: str, **config: Any) -> Path:
    """Write the small files of a checkpoint, with weights of no tensors."""
    folder.mkdir(parents=True)
    document = {"model_type": model_type, "architectures": architectures, **config}
    (folder / "config.json").write_text(json.dumps(document))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


def inspect(folder: Path, **options: Any) -> Any:
    return inspect_checkpoint(folder, source=str(folder), **options)


@pytest.mark.parametrize(
    ("name", "model_type", "architecture"),
    [
        ("my-own", "bert", "BertForSequenceClassification"),
        ("my-own", "xlm-roberta", "XLMRobertaForSequenceClassification"),
        ("my-own", "roberta", "RobertaForSequenceClassification"),
        ("bge-reranker-v2-m3", "xlm-roberta", "XLMRobertaForSequenceClassification"),
        ("ms-marco-MiniLM-L6-v2", "bert", "BertForSequenceClassification"),
    ],
)
def test_a_classifier_with_one_label_is_a_reranker(
    tmp_path: Path, name: str, model_type: str, architecture: str
):
    for labels in (ONE_LABEL, {"num_labels": 1}):
        folder = write(tmp_path / str(len(labels)) / str(labels)[2:5] / name, model_type,
                       architecture, **labels)  # fmt: skip
        found = inspect(folder)
        assert (found.model_class, found.pooling, found.name) == (RERANKER_ENCODER, "cls", name)
        assert found.query_instruction is None
        assert inspect(folder, model_class=RERANKER_ENCODER).model_class == RERANKER_ENCODER


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"id2label": {"0": "entailment", "1": "neutral", "2": "contradiction"}},
         r"3 labels \(entailment, neutral, contradiction\)"),
        ({}, "has 2 labels, and a reranker has one: the score of a pair"),
        ({"num_labels": 5}, "has 5 labels"),
    ],
)  # fmt: skip
def test_more_labels_are_refused(tmp_path: Path, labels: dict[str, Any], message: str):
    folder = write(tmp_path / "nli", "bert", "BertForSequenceClassification", **labels)
    with pytest.raises(ExportError, match=message):
        inspect(folder)


@pytest.mark.parametrize(
    ("folder", "model_type", "architecture", "options", "message"),
    [
        ("own", "bert", "BertForSequenceClassification", {"model_class": "encoder-only-base"},
         r"requested an embedder .*is a reranker .*Open it with FlagReranker"),
        ("own", "xlm-roberta", "XLMRobertaForSequenceClassification",
         {"model_class": "encoder-only-m3"}, "Open it with FlagReranker"),
        ("own", "bert", "BertModel", {"model_class": RERANKER_ENCODER},
         r"requested a reranker .*is an embedder .*Open it with FlagModel"),
        ("bge-base-en", "bert", "BertModel", {"model_class": RERANKER_ENCODER},
         "Open it with FlagModel"),
        ("own", "bert", "BertForSequenceClassification", {"pooling": "mean"},
         "pooling_method='mean' is for embedders"),
        ("own", "qwen2", "Qwen2ForSequenceClassification", {},
         r"is a classifier on a decoder \(Qwen2ForSequenceClassification\)"),
        ("own", "deberta-v2", "DebertaV2ForSequenceClassification", {},
         "type 'deberta-v2'; this version exports encoders of type bert, roberta, xlm-roberta"),
        ("bge-reranker-v2-minicpm-layerwise", "minicpm", "LayerWiseMiniCPMForCausalLM", {},
         "reranker-decoder-only-layerwise, which computes a score in the code of its checkpoint"),
        ("bge-reranker-v2.5-gemma2-lightweight", "gemma2", "CostWiseGemmaForCausalLM", {},
         "reranker-decoder-only-lightweight, which computes a score in the code"),
        ("jina-reranker-v2-base-multilingual", "xlm-roberta",
         "XLMRobertaForSequenceClassification",
         {"auto_map": {"AutoModelForSequenceClassification": "own.Model"}},
         "trust_remote_code=True if you trust it"),
        # Its name says one thing and its files another.
        ("bge-reranker-base", "xlm-roberta", "XLMRobertaModel", {}, "is named bge-reranker-base"),
        ("bge-base-en", "bert", "BertForSequenceClassification", {}, "is named bge-base-en"),
        ("bge-reranker-base", "bert", "BertForSequenceClassification", {},
         "is named bge-reranker-base"),
    ],
)  # fmt: skip
def test_everything_else_is_refused_with_what_to_do(
    tmp_path: Path,
    folder: str,
    model_type: str,
    architecture: str,
    options: dict[str, Any],
    message: str,
):
    config = {"auto_map": options.pop("auto_map")} if "auto_map" in options else {}
    path = write(tmp_path / folder, model_type, architecture, **ONE_LABEL, **config)
    with pytest.raises(ExportError, match=message):
        inspect(path, **options)


def test_a_decoders_files_are_of_the_class_that_was_asked_for(tmp_path: Path):
    folder = write(tmp_path / "my-own", "qwen3", "Qwen3ForCausalLM")
    config = {"model_type": "qwen3"}
    for asked, found in (
        (None, "decoder-only-base"),
        ("decoder-only-base", "decoder-only-base"),
        (RERANKER_DECODER, RERANKER_DECODER),
    ):
        assert identify(str(folder), folder, config, default_class=asked).model_class == found
    # A name says more.
    named = write(tmp_path / "Qwen3-Reranker-4B", "qwen3", "Qwen3ForCausalLM")
    for asked in (None, "decoder-only-base", RERANKER_DECODER):
        found = identify(str(named), named, config, default_class=asked)
        assert found.model_class == RERANKER_DECODER


CROSS_ENCODER: dict[str, Any] = {
    "modules.json": [
        {
            "idx": 0,
            "name": "0",
            "path": "",
            "type": "sentence_transformers.base.modules.transformer.Transformer",
        }
    ],
    "sentence_bert_config.json": {
        "transformer_task": "sequence-classification",
        "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
        "module_output_name": "scores",
    },
    "config_sentence_transformers.json": {
        "__version__": {"sentence_transformers": "5.7.0"},
        "activation_fn": "torch.nn.modules.linear.Identity",
        "default_prompt_name": None,
        "model_type": "CrossEncoder",
        "prompts": {},
    },
}


def cross_encoder(folder: Path, **changes: Any) -> Path:
    """Write a reranker as sentence-transformers 5.7 saves it, with changes to its files."""
    shutil.copytree(reranker_checkpoint("bert"), folder)
    for name, document in CROSS_ENCODER.items():
        change = changes.get(name.partition(".")[0], {})
        content = change if isinstance(change, list) else document
        if isinstance(document, dict):
            content = {**document, **change}
        (folder / name).write_text(json.dumps(content))
    return folder


def test_a_folder_of_sentence_transformers_keeps_what_it_says(
    made_once: Callable[..., Path], tmp_path: Path
):
    length = {"processor_kwargs": {"model_max_length": 100}}
    found = inspect(cross_encoder(tmp_path / "reranker", sentence_bert_config=length))
    assert found.model_class == RERANKER_ENCODER
    assert found.sentence_transformers.max_seq_length == 100
    # Where sentence-transformers finds it in the bundle, which has none of these files.
    assert found.config["sentence_transformers"] == {
        "activation_fn": "torch.nn.modules.linear.Identity"
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config_sentence_transformers": {"default_prompt_name": "web"}}, "default_prompt_name"),
        ({"sentence_bert_config": {"transformer_task": "fill-mask"}}, "transformer_task"),
        (
            {
                "modules": [
                    {"path": path, "type": f"sentence_transformers.models.{kind}"}
                    for path, kind in (("", "Transformer"), ("1_Dense", "Dense"))
                ]
            },
            "modules Transformer, Dense; of rerankers this version supports Transformer",
        ),
    ],
)
def test_a_setting_that_a_bundle_cannot_keep_is_refused(
    made_once: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], message: str
):
    with pytest.raises(ExportError, match=message):
        inspect(cross_encoder(tmp_path / "reranker", **changes))


def test_a_decoder_with_its_own_answers_needs_a_name_that_tells_its_question(tmp_path: Path):
    for name, fails in (("Qwen3-Reranker-0.6B", False), ("my-qwen3-reranker", True)):
        folder = write(tmp_path / name, "qwen3", "Qwen3ForCausalLM")
        settings = json.dumps({"model_type": "CrossEncoder"})
        (folder / "config_sentence_transformers.json").write_text(settings)
        modules = [
            {
                "idx": number,
                "name": str(number),
                "path": path,
                "type": f"sentence_transformers.{kind}",
            }
            for number, (path, kind) in enumerate(
                [("", "models.Transformer"), ("1_LogitScore", "cross_encoder.modules.LogitScore")]
            )
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        if fails:
            with pytest.raises(ExportError, match="give its folder that name"):
                inspect(folder)
        else:
            assert inspect(folder).model_class == RERANKER_DECODER
