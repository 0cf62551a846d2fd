"""Versions of installed packages."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

ENGINE_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openvino")
"""Distributions that hold an engine. In one folder the first two overwrite each other."""


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Look up the versions of those packages that are installed.

    Args:
        packages: Distribution names. One that is missing is left out: an engine has
            several wheels, of which one machine has one.
    """
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def in_one_folder(*packages: str) -> bool:
    """Tell whether packages that are installed lie beside each other, and so can share files."""
    folders = {
        str(importlib.metadata.distribution(package).locate_file("")) for package in packages
    }
    return len(folders) == 1
