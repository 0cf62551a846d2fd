"""Run a graph for a GPU on the CPU, with the GPU's rounding emulated.

This shows whether the graph computes what PyTorch does, and whether its numbers fit into 16 bits.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from bge_export.passes import DecomposePackedAttention, EmulateHalfPrecision
from bge_runtime.bundle import Bundle, PairReference, Parity, Reference, ScoreParity, Variant
from bge_runtime.engines import EngineInfo
from bge_runtime.variants import measure_parity


def emulate_on_cpu(
    bundle: Bundle, variant: Variant, reference: Reference | PairReference
) -> tuple[EngineInfo, Parity | ScoreParity]:
    """Return what ran a variant for a GPU on the CPU, and its parity with emulated rounding."""
    graph = bundle.graph(variant.graph)
    model = ir.load(bundle.path / graph.file)
    DecomposePackedAttention()(model)
    EmulateHalfPrecision()(model)
    file = str(Path(graph.file).with_name("cpu_emulation.onnx"))
    ir.save(model, bundle.path / file)
    graphs = {**bundle.manifest.graphs, variant.graph: replace(graph, file=file)}
    try:
        on_cpu = replace(variant, engine="onnxruntime", device="cpu")
        emulated = Bundle(bundle.path, replace(bundle.manifest, graphs=graphs))
        return measure_parity(emulated, on_cpu, reference)
    finally:
        (bundle.path / file).unlink()
