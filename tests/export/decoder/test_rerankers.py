"""Decoders that rerank: their graphs give the logits of their answers, and the gate says so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_export.checkpoint.inspect import inspect_checkpoint
from bge_export.checkpoint.safetensors import SafetensorsReader
from bge_export.decoder import answers, exporter, weights
from bge_export.decoder.config import DecoderConfig
from bge_runtime.bundle import LOGITS, Bundle, ScoreParity
from bge_runtime.encoding import PromptTokenizer, TextTokenizer
from bge_runtime.engines import pad_batch
from bge_runtime.errors import ExportError
from bge_runtime.sources import BGE_QUESTION, RERANKER_DECODER
from tests.helpers.decoder_rerankers import NAMES, make_tokenizer, write_tiny_reranker
from tests.helpers.decoders import export_decoder, write_tiny_decoder

PAIRS = [
    ("what is panda?", "hi"),
    ("what is panda?", "The giant panda is a bear species endemic to China."),
    ("", "a passage without a query"),
    ("a query without a passage", ""),
    ("如何安装软件？", "  先下载安装包。\n"),
    ("¿Cuánto tarda?", "El viaje dura dos horas y media. " * 40),
]


@pytest.fixture(scope="module", params=list(NAMES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_reranker(tmp_path_factory.mktemp(name), name)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Bundle:
    return Bundle.open(export_decoder(checkpoint, checkpoint.parent / "bundle"))


def tokens(bundle: Bundle, pairs: Sequence[tuple[str, str]] = PAIRS, max_length: int = 512) -> Any:
    prompt = bundle.manifest.model.prompt
    assert prompt is not None
    runtime = PromptTokenizer(TextTokenizer(bundle.tokenizer_file), prompt)
    queries, passages = zip(*pairs, strict=True)
    return runtime.encode(
        queries, passages, max_length=max_length, query_max_length=max_length * 3 // 4
    )


def logits(bundle: Bundle, rows: Sequence[np.ndarray]) -> np.ndarray:
    import onnxruntime as ort

    path = bundle.path / bundle.graph("cpu-fp32").file
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    ids, mask = pad_batch(rows, pad_token_id=0)
    feeds = {"input_ids": ids, "attention_mask": mask}
    for value in session.get_inputs():
        if value.name not in feeds:
            _, heads, _, width = value.shape
            feeds[value.name] = np.zeros((1, heads, 0, width), np.float32)
    return np.asarray(session.run([LOGITS], feeds)[0])


def load(checkpoint: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def test_a_bundle_says_how_it_is_asked(name: str, bundle: Bundle):
    model = bundle.manifest.model
    assert (model.model_class, model.pooling) == (RERANKER_DECODER, "last_token")
    assert (model.architecture, model.dim) == (name, 64)
    assert model.prompt is not None
    begins = {"gemma": "<bos>", "qwen3": "<|im_start|>system\nJudge whether the Document"}[name]
    assert model.prompt.start.startswith(begins)
    assert model.prompt.counts_all == (name == "qwen3")
    (graph,) = bundle.manifest.graphs.values()
    assert graph.outputs[0] == LOGITS
    assert "sentence_embedding" not in graph.outputs
    found = {variant.name: variant.parity for variant in bundle.manifest.variants}
    assert isinstance(found["cpu-fp32"], ScoreParity)
    assert found["cpu-fp32"].max_error < 1e-5


def test_qwen3s_scores_are_those_of_its_model_card(tmp_path: Path):
    import torch
    from transformers import AutoTokenizer

    checkpoint = write_tiny_reranker(tmp_path, "qwen3")
    bundle = Bundle.open(export_decoder(checkpoint, tmp_path / "bundle"))
    tokenizer, model = AutoTokenizer.from_pretrained(checkpoint), load(checkpoint)
    # The card's computation: a chat around one text of three lines, and the softmax of two answers
    # behind an empty thought.
    before = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
        'and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
        "<|im_start|>user\n"
    )
    behind = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    task = "Given a web search query, retrieve relevant passages that answer the query"
    answers = [tokenizer.convert_tokens_to_ids(token) for token in ("no", "yes")]
    rows, expected = [], []
    for query, passage in PAIRS:
        asked = f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {passage}"
        first, middle, last = (
            tokenizer.encode(text, add_special_tokens=False) for text in (before, asked, behind)
        )
        rows.append([*first, *middle[: 640 - len(first) - len(last)], *last])
        with torch.no_grad():
            both = model(torch.tensor([rows[-1]])).logits[0, -1, answers]
        expected.append(float(torch.softmax(both, dim=0)[1]))
    ours = tokens(bundle, max_length=640)
    assert [row.tolist() for row in ours] == rows
    assert max(map(len, rows)) == 640
    scores = 1 / (1 + np.exp(-logits(bundle, ours)[:, 0]))
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert np.std(expected) > 0.02


def test_a_head_of_its_own_is_read_in_two_rows(tmp_path: Path, monkeypatch):
    from safetensors.numpy import load_file, save_file

    checkpoint = write_tiny_reranker(tmp_path, "qwen3", tie_word_embeddings=False)
    (shard,) = checkpoint.glob("*.safetensors")
    with pytest.raises(ExportError, match=r"no lm_head\.weight, and tie_word_embeddings"):
        export_decoder(checkpoint, tmp_path / "bundle")
    tensors = load_file(shard)
    table = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = np.ascontiguousarray(table[::-1])
    (checkpoint / "model.safetensors.index.json").unlink()
    shard.unlink()
    save_file(tensors, checkpoint / "model.safetensors")
    read = []
    real = SafetensorsReader.read

    def reading(self: Any, tensor: str, **rows: Any) -> Any:
        read.append((tensor, rows.get("rows")))
        return real(self, tensor, **rows)

    monkeypatch.setattr(SafetensorsReader, "read", reading)
    bundle = Bundle.open(export_decoder(checkpoint, tmp_path / "bundle"))
    assert {rows for tensor, rows in read if tensor == "lm_head.weight"} == {1}
    yes, no = (make_tokenizer("qwen3").convert_tokens_to_ids(word) for word in ("yes", "no"))
    expected = torch_logits(load(checkpoint), tokens(bundle), yes, no)
    np.testing.assert_allclose(logits(bundle, tokens(bundle))[:, 0], expected, atol=1e-5)
    # What one version of transformers ignores and the other reads.
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": True}))
    with pytest.raises(ExportError, match=r"config\.json, and a lm_head\.weight that is not"):
        export_decoder(checkpoint, tmp_path / "tied")


def torch_logits(model: Any, rows: Sequence[np.ndarray], yes: int, no: int) -> list[float]:
    import torch

    found = []
    for row in rows:
        with torch.no_grad():
            last = model(torch.from_numpy(row)[None]).logits[0, -1]
        found.append(float(last[yes] - last[no]))
    return found


@pytest.mark.parametrize("targets", [("cpu",), ("cuda",), ("tensorrt",)])
def test_every_target_and_precision_is_proven(name: str, checkpoint: Path, tmp_path: Path, targets):
    import onnx

    inspected = inspect_checkpoint(checkpoint, source=str(checkpoint))
    rows = exporter.export_decoder(inspected, tmp_path / "b", select(targets))
    for row in rows:
        parity = row.parity or row.emulated
        if parity is None:
            assert row.skipped_reason is not None
            assert row.variant == "openvino-bf16"
        else:
            assert isinstance(parity, ScoreParity)
            assert parity.failures(row.precision) == []
    for graph in Bundle.open(tmp_path / "b").manifest.graphs.values():
        model = onnx.load(tmp_path / "b" / graph.file, load_external_data=False)
        (kind,) = {i.data_type for i in model.graph.initializer if i.name == "answer"}
        assert kind == onnx.TensorProto.FLOAT
        output = model.graph.output[0]
        assert (output.name, output.type.tensor_type.elem_type) == (LOGITS, onnx.TensorProto.FLOAT)


def select(targets: tuple[str, ...]) -> Any:
    from bge_export.targets import select_decoder_targets

    return select_decoder_targets(targets, ())


def wrong_row(monkeypatch: pytest.MonkeyPatch) -> None:
    real = answers.join_rows
    monkeypatch.setattr(weights, "join_rows", lambda rows: real(rows[:, ::-1]))


def wrong_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    real = weights.plan_weights.__globals__["_add_offset"]
    monkeypatch.setattr(weights, "_add_offset", lambda offset: real(1 - offset))


def wrong_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    read = DecoderConfig.from_json.__func__  # type: ignore[attr-defined]

    def reading(cls: Any, config: Any, *, source: str) -> DecoderConfig:
        found = read(cls, config, source=source)
        other = "silu" if found.activation == "gelu_tanh" else "gelu_tanh"
        return replace(found, activation=other)

    monkeypatch.setattr(DecoderConfig, "from_json", classmethod(reading))


@pytest.mark.parametrize("spoil", [wrong_row, wrong_offset, wrong_activation])
def test_a_wrong_graph_is_not_written(checkpoint: Path, tmp_path: Path, monkeypatch, spoil):
    spoil(monkeypatch)
    with pytest.raises(ExportError, match="too far from PyTorch's scores"):
        export_decoder(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_swapped_texts_are_noticed(checkpoint: Path, tmp_path: Path, monkeypatch):
    real = PromptTokenizer.encode
    monkeypatch.setattr(
        PromptTokenizer,
        "encode",
        lambda self, queries, passages, **options: real(self, passages, queries, **options),
    )
    with pytest.raises(ExportError, match="makes other tokens of the pair"):
        export_decoder(checkpoint, tmp_path / "bundle")


def test_gemmas_legacy_activation_is_the_tanh_form(tmp_path: Path):
    named = write_tiny_reranker(tmp_path / "named", "gemma")
    legacy = write_tiny_reranker(
        tmp_path / "legacy", "gemma", hidden_act="gelu", hidden_activation=None
    )
    first, second = (
        Bundle.open(export_decoder(folder, folder.parent / "bundle")) for folder in (named, legacy)
    )
    np.testing.assert_array_equal(logits(first, tokens(first)), logits(second, tokens(second)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"hidden_act": "gelu", "hidden_activation": "gelu"}, "activation 'gelu'"),
        ({"final_logit_softcapping": 30.0}, "softcaps its logits"),
        ({"architectures": ["GemmaForSequenceClassification"]}, "is a classifier on a decoder"),
    ],
)
def test_what_would_be_another_score_is_refused(tmp_path: Path, changes: dict, message: str):
    checkpoint = write_tiny_reranker(tmp_path, "gemma", **changes)
    with pytest.raises(ExportError, match=message):
        export_decoder(checkpoint, tmp_path / "bundle")


def test_of_a_language_model_the_name_or_the_user_says_that_it_reranks(tmp_path: Path):
    checkpoint = write_tiny_reranker(tmp_path, "qwen3")
    other = checkpoint.rename(tmp_path / "my-fine-tune")

    def inspect(**options: Any) -> Any:
        return inspect_checkpoint(other, source=str(other), **options)

    embedder = inspect()
    assert (embedder.model_class, embedder.question) == ("decoder-only-base", None)
    reranker = inspect(model_class=RERANKER_DECODER)
    assert (reranker.model_class, reranker.question) == (RERANKER_DECODER, BGE_QUESTION)


def test_gemma2_softcaps_its_logits_whether_it_says_so_or_not(tmp_path: Path):
    folder = write_tiny_decoder(tmp_path / "d", "gemma2")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["final_logit_softcapping"]
    path.write_text(json.dumps(config))
    with pytest.raises(ExportError, match="final_logit_softcapping of its type gemma2"):
        export_decoder(folder, tmp_path / "bundle", model_class=RERANKER_DECODER)


def test_a_question_starts_with_a_token_that_is_not_padding(tmp_path: Path):
    def started(**special: str) -> str:
        folder = tmp_path / "-".join(special.values()).strip("<>")
        tokenizer = make_tokenizer("gemma")
        tokenizer.add_special_tokens(special)
        tokenizer.save_pretrained(folder)
        from bge_export.checkpoint.tokenizer import load_tokenizer

        loaded = load_tokenizer(folder, right_padding=False)
        return answers.make_prompt(BGE_QUESTION, loaded).start

    assert started(pad_token="<pad>") == "<bos>"
    assert started(pad_token="<bos>") == ""


def test_answers_that_begin_alike_are_refused(tmp_path: Path):
    checkpoint = write_tiny_reranker(tmp_path, "qwen3")
    path = checkpoint / "tokenizer.json"
    document = json.loads(path.read_text())
    document["normalizer"] = {"type": "Replace", "pattern": {"String": "no"}, "content": "yes"}
    path.write_text(json.dumps(document))
    with pytest.raises(ExportError, match="begins 'yes' and 'no' with the same token"):
        export_decoder(checkpoint, tmp_path / "bundle")
