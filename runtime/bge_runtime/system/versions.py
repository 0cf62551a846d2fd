"""Versions of installed packages, and which wheels an engine's files came from."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Iterable
from pathlib import Path


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Look up the versions of those packages that are installed.

    Args:
        packages: Distribution names. One that is missing is left out.
    """
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def owners(package: str) -> dict[str, str]:
    """Return the wheels that own the package which is imported by this name, with versions.

    A dozen wheels bring an ``onnxruntime``, nightly ones and those of other projects among them.
    Where there are several in one folder, each has overwritten files of the others.

    Args:
        package: Name of a package with an ``__init__.py``.

    Returns:
        Empty if it is not installed, or no wheel says that it brought it.
    """
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # a module that something else has put in its place
        spec = None
    if spec is None or spec.origin is None:
        return {}
    return dict(_owners(package, Path(spec.origin).parent.parent))


@functools.cache
def _owners(package: str, folder: Path) -> tuple[tuple[str, str], ...]:
    found = []
    for place in sorted((*folder.glob("*.dist-info"), *folder.glob("*.egg-info"))):
        if _brings(place, package):
            distribution = importlib.metadata.PathDistribution(place)
            name: str | None = distribution.metadata["Name"]
            found.append((name or place.stem, distribution.version))
    return tuple(found)


def _brings(place: Path, package: str) -> bool:
    """Return whether a distribution says that it brought a package, in any of three ways.

    ``importlib.metadata.packages_distributions`` parses every list of files, which takes a second
    where hundreds of packages are installed; this takes a fortieth of it.
    """
    for name, line in (("RECORD", f"{package}/__init__.py,"), ("top_level.txt", package)):
        try:
            content = (place / name).read_bytes()
        except OSError:
            continue
        lines = b"\n" + content.replace(b"\r\n", b"\n") + b"\n"
        ending = "" if line.endswith(",") else "\n"
        return f"\n{line}{ending}".encode() in lines
    # A system's own package has no list: the name is all there is.
    return place.name.partition("-")[0].lower() == package
