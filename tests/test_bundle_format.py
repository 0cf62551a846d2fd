"""Bundles are as docs/concepts/bundle.md and its JSON schema say."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from bge_runtime import FlagModel
from bge_runtime.bundle import manifest
from tests.helpers.bundles import ROOT, WITH_PYTORCH
from tests.helpers.rerankers import reranker_bundle

PAGE = (ROOT / "docs/concepts/bundle.md").read_text("utf-8")
SCHEMA = json.loads((ROOT / "docs/concepts/bge.schema.json").read_text("utf-8"))
DEFINITIONS = SCHEMA["$defs"]
VALIDATOR = Draft202012Validator(SCHEMA)
OLD = ROOT / "tests" / "data" / "bundle-0.1.0"


def read(bundle: Path):
    return json.loads((bundle / "bge.json").read_text("utf-8"))


def test_the_schema_is_one():
    Draft202012Validator.check_schema(SCHEMA)


def test_the_first_bundle_is_valid():
    VALIDATOR.validate(read(OLD))


@pytest.mark.parametrize("name", ["full_tiny_bundle", "tiny_m3_bundle", "tiny_gpu_bundle"])
def test_a_new_bundle_is_valid(name: str, request):
    VALIDATOR.validate(read(request.getfixturevalue(name)))


@pytest.mark.skipif(not WITH_PYTORCH, reason="it is exported")
def test_a_reranker_is_valid(made_once):
    data = read(reranker_bundle("bert"))
    VALIDATOR.validate(data)
    assert data["format_version"] == manifest.FORMAT_VERSION == SCHEMA["properties"][
        "format_version"]["enum"][-1]  # fmt: skip


@pytest.mark.parametrize(
    ("cls", "properties"),
    [
        (manifest.Model, SCHEMA["properties"]["model"]["properties"]),
        (manifest.Graph, SCHEMA["properties"]["graphs"]["additionalProperties"]["properties"]),
        (manifest.Variant, SCHEMA["properties"]["variants"]["items"]["properties"]),
        (manifest.File, SCHEMA["properties"]["files"]["additionalProperties"]["properties"]),
        (manifest.Provenance, SCHEMA["properties"]["provenance"]["properties"]),
        (manifest.RerankerPrompt, DEFINITIONS["prompt"]["properties"]),
        (manifest.SentenceTransformersSettings, DEFINITIONS["sentence_transformers"]["properties"]),
    ],
)  # fmt: skip
def test_the_schema_has_every_key_that_is_written(cls, properties):
    assert set(properties) == set(cls.__dataclass_fields__)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(format="other"),
        lambda data: data.update(format_version=3),
        lambda data: data.update(variants=[]),
        lambda data: data["model"].pop("dim"),
        lambda data: data["graphs"]["cpu"].update(file="/etc/passwd"),
        lambda data: data["graphs"]["cpu"].update(weights="onnx/../../secret"),
        lambda data: data["files"].update({"../x": {"size_bytes": 0, "sha256": "0" * 64}}),
        lambda data: data["files"].update({"x": {"size_bytes": 0, "sha256": "short"}}),
        lambda data: data["variants"][0].update(parity={"texts": 1}),
    ],
)
def test_what_a_reader_should_refuse_is_invalid(change):
    data = copy.deepcopy(read(OLD))
    change(data)
    assert not VALIDATOR.is_valid(data)


def test_keys_of_a_later_version_are_valid():
    data = read(OLD)
    data["later"] = data["model"]["later"] = data["variants"][0]["later"] = 1
    VALIDATOR.validate(data)


def test_the_reader_of_the_page_computes_what_the_runtime_does(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert "bge_runtime" not in code
    scope = {}
    exec(compile(code.replace('"bge-small-en-v1.5"', repr(str(OLD))), "bundle.md", "exec"), scope)
    assert capsys.readouterr().out == "(2, 16)\n"
    texts = ["A heat pump moves warmth.", "Rye is a grain."]
    model = FlagModel(str(OLD), precision="fp32", engine="onnxruntime", devices="cpu")
    np.testing.assert_allclose(scope["vectors"], model.encode(texts), atol=1e-6)
