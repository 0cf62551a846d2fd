"""Declare an older opset, once nothing in the graph needs the newer one."""

from __future__ import annotations

import onnx
import onnx_ir as ir

# Operators whose later versions differ from opset 18 only in the types they admit,
# or in an attribute that is dropped here because it says what the older one did.
# fmt: off
_ONLY_TYPES_ADDED = frozenset(
    (
        "Add", "And", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "CumSum",
        "Div", "Equal", "Erf", "Expand", "Flatten", "Gather", "Greater", "GreaterOrEqual",
        "Identity", "If", "LayerNormalization", "Less", "LessOrEqual", "Loop", "MatMul", "Max",
        "Min", "Mul", "Neg", "Not", "Or", "Pow", "Range", "ReduceMean", "ReduceMin", "ReduceSum",
        "Reshape", "Shape", "Size", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub",
        "Tanh", "Tile", "Transpose", "Unsqueeze", "Where",
    )
)
# fmt: on
_NEWER_DEFAULTS = {"Cast": {"saturate", "round_mode"}}


class LowerOpset(ir.passes.InPlacePass):
    """Set the version of the standard operators.

    Requires: only operators that mean the same in both versions; run the passes that
    spell the others out first.
    Changes: the opset import, and attributes that the older version does not have.
    """

    def __init__(self, version: int) -> None:
        """Choose the version to declare."""
        super().__init__()
        self.version = version

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass.

        Raises:
            ValueError: If an operator changed its meaning in between, or is too new.
        """
        current = model.opset_imports[""]
        for node in model.graph.all_nodes():
            if node.domain != "":
                continue  # of another domain, which has a version of its own
            then = onnx.defs.get_schema(node.op_type, current, "").since_version
            if then > self.version and node.op_type not in _ONLY_TYPES_ADDED:
                raise ValueError(
                    f"operator {node.op_type} of opset {then} has no equal in opset {self.version}"
                )
            for name in _NEWER_DEFAULTS.get(node.op_type, ()):
                node.attributes.pop(name, None)
            node.version = None
        model.opset_imports[""] = self.version
        return ir.passes.PassResult(model, modified=current != self.version)
