"""What a long run has measured so far, on disk, so that it can be stopped and resumed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bge_bench.environment import describe_environment
from bge_bench.errors import BenchError
from bge_runtime.bundle import Bundle


class Journal:
    """Measurements by key, each written down as soon as it is known.

    The first line says what is measured; a file that says otherwise is not continued. Every further
    line also says how many seconds after the opening it was written: where the time of a run went
    that was cut short.
    """

    def __init__(self, path: Path | None, header: Mapping[str, Any]) -> None:
        """Open a journal, or begin one.

        Args:
            path: File of JSON lines; None keeps nothing.
            header: What identifies the work: model, texts, sides, threads, versions.

        Raises:
            BenchError: If the file is another run's, damaged, or cannot be written.
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
                f"{path} was begun by another run, on other texts, sides, threads or versions; "
                "delete it, or name another file with --json"
            )
        # An interrupt may have cut the last line short: that one is measured again.
        for line in lines[1:-1]:
            entry = json.loads(line)
            self._entries[entry["key"]] = entry["value"]
        if lines and lines[-1]:
            path.write_text("\n".join(lines[:-1]) + "\n", "utf-8")

    @classmethod
    def beside(cls, json_file: Path | None, header: Mapping[str, Any]) -> Journal:
        """Open the journal of a run whose result goes to a file; without a file it keeps nothing.

        Raises:
            BenchError: As a journal that is opened by its own name.
        """
        if json_file is None or json_file == Path("-"):
            return cls(None, header)
        return cls(json_file.with_name(f"{json_file.name}.journal"), header)

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        """Give what was measured under a key, or measure it now and write it down."""
        if key not in self._entries:
            # As it would be read back: a resumed run is to give the same document.
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
    """Make the header of a run.

    Args:
        kind: Of the run.
        bundle: What is measured; exported anew it is another one.
        **what: What identifies the work, beside the versions and the processor.
    """
    environment = describe_environment()
    return {
        "kind": kind,
        "bundle": hashlib.sha256((bundle.path / "bge.json").read_bytes()).hexdigest(),
        "versions": environment["versions"],
        **{name: environment["hardware"][name] for name in ("cpu", "vector_extensions")},
        **what,
    }


def fingerprint(texts: Sequence[str]) -> str:
    """Identify texts in a header."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
