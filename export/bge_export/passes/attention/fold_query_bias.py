"""Fold the bias of queries into their matrix."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bge_export.graph_builder import (
    find_bias,
    find_bias_add,
    find_only_user,
    is_op,
    read_constant,
    replace_constant,
)
from bge_export.passes.attention.heads import find_sources

_SUFFIX = "_for_query_bias"

_LARGEST = 1e4
"""Largest number that may be added to a matrix; fp16 ends at 65,504."""

_LARGEST_SHARE = 0.5
"""Largest share of the gain by which a norm's bias may move. A large bias costs tokens
precision."""


class FoldQueryBias(ir.passes.InPlacePass):
    """Drop the bias of queries, and change their matrix so that the product includes it.

    The output ``y`` of a layer norm with gain ``g`` and bias ``b`` has mean 0 before the two are
    applied. So ``sum(y / g)`` is the same number for all tokens, ``c = sum(b / g)``, and adding
    ``outer(1 / g, bias) / c`` to a matrix adds ``bias`` to its product. On a GPU, adding the bias
    was a pass over all tokens: without it bge-large is 2 to 4 % faster on an H200, with two batches
    in progress.

    Rounding ``y`` changes that sum by about a unit of ``norm(y / g)``. If ``c`` is smaller than
    this (in all-MiniLM's first layer it is a tenth), the norm's bias becomes ``b + t * g``, with
    the smallest sufficient ``t``; in all-MiniLM up to 0.05. Everything that reads ``y`` has a bias
    that subtracts it again. Exact except for rounding.

    Requires: ``Attention`` of ``Transpose(Reshape(Add(MatMul(y, W), bias)))``, with ``y`` from a
    LayerNormalization over the last axis that is read only by such products and by the residual,
    ``Add(Add(x, bias), y)``.
    Changes: the matrix of queries and its Add, and those biases.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        folded = [
            _fold(model.graph, node) for node in list(model.graph) if is_op(node, "Attention")
        ]
        return ir.passes.PassResult(model, modified=any(folded))


class _Reader(NamedTuple):
    """A use of a norm's output, which ends with adding a bias.

    Attributes:
        add: The node that adds the bias.
        matrix: The matrix of the product; None for the residual.
    """

    add: ir.Node
    matrix: ir.Value | None


def _fold(graph: ir.Graph, attention: ir.Node) -> bool:
    sources = find_sources(attention)
    plus = sources[0].producer() if sources is not None else None
    product = _find_producer(plus, "MatMul")
    norm = _find_producer(product, "LayerNormalization")
    if plus is None or product is None or norm is None or not _is_affine(norm):
        return False
    normed = norm.outputs[0]
    readers = [_find_reader(normed, node) for node in normed.consumers()]
    gain, bias = _read_doubles(norm.inputs[1]), _read_doubles(norm.inputs[2])
    if None in readers or normed.is_graph_output() or not gain.all():
        return False
    share = _compute_share(bias / gain)
    moved = {
        add: share * (gain if matrix is None else gain @ _read_doubles(matrix))
        for add, matrix in filter(None, readers)
    }
    if abs(share) > _LARGEST_SHARE or len(moved) < len(readers):
        return False
    query_bias = find_bias(plus)
    assert query_bias is not None
    total = float((bias / gain + share).sum())
    added = np.outer(1 / gain, query_bias[1] - moved.pop(plus)) / total
    if np.abs(added).max() > _LARGEST:
        return False
    replace_constant(product, 1, _read_doubles(product.inputs[1]) + added, suffix=_SUFFIX)
    if share:
        replace_constant(norm, 2, bias + share * gain, suffix=_SUFFIX)
        for add, by in moved.items():
            found = find_bias(add)
            assert found is not None
            replace_constant(add, add.inputs.index(found[0]), found[1] - by, suffix=_SUFFIX)
    ir.convenience.replace_all_uses_with(plus.outputs[0], product.outputs[0])
    graph.remove(plus, safe=True)
    return True


def _compute_share(ratio: NDArray[np.float64]) -> float:
    """Return the smallest ``t`` for which ``abs(sum(ratio + t))`` is the norm of ``y / g``.

    That norm is estimated as ``sqrt(n + sum((ratio + t) ** 2))``: ``n`` numbers of mean 0 and
    variance 1, assumed to be uncorrelated with ``ratio``, are added to ``ratio + t``.
    """
    count, total = len(ratio), float(ratio.sum())
    lacking = count + float(ratio @ ratio) - total**2
    if lacking <= 0:
        return 0.0
    wanted = math.copysign(math.sqrt(total**2 + lacking * count / (count - 1)), total)
    return (wanted - total) / count


def _find_reader(value: ir.Value, node: ir.Node) -> _Reader | None:
    """Return how a node uses a value, if it adds a bias at the end; else None."""
    if is_op(node, "MatMul") and node.inputs[0] is value:
        add = find_bias_add(node)
        return _Reader(add, node.inputs[1]) if add is not None else None
    add = _find_producer(node, "Add") if is_op(node, "Add") else None
    if add is None or find_only_user(add, "Add") is not node or find_bias(add) is None:
        return None
    return _Reader(add, None)


def _is_affine(norm: ir.Node) -> bool:
    by_last_axis = norm.attributes.get_int("axis", -1) in (-1, 2)
    given = [read_constant(value) for value in norm.inputs[1:]]
    return by_last_axis and len(given) == 2 and all(array is not None for array in given)


def _find_producer(node: ir.Node | None, op_type: str) -> ir.Node | None:
    """Return the producer of one of a node's inputs that is this operator."""
    makers = [value.producer() for value in node.inputs if value is not None] if node else []
    return next((maker for maker in makers if is_op(maker, op_type)), None)


def _read_doubles(value: ir.Value | None) -> NDArray[np.float64]:
    array = read_constant(value)
    assert array is not None
    return array.astype(np.float64)
