"""Settings of the documentation site, which ``make docs`` builds."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

from bge_runtime import __version__

project = "bge-runtime"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
# JSON is shortened by an ellipsis.
suppress_warnings = ["misc.highlighting_failure"]

# Anchors are GitHub's, so that links hold there too.
myst_heading_anchors = 3

# The exporter's and the benchmarks' commands are imported without PyTorch and the peers.
autodoc_mock_imports = [
    "llama_index",
    "mteb",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "psutil",
    "ray",
    "torch",
]
autodoc_default_options = {"members": True}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
add_module_names = False
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Keys", "params_style")]
default_role = "code"
highlight_language = "none"  # of blocks that name none

html_theme = "furo"
html_title = "bge-runtime"
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "examples": "examples/README.md",
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "security": "SECURITY.md",
    "benchmarks/running": "benchmarks/README.md",
}
"""Pages of the site whose text is elsewhere in the repository."""


def include_pages_outside(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace a page's text by that of a file outside ``docs``, and links by those to its page."""
    page = ROOT / "docs" / f"{docname}.md"
    base = page.parent
    if docname in OUTSIDE:
        file = ROOT / OUTSIDE[docname]
        source[0], base = file.read_text("utf-8"), file.parent
    pages = {ROOT / path: name for name, path in OUTSIDE.items()} | {ROOT / "README.md": "index"}

    def link(match: re.Match[str]) -> str:
        name, sharp, anchor = match[1].partition("#")
        if not name or ":" in name:
            return match[0]
        target = (base / name).resolve()
        if target in pages:
            target = ROOT / "docs" / f"{pages[target]}.md"
        return f"]({os.path.relpath(target, page.parent)}{sharp}{anchor})"

    source[0] = re.sub(r"\]\(([^)\s]+)\)", link, source[0])
    # Blocks that no test runs say so; see tests/docs.
    source[0] = re.sub(r"<!-- not run: (.+?) -->", r"*Not run by the tests: \1.*", source[0])


def setup(app: Sphinx) -> None:
    """Register the above."""
    app.connect("source-read", include_pages_outside)
