"""Measure how much the outputs of a graph change when one product is computed in 8 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bge_export.encoder.calibration import open_session
from bge_export.encoder.int8.candidates import widen
from bge_export.graph_builder import read_constant
from bge_export.passes import QuantizedInput
from bge_runtime.bundle import COLBERT_VECS, LOGITS, SENTENCE_EMBEDDING
from bge_runtime.engines import graph_inputs

_COMPARED = (SENTENCE_EMBEDDING, COLBERT_VECS, LOGITS)
"""Outputs that are compared: vectors, and scores of rerankers."""


class Sensitivity:
    """A graph whose products can be changed while it runs.

    To each product an input of the graph is added, which is zero, or the error of rounding.
    """

    def __init__(
        self, model: ir.Model, products: Mapping[ir.Value, Sequence[ir.Node]], *, folder: Path
    ) -> None:
        """Open the graph; ``folder`` is where it is written for the moment."""
        graph = model.graph
        self._names = {
            x: [f"error_of_{x.name}_{number}" for number in range(len(nodes))]
            for x, nodes in products.items()
        }
        self._matrices = {x: [read_matrix(node) for node in nodes] for x, nodes in products.items()}
        self._outputs = [str(v.name) for v in graph.outputs if v.name in _COMPARED]
        self._watched = [str(x.name) for x in products]
        changed = model.clone()
        by_name = {str(node.outputs[0].name): node for node in changed.graph}
        for x, nodes in products.items():
            for name, node in zip(self._names[x], nodes, strict=True):
                _add_input(changed.graph, by_name[str(node.outputs[0].name)], name)
        kept = {value.name for value in graph.outputs}
        values = {str(v.name): v for node in changed.graph for v in node.outputs}
        changed.graph.outputs.extend(values[name] for name in self._watched if name not in kept)
        self._session = open_session(changed, folder=folder)
        errors = {name for names in self._names.values() for name in names}
        self._inputs = {value.name for value in self._session.get_inputs()} - errors
        self._zeros = dict.fromkeys(errors, np.zeros((), np.float32))

    def measure(
        self,
        candidates: Mapping[ir.Value, Sequence[QuantizedInput]],
        token_ids: Sequence[NDArray[np.int64]],
    ) -> dict[ir.Value, list[float]]:
        """Return the error of each candidate alone.

        Args:
            candidates: Ways to compute the products of each value.
            token_ids: Tokens of the texts.

        Returns:
            Mean squared error of the outputs, as a share of the squared distance between the
            outputs of different texts; of several outputs the largest.
        """
        feeds = [
            graph_inputs(self._inputs, ids[None], np.ones_like(ids[None])) for ids in token_ids
        ]
        names = [*self._outputs, *(name for name in self._watched if name not in self._outputs)]
        exact = [
            dict(zip(names, self._session.run(names, feed | self._zeros), strict=True))
            for feed in feeds
        ]
        found: dict[ir.Value, list[float]] = {}
        for x, forms in candidates.items():
            found[x] = []
            products = [[v[str(x.name)] @ matrix for matrix in self._matrices[x]] for v in exact]
            for form in forms:
                matrices = [widen(matrix) for matrix in form.matrices]
                changed = []
                for feed, values, right in zip(feeds, exact, products, strict=True):
                    rounded = form.round(values[str(x.name)])
                    errors = {
                        name: rounded @ matrix - product
                        for name, matrix, product in zip(
                            self._names[x], matrices, right, strict=True
                        )
                    }
                    changed.append(self._session.run(self._outputs, feed | self._zeros | errors))
                found[x].append(self._share(exact, changed))
        return found

    def _share(
        self,
        exact: Sequence[Mapping[str, NDArray[np.float32]]],
        changed: Sequence[Sequence[NDArray[np.float32]]],
    ) -> float:
        return max(
            _error_share(
                [values[name] for values in exact], [outputs[number] for outputs in changed]
            )
            for number, name in enumerate(self._outputs)
        )


def _error_share(
    exact: Sequence[NDArray[np.float32]], changed: Sequence[NDArray[np.float32]]
) -> float:
    theirs, ours = _rows(exact), _rows(changed)
    if theirs.shape[1] > 1:
        theirs, ours = _unit(theirs), _unit(ours)
    few = theirs[:: max(1, len(theirs) // 256)]
    between = ((few[:, None] - few[None]) ** 2).sum(axis=2)[~np.eye(len(few), dtype=bool)]
    typical = float(np.median(between))
    return float(((ours - theirs) ** 2).sum(axis=1).mean()) / max(typical, 1e-12)


def _rows(outputs: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.concatenate([array.reshape(-1, array.shape[-1]) for array in outputs])


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = vectors / np.maximum(
        np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12)
    )
    return unit


def _add_input(graph: ir.Graph, node: ir.Node, name: str) -> None:
    """Add an input of any shape to the output of a node."""
    uses = list(node.outputs[0].uses())
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs.append(value)
    add = ir.node("Add", [node.outputs[0], value])
    graph.insert_after(node, add)
    for user, index in uses:
        user.replace_input_with(index, add.outputs[0])


def read_matrix(node: ir.Node) -> NDArray[np.float32]:
    """Return the matrix of a product. Shape: ``(inputs, outputs)``."""
    matrix = read_constant(node.inputs[1])
    assert matrix is not None
    return matrix.astype(np.float32, copy=False)
