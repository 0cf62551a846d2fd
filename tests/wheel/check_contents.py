"""Compare what a wheel and an sdist hold with ``contents.txt``, and with the checkout.

    python tests/wheel/check_contents.py dist/*.whl dist/*.tar.gz

It needs the standard library only. Exit status 1 if a file is unexpected or missing.
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("contents.txt")
PACKAGES = ("runtime/bge_runtime", "export/bge_export", "benchmarks/bge_bench")


def read_patterns(kind: str) -> list[str]:
    """Return the patterns of ``contents.txt`` for ``"wheel"`` or ``"sdist"``."""
    section = LIST.read_text("utf-8").partition(f"[{kind}]\n")[2].partition("\n[")[0]
    return [line for line in section.splitlines() if line and not line.startswith("#")]


def read_names(distribution: Path) -> set[str]:
    """Return the files in a wheel, or those in an sdist without its folder."""
    if distribution.suffix == ".whl":
        return set(zipfile.ZipFile(distribution).namelist())
    with tarfile.open(distribution) as archive:
        return {each.name.partition("/")[2] for each in archive.getmembers() if each.isfile()}


def package_files(kind: str) -> set[str]:
    """Return the files of the packages in the checkout, by their names in a distribution."""
    return {
        str(path.relative_to((ROOT / package).parent if kind == "wheel" else ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def find_differences(distribution: Path) -> list[str]:
    """Return a line for each difference between a distribution and what it should hold."""
    kind = "wheel" if distribution.suffix == ".whl" else "sdist"
    patterns, names = read_patterns(kind), read_names(distribution)
    unexpected = {name for name in names if not any(fnmatchcase(name, each) for each in patterns)}
    unused = [each for each in patterns if not any(fnmatchcase(name, each) for name in names)]
    return [
        *(f"unexpected: {name}" for name in sorted(unexpected)),
        *(f"missing: {name}" for name in sorted(package_files(kind) - names)),
        *(f"no file matches: {each}" for each in unused),
    ]


def main(distributions: list[str]) -> int:
    """Print the differences of each distribution, and return the exit status."""
    failed = 0
    for distribution in map(Path, distributions):
        differences = find_differences(distribution)
        for line in differences:
            print(f"{distribution.name}: {line}")
        print(f"{distribution.name}: {len(read_names(distribution))} files")
        failed |= bool(differences)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
