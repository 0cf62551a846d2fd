"""The versions, hardware and command line that a result was measured with."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from bge_runtime.system import cpu_model, installed_versions, nvidia, usable_cpus, vector_extensions

_PACKAGES = (
    "bge-runtime",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "numpy",
    "tokenizers",
    "torch",
    "transformers",
    "FlagEmbedding",
    "sentence-transformers",
    "optimum",
    "optimum-intel",
    "optimum-onnx",
    "fastembed",
    "nncf",
    "ctranslate2",
)


def describe_environment() -> dict[str, Any]:
    """Return what is needed to repeat a measurement, ready for JSON."""
    driver = nvidia.find_driver()
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **installed_versions(_PACKAGES)},
        "hardware": {
            "system": platform.platform(),
            "cpu": cpu_model(),
            "vector_extensions": vector_extensions(),
            "cores": psutil.cpu_count(logical=False),
            "logical_cpus": psutil.cpu_count(),
            "usable_cpus": usable_cpus(),
            "memory_bytes": psutil.virtual_memory().total,
            **({} if isinstance(driver, str) else {"nvidia": asdict(driver)}),
        },
    }


def busy_percent() -> float:
    """Return the CPU usage of all programs together, measured over one second."""
    return psutil.cpu_percent(interval=1.0)
