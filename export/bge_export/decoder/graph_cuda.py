"""A decoder's graph for ONNX Runtime's CUDA provider: 16 bits, attention as one node.

A CPU shows that it computes what transformers does, and so has an H200, with bge-en-icl's shape in
bf16. All operators are standard ones that the provider has kernels for: the tests hold the list.
What was chosen, and why:

- Attention is one node a layer, which the provider gives to FlashAttention if there is no
  mask: causality and softcapping are attributes, rows are padded on the right, and no query
  that counts sees padding. GroupQueryAttention knows windows, but refuses a past in a batch
  of several rows (ONNX Runtime 1.31).
- That node wants the past once a row. It is copied; beside a layer's weights that is little.
- It knows no window. A branch has a mask for one, and is taken where past and text together
  are longer: only there does the window show. With a mask the provider has slower kernels,
  and without memory for all scores only where the tokens are a multiple of 4.
- In the last layer all tokens have queries, and each text's last one is taken behind
  attention: one query a text, at a place of its own, would need a mask.
- Attending in both directions, it is told the lengths (``nonpad_kv_seqlen``).
- What flows between the layers, and the norms that it goes through, stay in 32 bits: there
  are the large numbers that fp16 has no place for, and that bf16 rounds away. The products
  within a layer are in 16 bits, and those of a feed-forward layer may still outgrow fp16.
- Inputs and outputs are float32 as in the other graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import onnx_ir as ir

from bge_export.decoder.graph import DecoderGraph
from bge_export.graph_builder import GraphBuilder


class _Shared(NamedTuple):
    """What all layers use, computed once.

    Attributes:
        positions: Of each token, the past counted in. Shape: ``(batch, sequence)``.
        tables: Cosine and sine of each position.
        past_shape: Shape of one layer's keys of the past, once a row; None without a past.
        masks: By window whether tokens lie outside of it, and the mask that hides them.
    """

    positions: ir.Value
    tables: Sequence[ir.Value]
    past_shape: ir.Value | None
    masks: Mapping[int, tuple[ir.Value, ir.Value]]


class CudaDecoderGraph(DecoderGraph):
    """Builds a decoder's graph, or a part of it, as `DecoderGraph` does.

    With ``dtype`` FLOAT it is the same graph in a type that a CPU has kernels for.
    """

    opset = 24
    """Its Attention takes lengths."""

    def _prepare(self, mask: ir.Value, past_key: ir.Value | None) -> None:
        config = self._config
        batch = self._op("Shape", mask, start=0, end=1)
        sequence, past, total = self._extent(mask, past_key)
        start = self._ints([0]) if past is None else past
        queries = self._range(start, total)
        past_shape, masks = None, {}
        if past is not None:
            heads, width = self._ints([config.kv_heads]), self._ints([config.head_dim])
            past_shape = self._op("Concat", batch, heads, past, width, axis=0)
        if any(config.windows):
            keys = self._range(self._ints([0]), total)
            by_row = self._op("Unsqueeze", queries, self._ints([1]))
            for window in dict.fromkeys(filter(None, config.windows)):
                beyond = self._op("Greater", total, self._ints([window]))
                masks[window] = beyond, self._seen(by_row, keys, window)
        every = self._op("Concat", batch, sequence, axis=0)
        self._shared = _Shared(
            positions=self._op("Expand", queries, every),
            tables=[
                self._constant(name, table.astype(self._dtype.numpy()))
                for name, table in self._rotary_tables().items()
            ],
            past_shape=past_shape,
            masks=masks,
        )

    def _attention(
        self, layer: int, hidden: ir.Value, past: tuple[ir.Value, ir.Value] | None
    ) -> ir.Value:
        config, name, shared = self._config, f"layers.{layer}.self_attn.", self._shared
        query = self._rotated(self._flat(hidden, name + "q", config.heads), config.heads)
        key = self._rotated(self._flat(hidden, name + "k", config.kv_heads), config.kv_heads)
        value = self._flat(hidden, name + "v", config.kv_heads)
        if past is None or shared.past_shape is None:
            inputs = (query, key, value, None, None, None, self._lengths)
            (mixed,) = self._attend(inputs)
        else:
            repeated = [
                self._op("Expand", self._narrow(tensor), shared.past_shape) for tensor in past
            ]
            mixed = self._causal((query, key, value), repeated, config.windows[layer])
            self._present(layer, *(self._by_head(tensor) for tensor in (key, value)))
        if layer == config.layers - 1:
            mixed = self._last_token(mixed)
        return self._linear(mixed, name + "o_proj", bias=config.output_bias)

    def _causal(
        self, inputs: Sequence[ir.Value], past: Sequence[ir.Value], window: int | None
    ) -> ir.Value:
        def plain() -> ir.Value:
            return self._attend((*inputs, None, *past), is_causal=1)[0]

        if window is None:
            return plain()
        beyond, mask = self._shared.masks[window]

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
        # With a past the provider insists on a place for keys and values of all tokens.
        count = 3 if len(inputs) == 6 else 1
        return self._tape.op_multi_out("Attention", inputs, attributes, num_outputs=count)

    def _flat(self, hidden: ir.Value, name: str, heads: int) -> ir.Value:
        """Project to heads. Shape: ``(batch, sequence, heads * head_dim)``."""
        config = self._config
        if not config.query_key_norms or name.endswith("v"):
            return self._linear(hidden, f"{name}_proj", bias=config.qkv_bias)
        return self._reshape(self._heads(hidden, name, heads), [0, 0, heads * config.head_dim])

    def _rotated(self, heads: ir.Value, count: int) -> ir.Value:
        shared = self._shared
        inputs = (heads, *shared.tables, shared.positions)
        return self._op("RotaryEmbedding", *inputs, num_heads=count)

    def _by_head(self, heads: ir.Value) -> ir.Value:
        """Bring keys or values to the shape ``(batch, kv_heads, sequence, head_dim)``."""
        split = self._reshape(heads, [0, 0, self._config.kv_heads, self._config.head_dim])
        return self._op("Transpose", split, perm=[0, 2, 1, 3])

    def _branch(self, make: Callable[[], ir.Value]) -> ir.Graph:
        outer, self._tape = self._tape, GraphBuilder()
        try:
            output, nodes = make(), self._tape.nodes
        finally:
            self._tape = outer
        # Names count in the graph around it as well.
        self._branches += 1
        for number, value in enumerate(value for node in nodes for value in node.outputs):
            value.name = f"branch_{self._branches}_{number}"
        return ir.Graph([], [output], nodes=nodes, name=f"branch_{self._branches}")

    _branches = 0
