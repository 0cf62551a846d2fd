"""Use the installed wheel as its users do: no checkout, no PyTorch.

Run in an environment that holds the wheel and the runtime's dependencies only.
"""

import importlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np

bundle, wheel = sys.argv[1:]

absent = ("torch", "transformers", "onnx", "onnx_ir", "optimum", "FlagEmbedding")
present = [name for name in absent if importlib.util.find_spec(name)]
assert not present, f"{present} are installed, so this proves nothing"

names = zipfile.ZipFile(wheel).namelist()
packages = {name.split("/")[0] for name in names if not name.split("/")[0].endswith("dist-info")}
assert packages == {"bge_runtime", "bge_export", "bge_bench"}, packages
for package in packages:
    assert f"{package}/py.typed" in names, package
assert "bge_runtime/serving/ui.html" in names
assert any(name.endswith("licenses/LICENSE") for name in names)
assert "bge_runtime/serving/ui.html" in names

import bge_runtime  # noqa: E402
from bge_runtime.bundle import Reference  # noqa: E402

assert "site-packages" in str(bge_runtime.__file__), "the checkout is imported, not the wheel"

model = bge_runtime.FlagModel(bundle, use_fp16=False)  # fp32, whatever this machine has
reference = model.bundle.reference()
assert isinstance(reference, Reference)
vectors = model.encode(list(reference.texts))
expected = reference.vectors / np.linalg.norm(reference.vectors, axis=1, keepdims=True)
assert np.abs(vectors - expected).max() < 1e-5
loaded = [name for name in (*absent, "huggingface_hub") if name in sys.modules]
assert not loaded, f"the runtime loaded {loaded}"

scripts = Path(sys.executable).parent
embedded = subprocess.run(
    [scripts / "bge-embed", bundle], input="one\ntwo\n", capture_output=True, text=True, check=True
)
assert len(embedded.stdout.splitlines()) == 2, embedded

refused = subprocess.run(
    [scripts / "bge-rerank", bundle], input="", capture_output=True, text=True, check=False
)
assert "Run bge-embed with it" in refused.stderr, refused

doctor = subprocess.run(
    [scripts / "bge-runtime", "doctor", "--verify", bundle],
    capture_output=True,
    text=True,
    check=False,
)
assert doctor.returncode == 0, doctor.stdout + doctor.stderr

for command, extra in (("bge-export", "export"), ("bge-bench", "bench")):
    refused = subprocess.run(
        [scripts / command, "--help"], capture_output=True, text=True, check=False
    )
    if refused.returncode:
        assert f"pip install 'bge-runtime[{extra}]'" in refused.stderr, refused.stderr

served = subprocess.run(
    [scripts / "bge-serve", bundle], capture_output=True, text=True, check=False
)
assert served.returncode == 1, served
assert "pip install 'bge-runtime[cpu,serve]'" in served.stderr, served.stderr

for extra in ("langchain", "llama-index", "chroma", "mteb"):
    said = "nothing: it was imported, so this proves nothing"
    try:
        importlib.import_module(f"bge_runtime.integrations.{extra.replace('-', '_')}")
    except ImportError as error:
        said = str(error)
    assert f"pip install 'bge-runtime[{extra}]'" in said, said

print(f"the wheel embeds without PyTorch: {model.engine.info}")

refused = subprocess.run(
    [scripts / "bge-serve", bundle], capture_output=True, text=True, check=False
)
assert refused.returncode == 1, refused
assert "pip install 'bge-runtime[cpu,serve]'" in refused.stderr, refused.stderr
