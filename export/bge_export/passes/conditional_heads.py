"""Compute M3's heads only on request."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from bge_export.graph_builder import GraphBuilder
from bge_runtime.bundle import COMPUTE_HEADS, HEAD_OUTPUTS


class ConditionalHeads(ir.passes.InPlacePass):
    """Move the nodes that only the heads need into a branch.

    ONNX Runtime computes all outputs of a graph, even if only some are requested: its run option
    ``only_execute_path_to_fetches`` has no effect in the inference packages (seen in profiles of
    1.31 and 1.32). For M3 the heads, and all but the first token in the last layer, are 4 % of the
    arithmetic.

    Requires: outputs of `HEAD_OUTPUTS`; without them nothing changes.
    Changes: the nodes that lead only to those outputs; removes unused nodes. Adds the input
    ``compute_heads``, bool of shape ``()``; if it is false, those outputs are empty.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        graph = model.graph
        heads = [value for value in graph.outputs if value.name in HEAD_OUTPUTS]
        if not heads:
            return ir.passes.PassResult(model, modified=False)
        # Unused nodes that other passes left would read moved values.
        RemoveUnusedNodesPass()(model)
        others = [value for value in graph.outputs if value not in heads]
        alone = _find_ancestors(graph, heads) - _find_ancestors(graph, others)
        moved = [node for node in graph if node in alone]
        asked = ir.Value(
            name=COMPUTE_HEADS, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL)
        )
        graph.inputs.append(asked)
        results = [ir.Value(name=head.name, shape=head.shape, type=head.type) for head in heads]
        for head, result in zip(heads, results, strict=True):
            graph.outputs[list(graph.outputs).index(head)] = result
            head.name = f"{head.name}.computed"
        graph.remove(moved)
        computed = ir.Graph([], heads, nodes=moved, name="heads.computed")
        branches = {"then_branch": computed, "else_branch": _make_empty_branch(heads)}
        choice = ir.Node(
            "",
            "If",
            [asked],
            [ir.AttrGraph(name, branch) for name, branch in branches.items()],
            outputs=results,
            name="heads",
        )
        graph.append(choice)
        return ir.passes.PassResult(model, modified=True)


def _find_ancestors(graph: ir.Graph, values: Iterable[ir.Value]) -> set[ir.Node]:
    found: set[ir.Node] = set()
    waiting = list(values)
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in found or node.graph is not graph:
            continue
        found.add(node)
        waiting += _list_inputs(node)
    return found


def _list_inputs(node: ir.Node) -> list[ir.Value]:
    """Return the values that a node reads, also in its branches and loops."""
    read = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            branch = attribute.as_graph()
            read += list(branch.outputs)
            for inner in ir.traversal.RecursiveGraphIterator(branch):
                read += [value for value in inner.inputs if value is not None]
    return read


def _make_empty_branch(heads: Iterable[ir.Value]) -> ir.Graph:
    """Return a branch with empty outputs of the heads' ranks."""
    builder = GraphBuilder()
    empty = []
    for head in heads:
        assert head.shape is not None
        shape = [size if isinstance(size, int) else 0 for size in head.shape]
        value = builder.op("Constant", [], {"value": ir.tensor(np.zeros(shape, np.float32))})
        value.name = str(head.name).replace(".computed", ".none")
        value.type, value.shape = head.type, ir.Shape(shape)
        empty.append(value)
    nodes = list(builder.nodes)
    for value, node in zip(empty, nodes, strict=True):
        node.name = value.name
    return ir.Graph([], empty, nodes=nodes, name="heads.none")
