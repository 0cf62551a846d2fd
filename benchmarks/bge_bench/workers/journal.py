"""The measurements of a run on disk, so that it can be stopped and resumed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bge_bench.environment import describe_environment
from bge_bench.errors import BenchError
from bge_bench.systems.base import Item
from bge_runtime.bundle import Bundle


class Journal:
    """Measurements by key, each saved as soon as it is made.

    The first line identifies the run; a file with a different one is not continued. Every other
    line also records the seconds since the journal was opened, which shows how an interrupted run
    spent its time.
    """

    def __init__(self, path: Path | None, header: Mapping[str, Any]) -> None:
        """Open a journal, or start one.

        Args:
            path: File of JSON lines; None saves nothing.
            header: Identifies the run: model, texts, systems, threads, versions.

        Raises:
            BenchError: If the file belongs to another run, is damaged, or cannot be written.
        """
        self._path = path
        self._entries: dict[str, Any] = {}
        self._opened = time.perf_counter()
        first = json.dumps(header, sort_keys=True)
        if path is None:
            return
        try:
            lines = path.read_text("utf-8").split("\n") if path.exists() else []
            if not lines:
                path.write_text(first + "\n", "utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BenchError(f"cannot keep the journal {path}: {error}") from error
        if lines and lines[0] != first:
            raise BenchError(
                f"{path} was begun by another run, on other texts, systems, threads or versions; "
                "delete it, or name another file with --json"
            )
        # An interrupt may have truncated the last line; that measurement is repeated.
        for line in lines[1:-1]:
            entry = json.loads(line)
            self._entries[entry["key"]] = entry["value"]
        if lines and lines[-1]:
            path.write_text("\n".join(lines[:-1]) + "\n", "utf-8")

    @classmethod
    def beside(cls, json_file: Path | None, header: Mapping[str, Any]) -> Journal:
        """Return the journal next to a run's result file; without a file it saves nothing.

        Raises:
            BenchError: As for a journal that is opened by its path.
        """
        if json_file is None or json_file == Path("-"):
            return cls(None, header)
        return cls(json_file.with_name(f"{json_file.name}.journal"), header)

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        """Return the saved measurement of a key, or measure and save it."""
        if key not in self._entries:
            # As it would be read back, so that a resumed run gives the same document.
            value = measure()
            seconds = round(time.perf_counter() - self._opened, 1)
            line = json.dumps({"key": key, "value": value, "at_s": seconds})
            self._entries[key] = json.loads(line)["value"]
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
        return self._entries[key]

    def close(self) -> None:
        """Delete the file: the run is complete."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def header_of(kind: str, bundle: Bundle, **what: Any) -> dict[str, Any]:
    """Return the header of a run.

    Args:
        kind: Kind of the run.
        bundle: The measured bundle, identified by its ``bge.json``.
        **what: Further values that identify the run.
    """
    environment = describe_environment()
    return {
        "kind": kind,
        "bundle": hashlib.sha256((bundle.path / "bge.json").read_bytes()).hexdigest(),
        "versions": environment["versions"],
        **{name: environment["hardware"][name] for name in ("cpu", "vector_extensions")},
        **what,
    }


def fingerprint(texts: Sequence[Item]) -> str:
    """Return a hash that identifies texts or pairs in a header."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
