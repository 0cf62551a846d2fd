"""An encoder that scores pairs is exported with its head, and compared with PyTorch on pairs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bge_export.bundle.parity_tokens import tokenize_parity_pairs
from bge_export.checkpoint.inspect import inspect_checkpoint
from bge_export.checkpoint.tokenizer import load_tokenizer
from bge_export.encoder.load import load_reranker
from bge_export.parity_pairs import PARITY_PAIRS
from bge_runtime.bundle import LOGITS, SECOND_TEXT, Bundle, PairReference, ScoreParity
from bge_runtime.encoding import PairTokenizer, TextTokenizer
from bge_runtime.errors import ExportError
from bge_runtime.sources import RERANKER_ENCODER
from bge_runtime.variants import measure_parity
from tests.helpers.bundles import export
from tests.helpers.rerankers import (
    reranker_bundle,
    reranker_checkpoint,
    write_tiny_reranker,
)

Rows = list[np.ndarray]


@pytest.fixture(scope="module", params=["bert", "long xlm-roberta"])
def bundle(request: pytest.FixtureRequest, made_once: Callable[..., Path]) -> Bundle:
    return Bundle.open(reranker_bundle(request.param))


def pair_reference(bundle: Bundle) -> PairReference:
    reference = bundle.reference()
    assert isinstance(reference, PairReference)
    return reference


def test_graphs_give_one_logit_a_pair_and_their_parity_is_in_the_manifest(bundle: Bundle):
    model = bundle.manifest.model
    assert (model.model_class, model.pooling) == (RERANKER_ENCODER, "cls")
    reads_types = model.architecture == "bert"
    for graph in bundle.manifest.graphs.values():
        assert graph.outputs == (LOGITS,)
        assert ("token_type_ids" in graph.inputs) == reads_types
    for variant in bundle.manifest.variants:
        assert isinstance(variant.parity, ScoreParity)
        assert variant.precision == "fp32"
        assert variant.parity.failures("fp32") == []
        assert variant.parity.max_error < 1e-4
        assert variant.parity.rank_correlation == 1
    reference = pair_reference(bundle)
    assert reference.queries + reference.passages == tuple(
        text for side in zip(*PARITY_PAIRS, strict=True) for text in side
    )
    assert any((ids >= SECOND_TEXT).any() for ids in reference.token_ids) == reads_types


def test_the_last_layer_and_the_head_compute_cls_only(bundle: Bundle):
    import onnx

    for graph in bundle.manifest.graphs.values():
        nodes = onnx.load(bundle.path / graph.file, load_external_data=False).graph.node
        # Linear layers of vectors without a sequence are Gemm.
        (head,) = (node for node in nodes if node.op_type == "Gemm")
        by_output = {name: node for node in nodes for name in node.output}
        pooled = by_output[head.input[0]]
        assert pooled.op_type == "Squeeze"
        assert by_output[pooled.input[0]].op_type == "LayerNormalization"


def test_the_gate_measures_the_bundle_as_the_export_did(bundle: Bundle):
    variant = bundle.manifest.variants[0]
    info, parity = measure_parity(bundle, variant)
    assert info.precision == "fp32"
    assert parity == variant.parity


def exchanged_texts(bundle: Bundle, reference: PairReference) -> Rows:
    tokenizer = TextTokenizer(bundle.tokenizer_file)
    types = bundle.manifest.model.architecture == "bert"
    return PairTokenizer(tokenizer, token_types=types).encode(
        reference.passages, reference.queries, max_length=512, query_max_length=384
    )


def exchanged_types(_bundle: Bundle, reference: PairReference) -> Rows:
    return [ids % SECOND_TEXT + (ids < SECOND_TEXT) * SECOND_TEXT for ids in reference.token_ids]


def no_types(_bundle: Bundle, reference: PairReference) -> Rows:
    return [ids % SECOND_TEXT for ids in reference.token_ids]


def cut_on_the_left(bundle: Bundle, reference: PairReference) -> Rows:
    """Return the pairs with the ends of their passages, where these are cut."""
    tokenizer = TextTokenizer(bundle.tokenizer_file)
    rows = []
    for ids, passage in zip(reference.token_ids, reference.passages, strict=True):
        (whole,) = tokenizer.encode_bare([passage])
        kept, offset = len(whole), int(ids[-1] // SECOND_TEXT) * SECOND_TEXT
        while kept and not np.array_equal(ids[-1 - kept : -1] - offset, whole[:kept]):
            kept -= 1
        rows.append(
            np.concatenate([ids[: -1 - kept], whole[len(whole) - kept :] + offset, ids[-1:]])
        )
    return rows


WRONG: dict[str, Callable[[Bundle, PairReference], Rows]] = {
    "exchanged texts": exchanged_texts,
    "exchanged types": exchanged_types,
    "no types": no_types,
    "cut on the left": cut_on_the_left,
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_gate_refuses_other_tokens(bundle: Bundle, wrong: str):
    if "types" in wrong and bundle.manifest.model.architecture != "bert":
        pytest.skip("it reads no token types")
    reference, variant = pair_reference(bundle), bundle.manifest.variants[0]
    rows = WRONG[wrong](bundle, reference)
    changed = sum(not np.array_equal(a, b) for a, b in zip(rows, reference.token_ids, strict=True))
    assert changed >= 3
    info, parity = measure_parity(bundle, variant, replace(reference, token_ids=tuple(rows)))
    assert info.precision == "fp32"
    assert len(parity.failures("fp32")) == 3
    assert parity.failures("bf16")


def test_an_export_refuses_tokens_that_are_not_the_checkpoints(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
):
    tokenizer = load_tokenizer(bundle.path)
    types = bundle.manifest.model.architecture == "bert"
    pairs, _ = tokenize_parity_pairs(bundle.path, tokenizer, max_length=512, token_types=types)
    assert pairs == PARITY_PAIRS
    encode = PairTokenizer.encode

    def exchanged(self: Any, queries: Any, passages: Any, **options: Any) -> Any:
        return encode(self, passages, queries, **options)

    monkeypatch.setattr(PairTokenizer, "encode", exchanged)
    with pytest.raises(ExportError, match="otherwise than the checkpoint's tokenizer"):
        tokenize_parity_pairs(bundle.path, tokenizer, max_length=512, token_types=types)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("$A", "$B"), "puts no special token between the texts of a pair"),
        (("[CLS]", "$A", "[SEP]", "$B", "[SEP]"), "gives one token type to the texts of a pair"),
    ],
)
def test_a_tokenizer_that_joins_pairs_otherwise_is_refused(
    made_once: Callable[..., Path], tmp_path: Path, pair: tuple[str, ...], message: str
):
    from tokenizers import Tokenizer, processors

    folder = Path(shutil.copytree(reranker_checkpoint("bert"), tmp_path / "checkpoint"))
    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["[CLS]", "$A", "[SEP]"],
        pair=list(pair),
        special_tokens=[("[CLS]", 101), ("[SEP]", 102)],
    )
    tokenizer.save(path)
    with pytest.raises(ExportError, match=message):
        export(folder, tmp_path / "bundle", pooling=None)


def test_logits_of_random_weights_spread_and_depend_on_both_texts(bundle: Bundle):
    reference = pair_reference(bundle)
    assert np.std(reference.logits) > 1.5
    by_pair = dict(
        zip(zip(reference.queries, reference.passages, strict=True), reference.logits, strict=True)
    )
    query, passages = reference.queries[0], reference.passages[:2]
    assert abs(by_pair[query, passages[0]] - by_pair[query, passages[1]]) > 0.1
    last = PARITY_PAIRS[-2]  # another query for a passage that is cut to nearly the same
    assert abs(by_pair[last] - by_pair[PARITY_PAIRS[-3]]) > 0.1


@pytest.mark.parametrize("name", ["bert", "long xlm-roberta"])
def test_every_target_is_within_its_limits(
    name: str, made_once: Callable[..., Path], tmp_path: Path
):
    from bge_export.encoder.exporter import export_encoder
    from bge_export.targets import select_encoder_targets
    from tests.helpers.bundles import keep_traces

    keep_traces()
    checkpoint = reranker_checkpoint(name)
    inspected = inspect_checkpoint(checkpoint, source=str(checkpoint))
    targets = ("openvino", "int8", "cuda", "tensorrt")
    selected = select_encoder_targets(targets, (), scores=True)
    rows = export_encoder(inspected, tmp_path / "bundle", selected)
    by_name = {row.variant: row for row in rows}
    for variant in ("cuda-fp16", "tensorrt-fp16"):
        emulated = by_name[variant].emulated or by_name[variant].parity
        assert isinstance(emulated, ScoreParity)
        assert emulated.failures("fp16") == []
        assert emulated.max_error > 1e-4  # it does round
    int8 = by_name["openvino-int8"]
    assert (int8.precision, int8.provider) == ("int8", "OpenVINO CPU")
    assert isinstance(int8.parity, ScoreParity)
    assert int8.parity.max_error > 1e-3
    bundle = Bundle.open(tmp_path / "bundle")
    assert "cuda-even" not in bundle.manifest.graphs
    packed = bundle.graph("cuda").inputs
    assert ("token_type_ids" in packed) == (name == "bert")


def test_a_graph_for_cuda_graphs_does_not_exist():
    from bge_export.targets import select_encoder_targets

    assert "cuda-even" in [target.name for target in select_encoder_targets(["cuda"], [])]
    chosen = select_encoder_targets(["cuda"], [], scores=True)
    assert [target.name for target in chosen] == ["cuda", "portable"]
    with pytest.raises(ExportError, match="requested --target cuda-even"):
        select_encoder_targets(["cuda-even"], [], scores=True)


def changed(
    folder: Path, name: str, change: Callable[[dict[str, Any]], Any], **config: Any
) -> Path:
    shutil.copytree(reranker_checkpoint(name), folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


HEADS = {
    "bert": ("bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight"),
    "xlm-roberta": ("classifier.dense.bias", "classifier.out_proj.weight"),
}


@pytest.mark.parametrize(
    ("name", "tensor"), [(name, tensor) for name, tensors in HEADS.items() for tensor in tensors]
)
def test_a_missing_part_of_the_head_is_refused(
    name: str, tensor: str, made_once: Callable[..., Path], tmp_path: Path
):
    folder = changed(tmp_path / "checkpoint", name, lambda tensors: tensors.pop(tensor))
    checkpoint = inspect_checkpoint(folder, source=str(folder))
    with pytest.raises(ExportError, match=f"lacks {tensor}, which a model of its config.json has"):
        load_reranker(checkpoint)


def test_a_head_with_nan_or_another_shape_is_refused(
    made_once: Callable[..., Path], tmp_path: Path
):
    def spoil(tensors: dict[str, Any]) -> None:
        tensors["classifier.weight"][0, 3] = np.nan

    def double(tensors: dict[str, Any]) -> None:
        tensors["classifier.weight"] = np.repeat(tensors["classifier.weight"], 2, axis=0)

    for name, change, message in (
        ("nan", spoil, "classifier.weight of the checkpoint holds NaN"),
        ("double", double, r"classifier.weight of .* has the shape \(2, 48\)"),
    ):
        folder = changed(tmp_path / name, "bert", change)
        with pytest.raises(ExportError, match=message):
            load_reranker(inspect_checkpoint(folder, source=str(folder)))


def test_heads_of_other_tasks_beside_it_are_not_read_and_anything_else_is_refused(
    made_once: Callable[..., Path], tmp_path: Path
):
    def add(extra: str) -> Callable[[dict[str, Any]], None]:
        return lambda tensors: tensors.update({extra: np.ones(3, np.float32)})

    folder = changed(tmp_path / "good", "xlm-roberta", add("lm_head.bias"))
    load_reranker(inspect_checkpoint(folder, source=str(folder)))
    folder = changed(tmp_path / "pooler", "xlm-roberta", add("roberta.pooler.dense.bias"))
    load_reranker(inspect_checkpoint(folder, source=str(folder)))
    folder = changed(tmp_path / "bad", "xlm-roberta", add("roberta.encoder.extra.bias"))
    with pytest.raises(ExportError, match=r"holds roberta\.encoder\.extra\.bias, which"):
        load_reranker(inspect_checkpoint(folder, source=str(folder)))


_CODE = """
import torch
from transformers import BertForSequenceClassification, BertConfig

class OwnConfig(BertConfig):
    model_type = "own"

class OwnForSequenceClassification(BertForSequenceClassification):
    config_class = OwnConfig
"""

_OTHER_HEAD = """
    def __init__(self, config):
        super().__init__(config)
        self.classifier = torch.nn.Sequential(torch.nn.Identity(), self.classifier)
"""


def own_code(folder: Path, code: str) -> Path:
    write_tiny_reranker(folder, "bert", layers=1)
    (folder / "code.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    kind = "OwnForSequenceClassification"
    auto_map = {
        "AutoConfig": "code.OwnConfig",
        "AutoModelForSequenceClassification": f"code.{kind}",
    }
    config |= {"model_type": "own", "architectures": [kind], "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_own_code_runs_only_when_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from bge_export.bundle import ExportOptions
    from bge_export.encoder.exporter import export_encoder
    from bge_export.targets import select_encoder_targets

    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = own_code(tmp_path / "own", _CODE)
    with pytest.raises(ExportError, match="trust_remote_code=True"):
        export(folder, tmp_path / "bundle", pooling=None)
    inspected = inspect_checkpoint(folder, source=str(folder), trust_remote_code=True)
    assert inspected.model_class == RERANKER_ENCODER
    options, targets = ExportOptions(trust_remote_code=True), select_encoder_targets(["cpu"], [])
    export_encoder(inspected, tmp_path / "bundle", targets, options)
    for variant in Bundle.open(tmp_path / "bundle").manifest.variants:
        assert isinstance(variant.parity, ScoreParity)
        assert variant.parity.failures("fp32") == []


def test_own_code_with_another_head_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from bge_export.encoder.load import find_scorer

    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = own_code(tmp_path / "own", _CODE + _OTHER_HEAD)
    tensors = load_file(folder / "model.safetensors")
    for name in ("weight", "bias"):
        tensors[f"classifier.1.{name}"] = tensors.pop(f"classifier.{name}")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = inspect_checkpoint(folder, source=str(folder), trust_remote_code=True)
    reranker = load_reranker(checkpoint, trust_remote_code=True)
    with pytest.raises(ExportError, match="scores a pair with a Sequential after the encoder"):
        find_scorer(reranker, source="own")
