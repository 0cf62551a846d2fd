"""The model of a job: open it, and describe what its vectors depend on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from bge_runtime.bulk.chunks import check_chunking
from bge_runtime.bulk.options import EncodeOptions, JobOptions
from bge_runtime.bulk.vectors.encoder import TextEncoder
from bge_runtime.models import (
    AnyFlagModel,
    BGEM3FlagModel,
    FlagAutoModel,
    FlagICLModel,
    choose_query_instruction,
)
from bge_runtime.sources import is_hub_id

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """A model as a job needs it.

    Attributes:
        document: What its vectors depend on, as JSON; part of the description, and of the
            metadata of shards.
        fields: Its columns of vectors.
        encode: How texts become vectors.
    """

    document: Mapping[str, Any]
    fields: Sequence[pa.Field]
    encode: EncodeOptions


def open_model(
    model: str | os.PathLike[str] | AnyFlagModel,
    options: JobOptions,
    *,
    instruction: str | None,
    model_options: Mapping[str, Any],
) -> AnyFlagModel:
    """Return an opened model, with the instruction that its texts get.

    Args:
        model: A name or folder, or an opened model.
        options: What is computed.
        instruction: Instruction for queries; None for the one that its authors recommend.
        model_options: Arguments of `bge_runtime.FlagAutoModel.from_finetuned`.

    Raises:
        ValueError: If options do not fit the model.
        BgeError: If it cannot be opened.
    """
    if not isinstance(model, str | os.PathLike):
        if instruction is not None or model_options:
            raise ValueError(
                "instruction and model_options are for a model that is opened here; set them on "
                "the opened one, such as model.query_instruction_for_retrieval"
            )
        opened = model
    else:
        opened = FlagAutoModel.from_finetuned(os.fspath(model), **model_options)
        if options.query:
            opened.query_instruction_for_retrieval = choose_query_instruction(
                opened.bundle.manifest.model, instruction
            )
    several = isinstance(opened, BGEM3FlagModel)
    if (options.return_sparse or options.return_colbert_vecs) and not several:
        raise ValueError(
            f"return_sparse and return_colbert_vecs are for BGE-M3, and this is {opened.name}"
        )
    if options.chunk_tokens is not None:
        check_chunking(
            options.chunk_tokens,
            options.overlap,
            special_tokens=opened.tokenizer.special_tokens,
            max_length=opened.max_length,
        )
    _logger.info("%s: %s", opened.name, opened.engine.info)
    return opened


def describe_model(encoder: TextEncoder) -> ModelDescription:
    """Return what the vectors of a model depend on."""
    model, options = encoder.model, encoder.options
    card, provenance = model.bundle.manifest.model, model.bundle.manifest.provenance
    instruction, template = instruction_of(model, query=options.query)
    info = model.engine.info
    examples = model.examples_for_task if isinstance(model, FlagICLModel) else None
    document = {
        "model": card.name,
        # A local path means nothing to others.
        "source": provenance.source if is_hub_id(provenance.source) else None,
        "revision": provenance.revision,
        "bundle": _bundle_hash(model),
        "model_class": card.model_class,
        "pooling": card.pooling,
        "variant": info.variant,
        "engine": info.engine,
        "precision": info.precision,
        "dim": model.dim,
        "normalized": model.normalize_embeddings,
        "instruction": instruction,
        "instruction_format": template if instruction is not None else None,
        "examples": _plain(examples) if options.query else None,
    }
    return ModelDescription(document=document, fields=encoder.columns.fields, encode=options)


def instruction_of(model: AnyFlagModel, *, query: bool) -> tuple[str | None, str | None]:
    """Return the instruction that a model puts before texts, and how; None for none."""
    if query:
        return model.query_instruction_for_retrieval, model.query_instruction_format
    said = model.kwargs
    return (
        said.get("passage_instruction_for_retrieval"),
        said.get("passage_instruction_format", "{}{}"),
    )


def _bundle_hash(model: AnyFlagModel) -> str:
    """Return a hash of all files of a bundle but its manifest, which says when it was made."""
    files = sorted((path, file.sha256) for path, file in model.bundle.manifest.files.items())
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
