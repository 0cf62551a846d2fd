"""The runtime runs without what it must not need."""

from __future__ import annotations

import subprocess
import sys

import pytest

BANNED = [
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "optimum",
    "FlagEmbedding",
    "sentence_transformers",
    "huggingface_hub",
    "scipy",
    "bge_export",
    "bge_bench",
    "bge_runtime.integrations",
    "starlette",
    "uvicorn",
    "langchain_core",
    "llama_index",
    "mteb",
    "chromadb",
    "pydantic",
]

ENCODE = """
model = bge_runtime.FlagModel(sys.argv[1])
assert model.encode(["one", "two"]).shape == (2, 48)
assert model.encode_queries("one").shape == (48,)
assert bge_runtime.FlagAutoModel.from_finetuned(sys.argv[1]).encode([]).shape == (0, 48)
"""

EVERY_MODULE = """
import importlib, pathlib
root = pathlib.Path(bge_runtime.__file__).parent
for path in root.rglob("*.py"):  # pkgutil would import each folder to look into it
    parts = path.relative_to(root.parent).with_suffix("").parts
    if not {"integrations", "serving"} & {*parts}:  # which have extras of their own
        importlib.import_module(".".join(parts).removesuffix(".__init__"))
"""


def python(code, *arguments):
    """Run code in a fresh interpreter, with every warning an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout.split()


@pytest.mark.parametrize(
    ("body", "also_banned"),
    # An engine is half a second of start-up: not before a model is opened.
    [("", ["onnxruntime"]), (ENCODE, []), (EVERY_MODULE, ["onnxruntime"])],
    ids=["import", "first-encode", "every-module"],
)
def test_nothing_heavy_is_imported(tiny_bundle, body, also_banned):
    report = f"print(*[name for name in {BANNED + also_banned} if name in sys.modules])"
    loaded = python(f"import sys, bge_runtime\n{body}\n{report}", str(tiny_bundle))
    assert loaded == []


def test_a_model_encodes_without_heavy_packages(tiny_bundle):
    # Caught here would be an import that is tried and whose failure is swallowed.
    hidden = f"import sys\nsys.modules.update(dict.fromkeys({BANNED}))\nimport bge_runtime\n"
    python(hidden + ENCODE, str(tiny_bundle))


def test_the_check_is_able_to_fail():
    report = "import sys, huggingface_hub; print('huggingface_hub' in sys.modules)"
    assert python(report) == ["True"]


TELEMETRY = """
model = bge_runtime.FlagModel(sys.argv[1], engine="openvino", precision="fp32")
import openvino
assert openvino.convert_model  # for whoever else wants it in this process
assert "openvino_telemetry" not in sys.modules
assert "openvino.tools.ovc.telemetry_stub" in sys.modules
import openvino_telemetry
"""


def test_openvino_sends_no_telemetry(tiny_bundle):
    python(f"import sys, bge_runtime\n{TELEMETRY}", str(tiny_bundle))
