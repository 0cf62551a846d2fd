"""Fields that requests of several dialects share: inputs, kinds of texts, outputs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from bge_runtime.m3 import graph_outputs
from bge_runtime.models import TextKind
from bge_runtime.serving.errors import Kind, RequestError
from bge_runtime.serving.models import Inputs, ServedEmbedder, ServedModel

InputField = str | list[str | int | list[int]]
"""A text, texts, token ids of one text, or token ids of several."""


class SparseVector(msgspec.Struct):
    """Lexical weights of one text, by token id."""

    indices: list[int]
    values: list[float]


_KINDS: dict[str, TextKind] = {
    **dict.fromkeys(("query", "search_query", "retrieval.query", "search", "s2p_query"), "query"),
    **dict.fromkeys(
        ("passage", "document", "search_document", "retrieval.passage", "corpus", "update"),
        "passage",
    ),
    **dict.fromkeys(("", "none", "classification", "clustering", "similarity"), None),
}

_TRUNCATIONS = {
    "end": (True, False), "true": (True, False), "start": (True, True),
    "none": (False, False), "false": (False, False),
}  # fmt: skip
"""Whether to cut, and whether on the left: by the names that Cohere and NVIDIA have for it."""


def read_inputs(value: InputField, model: ServedModel, *, token_ids: bool, param: str) -> Inputs:
    """Return the inputs of a request as texts or as arrays of token ids.

    Args:
        value: What the request has.
        model: The model, whose limit of inputs is checked before they are walked.
        token_ids: Whether ids are accepted.
        param: Name of the field, for errors.

    Raises:
        RequestError: If there are no inputs or too many, texts and ids are mixed, or ids are not
            accepted.
    """
    if isinstance(value, str):
        return [value]
    if not value or not isinstance(value[0], int):  # which would be the first token of one text
        model.check_count(value)
    if all(isinstance(each, str) for each in value):
        return value  # type: ignore[return-value]
    if not token_ids:
        raise RequestError(
            Kind.INVALID,
            f"{param} holds token ids. Clients make them with OpenAI's tokenizer, whose ids mean "
            "other words to this model. Send texts: with langchain-openai, "
            "OpenAIEmbeddings(check_embedding_ctx_length=False). If the ids are those of this "
            "model's tokenizer, start the server with --allow-token-ids",
            param=param,
        )
    rows: Sequence[object] = [value] if all(isinstance(each, int) for each in value) else value
    if not all(isinstance(row, list) for row in rows):
        raise RequestError(Kind.INVALID, f"{param} mixes texts and token ids", param=param)
    try:
        return [np.array(row, dtype=np.int64) for row in rows]
    except OverflowError as error:
        raise RequestError(Kind.INVALID, f"{param} has a token id that is too large") from error


def read_kind(name: str | None, model: ServedModel, *, param: str) -> tuple[TextKind, str]:
    """Return what texts are, and the prompt to put before them if it is not the model's own.

    Args:
        name: Name of a kind or prompt; None for none.
        model: The model. Its sentence-transformers prompts are known by their names.
        param: Name of the field, for errors.

    Raises:
        RequestError: If there is no such kind or prompt.
    """
    if name is None:
        return None, ""
    prompts = model.card.sentence_transformers.prompts
    kind = _KINDS.get(name.lower().replace("-", "_"))
    # The instruction for queries comes before a prompt that is called "query".
    if name in prompts and not (kind == "query" and model.query_instruction is not None):
        return None, prompts[name]
    if name.lower().replace("-", "_") in _KINDS:
        return kind, ""
    # tei-client reads the list in this form.
    known = ", ".join(f'"{each}"' for each in dict.fromkeys(["query", "passage", *prompts]))
    raise RequestError(
        Kind.INVALID,
        f"{param} is {name[:100]!r}, which is none of this model's. Available prompts: [{known}]",
        param=param,
    )


def read_truncation(value: bool | str | None, *, param: str) -> tuple[bool, bool]:
    """Return whether texts that are too long are cut, and whether on the left.

    Args:
        value: A boolean, or a name of what is cut; None cuts on the right.
        param: Name of the field, for errors.

    Raises:
        RequestError: If it is another string.
    """
    if not isinstance(value, str):
        return value is not False, False
    found = _TRUNCATIONS.get(value.lower())
    if found is None:
        raise RequestError(
            Kind.INVALID,
            f"{param} is {value[:100]!r}; send true, false, or one of END, START and NONE",
            param=param,
        )
    return found


def add_prompt(inputs: Inputs, prompt: str) -> Inputs:
    """Return texts with a prompt before each; token ids stay as they are."""
    if not prompt or not isinstance(inputs[0] if inputs else None, str):
        return inputs
    return [prompt + str(text) for text in inputs]


def read_outputs(
    model: ServedEmbedder, *, dense: bool, sparse: bool, colbert: bool
) -> tuple[str, ...]:
    """Return the names of the graph's outputs that a request asks for.

    Raises:
        RequestError: If the model does not have them, or nothing is asked for.
    """
    if (sparse or colbert) and model.card.colbert_dim is None:
        what = "sparse vectors" if sparse else "ColBERT vectors"
        raise RequestError(
            Kind.WRONG_MODEL,
            f"{model.name} has no {what}: it returns one dense vector for each text. BGE-M3 has "
            "all three",
        )
    outputs = graph_outputs(dense, sparse, colbert)
    if not outputs:
        raise RequestError(
            Kind.INVALID,
            "nothing is asked for: one of return_dense, return_sparse and return_colbert_vecs "
            "must be true",
            param="return_dense",
        )
    return outputs
