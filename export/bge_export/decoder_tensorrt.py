"""A decoder's graph for TensorRT: bf16, in operators that its parser has had for long.

It has not run on a GPU yet; a CPU shows that it computes what transformers does. What
TensorRT 10.14 has no operator for, norms and the tanh form of Gelu, is spelled out; attention is,
as in the graph for CPUs, and TensorRT fuses what it knows. The graph says itself what is in bf16:
products and what lies between those of a layer. Norms, softmax and what flows between the layers
are in float32. A past is not among its inputs: each would want a shape in every profile, and each
present be copied, asked for or not.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from bge_export.decoder_graph import DecoderGraph

_CUBIC = 0.044715
"""Of the tanh form of Gelu (arXiv:1606.08415)."""


class TensorRtDecoderGraph(DecoderGraph):
    """Builds a decoder's graph, or a part of it, as `DecoderGraph` does."""

    opset = 18
    """Before RMSNormalization, which TensorRT reads from 10.15 on."""

    takes_past = False

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
