"""Engines run the graphs of a bundle: each opens a graph on a device and computes its outputs.

Anything above may open engines with `open_engine`; engines import only `bge_runtime.bundle` and
what is below it. To add an engine:

1. Write a module beside ``openvino.py`` with a class that satisfies `Engine` and `EngineClass` of
   ``base.py``. It imports its package when it opens a graph, never before. Compare where and how
   the graph runs with what was requested, and raise an error if they differ. An engine that is
   a provider of ONNX Runtime holds an `OrtSession` of ``ort_session.py``.
2. Add the class to `ENGINES` in ``registry.py``.
3. Add an extra with its package to ``pyproject.toml``.
4. Let bundles have variants for it: add a target to ``bge_export/targets``.
"""

from bge_runtime.engines import ort_providers, tensorrt
from bge_runtime.engines.base import BatchLimits, Engine, EngineInfo, EngineOptions
from bge_runtime.engines.batch_arrays import graph_inputs, pad_batch
from bge_runtime.engines.openvino import OpenVinoEngine, computing_precision, cpu_capabilities
from bge_runtime.engines.ort_cpu import OrtCpuEngine
from bge_runtime.engines.ort_providers import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    INSTALL_GPU,
    TENSORRT_PROVIDER,
    cuda_options,
    open_session,
)
from bge_runtime.engines.registry import (
    ENGINES,
    device_kind,
    engine_package,
    load_engine,
    open_engine,
    require_cuda_graphs,
    unavailable_reason,
)
from bge_runtime.engines.tensorrt import TensorRtEngine

__all__ = [
    "CPU_PROVIDER",
    "CUDA_PROVIDER",
    "ENGINES",
    "INSTALL_GPU",
    "TENSORRT_PROVIDER",
    "BatchLimits",
    "Engine",
    "EngineInfo",
    "EngineOptions",
    "OpenVinoEngine",
    "OrtCpuEngine",
    "TensorRtEngine",
    "computing_precision",
    "cpu_capabilities",
    "cuda_options",
    "device_kind",
    "engine_package",
    "graph_inputs",
    "load_engine",
    "open_engine",
    "open_session",
    "ort_providers",
    "pad_batch",
    "require_cuda_graphs",
    "tensorrt",
    "unavailable_reason",
]
