"""Run the runtime's tests on other versions of Python, each in an environment without PyTorch.

    python tests/pythons/run.py FOLDER WHEEL VERSION...

FOLDER keeps one environment for each version. The bundles that the tests need are made first, by
the environment that has PyTorch, unless an earlier run of the tests kept them for this one
(BGE_TESTS_MADE_ONCE). A version that is not installed is named and left out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

TESTS = [
    "bundle/test_bundle_faults", "cli/test_command_line", "cli/test_embed", "cli/test_embed_input",
    "cli/test_embed_output", "cli/test_rerank", "encoding/test_batching", "encoding/test_parallel",
    "encoding/test_prefix_cache", "models/test_bad_input", "models/test_garbage",
    "models/test_processes", "models/test_threads", "system/test_cgroups", "system/test_cpus",
    "serving/test_app", "serving/test_lanes", "serving/test_scheduler", "test_errors",
    "test_import_isolation", "test_stores", "variants/test_parity_check",
    "variants/test_selection",
]  # fmt: skip
"""Tests of the runtime that need neither PyTorch nor a peer, but for single ones that skip."""

MADE_ONCE = "BGE_TESTS_MADE_ONCE"


def find_python(version: str) -> str | None:
    """Return the path of an interpreter, on the path or among pyenv's; None if there is none."""
    pyenv = shutil.which("pyenv")
    listed = ""
    if pyenv is not None:
        listed = ":".join(run(pyenv, "versions", "--bare", capture=True).split())
    # pyenv's commands refuse to run unless a version that has them is selected.
    environment = {**os.environ, "PYENV_VERSION": listed} if listed else None
    try:
        print_path = ["-c", "import sys; print(sys.executable)"]
        return run(f"python{version}", *print_path, capture=True, env=environment).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def run(*command: str, capture: bool = False, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, check=True, text=True, env=env, stdout=subprocess.PIPE if capture else None
    )
    return done.stdout or ""


def main(folder: Path, wheel: Path, versions: list[str]) -> None:
    found = {version: find_python(version) for version in versions}
    for version in [version for version, python in found.items() if python is None]:
        print(f"Python {version} is not installed, and is left out")
    tests = [f"tests/runtime/{name}.py" for name in TESTS]
    folder.mkdir(exist_ok=True)
    made = dict(os.environ)
    if MADE_ONCE not in made:
        made[MADE_ONCE] = str((folder / "made").absolute())
        shutil.rmtree(made[MADE_ONCE], ignore_errors=True)
    quiet = ["-q", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "--setup-only", *quiet, *tests]
    making = subprocess.run(
        command, env=made, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if making.returncode:
        sys.exit(making.stdout)
    for version in (version for version in versions if found[version] is not None):
        environment = folder / version
        python = str(environment / "bin" / "python")
        if not environment.exists():
            run(str(found[version]), "-m", "venv", "--without-pip", str(environment))
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
        pinned = ["-c", "constraints.txt", "--no-compile", "--disable-pip-version-check"]
        run(*pip, *pinned, "--group", "runtime-tests", f"{wheel}[cpu,serve,sparse]")
        run(*pip, "--no-deps", "--force-reinstall", "--disable-pip-version-check", str(wheel))
        print(f"Python {version}:", flush=True)
        run(python, "-m", "pytest", "-n", "auto", "-m", "not slow", "-q", "-p", "no:cacheprovider",
            *tests, env=made)  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
