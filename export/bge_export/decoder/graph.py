"""A decoder's ONNX graph, built from its configuration.

The encoders' graphs are traced; these are written down, one function a part, since the
trace of a decoder depends on the installed transformers: 4.57 gives Gemma 2 an attention
without softcapping and takes no notice of Qwen2's ``is_causal``, 5 does neither; and a
trace needs the model in memory. The parity gate compares the result with transformers.

The graph reads the new tokens of a batch, and the keys and values of a past that all rows
share: a prefix that was run before, or an empty one.

    input_ids, attention_mask      (batch, sequence)   right-padded
    past_key_values.N.key, .value  (1, kv_heads, past, head_dim)
    sentence_embedding             (batch, hidden_size): the last token's, not normalised
    present.N.key, .value          (batch, kv_heads, sequence, head_dim): the new tokens'

A shared past is never copied for the rows: scores of queries against the past and against
the new tokens are two products, joined for the softmax (as in arXiv:2402.05099). In the
last layer only the last token has a query, and the norm at the end sees one row a text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from bge_export.decoder.config import DecoderConfig
from bge_export.graph_builder import GraphBuilder
from bge_runtime.bundle import SENTENCE_EMBEDDING, past_names, present_names

OPSET = 23
"""Has RMSNormalization; ONNX Runtime reads it from 1.23 on, OpenVINO 2026.1 as well."""

_FLOAT = ir.DataType.FLOAT
HIDDEN_STATES = "hidden_states"
"""Input of a graph that begins in the middle of a decoder."""

_MASKED = -1e30
"""Added to scores of tokens that are not seen. Finite, so that nothing becomes NaN, and
within bf16's range."""


class Matrix(NamedTuple):
    """A weight as it lies in the file.

    Attributes:
        values: The tensor; shape ``(inputs, outputs)``.
        scales: Of a quantised one the scale of each block, shape
            ``(inputs / block, outputs)``.
        block: Rows that share a scale.
    """

    values: ir.ExternalTensor
    scales: ir.ExternalTensor | None = None
    block: int = 0


class _Common(NamedTuple):
    """What all layers use, computed once."""

    sequence: ir.Value
    past: ir.Value | None
    mask_of: Mapping[int | None, ir.Value]
    cos_sin: tuple[ir.Value, ir.Value]
    last_mask_of: Mapping[int | None, ir.Value]
    last_cos_sin: tuple[ir.Value, ir.Value]


class DecoderGraph:
    """Builds the graph of a decoder, or of some of its layers.

    A part of the layers begins with hidden states, and one that does not hold the last
    layer ends with them: that is how a model too large for the memory is checked.
    """

    opset = OPSET
    """Version of the standard operators."""

    takes_past = True
    """Whether a causal decoder's graph has inputs and outputs for keys and values."""

    scores_rank = 5
    """Dimensions of scores when the mask is added: ``(batch, kv_heads, group, queries, keys)``."""

    def __init__(
        self, config: DecoderConfig, weights: Mapping[str, Matrix], *, dtype: ir.DataType = _FLOAT
    ) -> None:
        """Take a decoder and what it is computed in.

        Args:
            config: The decoder.
            weights: Its weights by the names that `decoder_weights` gives them.
            dtype: Type of products, attention and activations.
        """
        self._config = config
        self._weights = weights
        self._dtype = dtype
        self._tape = GraphBuilder()
        # Apart from the nodes: those of a branch may use them as well.
        self._held = GraphBuilder()
        self._inputs: list[ir.Value] = []
        self._presents: list[ir.Value] = []
        self._constants: dict[str, ir.Value] = {}

    def build(self, layers: Sequence[int] | None = None, *, embed: bool = True) -> ir.Model:
        """Build a model.

        Args:
            layers: Layers it has, in order; None for all.
            embed: Whether it begins with tokens. Otherwise it takes ``hidden_states`` of
                shape ``(batch, sequence, hidden_size)``.

        Returns:
            A model of opset ``opset``. With the last layer it gives vectors, else
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
            hidden = self._input(HIDDEN_STATES, _FLOAT, width)
            mask = self._input("attention_mask", ir.DataType.INT64, ["batch", "sequence"])
        pasts: dict[int, tuple[ir.Value, ir.Value]] = {}
        if config.causal and self.takes_past:
            shape: list[int | str] = [1, config.kv_heads, "past", config.head_dim]
            for layer in layers:
                key, value = (self._input(name, _FLOAT, shape) for name in past_names(layer))
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
        hidden = self._cast(self._op("Gather", table, ids, axis=0), table.dtype, _FLOAT)
        scale = self._config.embed_scale
        return hidden if scale == 1 else self._op("Mul", hidden, self._float(scale))

    def _prepare(self, mask: ir.Value, past_key: ir.Value | None) -> None:
        """Compute what all layers use: masks and rotary factors."""
        config = self._config
        sequence, past, total = self._extent(mask, past_key)
        start = self._ints([0]) if past is None else past
        keys, queries = self._range(self._ints([0]), total), self._range(start, total)
        last_queries = self._op("Add", self._last, start)
        every, every_last = {}, {}
        for window in dict.fromkeys(config.windows):
            if config.causal:
                by_row = self._op("Unsqueeze", queries, self._ints([1]))
                every[window] = self._additive(self._seen(by_row, keys, window))
                between = self._ints(range(1, self.scores_rank))
                split_by_text = self._op("Unsqueeze", last_queries, between)
                every_last[window] = self._additive(self._seen(split_by_text, keys, window))
            else:
                seen = self._op("Cast", mask, to=ir.DataType.BOOL)
                seen = self._op("Unsqueeze", seen, self._ints(range(1, self.scores_rank - 1)))
                every[window] = every_last[window] = self._additive(seen)
        tables = [
            self._narrow(self._constant(name, table))
            for name, table in self._rotary_tables().items()
        ]
        rows = [self._op("Slice", table, start, total, self._ints([0])) for table in tables]
        per_token = tuple(self._op("Unsqueeze", row, self._ints([1])) for row in rows)
        of_last = tuple(
            self._op("Unsqueeze", self._op("Gather", table, last_queries, axis=0),
                     self._ints([1, 2]))
            for table in tables
        )  # fmt: skip
        self._common = _Common(
            sequence=sequence,
            past=past,
            mask_of=every,
            cos_sin=(per_token[0], per_token[1]),
            last_mask_of=every_last,
            last_cos_sin=(of_last[0], of_last[1]),
        )

    def _extent(
        self, mask: ir.Value, past_key: ir.Value | None
    ) -> tuple[ir.Value, ir.Value | None, ir.Value]:
        """Count the new tokens, those of the past, and both."""
        sequence = self._op("Shape", mask, start=1, end=2)
        if past_key is None:
            return sequence, None, sequence
        past = self._op("Shape", past_key, start=2, end=3)
        return sequence, past, self._op("Add", past, sequence)

    def _range(self, first: ir.Value, end: ir.Value) -> ir.Value:
        ends = (self._op("Reshape", value, self._ints([])) for value in (first, end))
        return self._op("Range", *ends, self._ints(1))

    def _seen(self, queries: ir.Value, keys: ir.Value, window: int | None) -> ir.Value:
        seen = self._op("LessOrEqual", keys, queries)
        if window is None:
            return seen
        oldest = self._op("Sub", queries, self._ints(window))
        return self._op("And", seen, self._op("Greater", keys, oldest))

    def _additive(self, seen: ir.Value) -> ir.Value:
        return self._op("Where", seen, self._float(0.0), self._float(_MASKED))

    def _rotary_tables(self) -> dict[str, Any]:
        """Give cosine and sine of each position and frequency, as transformers does."""
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
        """Select each text's last row. Shape: ``(batch, 1, width)``."""
        index = self._op("Unsqueeze", self._last, self._ints([1]))
        index = self._op("Unsqueeze", index, self._ints([2]))
        # Gathered by position within each row; GatherElements would want the width as well.
        return self._op("GatherND", hidden, index, batch_dims=1)

    def _attention(
        self, layer: int, hidden: ir.Value, past: tuple[ir.Value, ir.Value] | None
    ) -> ir.Value:
        """Attend; in the last layer with the queries of the last tokens alone."""
        config, common = self._config, self._common
        is_last = layer == config.layers - 1
        groups = config.heads // config.kv_heads
        query, key, value = self._projected(layer, hidden)
        # A key head's queries are rows of one matrix: no key is ever repeated.
        split = [0, 0, config.kv_heads, groups, config.head_dim]
        query = self._op("Transpose", self._reshape(query, split), perm=[0, 2, 3, 1, 4])
        query = self._reshape(query, [0, 0, -1, config.head_dim])
        key, value = (self._op("Transpose", x, perm=[0, 2, 1, 3]) for x in (key, value))
        scores = self._op("MatMul", query, self._op("Transpose", key, perm=[0, 1, 3, 2]))
        if past is not None:
            past = self._narrow(past[0]), self._narrow(past[1])
            turned = self._op("Transpose", past[0], perm=[0, 1, 3, 2])
            scores = self._op("Concat", self._op("MatMul", query, turned), scores, axis=-1)
        scores = self._capped(self._wide(scores))
        total = self._op("Shape", scores, start=3, end=4)
        queries = self._ints([1]) if is_last else common.sequence
        apart = self._op("Concat", self._ints([0, 0, groups]), queries, total, axis=0)
        together = self._op("Concat", self._ints([0, 0, -1]), total, axis=0)
        scores = self._op("Add", self._op("Reshape", scores, apart), self._mask(layer))
        shares = self._narrow(self._op("Softmax", scores, axis=-1))
        shares = self._op("Reshape", shares, together)
        if past is None or common.past is None:
            mixed = self._op("MatMul", shares, value)
        else:
            axis = self._ints([3])
            of_past = self._op("Slice", shares, self._ints([0]), common.past, axis)
            of_new = self._op("Slice", shares, common.past, total, axis)
            mixed = self._op(
                "Add", self._op("MatMul", of_past, past[1]), self._op("MatMul", of_new, value)
            )
            self._present(layer, key, value)
        joined = self._op("Concat", self._ints([0, 0, groups]), queries,
                          self._ints([config.head_dim]), axis=0)  # fmt: skip
        mixed = self._op("Transpose", self._op("Reshape", mixed, joined), perm=[0, 3, 1, 2, 4])
        return self._joined(layer, mixed)

    def _projected(self, layer: int, hidden: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Give queries, keys and values, rotated and scaled, of shape ``(batch, rows, heads, ..)``.

        In the last layer there is one row of queries, the last token's.
        """
        config, name, common = self._config, f"layers.{layer}.self_attn.", self._common
        is_last = layer == config.layers - 1
        querying = self._last_token(hidden) if is_last else hidden
        query = self._heads(querying, name + "q", config.heads)
        key = self._heads(hidden, name + "k", config.kv_heads)
        value = self._heads(hidden, name + "v", config.kv_heads)
        query = self._rotate(query, common.last_cos_sin if is_last else common.cos_sin)
        key = self._rotate(key, common.cos_sin)
        query = self._op("Mul", query, self._narrow(self._float(config.query_scale)))
        return query, key, value

    def _capped(self, scores: ir.Value) -> ir.Value:
        if self._config.softcap is None:
            return scores
        cap = self._float(self._config.softcap)
        return self._op("Mul", self._op("Tanh", self._op("Div", scores, cap)), cap)

    def _mask(self, layer: int) -> ir.Value:
        config, common = self._config, self._common
        masks = common.last_mask_of if layer == config.layers - 1 else common.mask_of
        return masks[config.windows[layer]]

    def _joined(self, layer: int, mixed: ir.Value) -> ir.Value:
        """Join the heads, which stand behind the rows, and project."""
        config = self._config
        rows = self._reshape(mixed, [0, 0, config.heads * config.head_dim])
        return self._linear(rows, f"layers.{layer}.self_attn.o_proj", bias=config.output_bias)

    def _heads(self, hidden: ir.Value, name: str, heads: int) -> ir.Value:
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
        turned_first = self._op("Sub", self._op("Mul", first, cos), self._op("Mul", second, sin))
        turned_second = self._op("Add", self._op("Mul", second, cos), self._op("Mul", first, sin))
        return self._op("Concat", turned_first, turned_second, axis=-1)

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

    def _present(self, layer: int, key: ir.Value, value: ir.Value) -> None:
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

    def _narrow(self, value: ir.Value) -> ir.Value:
        """Bring a float32 value into the type of the products."""
        return self._cast(value, _FLOAT, self._dtype)

    def _wide(self, value: ir.Value) -> ir.Value:
        """Bring a value of the products' type to float32."""
        return self._cast(value, self._dtype, _FLOAT)

    def _cast(self, value: ir.Value, of: ir.DataType | None, to: ir.DataType) -> ir.Value:
        return value if of == to else self._op("Cast", value, to=to)

    def _stored(self, tensor: ir.ExternalTensor) -> ir.Value:
        return self._remember(tensor.name, lambda: self._held.initializer(tensor))

    def _constant(self, name: str, array: Any) -> ir.Value:
        return self._remember(name, lambda: self._held.constant(array, name))

    def _ints(self, values: int | Sequence[int]) -> ir.Value:
        array = np.array(values, dtype=np.int64)
        return self._constant(f"ints_{'_'.join(map(str, array.ravel()))}_{array.ndim}", array)

    def _float(self, value: float) -> ir.Value:
        return self._constant(f"float_{value!r}", np.array(value, dtype=np.float32))

    def _remember(self, name: str | None, make: Callable[[], ir.Value]) -> ir.Value:
        assert name is not None
        if name not in self._constants:
            self._constants[name] = make()
        return self._constants[name]

    def _reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        return self._op("Reshape", value, self._ints(shape))

    def _input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        value = ir.val(name, dtype, shape)
        self._inputs.append(value)
        return value

    @staticmethod
    def _output(value: ir.Value, name: str, shape: Sequence[int | str]) -> ir.Value:
        value.name, value.type, value.shape = name, ir.TensorType(_FLOAT), ir.Shape(shape)
        return value

    def _op(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        return self._tape.op(op_type, inputs, attributes)
