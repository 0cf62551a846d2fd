"""Check the prose of pages and docstrings: long sentences, and words that say nothing.

    python tests/prose.py [PAGE...]

It needs the standard library only. Exit status 1 if there is a finding. `make lint` runs it.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

LONGEST = 35
"""Words of a sentence of a page."""

LONGEST_SUMMARY = 20
"""Words of a docstring's first sentence."""

FORBIDDEN = (
    "amazing", "awesome", "best-in-class", "blazing", "blazingly", "bleeding-edge", "cutting-edge",
    "easily", "effortless", "effortlessly", "elegant", "game-changer", "in order to", "incredibly",
    "just", "leverage", "leverages", "leveraging", "lightning-fast", "obviously", "of course",
    "powerful", "revolutionary", "robust", "seamless", "seamlessly", "simply", "state-of-the-art",
    "super", "supercharge", "synergy", "trivial", "trivially", "unleash", "utilise", "utilize",
    "utilizes", "world-class",
)  # fmt: skip

WORDS = re.compile(rf"\b(?:{'|'.join(FORBIDDEN)})\b", re.IGNORECASE)

# A sentence ends before a capital, so that "e.g. this" and "1.4.2" do not end one.
ENDS = re.compile(r"(?<=[.!?:;])[)\"*_]*\s+(?=[\"*_(]*[A-Z0-9`])")

SUMMARIES_NOT = ("Returns ", "Gives ", "Gets ", "Get ", "Tells ")
"""What docstrings of functions say as "Return"."""

PACKAGES = ("runtime/bge_runtime", "export/bge_export", "benchmarks/bge_bench", "examples")


def pages() -> list[Path]:
    """Return the pages that are written by hand."""
    written = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("examples/*.md")]
    return sorted(path for path in written if "_build" not in path.parts)


def paragraphs(text: str) -> Iterator[tuple[int, str, bool]]:
    """Yield each paragraph's line number and text, and whether it is prose rather than cells."""
    text = re.sub(r"^(```|~~~).*?^\1", _blank, text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->", _blank, text, flags=re.DOTALL)
    lines: list[str] = []
    first = 0
    for number, line in enumerate([*text.splitlines(), ""], 1):
        stripped = line.strip()
        is_cells = stripped.startswith("|")
        begins = is_cells or not stripped or re.match(r"([-*+]|\d+\.|#+|>)\s", stripped)
        if begins and lines:
            yield first, " ".join(lines), True
            lines = []
        if is_cells:
            yield number, stripped, False
        elif stripped:
            first = first if lines else number
            lines.append(re.sub(r"^([-*+]|\d+\.|#+|>)\s+", "", stripped))


def _blank(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")


def plain(text: str) -> str:
    """Return a paragraph without markup: a link by its text, code as one word."""
    text = re.sub(r"`[^`]*`", "Code", text)  # a name may begin a sentence
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"<[^>]+>|https?://\S+", "link", text)


def check_page(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each finding in a page."""
    for line, paragraph, is_prose in paragraphs(text):
        content = plain(paragraph)
        for found in WORDS.findall(content):
            yield line, f"{found!r} says nothing: leave it out, or say what you mean"
        for sentence in ENDS.split(content) if is_prose else ():
            count = len(re.findall(r"\w[\w'’.-]*", sentence))
            if count > LONGEST:
                yield line, f"a sentence of {count} words: {sentence[:60]}…"


def check_docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each finding in the docstrings of a module."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if (docstring := ast.get_docstring(node)) is None:
            continue
        line = getattr(node, "lineno", 1)
        summary = re.split(r"(?<=[.!?])\s|\n\n", docstring)[0]
        if (count := len(summary.split())) > LONGEST_SUMMARY:
            yield line, f"a docstring begins with {count} words: {summary[:60]}…"
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if is_function and summary.startswith(SUMMARIES_NOT):
            yield line, f"a docstring begins with {summary.split()[0]!r}: write 'Return'"


def main(given: list[str]) -> int:
    """Print what is found, and return the exit status."""
    found = 0
    modules = [] if given else [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    for check, paths in (
        (check_page, [Path(name).resolve() for name in given] or pages()),
        (check_docstrings, sorted(modules)),
    ):
        for path in paths:
            for line, message in check(path.read_text("utf-8")):
                print(f"{path.relative_to(ROOT)}:{line}: {message}")
                found += 1
    return min(found, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
