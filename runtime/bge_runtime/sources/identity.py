"""What a checkpoint is: its name, its class, and the published model that it comes from.

The files count first, then the layout of the cache around them, then the folder's name.
Export and runtime both ask here, so that they always agree.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bge_runtime.errors import ExportError
from bge_runtime.sources.known_models import ModelSpec, candidate_names, find_model
from bge_runtime.sources.model_classes import (
    DECODER_CLASSES,
    DECODER_ONLY_BASE,
    DECODER_ONLY_ICL,
    DECODERS,
    ENCODER_ONLY_BASE,
    ENCODER_ONLY_M3,
    ENCODERS,
    HEAD_FILES,
    RERANKER_DECODER,
    RERANKER_ENCODER,
    RERANKER_LAYERWISE,
    RERANKER_LIGHTWEIGHT,
)

_DECODERS = (*DECODER_CLASSES, RERANKER_DECODER, RERANKER_LAYERWISE, RERANKER_LIGHTWEIGHT)

_TOKENIZER_FILES = ("tokenizer_config.json", "added_tokens.json")

IDENTIFYING_FILES = (*HEAD_FILES, *_TOKENIZER_FILES, "modules.json", "1_Pooling/config.json")
"""Small, optional files that show class and pooling, in addition to ``config.json``."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a checkpoint is.

    Attributes:
        name: Its name without owner.
        model_class: FlagEmbedding's class; None if nothing shows it.
        spec: The published model of that name; None if there is none, or the files are of
            another kind of model.
    """

    name: str
    model_class: str | None
    spec: ModelSpec | None


def identify(
    source: str, folder: Path, config: Mapping[str, Any], *, default_class: str | None
) -> Identity:
    """Return the name and class of a checkpoint, and the published model it is named after.

    Args:
        source: Its path or Hub ID.
        folder: Folder of its encoder's or decoder's files.
        config: Its ``config.json``.
        default_class: The class that was named, as `FlagModel` always does; None for none. With
            one, a name that contradicts the files is ignored. A decoder's files do not show whether
            it is an embedder or a reranker, so they are of this class.

    Raises:
        ExportError: If it is named after a published model of another kind.
    """
    spec, found = find_model(source), class_of_files(folder, config)
    if found in DECODER_CLASSES and default_class == RERANKER_DECODER:
        found = RERANKER_DECODER
    names = candidate_names(source) or ["model"]
    if spec is not None and found is not None and _contradicts(spec, found, config):
        if default_class is None:
            raise ExportError(_explain_contradiction(source, folder, config, found, spec))
        spec = None
    return Identity(
        name=spec.name if spec else names[0],
        model_class=spec.model_class if spec else found,
        spec=spec,
    )


def class_of_files(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Return the model class that a folder's files show; None for an unknown ``model_type``.

    FlagEmbedding's trainers write M3's heads next to the encoder. They add a ``<response>``
    token to the vocabulary of models that read examples. A sequence classifier on an encoder is a
    reranker.
    """
    if config.get("model_type") in DECODERS:
        return DECODER_ONLY_ICL if _has_response_token(folder) else DECODER_ONLY_BASE
    if all((folder / name).is_file() for name in HEAD_FILES):
        return ENCODER_ONLY_M3
    if config.get("model_type") not in ENCODERS:
        return None
    return RERANKER_ENCODER if is_classifier(config) else ENCODER_ONLY_BASE


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration is that of a sequence classifier and nothing else."""
    architectures = config.get("architectures") or ()
    return bool(architectures) and all(
        str(name).endswith("ForSequenceClassification") for name in architectures
    )


def _contradicts(spec: ModelSpec, found: str, config: Mapping[str, Any]) -> bool:
    # For decoders the name is more reliable: the files of their classes differ by one token, if at
    # all.
    classes = _DECODERS if found in _DECODERS else (found,)
    known = spec.shape.architecture if spec.shape else config.get("model_type")
    return spec.model_class not in classes or known != config.get("model_type")


def _has_response_token(folder: Path) -> bool:
    for name in _TOKENIZER_FILES:
        with contextlib.suppress(OSError):
            if b'"<response>"' in (folder / name).read_bytes():
                return True
    return False


def _explain_contradiction(
    source: str, folder: Path, config: Mapping[str, Any], found: str, spec: ModelSpec
) -> str:
    missing = [name for name in HEAD_FILES if not (folder / name).is_file()]
    if (spec.model_class, found) == (ENCODER_ONLY_M3, ENCODER_ONLY_BASE):
        return (
            f"{source} is named {spec.name}, a model of class {ENCODER_ONLY_M3}, but lacks "
            f"{' and '.join(missing)}. Without them its lexical weights and ColBERT vectors would "
            f"be random. Add the files, or pass model_class={found!r} for dense vectors only"
        )
    return (
        f"{source} holds a model of type {config.get('model_type')!r} and class {found}, but is "
        f"named {spec.name}, a model of class {spec.model_class}. Rename the folder, or pass "
        f"model_class={found!r}"
    )
