"""What the adapters share: any model, in fp32, and what it gives for queries and passages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import normalizers

from bge_runtime.bundle import SentenceTransformersSettings
from bge_runtime.encoding import as_text_list, truncate
from bge_runtime.encoding import normalize as scale
from bge_runtime.errors import BundleError
from bge_runtime.models import AnyFlagModel, BGEM3FlagModel, FlagAutoModel

_DENSE = {"return_dense": True, "return_sparse": False, "return_colbert_vecs": False}
_SPARSE = {"return_dense": False, "return_sparse": True, "return_colbert_vecs": False}

PREFIX = "{}{}"
"""Format of an instruction that is put before a text as it is."""


def open_model(
    model_name: str, *, query_instruction: str | None = None, **options: Any
) -> AnyFlagModel:
    """Open a model with `bge_runtime.FlagAutoModel`, in fp32 unless the options say otherwise.

    What its sentence-transformers folder says of texts and vectors is followed, as the tools do
    that these adapters replace.

    Args:
        model_name: As in `bge_runtime.FlagModel`.
        query_instruction: Put before each query. None for the one that the model's authors
            recommend, if there is one; ``""`` for none.
        **options: Those of ``from_finetuned``; ``device`` for ``devices``, as others call it;
            and those of ``SentenceTransformer`` that change nothing.

    Raises:
        TypeError: If the options hold an instruction for queries as well.
        ValueError: If an option of ``SentenceTransformer`` would change something.
        BgeError: As `bge_runtime.FlagModel`.
    """
    options = _own_options(options, model_name)
    # Named here, so that a second one among the options is an error and not lost.
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
    """Tell what sentence-transformers follows of a model's folder."""
    return model.bundle.manifest.model.sentence_transformers


def longest(model: AnyFlagModel) -> int:
    """Count the tokens that a text is cut to, unless the user says otherwise."""
    return settings_of(model).max_seq_length or model.bundle.manifest.model.max_length


def width(model: AnyFlagModel) -> int:
    """Count the components of `dense_vectors`."""
    asked = model.truncate_dim or settings_of(model).truncate_dim
    dim = model.bundle.manifest.model.dim
    return min(asked or dim, dim)


def default_prompt(model: AnyFlagModel) -> str:
    """Give what stands before a text of which nothing is said."""
    settings = settings_of(model)
    return settings.prompts.get(settings.default_prompt_name or "", "")


def query_prompt(model: AnyFlagModel) -> str:
    """Give what stands before a query: the folder's prompt, or what the authors recommend."""
    facts = model.bundle.manifest.model
    recommended = facts.query_instruction
    own = recommended and facts.query_instruction_format.format(recommended, "")
    return settings_of(model).prompts.get("query", own or "")


def document_prompt(model: AnyFlagModel) -> str:
    """Give what stands before a document.

    ``encode_document`` of sentence-transformers looks for a prompt of one more name if there is
    none of this, but always finds this one, if empty: so it is up to 6.2.
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
    """Embed texts.

    Args:
        model: Any model that `open_model` opened.
        texts: The texts; may be none.
        queries: Whether they are queries, and not passages.
        prompt: Put before each passage; None for the prompt that the folder has for documents.
        normalize: Scale vectors to unit length whatever the folder says.
        **options: Those of ``encode``. Without a ``max_length``, texts are cut where
            sentence-transformers cuts them, not at FlagEmbedding's 512.

    Returns:
        Shape: ``(len(texts), dim)``.

    Raises:
        TypeError: If the texts are no list of strings.
    """
    if isinstance(model, BGEM3FlagModel):
        options.update(_DENSE)
    found = _encode(model, texts, queries, prompt, options)
    vectors: NDArray[np.float32] = found["dense_vecs"] if isinstance(found, dict) else found
    cut = None if model.truncate_dim else settings_of(model).truncate_dim
    if cut is not None:
        vectors = truncate(vectors, cut)  # after they were scaled, as there
    if normalize and (cut is not None or not model.normalize_embeddings):
        vectors = scale(vectors)
    return vectors


def lexical_weights(
    model: BGEM3FlagModel, texts: Sequence[str], *, queries: bool = False, **options: Any
) -> list[dict[str, np.float32]]:
    """Weigh the tokens of texts; the arguments are those of `dense_vectors`.

    Returns:
        For each text a dictionary, as `bge_runtime.stores` takes them.
    """
    prompt = options.pop("prompt", None)
    found = _encode(model, texts, queries, prompt, {**options, **_SPARSE})
    weights: list[dict[str, np.float32]] = found["lexical_weights"]
    return weights


def check_m3(model: AnyFlagModel) -> BGEM3FlagModel:
    """Check that a model weighs tokens.

    Raises:
        BundleError: If it does not.
    """
    if not isinstance(model, BGEM3FlagModel):
        facts = model.bundle.manifest.model
        raise BundleError(
            f"{facts.name} is a model of class {facts.model_class}, which weighs no tokens: sparse "
            "vectors are BGE-M3's. Name an M3 model, or embed densely"
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
        options["max_length"] = longest(model)
    texts = as_text_list(texts, name="texts")
    if queries:
        return model.encode_queries(texts, **options)
    before = document_prompt(model) if prompt is None else prompt
    if before and "passage_instruction_for_retrieval" not in model.kwargs:
        options |= {"instruction": before, "instruction_format": PREFIX}
    encode: Any = model.encode_corpus
    return encode(texts, **options)


def _lowercase(model: AnyFlagModel) -> None:
    """Have a model's tokenizer lowercase first, the way sentence-transformers does."""
    tokenizer = model.tokenizer.tokenizer
    own = tokenizer.normalizer
    steps = [normalizers.Lowercase(), *([] if own is None else [own])]
    tokenizer.normalizer = normalizers.Sequence(steps)


def as_lists(vectors: NDArray[np.float32]) -> list[list[float]]:
    """Turn vectors into Python numbers.

    Row by row: all at once would hold the interpreter, and with it every event loop of the
    process, for as long as it takes.
    """
    return [row.tolist() for row in vectors]


# -- Arguments of SentenceTransformer ------------------------------------------------------

Check = Callable[[Any], bool]
"""Tells whether a value changes nothing."""


def any_value(value: Any) -> bool:  # noqa: ARG001
    """Accept all."""
    return True


def one_of(*values: Any) -> Check:
    """Accept these values."""
    return lambda value: any(value is known or value == known for known in values)


def no_value(value: Any) -> bool:
    """Accept what is empty."""
    return not value


def _float32(value: Any) -> bool:
    return str(value).removeprefix("torch.") in ("float32", "float")


_FP16 = 'ask for {"use_fp16": True}, which takes the fastest precision that was proven'
_OURS = "the bundle has its own graphs, model and tokenizer; leave it out"

_LOADING_OPTIONS: dict[str, tuple[Check, str]] = {
    "attn_implementation": (any_value, ""),
    "dtype": (_float32, _FP16),
    "torch_dtype": (_float32, _FP16),
    "provider": (one_of("CPUExecutionProvider"), 'pass {"device": "cuda"}'),
    "file_name": (no_value, _OURS),
    "export": (no_value, _OURS),
}

_OPTIONS: dict[str, tuple[Check, str]] = {
    **_LOADING_OPTIONS,
    "backend": (one_of("torch", "onnx"), 'pass {"engine": "openvino"}'),
    "config_kwargs": (no_value, _OURS),
    "default_prompt_name": (no_value, "instructions have arguments of their own"),
    "model_card_data": (any_value, ""),
    "modules": (no_value, _OURS),
    "processor_kwargs": (no_value, _OURS),
    "prompts": (no_value, "instructions have arguments of their own"),
    "similarity_fn_name": (any_value, ""),
    "token": (one_of(True, False), "set the environment variable HF_TOKEN"),
    "tokenizer_kwargs": (no_value, _OURS),
    "use_auth_token": (one_of(True, False), "set the environment variable HF_TOKEN"),
}
"""Arguments that people bring along: which values change nothing, and what stands for others."""


def _own_options(options: dict[str, Any], model_name: str) -> dict[str, Any]:
    """Drop the arguments of ``SentenceTransformer`` that change nothing.

    Raises:
        ValueError: If one would change something.
    """
    kept = {}
    for name, value in options.items():
        if name == "model_kwargs" and isinstance(value, Mapping | None):
            for inner, given in (value or {}).items():
                _drop(
                    f"model_kwargs.{inner}", given, _LOADING_OPTIONS.get(inner, (no_value, _OURS))
                )
        elif name == "local_files_only":
            # Nothing is looked for elsewhere if it is a folder.
            here: Check = any_value if Path(model_name).expanduser().exists() else no_value
            _drop(name, value, (here, "set the environment variable HF_HUB_OFFLINE=1"))
        elif name in _OPTIONS:
            _drop(name, value, _OPTIONS[name])
        else:
            kept[name] = value
    if "cache_folder" in kept:
        kept.setdefault("cache_dir", kept.pop("cache_folder"))
    if "device" in kept:
        kept.setdefault("devices", plain_device(kept.pop("device")))
    return kept


def _drop(name: str, value: Any, rule: tuple[Check, str]) -> None:
    check, advice = rule
    if value is not None and not check(value):
        raise ValueError(
            f"{name}={value!r} is an argument of SentenceTransformer, and would have no effect "
            f"here: {advice}"
        )


def plain_device(device: Any) -> Any:
    """Give a ``torch.device`` by its name; all else as it is."""
    return str(device) if type(device).__module__ == "torch" else device
