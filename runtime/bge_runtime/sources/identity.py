"""What a checkpoint is: its name, its class, and the published model that it comes from.

Files come first, then the layout of the cache that it lies in, then the name of its folder.
Export and runtime both ask here, so that neither takes a checkpoint for something else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bge_runtime.errors import ExportError
from bge_runtime.sources.registry import (
    DECODER_CLASSES,
    DECODER_ONLY_BASE,
    DECODER_ONLY_ICL,
    DECODERS,
    ENCODER_ONLY_BASE,
    ENCODER_ONLY_M3,
    ENCODERS,
    HEAD_FILES,
    ModelSpec,
    find_model,
    names_of,
)

_TOKENIZER_FILES = ("tokenizer_config.json", "added_tokens.json")

TELLING_FILES = (*HEAD_FILES, *_TOKENIZER_FILES, "modules.json", "1_Pooling/config.json")
"""Files beside ``config.json`` that tell class and pooling. They are small, and may be missing."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a checkpoint is.

    Attributes:
        name: Its name without owner.
        model_class: FlagEmbedding's class; None where nothing tells.
        facts: The published model of that name; None if there is none, or the files are of
            another kind of model.
    """

    name: str
    model_class: str | None
    facts: ModelSpec | None


def identify(
    source: str, folder: Path, config: Mapping[str, Any], *, class_is_given: bool
) -> Identity:
    """Tell what a checkpoint is.

    Args:
        source: Its path or hub id.
        folder: Where the files of its encoder or decoder are.
        config: Its ``config.json``.
        class_is_given: Whether the user says which class it is, so that a name that means another
            one is no error and brings nothing.

    Raises:
        ExportError: If its name means another kind of model than its files are.
    """
    facts, found = find_model(source), class_of_files(folder, config)
    names = names_of(source) or ["model"]
    if facts is not None and found is not None and _contradicts(facts, found, config):
        if not class_is_given:
            raise ExportError(_contradiction(source, folder, config, found, facts))
        facts = None
    return Identity(
        name=facts.name if facts else names[0],
        model_class=facts.model_class if facts else found,
        facts=facts,
    )


def class_of_files(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Tell a class by what is in a folder; None for a type that this version does not know.

    FlagEmbedding's trainers write M3's heads beside its encoder, and add the mark of a response
    to the vocabulary of a model that is to read examples.
    """
    if config.get("model_type") in DECODERS:
        return DECODER_ONLY_ICL if _marks_responses(folder) else DECODER_ONLY_BASE
    if all((folder / name).is_file() for name in HEAD_FILES):
        return ENCODER_ONLY_M3
    return ENCODER_ONLY_BASE if config.get("model_type") in ENCODERS else None


def _contradicts(facts: ModelSpec, found: str, config: Mapping[str, Any]) -> bool:
    # Which of the two a decoder is the name knows better: files differ by a token.
    classes = DECODER_CLASSES if found in DECODER_CLASSES else (found,)
    known = facts.shape.architecture if facts.shape else config.get("model_type")
    return facts.model_class not in classes or known != config.get("model_type")


def _marks_responses(folder: Path) -> bool:
    for name in _TOKENIZER_FILES:
        with contextlib.suppress(OSError):
            if b'"<response>"' in (folder / name).read_bytes():
                return True
    return False


def _contradiction(
    source: str, folder: Path, config: Mapping[str, Any], found: str, facts: ModelSpec
) -> str:
    missing = [name for name in HEAD_FILES if not (folder / name).is_file()]
    if (facts.model_class, found) == (ENCODER_ONLY_M3, ENCODER_ONLY_BASE):
        return (
            f"{source} goes by the name of {facts.name}, of class {ENCODER_ONLY_M3}, and lacks "
            f"{' and '.join(missing)}, without which its lexical weights and ColBERT vectors would "
            f"be random. Add the files, or pass model_class={found!r}, for dense vectors alone"
        )
    return (
        f"{source} holds a model of type {config.get('model_type')!r} and class {found}, but goes "
        f"by the name of {facts.name}, of class {facts.model_class}. Rename the folder, or pass "
        f"model_class={found!r}"
    )
