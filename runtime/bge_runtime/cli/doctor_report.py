"""The tables of ``bge-runtime doctor``: the machine, the engines, and what would run."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence

from bge_runtime._version import __version__
from bge_runtime.bundle import Requirement
from bge_runtime.cli.doctor_checks import (
    PACKAGED_ENGINES,
    describe_cache,
    dotted,
    installed_version,
)
from bge_runtime.engines import ENGINES, tensorrt, unavailable_reason
from bge_runtime.system import (
    cpu_model,
    default_threads,
    format_table,
    nvidia,
    usable_cpus,
    vector_extensions,
)

STANDARD_REQUIREMENTS = (
    Requirement("openvino", "cpu", "bf16"),
    Requirement("onnxruntime", "cpu", "fp32"),
    Requirement("openvino", "cpu", "fp32"),
    Requirement("onnxruntime", "cuda", "fp16"),
    Requirement("tensorrt", "cuda", "fp16"),
)
"""What the variants of an exported encoder need, in order of preference."""

_REQUESTS = (
    ("use_fp16=True", ("bf16", "fp32")),
    ("use_fp16=False", ("fp32",)),
    ("use_bf16=True", ("bf16",)),
)


def machine_table() -> str:
    """Return a table of this version, the system, processor, GPUs and caches."""
    # Only the settings of huggingface_hub are imported; the runtime itself does not need it.
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    usable, total = usable_cpus(), os.cpu_count()
    processor = ", ".join([cpu_model(), *vector_extensions()])
    threads = default_threads()
    limited = f", {threads} with OMP_NUM_THREADS" if threads < usable else ""
    rows = [
        ("bge-runtime", f"{__version__}, Python {platform.python_version()}"),
        ("system", platform.platform()),
        ("processor", f"{processor}; {usable} of {total} processors usable{limited}"),
        *_gpu_rows(),
        ("cache", describe_cache()[0]),
        ("hub cache", f"{HF_HUB_CACHE}{', offline' if HF_HUB_OFFLINE else ''}"),
    ]
    return format_table(rows)


def _gpu_rows() -> list[tuple[str, str]]:
    driver = nvidia.find_driver()
    if isinstance(driver, str):
        return [("GPU", f"none: {driver}")]
    rows = [
        (
            f"cuda:{index}",
            f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB, sm_{gpu.compute_capability}",
        )
        for index, gpu in enumerate(driver.gpus)
    ]
    return [("driver", f"{driver.version}, for CUDA up to {dotted(driver.cuda)}"), *rows]


def engine_table() -> str:
    """Return a table of the engines, their versions, and the precisions that they run here."""
    rows = [("engine", "version", "precisions here")]
    for name in ENGINES:
        version = installed_version(name) if name in PACKAGED_ENGINES else tensorrt.version()
        precisions = [
            needed.precision + (" on a GPU" if needed.device != "cpu" else "")
            for needed in STANDARD_REQUIREMENTS
            if needed.engine == name and unavailable_reason(needed) is None
        ]
        rows.append((name, version or "not installed", ", ".join(precisions) or "none"))
    return format_table(rows)


def choice_table(requirements: Sequence[Requirement]) -> str:
    """Return a table of which variant each request for a precision runs on the CPU."""
    rows = [("requested", "runs here")]
    for request, precisions in _REQUESTS:
        # Only the default device. Other devices are chosen by name.
        usable = [
            f"{needed.engine} in {needed.precision}"
            for needed in requirements
            if needed.device == "cpu"
            and needed.precision in precisions
            and unavailable_reason(needed) is None
        ]
        rows.append((request, usable[0] if usable else "nothing: an error"))
    return format_table(rows)
