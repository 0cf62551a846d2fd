"""What the integrations share: open a model in fp32, and embed queries and passages with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import normalizers

from bge_runtime.bundle import SentenceTransformersSettings
from bge_runtime.encoding import as_text_list, truncate
from bge_runtime.encoding import normalize as scale
from bge_runtime.errors import BundleError
from bge_runtime.integrations._arguments import drop_foreign_options
from bge_runtime.models import AnyFlagModel, BGEM3FlagModel, FlagAutoModel

_DENSE = {"return_dense": True, "return_sparse": False, "return_colbert_vecs": False}
_SPARSE = {"return_dense": False, "return_sparse": True, "return_colbert_vecs": False}

PREFIX = "{}{}"
"""Format that puts an instruction directly before a text."""


def open_model(
    model_name: str, *, query_instruction: str | None = None, **options: Any
) -> AnyFlagModel:
    """Open a model with `bge_runtime.FlagAutoModel`, in fp32 unless the options say otherwise.

    Its sentence-transformers settings are followed, as in the tools that the integrations replace.

    Args:
        model_name: As in `bge_runtime.FlagModel`.
        query_instruction: Put before each query. None for the one that the model's authors
            recommend, if any; ``""`` for none.
        **options: Those of ``from_finetuned``; ``device`` as another name of ``devices``; and
            arguments of ``SentenceTransformer`` that change nothing.

    Raises:
        TypeError: If the options hold another instruction for queries.
        ValueError: If an option of ``SentenceTransformer`` would change something.
        BgeError: As `bge_runtime.FlagModel`.
    """
    options = drop_foreign_options(options, model_name)
    # Passed by name, so that a second instruction among the options is an error.
    model = FlagAutoModel.from_finetuned(
        model_name,
        query_instruction_for_retrieval=query_instruction or None,
        **{"use_fp16": False, **options},
    )
    settings = settings_of(model)
    if settings.lowercase:
        _lowercase(model)
    if "normalize_embeddings" not in options:
        model.normalize_embeddings = settings.normalize
    if query_instruction is None and "query_instruction_format" in options:
        model.query_instruction_for_retrieval = model.bundle.manifest.model.query_instruction
    elif query_instruction is None:
        model.query_instruction_for_retrieval = query_prompt(model) or None
        model.query_instruction_format = PREFIX
    return model


def settings_of(model: AnyFlagModel) -> SentenceTransformersSettings:
    """Return the settings of a model's sentence-transformers files."""
    return model.bundle.manifest.model.sentence_transformers


def default_max_length(model: AnyFlagModel) -> int:
    """Return the number of tokens that texts are cut to by default."""
    return settings_of(model).max_seq_length or model.bundle.manifest.model.max_length


def vector_dim(model: AnyFlagModel) -> int:
    """Return the number of components of `dense_vectors`."""
    asked = model.truncate_dim or settings_of(model).truncate_dim
    dim = model.bundle.manifest.model.dim
    return min(asked or dim, dim)


def default_prompt(model: AnyFlagModel) -> str:
    """Return the prompt for texts that are neither queries nor documents."""
    settings = settings_of(model)
    return settings.prompts.get(settings.default_prompt_name or "", "")


def query_prompt(model: AnyFlagModel) -> str:
    """Return the prompt for queries: the folder's, or the one that the authors recommend."""
    card = model.bundle.manifest.model
    recommended = card.query_instruction
    own = recommended and card.query_instruction_format.format(recommended, "")
    return settings_of(model).prompts.get("query", own or "")


def document_prompt(model: AnyFlagModel) -> str:
    """Return the prompt for documents.

    ``encode_document`` of sentence-transformers has a second name to look for, but up to version
    6.2 it always finds this one, even if it is empty.
    """
    return settings_of(model).prompts.get("document", "")


def dense_vectors(
    model: AnyFlagModel,
    texts: Sequence[str],
    *,
    queries: bool = False,
    prompt: str | None = None,
    normalize: bool = False,
    **options: Any,
) -> NDArray[np.float32]:
    """Return the dense vectors of texts.

    Args:
        model: Any model that `open_model` opened.
        texts: The texts; may be empty.
        queries: Whether they are queries instead of passages.
        prompt: Put before each passage; None for the folder's prompt for documents.
        normalize: Scale vectors to unit length even if the folder's settings do not.
        **options: Those of ``encode``. Without ``max_length``, texts are cut as in
            sentence-transformers, not at FlagEmbedding's 512.

    Returns:
        Shape: ``(len(texts), dim)``.

    Raises:
        TypeError: If the texts are not a list of strings.
    """
    if isinstance(model, BGEM3FlagModel):
        options.update(_DENSE)
    found = _encode(model, texts, queries, prompt, options)
    vectors: NDArray[np.float32] = found["dense_vecs"] if isinstance(found, dict) else found
    cut = None if model.truncate_dim else settings_of(model).truncate_dim
    if cut is not None:
        vectors = truncate(vectors, cut)  # after scaling, as in sentence-transformers
    if normalize and (cut is not None or not model.normalize_embeddings):
        vectors = scale(vectors)
    return vectors


def lexical_weights(
    model: BGEM3FlagModel, texts: Sequence[str], *, queries: bool = False, **options: Any
) -> list[dict[str, np.float32]]:
    """Return the lexical weights of texts, as `bge_runtime.stores` takes them.

    The arguments are those of `dense_vectors`.
    """
    prompt = options.pop("prompt", None)
    found = _encode(model, texts, queries, prompt, {**options, **_SPARSE})
    weights: list[dict[str, np.float32]] = found["lexical_weights"]
    return weights


def check_m3(model: AnyFlagModel) -> BGEM3FlagModel:
    """Return the model if it is an M3 model.

    Raises:
        BundleError: If it is not.
    """
    if not isinstance(model, BGEM3FlagModel):
        card = model.bundle.manifest.model
        raise BundleError(
            f"{card.name} is a model of class {card.model_class}, without lexical weights. Pass an "
            "M3 model for sparse vectors, or use dense vectors"
        )
    return model


def _encode(
    model: AnyFlagModel,
    texts: Sequence[str],
    queries: bool,
    prompt: str | None,
    options: dict[str, Any],
) -> Any:
    if options.get("max_length") is None:
        options["max_length"] = default_max_length(model)
    texts = as_text_list(texts, name="texts")
    if queries:
        return model.encode_queries(texts, **options)
    before = document_prompt(model) if prompt is None else prompt
    if before and "passage_instruction_for_retrieval" not in model.kwargs:
        options |= {"instruction": before, "instruction_format": PREFIX}
    encode: Any = model.encode_corpus
    return encode(texts, **options)


def _lowercase(model: AnyFlagModel) -> None:
    """Change a model's tokenizer to lowercase texts first, as in sentence-transformers."""
    tokenizer = model.tokenizer.tokenizer
    own = tokenizer.normalizer
    steps = [normalizers.Lowercase(), *([] if own is None else [own])]
    tokenizer.normalizer = normalizers.Sequence(steps)


def as_lists(vectors: NDArray[np.float32]) -> list[list[float]]:
    """Return vectors as lists of Python numbers.

    Row by row, since converting all at once would hold the GIL and block every event loop.
    """
    return [row.tolist() for row in vectors]
