"""Run a graph for a GPU on the CPU, with the GPU's rounding emulated.

This shows whether the graph computes what PyTorch does, and whether its numbers fit into 16 bits.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from bge_export.bundle import require_parity
from bge_export.passes import DecomposePackedAttention, EmulateHalfPrecision
from bge_runtime.bundle import Bundle, Parity, Reference, Variant
from bge_runtime.variants import measure_parity


def emulate_on_cpu(bundle: Bundle, variant: Variant, reference: Reference) -> Parity:
    """Return the parity that a variant for a GPU has on the CPU with emulated rounding.

    Raises:
        ExportError: If it is outside the tolerance of the variant's precision.
    """
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
        info, parity = measure_parity(emulated, on_cpu, reference)
    finally:
        (bundle.path / file).unlink()
    require_parity(parity, graph, variant, provider=f"{info.provider}, rounded as on a GPU,")
    return parity
