"""Versions of installed packages, and the distributions that an engine's files come from."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterable
from pathlib import Path


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed.

    Args:
        packages: Names of distributions.
    """
    import importlib.metadata

    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def owners(package: str) -> dict[str, str]:
    """Return the distributions that installed a package, by name, with their versions.

    A dozen distributions install an ``onnxruntime``, such as nightly builds and those of other
    projects. If several are installed, each has overwritten files of the others.

    Args:
        package: Import name of a package with an ``__init__.py``.

    Returns:
        Empty if it is not installed, or no distribution lists it.
    """
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # something else has replaced the module
        spec = None
    if spec is None or spec.origin is None:
        return {}
    return dict(_owners(package, Path(spec.origin).parent.parent))


@functools.cache
def _owners(package: str, folder: Path) -> tuple[tuple[str, str], ...]:
    import importlib.metadata

    found = []
    for path in sorted((*folder.glob("*.dist-info"), *folder.glob("*.egg-info"))):
        if _installed(path, package):
            distribution = importlib.metadata.PathDistribution(path)
            name: str | None = distribution.metadata["Name"]
            found.append((name or path.stem, distribution.version))
    return tuple(found)


def _installed(path: Path, package: str) -> bool:
    """Return whether a distribution's metadata says, in one of three ways, that it has a package.

    ``importlib.metadata.packages_distributions`` parses all lists of files. With hundreds of
    packages that takes a second, and this a fortieth of it.
    """
    for name, line in (("RECORD", f"{package}/__init__.py,"), ("top_level.txt", package)):
        try:
            content = (path / name).read_bytes()
        except OSError:
            continue
        lines = b"\n" + content.replace(b"\r\n", b"\n") + b"\n"
        ending = "" if line.endswith(",") else "\n"
        return f"\n{line}{ending}".encode() in lines
    # Packages of a Linux distribution have no such list, so the name has to do.
    return path.name.partition("-")[0].lower() == package
