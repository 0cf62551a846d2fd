"""The model of a job: open it, and describe what its vectors depend on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from bge_runtime._version import __version__
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
from bge_runtime.system import vector_extensions, warn_user

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """A model as a job needs it.

    Attributes:
        document: What its vectors depend on, as JSON; part of the description, and of the
            metadata of shards.
        made_with: Versions and processor that compute them: another one may round differently.
        fields: Its columns of vectors.
        encode: How texts become vectors.
    """

    document: Mapping[str, Any]
    made_with: Mapping[str, Any] = field(compare=False)
    fields: Sequence[pa.Field]
    encode: EncodeOptions


def open_encoder(
    model: str | os.PathLike[str] | AnyFlagModel,
    options: JobOptions,
    *,
    instruction: str | None,
    model_options: Mapping[str, Any],
) -> TextEncoder:
    """Return an opened model that encodes windows of texts as a job asks; see `open_model`.

    Raises:
        ValueError: If options do not fit the model.
        BgeError: If it cannot be opened.
    """
    opened = open_model(model, options, instruction=instruction, model_options=model_options)
    default = opened.query_max_length if options.query else opened.passage_max_length
    if options.max_length is not None and options.max_length > opened.max_length:
        warn_user(
            f"max_length={options.max_length} is more than the {opened.max_length} tokens that "
            f"{opened.name} can read; longer texts are cut at {opened.max_length}"
        )
    _check_chunking(opened, options, instruction_tokens=0)
    length = options.chunk_tokens or min(options.max_length or default, opened.max_length)
    encoder = TextEncoder(opened, options.encode_options(length))
    _check_chunking(opened, options, instruction_tokens=encoder.instruction_tokens)
    return encoder


def _check_chunking(model: AnyFlagModel, options: JobOptions, *, instruction_tokens: int) -> None:
    if options.chunk_tokens is not None:
        check_chunking(
            options.chunk_tokens,
            options.overlap,
            special_tokens=model.tokenizer.special_tokens + instruction_tokens,
            max_length=model.max_length,
        )


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
    _logger.info("%s: %s", opened.name, opened.engine.info)
    return opened


def describe_model(encoder: TextEncoder) -> ModelDescription:
    """Return what the vectors of a model depend on.

    Raises:
        ValueError: If its devices compute different vectors.
    """
    model, options = encoder.model, encoder.options
    card, provenance = model.bundle.manifest.model, model.bundle.manifest.provenance
    instruction, template = instruction_of(model, query=options.query)
    engines = model.parts().engines
    found = {device: engines.on_device(device).info for device in model.target_devices}
    if len({info.variant for info in found.values()}) > 1:
        listed = ", ".join(f"{info.variant} on {device}" for device, info in found.items())
        raise ValueError(
            f"devices={model.target_devices} compute different numbers ({listed}), so that a row "
            "would depend on which one was free; name devices of one kind, or run a process each "
            "in a folder of its own"
        )
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
    made_with = {
        "bge_runtime": __version__,
        info.engine: info.version,
        "pyarrow": pa.__version__,
        "instructions": list(vector_extensions()) if info.device == "cpu" else [],
    }
    return ModelDescription(
        document=document, made_with=made_with, fields=encoder.columns.fields, encode=options
    )


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
