"""Plan the graphs of a decoder's bundle and the files of their weights, and build them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from bge_export.decoder.answers import Answers
from bge_export.decoder.config import DecoderConfig
from bge_export.decoder.external_data import TensorPlan
from bge_export.decoder.graph import DecoderGraph
from bge_export.decoder.graph_cuda import CudaDecoderGraph
from bge_export.decoder.graph_tensorrt import TensorRtDecoderGraph
from bge_export.decoder.weights import place_weights, plan_weights
from bge_export.targets import DecoderTarget
from bge_runtime.bundle import Graph, Variant

_GPU_GRAPHS: dict[str, type[DecoderGraph]] = {
    "cuda": CudaDecoderGraph,
    "tensorrt": TensorRtDecoderGraph,
}
"""Graphs that compute in the type of their stored matrices, by name of the target. All other
targets use `DecoderGraph`, which computes in fp32."""


@dataclass(frozen=True)
class PlannedGraph:
    """A graph of the bundle that is about to be written.

    Attributes:
        config: The decoder.
        target: The target.
        data: Path of its weights inside the bundle, which graphs may share.
        plan: The tensors in that file.
    """

    config: DecoderConfig
    target: DecoderTarget
    data: str
    plan: Sequence[TensorPlan]

    def build(
        self, folder: Path, layers: Sequence[int] | None = None, *, embed: bool = True
    ) -> ir.Model:
        """Build the graph, or a part of it, for the bundle in a folder.

        See `DecoderGraph.build`.
        """
        data = folder / self.data
        weights = place_weights(self.plan, folder=data.parent, location=data.name)
        graph = _GPU_GRAPHS.get(self.target.name)
        if graph is not None and self.target.storage is not None:
            return graph(self.config, weights, dtype=self.target.storage).build(layers, embed=embed)
        return DecoderGraph(self.config, weights).build(layers, embed=embed)

    def write(self, folder: Path) -> Graph:
        """Write the graph into the bundle in a folder, whose weights are there already."""
        model = self.build(folder)
        path = folder / self.target.file
        ir.save(model, path)
        # Checked by path, so that the weights of a large model are not read.
        onnx.checker.check_model(str(path), full_check=True)
        return Graph(
            file=self.target.file,
            weights=self.data,
            opset=model.opset_imports[""],
            inputs=tuple(str(value.name) for value in model.graph.inputs),
            outputs=tuple(str(value.name) for value in model.graph.outputs),
        )


def plan_graphs(
    config: DecoderConfig,
    found: Mapping[str, str],
    targets: Sequence[DecoderTarget],
    *,
    own_type: ir.DataType,
    answers: Answers | None = None,
) -> dict[str, PlannedGraph]:
    """Plan the graphs of some targets. Those with the same type of weights share one file.

    Args:
        config: The decoder.
        found: Its weights in the checkpoint, from `find_weights`.
        targets: The targets.
        own_type: Type of the weights in the checkpoint.
        answers: Rows of the head, for a reranker.

    Returns:
        The graphs, by their names in the bundle.
    """
    stored: dict[ir.DataType, tuple[str, Sequence[TensorPlan]]] = {}
    graphs = {}
    for target in targets:
        storage = target.storage or own_type
        if storage not in stored:
            data = Path(target.file).with_suffix(".onnx_data").as_posix()
            plan = plan_weights(config, found, storage=storage, answers=answers)
            stored[storage] = data, plan
        graphs[_name_graph(target)] = PlannedGraph(config, target, *stored[storage])
    return graphs


def describe_variants(targets: Sequence[DecoderTarget]) -> tuple[Variant, ...]:
    """Return the variants of some targets, without parity.

    If two graphs have the same variant, it runs the one with the smaller weights.
    """
    smallest_first = sorted(
        targets, key=lambda target: (target.storage or ir.DataType.FLOAT).bitwidth
    )
    chosen = {
        name: (target, engine, precision)
        for target in reversed(smallest_first)
        for name, engine, precision in target.variants
    }
    order = [name for target in targets for name, _, _ in target.variants]
    return tuple(
        Variant(
            name=name,
            graph=_name_graph(chosen[name][0]),
            engine=chosen[name][1],
            device=chosen[name][0].device,
            precision=chosen[name][2],
            parity=None,
        )
        for name in dict.fromkeys(order)
    )


def _name_graph(target: DecoderTarget) -> str:
    return f"{target.name}-{target.precision}"
