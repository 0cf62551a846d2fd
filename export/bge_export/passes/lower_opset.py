"""Declare an older opset, once no operator needs the newer one."""

from __future__ import annotations

import onnx
import onnx_ir as ir

# Operators whose later versions differ from opset 18 only in supported types, or in an attribute
# whose value here is the older behaviour, so it is dropped.
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

    Requires: only operators with the same meaning in both versions; run the passes that decompose
        the
    others first.
    Changes: the opset import, and attributes that the older version does not have.
    """

    def __init__(self, version: int) -> None:
        """Choose the version to declare."""
        super().__init__()
        self.version = version

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass.

        Raises:
            ValueError: If an operator is newer than the version, or changed its meaning in between.
        """
        current = model.opset_imports[""]
        for node in model.graph.all_nodes():
            if node.domain != "":
                continue  # other domains have their own versions
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
