"""The tours of CONTRIBUTING.md are the paths that the code takes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from bge_export import cli
from bge_export.bundle import finish
from bge_runtime.engines import ort_session
from tests.helpers.bundles import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def tour(heading):
    """Return the functions of a tour, and the files that they are in."""
    section = PAGE.partition(f"## Tour: {heading}\n")[2].partition("\n## ")[0]
    steps = re.findall(r"^\d\. `([\w.]+)`(?: in `([\w/.]+)`)?", section, re.MULTILINE)
    return [name.rpartition(".")[2] for name, _ in steps], {file for _, file in steps if file}


def callers(package):
    """Return the functions of a package on the stack, outermost first, and their files."""
    frame, found = sys._getframe(2), []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT / package):
            found.append((frame.f_code.co_name, path.relative_to(ROOT / package).as_posix()))
        frame = frame.f_back
    return list(reversed(found))


def test_from_a_query_to_its_vector(model, monkeypatch):
    names, files = tour("from a query to its vector")
    assert len(names) == 6
    assert len(files) <= 4
    taken, run = [], ort_session.OrtSession.run

    def recorded(*arguments, **options):
        taken.append(callers("runtime/bge_runtime"))
        return run(*arguments, **options)

    monkeypatch.setattr(ort_session.OrtSession, "run", recorded)
    model.encode_queries("a query")
    (stack,) = taken
    assert [name for name, _ in stack] == names
    assert {file for _, file in stack} == files


def test_from_a_checkpoint_to_its_manifest(tiny_checkpoint, tmp_path, monkeypatch):
    names, files = tour("from a checkpoint to bge.json")
    assert len(names) == 4
    taken, commit = [], finish.commit_directory

    def recorded(*arguments, **options):
        taken.append(callers("export/bge_export"))
        return commit(*arguments, **options)

    monkeypatch.setattr(finish, "commit_directory", recorded)
    output = tmp_path / "bundle"
    arguments = [str(tiny_checkpoint), "--output", str(output), "--pooling", "cls"]
    cli.main([*arguments, "--target", "cpu"], standalone_mode=False)
    (stack,) = taken
    assert (output / "bge.json").is_file()
    assert [name for name, _ in stack] == names
    assert {file for _, file in stack} <= files
