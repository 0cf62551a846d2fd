"""Each adapter needs its ecosystem, says so, and needs no other."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

PACKAGES = {
    "langchain": "langchain_core",
    "llama_index": "llama_index",
    "chroma": "chromadb",
    "mteb": "mteb",
    "ray": "ray",
}
"""What each module of `bge_runtime.integrations` is for."""


def python(code: str) -> str:
    """Run code in a fresh interpreter, with every warning an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout


@pytest.mark.parametrize(("module", "package"), PACKAGES.items())
def test_a_missing_package_is_named_with_its_extra(module, package):
    said = python(
        f"import sys; sys.modules[{package!r}] = None\n"
        f"try: import bge_runtime.integrations.{module}\n"
        "except ImportError as error: print(error)"
    )
    assert f"`pip install 'bge-runtime[{module.replace('_', '-')}]'`" in said
    assert package in said


@pytest.mark.parametrize(("module", "package"), PACKAGES.items())
def test_an_integration_imports_no_other_library(module, package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    others = sorted(set(PACKAGES.values()) - {package})
    report = f"print(*[name for name in {others} if name in sys.modules])"
    assert python(f"import sys, bge_runtime.integrations.{module}\n{report}").split() == []
