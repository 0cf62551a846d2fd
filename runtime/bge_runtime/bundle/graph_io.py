"""Names of the inputs and outputs of graphs, which exporter and engines agree on."""

from __future__ import annotations

from collections.abc import Iterable

SENTENCE_EMBEDDING = "sentence_embedding"
"""Output of every graph: pooled vectors, not normalised."""

LOGITS = "logits"
"""Output of a reranker's graphs instead of `SENTENCE_EMBEDDING`: the score of each pair, float32 of
shape ``(batch, 1)``. The name and shape are those of transformers' sequence classifiers, which
other tools read."""

SECOND_TEXT = 1 << 32
"""Added to the token ids of a pair's second text, if a graph reads token types. So a pair is one
array of ids, as a text is, until `bge_runtime.engines.graph_inputs` takes ids and types apart."""

TOKEN_WEIGHTS, COLBERT_VECS = HEAD_OUTPUTS = ("token_weights", "colbert_vecs")
"""Further outputs of M3 models: a weight for each token, and a vector for each token except the
first, not normalised."""

COMPUTE_HEADS = "compute_heads"
"""Input, bool of shape ``()``: whether to compute `HEAD_OUTPUTS`. They are empty otherwise."""

CUMULATIVE_LENGTHS, TOKEN_OFFSET = "cumulative_sequence_length", "token_offset"
"""Inputs of a graph for packed texts, which are concatenated without padding.

The first holds the start of each text, int32 of shape ``(batch + 1,)``. The second holds the
position of each token in a padded batch, followed by the positions of the padding, int32 of shape
``(batch, longest)``. ``input_ids`` and ``position_ids`` have the shape ``(tokens,)``, and so has
the first axis of outputs with a value for each token."""

UNIFORM_BATCH = "even_batch"
"""Input instead of `TOKEN_OFFSET`, for graphs in which all texts of a batch have the same length.
It has the same type and shape, and only its shape is read. The name is that in shipped bundles."""

UNIFORM_LENGTH = "one_length"
"""Input, bool of shape ``()``: whether all texts have the same length, so that the graph takes
its branch for such batches."""

_PAST, _PRESENT = "past_key_values.", "present."


def past_names(layer: int) -> tuple[str, str]:
    """Return a decoder's inputs for one layer: keys and values of the prefix.

    Both are float32 of shape ``(1, kv_heads, past, head_dim)``, shared by all rows of a batch.
    """
    return f"{_PAST}{layer}.key", f"{_PAST}{layer}.value"


def present_names(layer: int) -> tuple[str, str]:
    """Return a decoder's outputs for one layer: keys and values of the new tokens.

    Both are float32 of shape ``(batch, kv_heads, sequence, head_dim)``.
    """
    return f"{_PRESENT}{layer}.key", f"{_PRESENT}{layer}.value"


def past_names_of(inputs: Iterable[str]) -> tuple[str, ...]:
    """Return the names of a graph's inputs for keys and values of the prefix, in the graph's order.

    Returns:
        Empty for encoders, and for decoders with bidirectional attention.
    """
    return tuple(name for name in inputs if name.startswith(_PAST))


def present_name(past_name: str) -> str:
    """Return the output for the new tokens that belongs to an input for the prefix."""
    return _PRESENT + past_name.removeprefix(_PAST)
