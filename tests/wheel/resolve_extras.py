"""Let pip resolve every extra of a wheel: alone, and beside the newest peers. Installs nothing.

    python tests/wheel/resolve_extras.py WHEEL [EXTRA...]

It needs a package index, and a pip that is recent enough to read metadata without downloading. Exit
status 1 if an extra does not resolve, or if one does that is listed as incompatible with the peers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PEERS = ["sentence-transformers>=6,<7", "transformers>=5,<6"]
WITHOUT_PEERS = {"bench": "FlagEmbedding 1.4.2 and optimum-intel 1.27 need transformers 4"}
TORCH = "torch==2.13.0"
"""The version that is tested; any other one would let pip try one after the other."""


def resolve(requirements: list[str]) -> str | dict[str, str]:
    """Return the version of each package that pip would install, or pip's last error."""
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed",
        "--disable-pip-version-check", "--report", "-", *requirements,
    ]  # fmt: skip
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write(f"{TORCH}\n")
        constraints.flush()
        command += ["-c", constraints.name]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        return (errors or [done.stderr[-300:]])[-1]
    found = [each["metadata"] for each in json.loads(done.stdout)["install"]]
    return {each["name"].lower().replace("_", "-"): each["version"] for each in found}


def main(wheel: str, names: list[str]) -> int:
    """Print a line for each extra, alone and with the peers, and return the exit status."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = names or ["", *project["optional-dependencies"]]
    failed = 0
    for extra in extras:
        for peers in ([], PEERS):
            found = resolve([f"{wheel}[{extra}]" if extra else wheel, *peers])
            expected = not (peers and extra in WITHOUT_PEERS)
            failed |= expected != isinstance(found, dict)
            kind = "with peers" if peers else "alone"
            what = f"{len(found)} packages" if isinstance(found, dict) else found
            note = "" if expected else f"  (as expected: {WITHOUT_PEERS[extra]})"
            print(f"{extra or 'no extra':12} {kind:11} {what}{note}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
