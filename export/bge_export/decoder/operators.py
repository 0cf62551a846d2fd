"""Add operators, constants and stored weights to a graph that is being built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from bge_export.graph_builder import GraphBuilder

FLOAT = ir.DataType.FLOAT


class OperatorWriter:
    """Collects the nodes, inputs and constants of one graph."""

    def __init__(self, dtype: ir.DataType) -> None:
        """Begin an empty graph.

        Args:
            dtype: Type of products, attention and activations.
        """
        self._dtype = dtype
        self._tape = GraphBuilder()
        # Separate from the nodes, because nodes of a branch may use them too.
        self._held = GraphBuilder()
        self._inputs: list[ir.Value] = []
        self._constants: dict[str, ir.Value] = {}

    def _op(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        return self._tape.op(op_type, inputs, attributes)

    def _reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        return self._op("Reshape", value, self._ints(shape))

    def _cast(self, value: ir.Value, of: ir.DataType | None, to: ir.DataType) -> ir.Value:
        return value if of == to else self._op("Cast", value, to=to)

    def _narrow(self, value: ir.Value) -> ir.Value:
        """Cast a float32 value to the type of the products."""
        return self._cast(value, FLOAT, self._dtype)

    def _wide(self, value: ir.Value) -> ir.Value:
        """Cast a value of the products' type to float32."""
        return self._cast(value, self._dtype, FLOAT)

    def _ints(self, values: int | Sequence[int]) -> ir.Value:
        array = np.array(values, dtype=np.int64)
        return self._constant(f"ints_{'_'.join(map(str, array.ravel()))}_{array.ndim}", array)

    def _float(self, value: float) -> ir.Value:
        return self._constant(f"float_{value!r}", np.array(value, dtype=np.float32))

    def _constant(self, name: str, array: Any) -> ir.Value:
        return self._remember(name, lambda: self._held.constant(array, name))

    def _stored(self, tensor: ir.ExternalTensor) -> ir.Value:
        return self._remember(tensor.name, lambda: self._held.initializer(tensor))

    def _remember(self, name: str | None, make: Callable[[], ir.Value]) -> ir.Value:
        assert name is not None
        if name not in self._constants:
            self._constants[name] = make()
        return self._constants[name]

    def _input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        value = ir.val(name, dtype, shape)
        self._inputs.append(value)
        return value

    @staticmethod
    def _output(value: ir.Value, name: str, shape: Sequence[int | str]) -> ir.Value:
        value.name, value.type, value.shape = name, ir.TensorType(FLOAT), ir.Shape(shape)
        return value
