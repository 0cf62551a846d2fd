"""The page of errors, from the docstrings of their classes."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from dataclasses import dataclass

from docs.generate.sources import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
PACKAGES = ("runtime/bge_runtime", "export/bge_export")
BASE = "BgeError"

INTRODUCTION = """\
# Troubleshooting

`bge-runtime doctor` says what is installed, what would run here, and what is wrong.
`bge-runtime doctor --verify BUNDLE` also checks a bundle's files and its vectors on this machine.

Every error of this package is a `BgeError`, from `bge_runtime.errors` where no other module is
named. Arguments of a wrong type or value raise `TypeError` or `ValueError`. Commands print the
message. `bge-serve` answers with a status. There is no release on PyPI yet: where a message says
`pip install 'bge-runtime[cpu]'`, a checkout takes `pip install '.[cpu]'`.

`make charts` makes this page from docstrings; a test compares them.
"""

TABLE = """\
## Messages

Parts of common messages; … stands for what varies.

| message | what to do |
|---|---|
"""

MESSAGES = (
    ("no model at …", "Pass the folder that holds `bge.json` or `config.json`, or a Hub ID."),
    (
        "is gated: accept the terms on its Hub page",
        "Accept them in a browser, then `hf auth login`.",
    ),
    ("is not in the hub's cache, and … forbids downloading it", "Fetch it once with a network."),
    ("is a Git LFS pointer instead of the file itself", "`git lfs pull` in the clone."),
    ("has changed since it was exported", "Copy the bundle again, or export it again."),
    ("has format version …, and this bge-runtime reads up to …", "`pip install -U bge-runtime`."),
    ("onnxruntime cannot be imported", "`pip install 'bge-runtime[cpu]'`."),
    ("is a checkpoint, and …", "`pip install 'bge-runtime[export]'`, or export it elsewhere."),
    (
        "nothing says how … pools",
        "Pass `pooling_method='cls'` or `'mean'`: the one that the model was trained with.",
    ),
    ("requested pooling_method=…, but the bundle", "Leave the argument out."),
    ("requested device …, but the bundle", "Export again with `--target cuda`, or pass `'cpu'`."),
    ("this processor does not compute in bf16", "Leave `precision` out, or pass `'fp32'`."),
    (
        "passes the parity check with PyTorch",
        "See `bge-runtime doctor --verify BUNDLE`, and export the bundle again.",
    ),
    ("which is too large for float16", "`normalize_embeddings=True`, or `precision='fp32'`."),
    ("is a model of class …, which … does not open", "Use the class that the message names."),
    ("brings its own model code", "Read the code, then pass `--trust-remote-code`."),
    (
        "it is damaged, or a pickle that holds more than tensors",
        "Save the weights as safetensors, on a machine where you trust the file.",
    ),
    ("is a bundle already; pass --force to replace it", "`--force`, or another `--output`."),
    ("free some, or choose another --output", "Free disk space."),
    (
        "is too far from PyTorch's",
        "Nothing was written. Leave the graph out that the message names, and report the model.",
    ),
    ("another process is writing to", "Wait for it, or end it."),
    ("cannot listen on …, port …", "Another program has the port: `--port`."),
)
"""Parts of common messages, with … for what varies, and what to do."""


@dataclass(frozen=True)
class ErrorClass:
    """A class of errors, as its source has it."""

    name: str
    module: str
    bases: tuple[str, ...]
    docstring: str

    def to_markdown(self) -> str:
        """Return the section of the page."""
        summary, *rest = (" ".join(part.split()) for part in self.docstring.split("\n\n"))
        builtin = [base for base in self.bases if hasattr(builtins, base) and base != "Exception"]
        also = f" It is also a `{builtin[0]}`." if builtin else ""
        where = "" if self.module == "bge_runtime.errors" else f" of {self.module}"
        lines = [f"### {self.name}{where}", "", f"{summary}{also}", ""]
        for part in rest:
            label, _, text = part.partition(": ")
            lines.append(f"- **{label}:** {text[0].upper()}{text[1:]}")
        return "\n".join(lines).replace("``", "`") + "\n"


def trees() -> Iterator[tuple[str, ast.Module]]:
    """Yield the name and the syntax tree of each module of the runtime and the exporter."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to((ROOT / package).parent).with_suffix("").parts)
            yield name, ast.parse(path.read_text("utf-8"))


def find_errors() -> list[ErrorClass]:
    """Return every class below `BASE`, those of ``bge_runtime.errors`` first."""
    classes = [
        ErrorClass(
            node.name,
            name,
            tuple(base.id for base in node.bases if isinstance(base, ast.Name)),
            ast.get_docstring(node) or "",
        )
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    ]
    known = {BASE}
    while more := {each.name for each in classes if known & {*each.bases}} - known:
        known |= more
    found = [each for each in classes if each.name in known]
    return sorted(found, key=lambda each: each.module != "bge_runtime.errors")


def make_page() -> str:
    """Return the whole page."""
    rows = "".join(f"| `{text}` | {cure} |\n" for text, cure in MESSAGES)
    sections = "\n".join(each.to_markdown() for each in find_errors())
    return f"{INTRODUCTION}\n{TABLE}{rows}\n## Errors\n\n{sections}"
