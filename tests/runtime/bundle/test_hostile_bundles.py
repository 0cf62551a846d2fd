"""What a bundle by somebody who means harm cannot do, as SECURITY.md says.

Its hashes are right, since its author wrote them.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from bge_runtime import Bundle, FlagModel
from bge_runtime.errors import BundleError
from tests.helpers.runtime import edit_manifest, replace_file

onnx = pytest.importorskip("onnx")

GRAPH = "onnx/model_cpu_fp32.onnx"
ENGINES = ("onnxruntime", "openvino")


@pytest.mark.parametrize("name", ["../secret", "/dev/zero", "onnx/../../secret", "..\\secret"])
@pytest.mark.parametrize("place", ["files", "file", "weights"])
def test_a_name_outside_of_the_bundle_is_refused(bundle_copy: Path, name: str, place: str):
    def change(data):
        if place == "files":
            data["files"][name] = {"size_bytes": 0, "sha256": ""}
        else:
            data["graphs"]["cpu"][place] = name

    edit_manifest(bundle_copy, change)
    with pytest.raises(BundleError, match="outside of the bundle"):
        Bundle.open(bundle_copy)


def open_changed(bundle: Path, engine: str, graph: onnx.ModelProto) -> None:
    replace_file(bundle, GRAPH, graph.SerializeToString())
    FlagModel(str(bundle), engine=engine, precision="fp32", devices="cpu").encode("a")


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_graph_reads_no_weights_outside_of_the_bundle(
    bundle_copy: Path, engine: str, absolute: bool
):
    secret = bundle_copy.parent / "secret"
    secret.write_bytes((bundle_copy / "onnx/model.onnx_data").read_bytes())
    graph = onnx.load(bundle_copy / GRAPH, load_external_data=False)
    entries = [entry for each in graph.graph.initializer for entry in each.external_data]
    for entry in entries:
        if entry.key == "location":
            entry.value = str(secret) if absolute else "../../secret"
    assert entries
    with pytest.raises(BundleError, match=r"cannot open .*model_cpu_fp32"):
        open_changed(bundle_copy, engine, graph)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_graph_has_no_operators_of_its_own(bundle_copy: Path, engine: str):
    graph = onnx.load(bundle_copy / GRAPH, load_external_data=False)
    graph.graph.node[0].domain = "com.example"
    graph.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    with pytest.raises(BundleError, match=r"cannot open .*model_cpu_fp32"):
        open_changed(bundle_copy, engine, graph)


def test_a_pickle_in_the_reference_is_not_loaded(bundle_copy: Path):
    class Harm:
        def __reduce__(self):
            return pytest.fail, ("it was loaded",)

    with np.load(bundle_copy / "parity.npz") as data:
        arrays = dict(data)
    file = io.BytesIO()
    np.savez(file, **arrays | {"vectors": np.array([Harm()], dtype=object)})
    replace_file(bundle_copy, "parity.npz", file.getvalue())
    with pytest.raises(BundleError, match="allow_pickle=False"):
        Bundle.open(bundle_copy).reference()


def test_code_beside_a_bundle_is_not_run(bundle_copy: Path):
    config = json.loads((bundle_copy / "config.json").read_text("utf-8"))
    config["auto_map"] = {"AutoModel": "harm.Model", "AutoTokenizer": "harm.Tokenizer"}
    replace_file(bundle_copy, "config.json", json.dumps(config).encode())
    (bundle_copy / "harm.py").write_text("raise SystemExit('it was run')")
    assert FlagModel(str(bundle_copy)).encode("a").shape == (48,)
