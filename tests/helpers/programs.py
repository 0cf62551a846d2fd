"""Programs that run a model in a process of their own, without pytest and PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

PRELUDE = '''
import multiprocessing, os, pickle, signal, sys, threading, time
import numpy as np
from bge_runtime import FlagModel

TEXTS = ["", "a", "hello world", "several words of text " * 100] * 5


def check(model, expected):
    """Raise an error unless the model returns the expected vectors."""
    np.testing.assert_allclose(model.encode(TEXTS), expected, rtol=0, atol=1e-6)


def fork_and_check(model, expected):
    """Encode in a forked child that exits normally, with all finalisers."""
    child = os.fork()
    if not child:
        check(model, expected)
        sys.exit(0)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            if status:
                sys.exit(f"the child ended with wait status {status}")
            return
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    sys.exit("the child hangs")


def child_of_multiprocessing(model, answers):
    answers.put(model.encode(TEXTS))
'''


def run_program(
    folder: Path,
    body: str,
    *arguments: object,
    telemetry: str | None = None,
    parallelism: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program that opens a model in its own process, and check that it succeeds.

    Args:
        folder: Folder for the program.
        body: Code that runs with ``model``, ``expected`` and the functions of `PRELUDE`.
        *arguments: Arguments of the program; the first one is the bundle.
        telemetry: Value of ``ORT_DISABLE_TELEMETRY``; None leaves it unset.
        parallelism: Value of ``TOKENIZERS_PARALLELISM``; None leaves it unset.
    """
    program = folder / "program.py"
    body = textwrap.indent(textwrap.dedent(body), "    ")
    program.write_text(
        f'{PRELUDE}\nif __name__ == "__main__":\n'
        "    model = FlagModel(sys.argv[1])\n    expected = model.encode(TEXTS)\n"
        f"{body}"
    )
    # What the runtime sets on opening an engine must not come from this process.
    environment = {
        **os.environ,
        "ORT_DISABLE_TELEMETRY": telemetry,
        "TOKENIZERS_PARALLELISM": parallelism,
    }
    done = subprocess.run(
        [sys.executable, str(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={name: value for name, value in environment.items() if value is not None},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done
