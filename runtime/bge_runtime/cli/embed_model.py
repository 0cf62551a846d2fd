"""The model of ``bge-embed``: how it encodes, and what it puts before queries."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.cli.streams.input import InputError
from bge_runtime.m3 import M3Output
from bge_runtime.models import AnyFlagModel, BGEM3FlagModel, FlagICLModel
from bge_runtime.sources import DECODER_ONLY_ICL
from bge_runtime.system import read_json

Embedded = NDArray[np.float32] | M3Output
"""What a model returns for a list of texts."""

Encode = Callable[[list[str]], Embedded]
"""Embeds a list of texts."""


def make_encoder(
    model: AnyFlagModel, *, query: bool, sparse: bool, colbert: bool, max_length: int | None
) -> Encode:
    """Return a function that embeds texts as the options say.

    Raises:
        InputError: If the model has no sparse or ColBERT vectors and they are asked for.
    """
    if (sparse or colbert) and not isinstance(model, BGEM3FlagModel):
        name = model.bundle.manifest.model.name
        raise InputError(f"--sparse and --colbert are for BGE-M3, and this is {name}")
    kinds = {"return_sparse": True} if sparse else {}
    kinds |= {"return_colbert_vecs": True} if colbert else {}
    call: Callable[..., Embedded] = model.encode_queries if query else model.encode_corpus
    return partial(call, max_length=max_length, show_progress_bar=False, **kinds)


def prepare_for_queries(
    model: AnyFlagModel,
    instruction: str | None,
    examples: list[Any] | None,
    examples_file: str | None,
) -> None:
    """Set the instruction and the examples that are put before each query.

    Args:
        model: The model.
        instruction: The instruction; None for the one that its authors recommend.
        examples: Examples for the model; None for no examples.
        examples_file: The file that they come from, for error messages.

    Raises:
        InputError: If there is no instruction, or the model takes no such examples.
    """
    card = model.bundle.manifest.model
    if instruction is None:
        # M3 is trained without instructions.
        instruction = "" if isinstance(model, BGEM3FlagModel) else card.query_instruction
    if instruction is None:
        raise InputError(
            f"{card.name} has no recommended instruction for queries; pass --instruction TEXT, or "
            "--instruction '' for none"
        )
    # None also leaves out the text of the format around the instruction.
    model.query_instruction_for_retrieval = instruction or None
    if examples is None:
        return
    if not isinstance(model, FlagICLModel):
        raise InputError(
            f"--examples are for models of class {DECODER_ONLY_ICL}, and {card.name} is of class "
            f"{card.model_class}"
        )
    try:
        model.set_examples(examples)
    except (TypeError, ValueError) as error:
        raise InputError(f"{examples_file}: {error}") from error


def read_examples(file: str) -> list[Any]:
    """Return the content of an ``--examples`` file.

    Raises:
        InputError: If it cannot be read, or is not a JSON list.
    """
    try:
        examples: list[Any] = read_json(
            Path(file),
            error=InputError,
            kind=list,
            remedy="--examples takes a JSON list of objects with query, response and instruct",
            encoding="utf-8-sig",
        )
    except FileNotFoundError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    return examples
