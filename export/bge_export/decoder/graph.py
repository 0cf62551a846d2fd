"""Build a decoder's ONNX graph from its configuration, for CPUs.

Encoders are traced; decoders are not. A trace would need the model in memory, and depends on the
installed transformers: 4.57 leaves out Gemma 2's softcapping and ignores Qwen2's ``is_causal``; 5
does neither. The parity gate compares the result with transformers.

The graph reads the new tokens of a batch, and the keys and values of a past that all rows share: a
prefix that was run before, or an empty one.

    input_ids, attention_mask      (batch, sequence)   right-padded
    past_key_values.N.key, .value  (1, kv_heads, past, head_dim)
    sentence_embedding             (batch, hidden_size): the last token's, not normalized
    logits                         (batch, 1): instead of it for rerankers, the last token's score
    present.N.key, .value          (batch, kv_heads, sequence, head_dim): the new tokens'

A shared past is never copied for each row: the scores of queries against the past and against the
new tokens are two products, joined for the softmax (as in arXiv:2402.05099). In the last layer only
the last token has a query, so the final norm has one row for each text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from bge_export.decoder.config import DecoderConfig
from bge_export.decoder.operators import FLOAT, OperatorWriter
from bge_runtime.bundle import LOGITS, SENTENCE_EMBEDDING, past_names, present_names

OPSET = 23
"""First opset with RMSNormalization. ONNX Runtime 1.23 and OpenVINO 2026.1 read it."""

HIDDEN_STATES = "hidden_states"
"""Input of a graph that starts with a later layer."""

ANSWER = "answer"
"""Name of the weight that a reranker has in addition, shape ``(1, hidden_size)``: its product with
the last token's hidden state is the score."""

_MASKED = -1e30
"""Added to scores of masked tokens. Finite, so that nothing becomes NaN, and within bf16's
range."""


class Matrix(NamedTuple):
    """A weight as it is stored.

    Attributes:
        values: The tensor; shape ``(inputs, outputs)``.
        scales: Scale of each block, if it is quantized; shape ``(inputs / block, outputs)``.
        block: Rows that share a scale.
    """

    values: ir.ExternalTensor
    scales: ir.ExternalTensor | None = None
    block: int = 0


class _Shared(NamedTuple):
    """Values that all layers use, computed once."""

    sequence: ir.Value
    past: ir.Value | None
    mask_of: Mapping[int | None, ir.Value]
    cos_sin: tuple[ir.Value, ir.Value]
    last_mask_of: Mapping[int | None, ir.Value]
    last_cos_sin: tuple[ir.Value, ir.Value]


class DecoderGraph(OperatorWriter):
    """Builds the graph of a decoder, or of some of its layers.

    A graph of some layers begins or ends with hidden states. The parity gate uses such graphs for
    models that do not fit into memory.
    """

    opset = OPSET
    """Version of the standard operators."""

    takes_past = True
    """Whether the graph of a causal decoder has inputs and outputs for keys and values."""

    scores_rank = 5
    """Rank of the scores to which the mask is added: ``(batch, kv_heads, group, queries,
    keys)``."""

    def __init__(
        self, config: DecoderConfig, weights: Mapping[str, Matrix], *, dtype: ir.DataType = FLOAT
    ) -> None:
        """Begin the graph of a decoder.

        Args:
            config: The decoder.
            weights: Its stored weights, by the names of `list_weights`.
            dtype: Type of products, attention and activations.
        """
        super().__init__(dtype)
        self._config = config
        self._weights = weights
        self._presents: list[ir.Value] = []

    def build(self, layers: Sequence[int] | None = None, *, embed: bool = True) -> ir.Model:
        """Build a model.

        Args:
            layers: Layers of the graph, in order; None for all.
            embed: Whether it begins with tokens. Otherwise it takes ``hidden_states`` of
                shape ``(batch, sequence, hidden_size)``.

        Returns:
            A model of opset ``opset``. With the last layer its output are vectors or scores, else
            ``hidden_states_out``.
        """
        config = self._config
        layers = range(config.layers) if layers is None else layers
        if embed:
            ids = self._input("input_ids", ir.DataType.INT64, ["batch", "sequence"])
            mask = self._input("attention_mask", ir.DataType.INT64, ["batch", "sequence"])
            hidden = self._embed(ids)
        else:
            width: list[int | str] = ["batch", "sequence", config.hidden_size]
            hidden = self._input(HIDDEN_STATES, FLOAT, width)
            mask = self._input("attention_mask", ir.DataType.INT64, ["batch", "sequence"])
        pasts: dict[int, tuple[ir.Value, ir.Value]] = {}
        if config.causal and self.takes_past:
            shape: list[int | str] = [1, config.kv_heads, "past", config.head_dim]
            for layer in layers:
                key, value = (self._input(name, FLOAT, shape) for name in past_names(layer))
                pasts[layer] = key, value
        if layers:
            self._lengths = self._op("ReduceSum", mask, self._ints([1]), keepdims=0)
            self._last = self._op("Sub", self._lengths, self._ints(1))
            self._prepare(mask, pasts[layers[0]][0] if pasts else None)
        for layer in layers:
            hidden = self._layer(layer, hidden, pasts.get(layer))
        if layers and layers[-1] == config.layers - 1:
            hidden = self._norm(hidden, "norm")
            rows = self._op("Squeeze", hidden, self._ints([1]))
            if ANSWER in self._weights:
                # OpenVINO would round the result of a MatMul to bf16, and make scores equal.
                products = self._op("Mul", rows, self._stored(self._weights[ANSWER].values))
                scores = self._op("ReduceSum", products, self._ints([1]), keepdims=1)
                output = self._output(scores, LOGITS, ["batch", 1])
            else:
                output = self._output(rows, SENTENCE_EMBEDDING, ["batch", config.hidden_size])
        else:
            width = ["batch", "sequence", config.hidden_size]
            output = self._output(self._op("Identity", hidden), f"{HIDDEN_STATES}_out", width)
        graph = ir.Graph(
            self._inputs,
            [output, *self._presents],
            nodes=self._tape.nodes,
            initializers=self._held.initializers,
            opset_imports={"": self.opset},
            name="decoder",
        )
        return ir.Model(graph, ir_version=11, producer_name="bge-export")

    def _embed(self, ids: ir.Value) -> ir.Value:
        table = self._stored(self._weights["embed_tokens"].values)
        hidden = self._cast(self._op("Gather", table, ids, axis=0), table.dtype, FLOAT)
        scale = self._config.embed_scale
        return hidden if scale == 1 else self._op("Mul", hidden, self._float(scale))

    def _prepare(self, mask: ir.Value, past_key: ir.Value | None) -> None:
        """Compute what all layers use: masks and rotary factors."""
        config = self._config
        sequence, past, total = self._count_tokens(mask, past_key)
        start = self._ints([0]) if past is None else past
        keys, queries = self._range(self._ints([0]), total), self._range(start, total)
        last_queries = self._op("Add", self._last, start)
        masks, last_masks = {}, {}
        for window in dict.fromkeys(config.windows):
            if config.causal:
                row_queries = self._op("Unsqueeze", queries, self._ints([1]))
                masks[window] = self._make_additive(self._make_mask(row_queries, keys, window))
                axes = self._ints(range(1, self.scores_rank))
                text_queries = self._op("Unsqueeze", last_queries, axes)
                last_masks[window] = self._make_additive(
                    self._make_mask(text_queries, keys, window)
                )
            else:
                seen = self._op("Cast", mask, to=ir.DataType.BOOL)
                seen = self._op("Unsqueeze", seen, self._ints(range(1, self.scores_rank - 1)))
                masks[window] = last_masks[window] = self._make_additive(seen)
        tables = [
            self._narrow(self._constant(name, table))
            for name, table in self._make_rotary_tables().items()
        ]
        rows = [self._op("Slice", table, start, total, self._ints([0])) for table in tables]
        per_token = tuple(self._op("Unsqueeze", row, self._ints([1])) for row in rows)
        of_last = tuple(
            self._op("Unsqueeze", self._op("Gather", table, last_queries, axis=0),
                     self._ints([1, 2]))
            for table in tables
        )  # fmt: skip
        self._shared = _Shared(
            sequence=sequence,
            past=past,
            mask_of=masks,
            cos_sin=(per_token[0], per_token[1]),
            last_mask_of=last_masks,
            last_cos_sin=(of_last[0], of_last[1]),
        )

    def _count_tokens(
        self, mask: ir.Value, past_key: ir.Value | None
    ) -> tuple[ir.Value, ir.Value | None, ir.Value]:
        """Return the number of new tokens, of tokens in the past, and their sum."""
        sequence = self._op("Shape", mask, start=1, end=2)
        if past_key is None:
            return sequence, None, sequence
        past = self._op("Shape", past_key, start=2, end=3)
        return sequence, past, self._op("Add", past, sequence)

    def _range(self, first: ir.Value, end: ir.Value) -> ir.Value:
        ends = (self._op("Reshape", value, self._ints([])) for value in (first, end))
        return self._op("Range", *ends, self._ints(1))

    def _make_mask(self, queries: ir.Value, keys: ir.Value, window: int | None) -> ir.Value:
        seen = self._op("LessOrEqual", keys, queries)
        if window is None:
            return seen
        oldest = self._op("Sub", queries, self._ints(window))
        return self._op("And", seen, self._op("Greater", keys, oldest))

    def _make_additive(self, seen: ir.Value) -> ir.Value:
        return self._op("Where", seen, self._float(0.0), self._float(_MASKED))

    def _make_rotary_tables(self) -> dict[str, Any]:
        """Return cosine and sine of each position and frequency, as in transformers."""
        config = self._config
        exponent = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
        frequencies = (1.0 / np.float32(config.rope_theta) ** exponent).astype(np.float32)
        positions = np.arange(config.max_length, dtype=np.float32)
        angles = positions[:, None] * frequencies
        return {"rotary_cos": np.cos(angles), "rotary_sin": np.sin(angles)}

    def _layer(
        self, layer: int, hidden: ir.Value, past: tuple[ir.Value, ir.Value] | None
    ) -> ir.Value:
        config, name = self._config, f"layers.{layer}."
        normed = self._narrow(self._norm(hidden, name + "input_layernorm"))
        if layer == config.layers - 1:
            hidden = self._last_token(hidden)
        attended = self._wide(self._attention(layer, normed, past))
        if config.post_norms:
            attended = self._norm(attended, name + "post_attention_layernorm")
        hidden = self._op("Add", hidden, attended)
        before = "pre_feedforward" if config.post_norms else "post_attention"
        normed = self._narrow(self._norm(hidden, f"{name}{before}_layernorm"))
        fed = self._wide(self._feed_forward(name + "mlp.", normed))
        if config.post_norms:
            fed = self._norm(fed, name + "post_feedforward_layernorm")
        return self._op("Add", hidden, fed)

    def _last_token(self, hidden: ir.Value) -> ir.Value:
        """Select the last token of each text. Shape: ``(batch, 1, width)``."""
        index = self._op("Unsqueeze", self._last, self._ints([1]))
        index = self._op("Unsqueeze", index, self._ints([2]))
        # By position within each row; GatherElements would need an index for each channel.
        return self._op("GatherND", hidden, index, batch_dims=1)

    def _attention(
        self, layer: int, hidden: ir.Value, past: tuple[ir.Value, ir.Value] | None
    ) -> ir.Value:
        """Attend. In the last layer only the last tokens have queries."""
        config, shared = self._config, self._shared
        is_last = layer == config.layers - 1
        groups = config.heads // config.kv_heads
        query, key, value = self._project(layer, hidden)
        # The queries of a key head are rows of one matrix, so keys are never repeated.
        split = [0, 0, config.kv_heads, groups, config.head_dim]
        query = self._op("Transpose", self._reshape(query, split), perm=[0, 2, 3, 1, 4])
        query = self._reshape(query, [0, 0, -1, config.head_dim])
        key, value = (self._op("Transpose", x, perm=[0, 2, 1, 3]) for x in (key, value))
        scores = self._op("MatMul", query, self._op("Transpose", key, perm=[0, 1, 3, 2]))
        if past is not None:
            past = self._narrow(past[0]), self._narrow(past[1])
            transposed = self._op("Transpose", past[0], perm=[0, 1, 3, 2])
            scores = self._op("Concat", self._op("MatMul", query, transposed), scores, axis=-1)
        scores = self._softcap(self._wide(scores))
        total = self._op("Shape", scores, start=3, end=4)
        queries = self._ints([1]) if is_last else shared.sequence
        split_shape = self._op("Concat", self._ints([0, 0, groups]), queries, total, axis=0)
        flat_shape = self._op("Concat", self._ints([0, 0, -1]), total, axis=0)
        scores = self._op("Add", self._op("Reshape", scores, split_shape), self._mask(layer))
        shares = self._narrow(self._op("Softmax", scores, axis=-1))
        shares = self._op("Reshape", shares, flat_shape)
        if past is None or shared.past is None:
            mixed = self._op("MatMul", shares, value)
        else:
            axis = self._ints([3])
            of_past = self._op("Slice", shares, self._ints([0]), shared.past, axis)
            of_new = self._op("Slice", shares, shared.past, total, axis)
            mixed = self._op(
                "Add", self._op("MatMul", of_past, past[1]), self._op("MatMul", of_new, value)
            )
            self._add_present(layer, key, value)
        joined = self._op("Concat", self._ints([0, 0, groups]), queries,
                          self._ints([config.head_dim]), axis=0)  # fmt: skip
        mixed = self._op("Transpose", self._op("Reshape", mixed, joined), perm=[0, 3, 1, 2, 4])
        return self._join_heads(layer, mixed)

    def _project(self, layer: int, hidden: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return queries, keys and values, rotated and scaled.

        Shape: ``(batch, rows, heads, head_dim)``. In the last layer there is one row of queries,
            the
        last token's.
        """
        config, name, shared = self._config, f"layers.{layer}.self_attn.", self._shared
        is_last = layer == config.layers - 1
        querying = self._last_token(hidden) if is_last else hidden
        query = self._split_heads(querying, name + "q", config.heads)
        key = self._split_heads(hidden, name + "k", config.kv_heads)
        value = self._split_heads(hidden, name + "v", config.kv_heads)
        query = self._rotate(query, shared.last_cos_sin if is_last else shared.cos_sin)
        key = self._rotate(key, shared.cos_sin)
        query = self._op("Mul", query, self._narrow(self._float(config.query_scale)))
        return query, key, value

    def _softcap(self, scores: ir.Value) -> ir.Value:
        if self._config.softcap is None:
            return scores
        cap = self._float(self._config.softcap)
        return self._op("Mul", self._op("Tanh", self._op("Div", scores, cap)), cap)

    def _mask(self, layer: int) -> ir.Value:
        config, shared = self._config, self._shared
        masks = shared.last_mask_of if layer == config.layers - 1 else shared.mask_of
        return masks[config.windows[layer]]

    def _join_heads(self, layer: int, mixed: ir.Value) -> ir.Value:
        """Join the heads of ``(batch, rows, heads, head_dim)``, and project."""
        config = self._config
        rows = self._reshape(mixed, [0, 0, config.heads * config.head_dim])
        return self._linear(rows, f"layers.{layer}.self_attn.o_proj", bias=config.output_bias)

    def _split_heads(self, hidden: ir.Value, name: str, heads: int) -> ir.Value:
        """Project to heads. Shape: ``(batch, sequence, heads, head_dim)``."""
        config = self._config
        projected = self._linear(hidden, f"{name}_proj", bias=config.qkv_bias)
        split = self._reshape(projected, [0, 0, heads, config.head_dim])
        if not config.query_key_norms or name.endswith("v"):
            return split
        return self._narrow(self._norm(self._wide(split), f"{name}_norm"))

    def _rotate(self, heads: ir.Value, cos_sin: tuple[ir.Value, ir.Value]) -> ir.Value:
        cos, sin = cos_sin
        half = self._config.head_dim // 2
        axis, ends = self._ints([3]), (self._ints([0]), self._ints([half]), self._ints([2 * half]))
        first = self._op("Slice", heads, ends[0], ends[1], axis)
        second = self._op("Slice", heads, ends[1], ends[2], axis)
        rotated_first = self._op("Sub", self._op("Mul", first, cos), self._op("Mul", second, sin))
        rotated_second = self._op("Add", self._op("Mul", second, cos), self._op("Mul", first, sin))
        return self._op("Concat", rotated_first, rotated_second, axis=-1)

    def _feed_forward(self, name: str, hidden: ir.Value) -> ir.Value:
        gate = self._linear(hidden, name + "gate_proj")
        if self._config.activation == "silu":
            gate = self._op("Mul", gate, self._op("Sigmoid", gate))
        else:
            gate = self._gelu(gate)
        product = self._op("Mul", gate, self._linear(hidden, name + "up_proj"))
        return self._linear(product, name + "down_proj")

    def _gelu(self, hidden: ir.Value) -> ir.Value:
        return self._op("Gelu", hidden, approximate="tanh")

    def _add_present(self, layer: int, key: ir.Value, value: ir.Value) -> None:
        config = self._config
        shape: list[int | str] = ["batch", config.kv_heads, "sequence", config.head_dim]
        for name, present in zip(present_names(layer), (key, value), strict=True):
            output = self._wide(self._op("Identity", present))
            self._presents.append(self._output(output, name, shape))

    def _norm(self, hidden: ir.Value, name: str) -> ir.Value:
        weight = self._stored(self._weights[name].values)
        return self._op(
            "RMSNormalization", hidden, weight, axis=-1, epsilon=self._config.rms_norm_eps
        )

    def _linear(self, hidden: ir.Value, name: str, *, bias: bool = False) -> ir.Value:
        matrix = self._weights[name]
        weight = self._stored(matrix.values)
        if matrix.scales is None:
            weight = self._cast(weight, weight.dtype, self._dtype)
        else:
            scales = self._stored(matrix.scales)
            weight = self._op("DequantizeLinear", weight, scales, axis=0, block_size=matrix.block)
        product = self._op("MatMul", hidden, weight)
        if not bias:
            return product
        offset = self._stored(self._weights[f"{name}.bias"].values)
        return self._op("Add", product, self._narrow(offset))
