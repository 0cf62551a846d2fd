"""Refuse models that are no embedders or rerankers, or that cannot be exported.

To add a family, see `bge_export.encoder` and `bge_export.decoder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bge_runtime.errors import ExportError
from bge_runtime.sources import DECODERS, ENCODERS, RERANKER_DECODER, ModelSpec, is_classifier

_OTHER_TASKS = {
    "ForSequenceClassification": "a classifier or reranker (cross-encoder)",
    "ForTokenClassification": "a token classifier",
    "ForQuestionAnswering": "a question-answering model",
    "ForMultipleChoice": "a multiple-choice model",
    "ForNextSentencePrediction": "a next-sentence model",
    "ForCausalLM": "a decoder",
    "LMHeadModel": "a decoder",
    "ForConditionalGeneration": "a generator",
}


def _find_other_task(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return kind and architecture of a model for another task; None for an embedder.

    A model may list several: gte-multilingual-base lists its encoder and a token classifier.
    """
    found = None
    for architecture in map(str, config.get("architectures") or ()):
        kinds = [kind for end, kind in _OTHER_TASKS.items() if architecture.endswith(end)]
        if not kinds:
            return None
        found = found or (kinds[0], architecture)
    return found


def check_decoder(
    config: Mapping[str, Any], source: str, spec: ModelSpec | None, model_class: str
) -> None:
    """Check that a configuration is that of a decoder that can be exported.

    Raises:
        ExportError: If it is not.
    """
    if is_classifier(config):
        raise ExportError(
            f"{source} is a classifier on a decoder ({config['architectures'][0]}). This version "
            f"exports decoders as embedders, and as rerankers those that answer yes or no "
            f"({RERANKER_DECODER})"
        )
    if (other := _find_other_task(config)) is not None and other[0] != "a decoder":
        raise ExportError(f"{source} is {other[0]} ({other[1]}), not an embedder")
    if config.get("model_type") not in DECODERS:
        raise ExportError(
            f"{source} is of type {config.get('model_type')!r}, and this version exports decoders "
            f"of type {', '.join(DECODERS)} as {model_class}"
        )
    if config.get("auto_map") and spec is None:
        raise ExportError(
            f"{source} brings its own model code (auto_map in its config.json), and a decoder's "
            f"graph is built as transformers' own {config['model_type']}. If that code computes "
            "the same, remove auto_map from the config.json of a copy and export that"
        )


def check_encoder(
    config: Mapping[str, Any], source: str, spec: ModelSpec | None, *, trust_remote_code: bool
) -> None:
    """Check that a configuration is that of an encoder that can be exported.

    Raises:
        ExportError: If it is not, or its code comes from the checkpoint and is not trusted.
    """
    if (other := _find_other_task(config)) is not None:
        raise ExportError(
            f"{source} is {other[0]} ({other[1]}), not an embedder; this version exports "
            f"encoders of type {', '.join(ENCODERS)}"
        )
    _check_code(config, source, spec, trust_remote_code=trust_remote_code)


def check_reranker(
    config: Mapping[str, Any], source: str, spec: ModelSpec | None, *, trust_remote_code: bool
) -> None:
    """Check that a configuration is that of a sequence classifier with one label.

    Raises:
        ExportError: If it is not, or its code comes from the checkpoint and is not trusted.
    """
    if not is_classifier(config):
        listed = ", ".join(map(str, config.get("architectures") or ())) or "none"
        raise ExportError(
            f"{source} is no sequence classifier, as rerankers on encoders are: the architectures "
            f"in its config.json are {listed}"
        )
    # transformers assumes two, and does not write these two.
    names = config.get("id2label")
    labels = len(names) if isinstance(names, dict) else config.get("num_labels", 2)
    if labels != 1:
        shown = ", ".join(map(str, names.values())) if isinstance(names, dict) else ""
        raise ExportError(
            f"{source} has {labels} labels{shown and f' ({shown:.80})'}, and a reranker has one: "
            "the score of a pair. It is a classifier, such as one of natural language inference"
        )
    _check_code(config, source, spec, trust_remote_code=trust_remote_code)


def _check_code(
    config: Mapping[str, Any], source: str, spec: ModelSpec | None, *, trust_remote_code: bool
) -> None:
    if config.get("is_decoder"):
        raise ExportError(f"{source} is a decoder (is_decoder in its config.json), not an encoder")
    model_type = config.get("model_type")
    own_code = config.get("auto_map") or (spec is not None and spec.trust_remote_code)
    if model_type in ENCODERS and not config.get("auto_map"):
        return
    if not own_code:
        raise ExportError(
            f"{source} is of type {model_type!r}; this version exports encoders of type "
            f"{', '.join(ENCODERS)}"
        )
    if not trust_remote_code:
        raise ExportError(
            f"{source} brings its own model code (type {model_type!r}), which an export runs on "
            "this machine. Read it, and pass trust_remote_code=True if you trust it"
        )
