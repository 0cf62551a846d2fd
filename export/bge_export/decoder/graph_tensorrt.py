"""Build a decoder's graph for TensorRT: bf16, in operators that its parser has long supported.

It has not run on a GPU yet; the tests compare it with transformers on the CPU. Norms and the tanh
form of Gelu, which TensorRT 10.14 has no operators for, are decomposed. So is attention, in the
form that TensorRT fuses into one kernel: keys and values are repeated for the queries that share
them, and softcapping has no Tanh. With queries as rows of one matrix, as in the graph for CPUs, or
with Tanh, TensorRT for RTX 1.2 keeps all scores in memory (``make tensorrt-rtx``): in fp32, 15 GB
for two texts of 8192 tokens and 28 heads. A causal mask, one for all texts and heads, is always in
memory: 0.3 GB at that length, 4.3 GB at 32,768 tokens.

The graph itself sets what is in bf16: products, and the values between those of a layer. Norms,
softmax and the values between layers are in float32. A past is not among its inputs, because each
would need a shape in every profile, and each output of keys and values would be copied even if
nobody reads it.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from bge_export.decoder.graph import DecoderGraph

_CUBIC = 0.044715
"""Factor in the tanh form of Gelu (arXiv:1606.08415)."""


class TensorRtDecoderGraph(DecoderGraph):
    """Builds a decoder's graph, or a part of it, like `DecoderGraph`."""

    opset = 18
    """An opset without RMSNormalization, which TensorRT reads from 10.15 on."""

    takes_past = False

    scores_rank = 4

    def _attention(
        self, layer: int, hidden: ir.Value, past: tuple[ir.Value, ir.Value] | None
    ) -> ir.Value:
        assert past is None, "takes_past is False"
        query, key, value = self._project(layer, hidden)
        query = self._op("Transpose", query, perm=[0, 2, 1, 3])
        key, value = (self._repeat_for_queries(heads) for heads in (key, value))
        scores = self._op("MatMul", query, self._op("Transpose", key, perm=[0, 1, 3, 2]))
        scores = self._op("Add", self._softcap(self._wide(scores)), self._mask(layer))
        shares = self._narrow(self._op("Softmax", scores, axis=-1))
        mixed = self._op("Transpose", self._op("MatMul", shares, value), perm=[0, 2, 1, 3])
        return self._join_heads(layer, mixed)

    def _repeat_for_queries(self, heads: ir.Value) -> ir.Value:
        """Repeat keys or values for the queries that share them."""
        config = self._config
        groups = config.heads // config.kv_heads
        heads = self._op("Transpose", heads, perm=[0, 2, 1, 3])
        if groups == 1:
            return heads
        split = self._op("Unsqueeze", heads, self._ints([2]))
        repeated = self._op("Expand", split, self._ints([1, 1, groups, 1, 1]))
        return self._reshape(repeated, [0, config.heads, -1, config.head_dim])

    def _softcap(self, scores: ir.Value) -> ir.Value:
        """Compute ``cap * tanh(scores / cap)`` by exponentials, which may become infinite."""
        if self._config.softcap is None:
            return scores
        cap, double = self._config.softcap, self._float(2 * self._config.softcap)
        power = self._op("Exp", self._op("Mul", scores, self._float(2 / cap)))
        missing = self._op("Div", double, self._op("Add", power, self._float(1.0)))
        return self._op("Sub", self._float(cap), missing)

    def _norm(self, hidden: ir.Value, name: str) -> ir.Value:
        squares = self._op("ReduceMean", self._op("Mul", hidden, hidden), self._ints([-1]))
        root = self._op("Sqrt", self._op("Add", squares, self._float(self._config.rms_norm_eps)))
        weight = self._stored(self._weights[name].values)
        return self._op("Mul", self._op("Div", hidden, root), weight)

    def _gelu(self, hidden: ir.Value) -> ir.Value:
        wide = self._wide(hidden)
        cube = self._op("Mul", self._op("Mul", wide, wide), wide)
        inner = self._op("Add", wide, self._op("Mul", cube, self._float(_CUBIC)))
        bent = self._op("Tanh", self._op("Mul", inner, self._float(math.sqrt(2 / math.pi))))
        gate = self._op("Mul", self._op("Add", bent, self._float(1.0)), self._float(0.5))
        return self._narrow(self._op("Mul", wide, gate))
