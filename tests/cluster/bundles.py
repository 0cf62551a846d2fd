"""Tiny bundles, made by the environment that has PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]

RUNTIME_PYTHON = os.environ.get("RUNTIME_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
"""Interpreter of the environment that has PyTorch."""


def make_bundles(folder: Path) -> dict[str, str]:
    """Return the paths of a dense model, ``dense``, and of an M3, ``m3``; see `make_bundles.py`."""
    program = Path(__file__).with_name("make_bundles.py")
    paths = [ROOT, ROOT / "runtime", ROOT / "export"]
    done = subprocess.run(
        [RUNTIME_PYTHON, str(program), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads((folder / "bundles.json").read_text())
    return found
