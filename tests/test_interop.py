"""Bundles in other people's tools: they load, and give the same vectors.

sentence-transformers, optimum and fastembed run here. text-embeddings-inference (TEI) and
transformers.js don't: what they do with a folder is retold from their sources.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from numpy.typing import NDArray

from bge_bench.systems.base import quiet
from bge_export.parity_texts import PARITY_TEXTS
from bge_runtime import FlagModel
from bge_runtime.bundle.bundle import Bundle
from bge_runtime.bundle.parity import Parity, compare
from bge_runtime.engines.openvino import cpu_capabilities
from bge_runtime.sources import MODELS
from tests.helpers.guides import code_of
from tests.helpers.runtime import TEXTS, assert_fp32_on_cpu

ALL_TEXTS = sorted([*TEXTS, *PARITY_TEXTS[::2]], key=len)
"""Empty, one token, over-length, special tokens, and many languages. The long ones share a
batch, which they fill unevenly, and cost the rest no padding."""

BUNDLES = ["tiny-cls", "tiny-mean", "minilm-mean", "m3-cls"]
WITH_OPENVINO = ["tiny-cls", "minilm-mean", "m3-cls"]
HINTS = ["f32"] + ["bf16"] * ("BF16" in cpu_capabilities())
"""OpenVINO's names of what this processor computes in."""

OFFLINE_REMARK = "Could not infer whether the model was already converted"

LENGTHS = {
    "sentence_bert_config.json": "max_seq_length",
    "tokenizer_config.json": "model_max_length",
}
"""Where tools look up how many tokens a text is cut to. They need not say the same: of
all-MiniLM-L6-v2 the first says 256 and the second 512."""

SBERT, TOKENIZER = LENGTHS

Vectors = NDArray[np.float32]


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Check that a folder's path is enough: nothing is looked up on the hub."""
    asked: list[str] = []

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(str(host))
        raise socket.gaierror(f"a test asked for {host}")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield
    assert asked == []


@pytest.fixture(scope="module")
def bundles(
    full_tiny_bundle: Path, tiny_mean_bundle: Path, full_minilm_bundle: Path, tiny_m3_bundle: Path
) -> Callable[[str], Path]:
    """Bundles by checkpoint and pooling. Shared: copy them to change them."""
    return {
        "tiny-cls": full_tiny_bundle,
        "tiny-mean": tiny_mean_bundle,
        "minilm-mean": full_minilm_bundle,
        "m3-cls": tiny_m3_bundle,
    }.__getitem__


@pytest.fixture(scope="module")
def expected(bundles: Callable[[str], Path]) -> Callable[..., Vectors]:
    """Our own vectors of `ALL_TEXTS` in fp32, by bundle and the file that tells the length."""
    made: dict[tuple[str, str], Vectors] = {}

    def vectors(name: str, length: str = SBERT) -> Vectors:
        if (name, length) not in made:
            model = FlagModel(str(bundles(name)), use_fp16=False)
            assert_fp32_on_cpu(model)
            tokens = read(bundles(name), length)[LENGTHS[length]]
            made[name, length] = model.encode(ALL_TEXTS, max_length=tokens)
        return made[name, length]

    return vectors


@pytest.fixture
def damaged(bundles: Callable[[str], Path], tmp_path: Path) -> Path:
    """The tiny bundle with [CLS] pooling, to damage."""
    return Path(shutil.copytree(bundles("tiny-cls"), tmp_path / "bundle"))


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text("utf-8"))


def failures(theirs: Vectors, ours: Vectors, *, precision: str = "fp32") -> list[str]:
    assert theirs.dtype == np.float32
    found = compare(theirs, ours).failures(precision)
    # That compares directions; these are vectors for a dot product.
    norms = np.linalg.norm(theirs, axis=1)
    if np.abs(norms - 1).max() > 1e-5:
        found.append(f"norms from {norms.min():.6f} to {norms.max():.6f}")
    return found


@contextlib.contextmanager
def complaints() -> Iterator[list[str]]:
    """Collect what the packages log as a warning or worse, in place of the terminal."""
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # With the hub switched off, optimum-intel looks even a folder up in the hub's cache,
            # fails, says so, and opens the folder all the same.
            if not (constants.HF_HUB_OFFLINE and OFFLINE_REMARK in record.getMessage()):
                found.append(record.getMessage())

    collector = Collector(logging.WARNING)
    # Some of them keep their records from the root.
    loggers = [logging.getLogger(name) for name in (None, "optimum", "transformers")]
    for logger in loggers:
        logger.addHandler(collector)
    try:
        yield found
    finally:
        for logger in loggers:
            logger.removeHandler(collector)


def sentence_transformer(folder: Path, backend: str, **options: Any) -> Any:
    with quiet():
        from sentence_transformers import SentenceTransformer
    return SentenceTransformer(str(folder), backend=backend, **options)


def encode(model: Any, texts: Sequence[str] = ALL_TEXTS, **options: Any) -> Vectors:
    """Embed with sentence-transformers, texts of unlike length in one batch."""
    vectors: Vectors = model.encode(list(texts), batch_size=4, show_progress_bar=False, **options)
    return vectors


def pool(hidden: NDArray[np.float32], mask: NDArray[np.int64], pooling: str) -> Vectors:
    if pooling == "cls":
        return hidden[:, 0]
    weights = mask[:, :, None].astype(np.float32)
    vectors: Vectors = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
    return vectors


def unit(vectors: Vectors) -> Vectors:
    scaled: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def in_batches(run: Callable[[list[str]], Vectors], size: int = 4) -> Vectors:
    return np.concatenate(
        [run(ALL_TEXTS[start : start + size]) for start in range(0, len(ALL_TEXTS), size)]
    )


# sentence-transformers


@pytest.mark.parametrize("name", BUNDLES)
def test_sentence_transformers_on_onnx(
    bundles: Callable[[str], Path], expected: Callable[..., Vectors], name: str
):
    with complaints() as said:
        model = sentence_transformer(bundles(name), "onnx")
    opened = model[0].auto_model
    assert opened.path.relative_to(bundles(name)).as_posix() == "onnx/model.onnx"
    assert "CPUExecutionProvider" in opened.providers
    # It sees our own graphs too, says so, takes the portable one, and exports nothing.
    (only,) = said
    assert "Multiple ONNX files found" in only
    assert "defaulting to 'onnx/model.onnx'" in only
    vectors = encode(model)
    assert failures(vectors, expected(name)) == []

    with complaints() as said:
        named = sentence_transformer(
            bundles(name), "onnx", model_kwargs={"file_name": "model.onnx"}
        )
    assert said == []
    np.testing.assert_array_equal(encode(named), vectors)


@pytest.mark.parametrize("hint", HINTS)
@pytest.mark.parametrize("name", WITH_OPENVINO)
def test_sentence_transformers_on_openvino(
    bundles: Callable[[str], Path], expected: Callable[..., Vectors], name: str, hint: str
):
    options = {"ov_config": {"INFERENCE_PRECISION_HINT": hint}}
    with complaints() as said:
        model = sentence_transformer(bundles(name), "openvino", model_kwargs=options)
    assert said == []
    vectors = encode(model)
    assert precision_in_force(model[0].auto_model) == hint
    # The weights have 16 bits either way.
    assert failures(vectors, expected(name), precision="bf16") == []
    parity = compare(vectors, expected(name))
    if hint == "f32":
        assert nearer_than_bf16(parity), parity


def precision_in_force(model: Any) -> str:
    """Ask what optimum-intel compiled, once it has run."""
    return str(model.request.get_property("INFERENCE_PRECISION_HINT").to_string())


def nearer_than_bf16(parity: Parity) -> bool:
    """Tell weights rounded to 16 bits from arithmetic that is.

    Measured: 0.11 to 0.17 % of the distance between texts, against 0.65 to 1.6 %.
    """
    return parity.error_share <= 0.004 and parity.min_cosine >= 0.999998


def test_sentence_transformers_on_openvino_by_default(
    bundles: Callable[[str], Path], expected: Callable[..., Vectors]
):
    with complaints() as said:
        model = sentence_transformer(bundles("tiny-cls"), "openvino")
    assert said == []
    assert failures(encode(model), expected("tiny-cls"), precision="bf16") == []
    assert precision_in_force(model[0].auto_model) == HINTS[-1]


def test_query_prompt_is_the_instruction(
    bundles: Callable[[str], Path], expected: Callable[..., Vectors]
):
    folder = bundles("tiny-cls")
    instruction = Bundle.open(folder).manifest.model.query_instruction
    assert instruction == MODELS["bge-small-en-v1.5"].query_instruction is not None
    ours = FlagModel(
        str(folder), use_fp16=False, query_instruction_for_retrieval=instruction
    ).encode_queries(ALL_TEXTS)
    with quiet():
        model = sentence_transformer(folder, "onnx")
    assert failures(encode(model, prompt_name="query"), ours) == []
    queries = model.encode_query(ALL_TEXTS, batch_size=4, show_progress_bar=False)
    assert failures(queries, ours) == []
    # Passages go without, and without is not the same.
    passages = model.encode_document(ALL_TEXTS, batch_size=4, show_progress_bar=False)
    assert failures(passages, expected("tiny-cls")) == []
    assert failures(passages, ours) != []


def test_m3_reads_long_texts_in_sentence_transformers(
    bundles: Callable[[str], Path], expected: Callable[..., Vectors]
):
    # As its checkpoint does there, and where FlagModel cuts at 512.
    folder = bundles("m3-cls")
    with quiet():
        model = sentence_transformer(folder, "onnx")
    assert model.max_seq_length == 1024
    cut = FlagModel(str(folder), use_fp16=False).encode(ALL_TEXTS)
    assert failures(encode(model), cut) != []
    model.max_seq_length = 512
    assert failures(encode(model), cut) == []


def flip_pooling(folder: Path) -> None:
    path = folder / "1_Pooling/config.json"
    config = json.loads(path.read_text("utf-8"))
    for key in ("pooling_mode_cls_token", "pooling_mode_mean_tokens"):
        config[key] = not config[key]
    path.write_text(json.dumps(config), "utf-8")


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_comparison_notices_another_pooling(
    damaged: Path, expected: Callable[..., Vectors], backend: str
):
    flip_pooling(damaged)
    with quiet():
        vectors = encode(sentence_transformer(damaged, backend))
    precision = {"onnx": "fp32", "openvino": "bf16"}[backend]
    assert failures(vectors, expected("tiny-cls"), precision=precision) != []


def test_comparison_notices_a_missing_normalisation(
    damaged: Path, expected: Callable[..., Vectors]
):
    path = damaged / "modules.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8"))[:2]), "utf-8")
    with quiet():
        vectors = encode(sentence_transformer(damaged, "onnx"))
    assert failures(vectors, expected("tiny-cls")) != []


# optimum


def optimum_vectors(model: Any, folder: Path, pooling: str) -> Vectors:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def run(texts: list[str]) -> Vectors:
        encoded = dict(tokenizer(texts, padding=True, truncation=True, return_tensors="np"))
        hidden = model(**encoded).last_hidden_state
        return pool(hidden, encoded["attention_mask"], pooling)

    return unit(in_batches(run))


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("tiny-cls", {}),
        ("tiny-mean", {"subfolder": "onnx", "file_name": "model.onnx"}),
        ("minilm-mean", {}),
        ("m3-cls", {}),
    ],
)
def test_optimum_on_onnx_runtime(
    bundles: Callable[[str], Path], expected: Callable[..., Vectors], name: str, where: dict
):
    with quiet():
        from optimum.onnxruntime import ORTModelForFeatureExtraction
    folder = bundles(name)
    with complaints() as said:
        model = ORTModelForFeatureExtraction.from_pretrained(folder, **where)
        vectors = optimum_vectors(model, folder, name.partition("-")[2])
    assert said == []
    assert model.path == folder / "onnx/model.onnx"
    assert model.providers == ["CPUExecutionProvider"]
    assert failures(vectors, expected(name, TOKENIZER)) == []
    other = {"cls": "mean", "mean": "cls"}[name.partition("-")[2]]
    assert failures(optimum_vectors(model, folder, other), expected(name, TOKENIZER)) != []


@pytest.mark.parametrize("hint", HINTS)
def test_optimum_on_openvino(
    bundles: Callable[[str], Path], expected: Callable[..., Vectors], hint: str
):
    with quiet():
        from optimum.intel import OVModelForFeatureExtraction
    folder = bundles("minilm-mean")
    with complaints() as said:
        model = OVModelForFeatureExtraction.from_pretrained(
            folder, subfolder="openvino", ov_config={"INFERENCE_PRECISION_HINT": hint}
        )
        vectors = optimum_vectors(model, folder, "mean")
    assert said == []
    assert precision_in_force(model) == hint
    assert failures(vectors, expected("minilm-mean", TOKENIZER), precision="bf16") == []
    assert nearer_than_bf16(compare(vectors, expected("minilm-mean", TOKENIZER))) == (hint == "f32")


# fastembed


@pytest.fixture
def fastembed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Vectors]:
    """Embed with fastembed and a custom model from a folder, as its documentation says."""
    with quiet():
        from fastembed import TextEmbedding
        from fastembed.common.model_description import ModelSource, PoolingType
        from fastembed.text.custom_text_embedding import CustomTextEmbedding
    # Its registry is the process's; what a test adds goes with the test.
    monkeypatch.setattr(CustomTextEmbedding, "SUPPORTED_MODELS", [])
    monkeypatch.setattr(CustomTextEmbedding, "POSTPROCESSING_MAPPING", {})

    def vectors(folder: Path, pooling: str, **options: Any) -> Vectors:
        name = f"{pooling}-{len(CustomTextEmbedding.SUPPORTED_MODELS)}"
        TextEmbedding.add_custom_model(
            model=name,
            pooling=PoolingType[pooling.upper()],
            normalization=True,
            sources=ModelSource(hf="nobody/nothing"),
            dim=read(folder, "config.json")["hidden_size"],
            model_file="onnx/model.onnx",
            **options,
        )
        model = TextEmbedding(name, specific_model_path=str(folder))
        assert model.model.model.get_providers() == ["CPUExecutionProvider"]
        return np.stack(list(model.embed(ALL_TEXTS, batch_size=4)))

    return vectors


@pytest.mark.parametrize("name", BUNDLES)
def test_fastembed(
    bundles: Callable[[str], Path],
    expected: Callable[..., Vectors],
    fastembed: Callable[..., Vectors],
    name: str,
):
    folder, pooling = bundles(name), name.partition("-")[2]
    with complaints() as said:
        # It takes the first output and pools it; or the output it is told of, which is pooled.
        assert failures(fastembed(folder, pooling), expected(name, TOKENIZER)) == []
        pooled = fastembed(folder, "disabled", output_name="sentence_embedding")
        assert failures(pooled, expected(name, TOKENIZER)) == []
        other = {"cls": "mean", "mean": "cls"}[pooling]
        assert failures(fastembed(folder, other), expected(name, TOKENIZER)) != []
    assert said == []


def test_comparison_notices_a_tokenizer_that_cuts_elsewhere(
    damaged: Path, expected: Callable[..., Vectors], fastembed: Callable[..., Vectors]
):
    path = damaged / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    assert config["model_max_length"] == 512
    path.write_text(json.dumps({**config, "max_length": 128}), "utf-8")
    assert failures(fastembed(damaged, "cls"), expected("tiny-cls", TOKENIZER)) != []


# text-embeddings-inference, with its `ort` backend


def tei_vectors(folder: Path, *, drop: Sequence[str] = ()) -> Vectors:
    """Embed as TEI 1.9 does, retold from its router, core and backends/ort.

    Args:
        folder: What it gets as ``--model-id``.
        drop: Outputs to take no notice of, for what an older version does.
    """
    import onnxruntime
    from tokenizers import Tokenizer

    config = read(folder, "config.json")
    # Its structs have no defaults for these.
    assert isinstance(config["architectures"], list)
    assert isinstance(config["model_type"], str)
    for key in ("max_position_embeddings", "hidden_size", "num_hidden_layers"):
        assert isinstance(config[key], int)
    pooling_config = read(folder, "1_Pooling/config.json")
    modes = [
        mode
        for key, mode in (("cls_token", "cls"), ("mean_tokens", "mean"))
        if pooling_config[f"pooling_mode_{key}"] is True
    ]
    length = read(folder, "sentence_bert_config.json")["max_seq_length"]
    prompts = read(folder, "config_sentence_transformers.json")["prompts"]
    assert all(isinstance(prompt, str) for prompt in prompts.values())
    assert read(folder, "tokenizer_config.json").get("padding_side", "right") == "right"

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    graph = folder / "model.onnx"
    session = onnxruntime.InferenceSession(
        graph if graph.exists() else folder / "onnx/model.onnx",
        providers=["CPUExecutionProvider"],
    )
    names = {value.name for value in session.get_inputs()}
    assert names <= {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
    outputs = [value.name for value in session.get_outputs()]

    def run(texts: list[str]) -> Vectors:
        rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        shape = len(rows), max(map(len, rows))
        ids = np.full(shape, config.get("pad_token_id", 0), np.int64)
        mask = np.zeros(shape, np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        found = dict(zip(outputs, session.run(None, {n: feeds[n] for n in names}), strict=True))
        # The first is taken as it is: pooling is the graph's, and --pooling has no effect.
        if "sentence_embedding" in found.keys() - set(drop):
            vectors: Vectors = found["sentence_embedding"]
        else:
            vectors = pool(found["last_hidden_state"], mask, modes[0])
        assert vectors.ndim == 2
        return vectors

    # `normalize` is the default of /embed, and done outside of the backend.
    return unit(in_batches(run))


@pytest.mark.parametrize("name", BUNDLES)
def test_tei(bundles: Callable[[str], Path], expected: Callable[..., Vectors], name: str):
    folder = bundles(name)
    assert failures(tei_vectors(folder), expected(name)) == []
    older = tei_vectors(folder, drop=["sentence_embedding"])
    assert failures(older, expected(name)) == []


def test_comparison_notices_a_graph_of_another_pooling(
    damaged: Path, bundles: Callable[[str], Path], expected: Callable[..., Vectors]
):
    # Only the output that TEI prefers differs; the weights are the same file.
    shutil.copy(bundles("tiny-mean") / "onnx/model.onnx", damaged / "onnx/model.onnx")
    assert failures(tei_vectors(damaged), expected("tiny-cls")) != []
    older = tei_vectors(damaged, drop=["sentence_embedding"])
    assert failures(older, expected("tiny-cls")) == []
    flip_pooling(damaged)
    older = tei_vectors(damaged, drop=["sentence_embedding"])
    assert failures(older, expected("tiny-cls")) != []


# transformers.js


def browser_session(folder: Path) -> Any:
    """Open ``onnx/model.onnx`` from memory, with the sidecars that transformers.js fetches.

    Retold from ``resolveExternalDataFormat`` and ``getExternalDataChunkNames``: a graph
    that ``use_external_data_format`` does not name gets none.
    """
    import onnxruntime

    own = read(folder, "config.json").get("transformers.js_config", {})
    chunks = own.get("use_external_data_format", False)
    if isinstance(chunks, dict):
        chunks = chunks.get("model.onnx", chunks.get("model", 0))
    names = [f"model.onnx_data{f'_{i}' if i else ''}" for i in range(int(chunks))]
    options = onnxruntime.SessionOptions()
    if names:
        files = [(folder / "onnx" / name).read_bytes() for name in names]
        options.add_external_initializers_from_files_in_memory(
            names, files, [len(file) for file in files]
        )
    return onnxruntime.InferenceSession(
        (folder / "onnx/model.onnx").read_bytes(), options, providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize("name", BUNDLES)
def test_transformers_js(
    bundles: Callable[[str], Path], expected: Callable[..., Vectors], name: str
):
    from transformers import AutoTokenizer

    folder = bundles(name)
    session = browser_session(folder)
    # The pipeline takes last_hidden_state by name, and pools as it is told to.
    assert session.get_outputs()[0].name == "last_hidden_state"
    # Its tokenizer reads the same two files, and cuts at model_max_length.
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def run(texts: list[str]) -> Vectors:
        encoded = tokenizer(texts, padding=True, truncation=True, return_tensors="np")
        # It feeds what the session names, whatever the tokenizer gives.
        feeds = {value.name: encoded[value.name] for value in session.get_inputs()}
        (hidden,) = session.run(["last_hidden_state"], feeds)
        return pool(hidden, encoded["attention_mask"], name.partition("-")[2])

    assert failures(unit(in_batches(run)), expected(name, TOKENIZER)) == []


def test_transformers_js_needs_to_be_told_of_the_weights(damaged: Path):
    path = damaged / "config.json"
    config = json.loads(path.read_text("utf-8"))
    del config["transformers.js_config"]
    path.write_text(json.dumps(config), "utf-8")
    with pytest.raises(Exception, match=r"model\.onnx_data|[Ee]xternal"):
        browser_session(damaged)


# What they all rely on


@pytest.mark.parametrize("name", ["tiny-cls", "minilm-mean"])
def test_portable_graph_is_plain_onnx(bundles: Callable[[str], Path], name: str):
    import onnx

    model = onnx.load(bundles(name) / "onnx/model.onnx", load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert {node.domain for node in model.graph.node} == {""}
    assert len(model.functions) == 0
    types = {value.name: value.type.tensor_type for value in model.graph.input}
    assert list(types) == ["input_ids", "attention_mask", "token_type_ids"]
    for tensor in types.values():
        assert tensor.elem_type == onnx.TensorProto.INT64
        # Batch and sequence are free, and bear a name.
        assert [bool(dim.dim_param) for dim in tensor.shape.dim] == [True, True]
    outputs = {value.name: value.type.tensor_type for value in model.graph.output}
    assert list(outputs) == ["last_hidden_state", "sentence_embedding"]
    assert [len(tensor.shape.dim) for tensor in outputs.values()] == [3, 2]
    assert {tensor.elem_type for tensor in outputs.values()} == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize("name", BUNDLES)
def test_modules_have_the_names_that_every_version_reads(bundles: Callable[[str], Path], name: str):
    modules = read(bundles(name), "modules.json")
    assert [(module["idx"], module["path"], module["type"]) for module in modules] == [
        (0, "", "sentence_transformers.models.Transformer"),
        (1, "1_Pooling", "sentence_transformers.models.Pooling"),
        (2, "2_Normalize", "sentence_transformers.models.Normalize"),
    ]
    pooling = read(bundles(name), "1_Pooling/config.json")
    asked = {key for key, value in pooling.items() if value is True}
    assert asked == {
        {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}[
            name.partition("-")[2]
        ]
    }


def test_transformers_reads_the_configuration(
    bundles: Callable[[str], Path], minilm_checkpoint: Path
):
    from transformers import AutoConfig, AutoTokenizer

    folder = bundles("minilm-mean")
    with complaints() as said:
        theirs = AutoConfig.from_pretrained(minilm_checkpoint).to_dict()
        ours = AutoConfig.from_pretrained(folder).to_dict()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    assert said == []
    assert ours.pop("transformers.js_config") == {"use_external_data_format": {"model.onnx": True}}
    assert ours.items() >= {k: v for k, v in theirs.items() if k != "_name_or_path"}.items()
    assert tokenizer.model_max_length == 512
    # From what this one says, fastembed would cut texts at 128 tokens.
    assert read(minilm_checkpoint, "tokenizer.json")["truncation"]["max_length"] == 128
    assert not {"max_length", "stride", "truncation_strategy", "pad_to_multiple_of"} & set(
        read(folder, "tokenizer_config.json")
    )


def test_the_code_of_the_page_runs(
    full_tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "bge-small-en-v1.5").symlink_to(full_tiny_bundle)
    monkeypatch.chdir(tmp_path)
    code = code_of("guides/other-tools.md", "Other tools that open a bundle")
    scope: dict[str, Any] = {}
    with quiet():
        exec(compile(code, "page", "exec"), scope)
    assert scope["q"].shape == (1, 48)
