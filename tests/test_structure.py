"""Modules, functions and folders stay small enough to be read at one sitting."""

from __future__ import annotations

import ast
import importlib

from tests.helpers.bundles import ROOT

PACKAGES = [
    ROOT / "runtime" / "bge_runtime",
    ROOT / "export" / "bge_export",
    ROOT / "benchmarks" / "bge_bench",
]
FILES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for package in PACKAGES
    for path in package.rglob("*.py")
}


def test_a_module_has_450_lines_at_most():
    lines = {path: len(source.splitlines()) for path, source in FILES.items()}
    assert {path: count for path, count in lines.items() if count > 450} == {}


def test_a_function_has_80_lines_at_most_with_its_docstring():
    too_long = {
        path: f"{node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path, source in FILES.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno >= 80
    }
    assert too_long == {}


def test_a_folder_has_14_modules_at_most():
    folders = [path for package in PACKAGES for path in (package, *package.rglob("*/"))]
    modules = {folder: {*folder.glob("*.py")} - {folder / "__init__.py"} for folder in folders}
    assert {str(folder): len(found) for folder, found in modules.items() if len(found) > 14} == {}


EXEMPT = {
    "bge_export.checkpoint.tokenizer",  # imports transformers, which bge-export --help does without
    "bge_runtime.cli.command_line",  # a folder of commands, of which bge-export is a further one
}


def test_folders_use_what_others_export():
    """Across folders, names come from a folder's ``__init__``, never from a module inside."""
    inside = set()
    for path, source in FILES.items():
        package, folder = path.split("/")[1:3]
        for node in ast.walk(ast.parse(source)):
            name = getattr(node, "module", None) or ""
            parts = name.split(".")
            if package == "bge_bench" or parts[0] not in ("bge_runtime", "bge_export"):
                continue
            elsewhere = parts[:2] != [package, folder]
            if len(parts) > 2 and elsewhere and name not in EXEMPT:
                inside.add((path, name))
            exported = getattr(importlib.import_module(".".join(parts[:2])), "__all__", None)
            if len(parts) == 2 and elsewhere and exported is not None:
                names = [alias.name for alias in node.names]
                inside |= {(path, f"{name}.{each}") for each in names if each not in exported}
    assert inside == set()
