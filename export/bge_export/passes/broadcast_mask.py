"""Keep the attention mask at one row a text."""

from __future__ import annotations

import onnx_ir as ir

from bge_export.passes._edit import is_op

_ELEMENTWISE = ("Cast", "Sub", "Mul", "Add", "Where", "Not", "Equal", "And")


class BroadcastMask(ir.passes.InPlacePass):
    """Bypass the Expand that repeats the mask for every query.

    Requires: an encoder's mask, which is the same for each query of a text. It is
    found as ``Attention.mask`` ← element-wise operators ← ``Expand`` ← a value whose
    query axis is 1.
    Changes: the mask from ``(batch, 1, sequence, sequence)`` to
    ``(batch, 1, 1, sequence)``, which every consumer broadcasts.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        modified = False
        for node in model.graph:
            if is_op(node, "Attention") and len(node.inputs) > 3 and node.inputs[3] is not None:
                modified |= _bypass(node.inputs[3]) is not None
        return ir.passes.PassResult(model, modified=modified)


def _bypass(value: ir.Value) -> ir.Shape | None:
    """Bypass the Expand above a value, and give the value's shape without it."""
    node = value.producer()
    if is_op(node, "Expand"):
        assert node is not None
        source = node.inputs[0]
        shape = source.shape if source is not None else None
        if source is None or shape is None or len(shape) != 4 or shape[2] != 1:
            return None
        ir.convenience.replace_all_uses_with(value, source)
        return shape
    if is_op(node, *_ELEMENTWISE):
        assert node is not None
        found = [_bypass(source) for source in node.inputs if source is not None]
        shape = next((shape for shape in found if shape is not None), None)
        if shape is not None:
            value.shape = shape
        return shape
    return None
