"""int8: chosen by name only, computed in 8 bits, and accurate on trained weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bge_runtime import Bundle, FlagModel
from bge_runtime.bundle.parity import compare
from bge_runtime.errors import ExportError, PrecisionError
from bge_runtime.system import multiplies_in_8_bits
from tests.helpers.bundles import export
from tests.helpers.flag_embedding import MANY_TEXTS

ENGINES = ["openvino", "onnxruntime"]


@pytest.fixture(scope="module")
def trained(minilm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2 in fp32 and int8."""
    folder = tmp_path_factory.mktemp("bundles") / "minilm-int8"
    return export(
        minilm_checkpoint, folder, pooling="mean", targets=(), precisions=("fp32", "int8")
    )


def test_it_is_exported_only_if_requested(tiny_bundle: Path, trained: Path):
    assert "int8" not in {
        variant.precision for variant in Bundle.open(tiny_bundle).manifest.variants
    }
    with pytest.raises(PrecisionError, match="requested precision 'int8'"):
        FlagModel(str(tiny_bundle), precision="int8")
    variants = {variant.name for variant in Bundle.open(trained).manifest.variants}
    assert {"openvino-int8", "cpu-int8"} <= variants


def test_auto_does_not_choose_it(trained: Path):
    assert FlagModel(str(trained)).engine.info.precision == "fp32"
    for engine in ENGINES:
        assert FlagModel(str(trained), engine=engine).engine.info.precision == "fp32"


@pytest.mark.parametrize("engine", ENGINES)
def test_trained_weights_against_flag_embedding(
    trained: Path, minilm_vectors: Callable[[str], np.ndarray], engine: str
):
    model = FlagModel(str(trained), engine=engine, precision="int8")
    assert (model.engine.info.engine, model.engine.info.precision) == (engine, "int8")
    parity = compare(model.encode(MANY_TEXTS), minilm_vectors("mean"))
    assert parity.failures("int8") == [], parity
    assert parity.min_cosine >= 0.998
    assert parity.min_cosine < 0.99999  # something was rounded


@pytest.mark.parametrize("engine", ENGINES)
def test_a_vector_does_not_depend_on_other_texts_of_its_batch(trained: Path, engine: str):
    engine_in_force = FlagModel(str(trained), engine=engine, precision="int8").engine
    rng = np.random.default_rng(0)
    text = rng.integers(1000, 20000, (1, 24))
    # Repeated tokens and [PAD] as a word give the largest hidden states.
    others = np.concatenate([np.zeros((1, 24), dtype=np.int64), np.full((6, 24), 1012)])

    def vector(ids: np.ndarray) -> np.ndarray:
        rows = engine_in_force.run(ids, np.ones_like(ids), ["sentence_embedding"])[0]
        return rows[0] / np.linalg.norm(rows[0])

    alone = vector(text)
    together = vector(np.concatenate([text, others]))
    # One scale for the whole batch (quantize_dynamic) would move a vector by 0.05 and more.
    assert np.linalg.norm(alone - together) < 5e-3


def test_onnxruntime_multiplies_in_8_bits(trained: Path, tmp_path: Path):
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(
        str(trained / "onnx" / "model_int8.onnx"), options, providers=["CPUExecutionProvider"]
    )
    graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    static = [node for node in graph.node if node.op_type == "MatMulIntegerToFloat"]
    products = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert static
    assert len(products) + len(static) == 36
    for node in products:
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        assert attributes["bits"] == 8
        assert attributes["block_size"] == 128
        assert attributes["accuracy_level"] == 4  # activations are rounded as well


def test_openvino_multiplies_in_8_bits(trained: Path):
    engine = FlagModel(str(trained), engine="openvino", precision="int8").engine
    compiled = engine._model.compiled
    assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 128
    layers = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    products = [layer for layer in layers if layer["layerType"].astype(str) == "FullyConnected"]
    assert len(products) == 36
    # Static scales are for whole numbers from 0 to 255.
    types = {"i8", "u8"} if multiplies_in_8_bits() else {"i8"}
    assert {layer["runtimePrecision"].astype(str) for layer in products} == types


def test_gate_refuses_matrices_without_their_scales(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from bge_export.encoder.int8 import candidates
    from bge_export.passes import quantize

    def one_scale_for_all(matrix, *, block):
        values, scales = quantize(matrix, block=block)
        return values, np.full_like(scales, scales.mean())

    monkeypatch.setattr(candidates, "quantize", one_scale_for_all)
    with pytest.raises(ExportError, match=r"int8\.xml in int8 .* is too far"):
        export(tiny_checkpoint, tmp_path / "bundle", targets=(), precisions=("int8",))


def test_an_int8_bundle_holds_no_matrix_in_fp32(
    minilm_checkpoint: Path, trained: Path, tmp_path: Path
):
    folder = export(
        minilm_checkpoint, tmp_path / "int8", pooling="mean", targets=(), precisions=("int8",)
    )
    alone, both = Bundle.open(folder).manifest, Bundle.open(trained).manifest
    assert set(alone.graphs) == {"int8", "int8-openvino"}
    size = sum(file.size_bytes for file in alone.files.values())
    fp32 = both.files["onnx/model.onnx_data"].size_bytes
    assert size < 0.35 * fp32
    found = alone.graphs["int8"].quantization
    assert found is not None
    assert found["static"] + found["dynamic"] == 24
    assert FlagModel(str(folder)).engine.info.precision == "int8"  # there is no other
    vectors = FlagModel(str(folder)).encode(MANY_TEXTS)
    assert np.array_equal(
        vectors, FlagModel(str(trained), engine="openvino", precision="int8").encode(MANY_TEXTS)
    )


def test_openvino_reads_the_weights_of_the_onnx_file(trained: Path):
    import onnx
    import openvino

    opened = Bundle.open(trained)
    ours, other = opened.graph("int8-openvino"), opened.graph("int8")
    assert ours.file == "openvino/int8.xml"
    assert ours.weights == other.weights
    assert not (trained / "openvino" / "int8.bin").exists()
    # ONNX Runtime's file is as it was; what only OpenVINO reads comes after it.
    stored = onnx.load(trained / other.file, load_external_data=False).graph.initializer
    places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in stored]
    end = max(int(place["offset"]) + int(place["length"]) for place in places if place)
    assert 0 < (trained / ours.weights).stat().st_size - end < 10_000
    model = FlagModel(str(trained), engine="openvino", precision="int8")
    compiled = openvino.Core().compile_model(
        openvino.Core().read_model(trained / other.file), "CPU", model.engine._settings
    )
    ids = np.random.default_rng(0).integers(1000, 20000, (2, 16))
    feeds = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }
    (found,) = model.engine.run(ids, np.ones_like(ids), ["sentence_embedding"])
    assert np.array_equal(found, compiled(feeds)["sentence_embedding"])


@pytest.mark.parametrize("engine", ENGINES)
def test_without_8_bit_products_static_scales_do_not_overflow(
    trained: Path,
    minilm_vectors: Callable[[str], np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
):
    from bge_runtime.engines import openvino, ort_session

    for module in (openvino, ort_session):
        monkeypatch.setattr(module, "multiplies_in_8_bits", lambda: False)
    model = FlagModel(str(trained), engine=engine, precision="int8")
    if engine == "openvino":
        compiled = model.engine._model.compiled
        infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
        products = [info for info in infos if info["layerType"].astype(str) == "FullyConnected"]
        # With static scales some would be u8.
        assert {info["runtimePrecision"].astype(str) for info in products} == {"i8"}
    parity = compare(model.encode(MANY_TEXTS), minilm_vectors("mean"))
    assert parity.failures("int8") == [], parity
