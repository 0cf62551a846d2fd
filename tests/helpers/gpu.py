"""What tests of engines for a GPU need."""

from __future__ import annotations

from pathlib import Path

import pytest

from bge_runtime.bundle import Bundle, Variant
from bge_runtime.engines import CUDA_PROVIDER
from bge_runtime.engines.ort_providers import load
from bge_runtime.system import nvidia

HAS_PROVIDER = CUDA_PROVIDER in load().get_available_providers()
HAS_DRIVER = isinstance(nvidia.find_driver(), nvidia.Driver)
WITHOUT_GPU = pytest.mark.skipif(HAS_DRIVER, reason="this machine has a GPU")


def find_variant(bundle: Path, name: str) -> Variant:
    """Return a variant of a bundle by its name."""
    return next(v for v in Bundle.at(bundle).manifest.variants if v.name == name)
