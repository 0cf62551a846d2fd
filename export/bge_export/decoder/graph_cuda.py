"""Build a decoder's graph for ONNX Runtime's CUDA provider: 16 bits, attention as one node.

The tests compare it with transformers on the CPU. It has also run on an H200, with the shape of
bge-en-icl in bf16. The provider has kernels for all operators; the tests hold the list. Decisions:

- Attention is one node in each layer. The provider uses FlashAttention for it if there is no mask:
  causality and softcapping are attributes, and rows are padded on the right, so no query of a text
  sees padding. GroupQueryAttention supports windows, but refuses a past in a batch of several rows
  (ONNX Runtime 1.31).
- That node needs the past once for each row. It is copied; that is little compared to a layer's
  weights.
- It does not support windows. A branch with a mask is used if past and text together are longer
  than the window. With a mask the provider's kernels are slower, and those that do not store all
  scores need a number of tokens that is a multiple of 4.
- In the last layer all tokens have queries, and the last token is selected after attention. A
  single query for each text, at its own position, would need a mask.
- For attention in both directions it gets the lengths (``nonpad_kv_seqlen``).
- Values between layers, and norms, stay in 32 bits: they include numbers beyond fp16's range, and
  bf16 would lose digits. Products within a layer are in 16 bits. Those of a feed-forward layer may
  still exceed fp16's range.
- Inputs and outputs are float32, as in the other graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import onnx_ir as ir

from bge_export.decoder.graph import DecoderGraph
from bge_export.graph_builder import GraphBuilder


class _CudaShared(NamedTuple):
    """Values that all layers use, computed once.

    Attributes:
        positions: Position of each token, after the past. Shape: ``(batch, sequence)``.
        tables: Cosine and sine of each position.
        past_shape: Shape of a layer's past keys, repeated for each row; None without a past.
        masks: By window, whether any token is outside it, and the mask that hides those tokens.
    """

    positions: ir.Value
    tables: Sequence[ir.Value]
    past_shape: ir.Value | None
    masks: Mapping[int, tuple[ir.Value, ir.Value]]


class CudaDecoderGraph(DecoderGraph):
    """Builds a decoder's graph, or a part of it, like `DecoderGraph`.

    With ``dtype`` FLOAT it is the same graph in a type that CPUs have kernels for.
    """

    opset = 24
    """First opset whose Attention takes lengths."""

    def _prepare(self, mask: ir.Value, past_key: ir.Value | None) -> None:
        config = self._config
        batch = self._op("Shape", mask, start=0, end=1)
        sequence, past, total = self._count_tokens(mask, past_key)
        start = self._ints([0]) if past is None else past
        queries = self._range(start, total)
        past_shape, masks = None, {}
        if past is not None:
            heads, width = self._ints([config.kv_heads]), self._ints([config.head_dim])
            past_shape = self._op("Concat", batch, heads, past, width, axis=0)
        if any(config.windows):
            keys = self._range(self._ints([0]), total)
            row_queries = self._op("Unsqueeze", queries, self._ints([1]))
            for window in dict.fromkeys(filter(None, config.windows)):
                beyond = self._op("Greater", total, self._ints([window]))
                masks[window] = beyond, self._make_mask(row_queries, keys, window)
        batch_shape = self._op("Concat", batch, sequence, axis=0)
        self._cuda = _CudaShared(
            positions=self._op("Expand", queries, batch_shape),
            tables=[
                self._constant(name, table.astype(self._dtype.numpy()))
                for name, table in self._make_rotary_tables().items()
            ],
            past_shape=past_shape,
            masks=masks,
        )

    def _attention(
        self, layer: int, hidden: ir.Value, past: tuple[ir.Value, ir.Value] | None
    ) -> ir.Value:
        config, name, shared = self._config, f"layers.{layer}.self_attn.", self._cuda
        query = self._rotate_heads(
            self._project_flat(hidden, name + "q", config.heads), config.heads
        )
        key = self._rotate_heads(
            self._project_flat(hidden, name + "k", config.kv_heads), config.kv_heads
        )
        value = self._project_flat(hidden, name + "v", config.kv_heads)
        if past is None or shared.past_shape is None:
            inputs = (query, key, value, None, None, None, self._lengths)
            (mixed,) = self._attend(inputs)
        else:
            repeated = [
                self._op("Expand", self._narrow(tensor), shared.past_shape) for tensor in past
            ]
            mixed = self._attend_causally((query, key, value), repeated, config.windows[layer])
            self._add_present(layer, *(self._transpose_heads(tensor) for tensor in (key, value)))
        if layer == config.layers - 1:
            mixed = self._last_token(mixed)
        return self._linear(mixed, name + "o_proj", bias=config.output_bias)

    def _attend_causally(
        self, inputs: Sequence[ir.Value], past: Sequence[ir.Value], window: int | None
    ) -> ir.Value:
        def plain() -> ir.Value:
            return self._attend((*inputs, None, *past), is_causal=1)[0]

        if window is None:
            return plain()
        beyond, mask = self._cuda.masks[window]

        def masked() -> ir.Value:
            return self._attend((*inputs, mask, *past))[0]

        branches = {"then_branch": self._branch(masked), "else_branch": self._branch(plain)}
        return self._op("If", beyond, **branches)

    def _attend(self, inputs: Sequence[ir.Value | None], **attributes: Any) -> Sequence[ir.Value]:
        config = self._config
        attributes |= {
            "q_num_heads": config.heads,
            "kv_num_heads": config.kv_heads,
            "scale": config.query_scale,
        }
        if config.softcap is not None:
            attributes["softcap"] = config.softcap
        # With a past the provider requires outputs for keys and values of all tokens.
        count = 3 if len(inputs) == 6 else 1
        return self._tape.op_multi_out("Attention", inputs, attributes, num_outputs=count)

    def _project_flat(self, hidden: ir.Value, name: str, heads: int) -> ir.Value:
        """Project to heads. Shape: ``(batch, sequence, heads * head_dim)``."""
        config = self._config
        if not config.query_key_norms or name.endswith("v"):
            return self._linear(hidden, f"{name}_proj", bias=config.qkv_bias)
        return self._reshape(
            self._split_heads(hidden, name, heads), [0, 0, heads * config.head_dim]
        )

    def _rotate_heads(self, heads: ir.Value, count: int) -> ir.Value:
        shared = self._cuda
        inputs = (heads, *shared.tables, shared.positions)
        return self._op("RotaryEmbedding", *inputs, num_heads=count)

    def _transpose_heads(self, heads: ir.Value) -> ir.Value:
        """Transpose keys or values to ``(batch, kv_heads, sequence, head_dim)``."""
        split = self._reshape(heads, [0, 0, self._config.kv_heads, self._config.head_dim])
        return self._op("Transpose", split, perm=[0, 2, 1, 3])

    def _branch(self, make: Callable[[], ir.Value]) -> ir.Graph:
        outer, self._tape = self._tape, GraphBuilder()
        try:
            output, nodes = make(), self._tape.nodes
        finally:
            self._tape = outer
        # Names must be unique in the graph around it too.
        self._branches += 1
        for number, value in enumerate(value for node in nodes for value in node.outputs):
            value.name = f"branch_{self._branches}_{number}"
        return ir.Graph([], [output], nodes=nodes, name=f"branch_{self._branches}")

    _branches = 0
