"""Engines: what runs a bundle's graphs.

An engine is small on purpose: it opens one graph on one device, runs token arrays
and gives named outputs. To add one, write a module with a class that satisfies
`Engine` and tells with ``unavailable_reason`` what it cannot run here, and give it a row in
`ENGINES`. Its package is imported when it is used, never before.
"""

from bge_runtime.engines.base import (
    BatchLimits,
    Engine,
    EngineInfo,
    EngineOptions,
    graph_inputs,
)
from bge_runtime.engines.open import (
    ENGINES,
    device_kind,
    open_engine,
    require_cuda_graphs,
    unavailable_reason,
)
from bge_runtime.engines.openvino import OpenVinoEngine, computing_precision, cpu_capabilities
from bge_runtime.engines.ort import OrtEngine
from bge_runtime.engines.ort_providers import (
    CPU,
    CUDA,
    INSTALL_GPU,
    TENSORRT,
    cuda_options,
    open_session,
)
from bge_runtime.engines.tensorrt import TensorRtEngine

__all__ = [
    "CPU",
    "CUDA",
    "ENGINES",
    "INSTALL_GPU",
    "TENSORRT",
    "BatchLimits",
    "Engine",
    "EngineInfo",
    "EngineOptions",
    "OpenVinoEngine",
    "OrtEngine",
    "TensorRtEngine",
    "computing_precision",
    "cpu_capabilities",
    "cuda_options",
    "device_kind",
    "graph_inputs",
    "open_engine",
    "open_session",
    "require_cuda_graphs",
    "unavailable_reason",
]
