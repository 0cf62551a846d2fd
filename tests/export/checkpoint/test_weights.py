"""What an export reads of a checkpoint's weights is all of them, and nothing else."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from bge_export.bundle.staging import check_json_files
from bge_export.checkpoint.config_keys import check_config_keys
from bge_export.checkpoint.inspect import inspect_checkpoint
from bge_export.checkpoint.safetensors import SafetensorsReader
from bge_export.decoder.config import DecoderConfig
from bge_export.decoder.external_data import write_external_data
from bge_export.decoder.weights import find_weights, plan_weights
from bge_export.encoder.load import load_encoder, load_heads
from bge_runtime.errors import ExportError
from tests.helpers.bundles import write_tiny_bert, write_tiny_m3
from tests.helpers.decoders import write_tiny_decoder

VERSION_4 = importlib.metadata.version("transformers").startswith("4.")

Tensors = dict[str, NDArray[Any]]

ATTENTION = "encoder.layer.0.attention.self."
QUERY = f"{ATTENTION}query.weight"


@pytest.fixture(scope="module")
def plain(made_once: Callable[..., Path]) -> Path:
    return made_once("tiny-of-one-layer", partial(write_tiny_bert, layers=1))


@pytest.fixture(scope="module")
def deep(made_once: Callable[..., Path]) -> Path:
    return made_once("tiny-of-two-layers", partial(write_tiny_bert, layers=2))


def changed(source: Path, folder: Path, change: Callable[[Tensors], Tensors], **config) -> Path:
    """Copy a checkpoint, and change its tensors and its configuration."""
    shutil.copytree(source, folder)
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def load(folder: Path, **options) -> Any:
    checkpoint = inspect_checkpoint(folder, source=str(folder), pooling="cls", **options)
    return load_encoder(checkpoint, **options)


def adding(**extra: NDArray[Any]) -> Callable[[Tensors], Tensors]:
    named = {name.replace("__", "."): tensor for name, tensor in extra.items()}
    return lambda tensors: tensors | named


def renaming(rename: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {rename(name): tensor for name, tensor in tensors.items()}


def converting(dtype: type) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor.astype(dtype) for name, tensor in tensors.items()}


def only(name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: change(tensors[name])}


def keep(tensors: Tensors) -> Tensors:
    return tensors


FP8 = ml_dtypes.float8_e4m3fn

SQUARE, ROW = np.ones((48, 48), np.float32), np.ones(48, np.float32)

LEFT_OVERS = {
    "LoRA": (
        adding(**{f"{ATTENTION}query.lora_A.default.weight": np.ones((4, 48), np.float32)}),
        rf"{ATTENTION}query\.lora_A\.default\.weight.*merge_and_unload",
    ),
    "LoRA beside its base": (
        renaming(lambda name: name.replace("query.weight", "query.base_layer.weight")),
        r"query\.base_layer\.weight.*lacks encoder\.layer\.0\.attention\.self\.query\.weight",
    ),
    "LoRA of peft's names": (
        renaming(lambda name: f"base_model.model.{name}"),
        r"base_model\.model\.embeddings.*within another",
    ),
    "LoRA of the pooler": (
        adding(**{"pooler.dense.lora_A.weight": np.ones((4, 48), np.float32)}),
        r"pooler\.dense\.lora_A.*merge_and_unload",
    ),
    "bottleneck adapter": (
        adding(**{"encoder.layer.0.output.adapters.x.down.0.weight": SQUARE}),
        r"output\.adapters\.x\.down.*merge",
    ),
    "relative positions that nothing asks for": (
        adding(**{f"{ATTENTION}distance_embedding.weight": np.ones((1023, 12), np.float32)}),
        r"distance_embedding\.weight.*position_embedding_type",
    ),
    "GPTQ": (
        lambda tensors: {
            **{name: tensor for name, tensor in tensors.items() if name != QUERY},
            f"{ATTENTION}query.qweight": np.ones((6, 48), np.int32),
            f"{ATTENTION}query.scales": np.ones((1, 48), np.float32),
        },
        r"query\.qweight.*quantized",
    ),
    "bitsandbytes of 8 bits": (
        adding(**{f"{ATTENTION}query.SCB": ROW}),
        r"query\.SCB.*quantized",
    ),
    "cross-attention": (
        adding(**{"encoder.layer.0.crossattention.self.query.weight": SQUARE}),
        r"crossattention.*decoder",
    ),
    "a projection": (
        adding(**{"projection.weight": SQUARE}),
        r"projection\.weight.*save_pretrained",
    ),
    "a bias more": (adding(**{"embeddings.projection.bias": ROW}), r"embeddings\.projection\.bias"),
    "a norm more": (
        adding(**{"encoder.layer.0.attention.norm.weight": ROW}),
        r"layer\.0\.attention\.norm\.weight",
    ),
    "a temperature": (adding(temperature=np.float32([0.02])), "temperature"),
    "a head that is no weight": (adding(**{"lm_head.scale": ROW}), r"lm_head\.scale"),
    "DataParallel": (
        renaming(lambda name: f"module.{name}"),
        r"module\.embeddings\.LayerNorm\.bias.*lacks .*within another",
    ),
    "torch.compile": (renaming(lambda name: f"_orig_mod.{name}"), r"_orig_mod\.embeddings.*within"),
    "sentence-transformers": (
        renaming(lambda name: f"0.auto_model.{name}"),
        r"0\.auto_model\.embeddings.*within another",
    ),
    "FlagEmbedding": (renaming(lambda name: f"model.{name}"), r"model\.embeddings.*within another"),
    "a model within a model": (
        renaming(lambda name: f"encoder.bert.{name}"),
        r"encoder\.bert\.embeddings.*within another",
    ),
    "a part behind a prefix": (
        renaming(lambda name: f"bert.{name}" if "embeddings" in name else name),
        r"encoder\.layer\.0.*with and without a prefix",
    ),
    "all of it twice": (
        lambda tensors: tensors | {f"bert.{name}": tensor + 1 for name, tensor in tensors.items()},
        r"holds .* embeddings\.LayerNorm\.bias.*with and without a prefix",
    ),
    "old and new names": (
        adding(**{"embeddings.LayerNorm.gamma": ROW}),
        r"embeddings\.LayerNorm\.(gamma|weight)",
    ),
    "another architecture": (
        renaming(lambda name: name.replace("encoder.layer", "transformer.layer")),
        r"transformer\.layer\.0\..*lacks .*encoder\.layer\.0.*another type or size",
    ),
}
"""What a checkpoint may hold that its model does not read, and what the error says."""


@pytest.mark.parametrize("name", LEFT_OVERS)
def test_what_the_model_does_not_read_is_refused(plain: Path, tmp_path: Path, name: str):
    change, message = LEFT_OVERS[name]
    with pytest.raises(ExportError, match=message):
        load(changed(plain, tmp_path / "checkpoint", change))


def test_layers_beyond_the_configuration_are_refused(deep: Path, tmp_path: Path):
    folder = changed(deep, tmp_path / "checkpoint", keep, num_hidden_layers=1)
    with pytest.raises(
        ExportError, match=r"layer\.1\..*num_hidden_layers in its config\.json is 1"
    ):
        load(folder)


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (keep, {"num_hidden_layers": 3}, r"lacks .*encoder\.layer\.1\..* of another type or size"),
        (lambda t: {n: x for n, x in t.items() if n != QUERY}, {}, "lacks .*query.weight, which"),
        (only(QUERY, lambda x: x[:24]), {}, r"query\.weight of .* shape \(24, 48\), .* \(48, 48\)"),
        (keep, {"vocab_size": 9001}, r"word_embeddings.* \(9000, 48\), .* \(9001, 48\)"),
        (keep, {"vocab_size": 8000}, r"word_embeddings.* \(9000, 48\), .* \(8000, 48\)"),
        (keep, {"max_position_embeddings": 1024}, r"position_embeddings.* \(512, 48\), .* \(1024"),
        (keep, {"type_vocab_size": 1}, r"token_type_embeddings.* \(2, 48\)"),
        (keep, {"intermediate_size": 128}, r"intermediate\.dense.* \(96.* \(128"),
        (only(QUERY, lambda x: x.astype(np.int8)), {}, r"query\.weight.*I8, which quantized"),
        (only(QUERY, lambda x: x.astype(np.uint8)), {}, r"query\.weight.*U8, which quantized"),
        (only(QUERY, lambda x: x.astype(FP8)), {}, r"query\.weight.*F8_E4M3, which"),
        (only(QUERY, lambda x: x.astype(np.int32)), {}, r"cannot load|type I32"),
    ],
)  # fmt: skip
def test_weights_that_the_configuration_does_not_call_for_are_refused(
    plain: Path, tmp_path: Path, change, config: dict, message: str
):
    with pytest.raises(ExportError, match=message):
        load(changed(plain, tmp_path / "checkpoint", change, **config))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "weights are quantized"),
        ({"quantization_config": {"quant_method": "fp8"}}, "weights are quantized"),
        ({"compression_config": {"format": "int"}}, "weights are quantized"),
        ({"transformers_weights": "other.safetensors"}, "transformers_weights"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"layer_norm_eps": float("nan")}, "holds NaN or Infinity"),
        ({"some": [{"scale": float("inf")}]}, "holds NaN or Infinity"),
        ({"hidden_act": "no such one"}, "transformers cannot load .* KeyError: 'no such one'"),
        ({"num_attention_heads": 5}, "transformers cannot load .* multiple"),
        ({"position_embedding_type": "rotary"}, "position_embedding_type 'rotary', which transf"),
    ],
)  # fmt: skip
def test_a_configuration_that_would_be_ignored_is_refused(
    plain: Path, tmp_path: Path, config: dict, message: str
):
    with pytest.raises(ExportError, match=message):
        load(changed(plain, tmp_path / "checkpoint", keep, **config))


@pytest.mark.parametrize("in_file", [True, False])
def test_relative_positions_are_read_or_refused(plain: Path, tmp_path: Path, in_file: bool):
    name = f"{ATTENTION}distance_embedding.weight"
    change = (
        adding(**{name: np.random.default_rng(0).random((1023, 12), np.float32)})
        if in_file
        else keep
    )
    folder = changed(plain, tmp_path / "it", change, position_embedding_type="relative_key")
    if VERSION_4 and in_file:
        assert name in load(folder).state_dict()
        return
    with pytest.raises(ExportError, match=r"distance_embedding|position_embedding_type"):
        load(folder)


def test_pruned_heads_are_read_or_refused(plain: Path, tmp_path: Path):
    folder = changed(plain, tmp_path / "it", keep, pruned_heads={"0": [1]})
    with pytest.raises(ExportError, match=r"shape|pruned_heads .* leaves out"):
        load(folder)


def save_pickle(tensors: Tensors, path: Path, *, zipped: bool = True) -> None:
    import torch

    def tensor(array: NDArray[Any]) -> torch.Tensor:
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    state = {name: tensor(array) for name, array in tensors.items()}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)


def write_shards(folder: Path, suffix: str = ".safetensors") -> None:
    """Put the weights into two files and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    places = {}
    for number in (0, 1):
        part = dict(list(tensors.items())[number::2])
        name = f"{stem}-{number + 1:05}-of-00002{suffix}"
        if suffix == ".safetensors":
            save_file(part, folder / name, metadata={"format": "pt"})
        else:
            save_pickle(part, folder / name)
        places |= dict.fromkeys(part, name)
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))


def write_pickle(folder: Path, *, zipped: bool = True) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_pickle(tensors, folder / "pytorch_model.bin", zipped=zipped)


def nothing(folder: Path) -> None:
    pass


HARMLESS = {
    "constants of earlier versions": (
        adding(
            embeddings__position_ids=np.arange(512)[None],
            embeddings__token_type_ids=np.zeros((1, 512), np.int64),
        ),
        nothing,
    ),
    "a pooler": (adding(pooler__dense__weight=SQUARE, pooler__dense__bias=ROW), nothing),
    "BERT's pre-training": (
        lambda tensors: {
            **{f"bert.{name}": tensor for name, tensor in tensors.items()},
            "bert.embeddings.position_ids": np.arange(512)[None],
            "bert.pooler.dense.weight": SQUARE,
            "cls.predictions.bias": ROW,
            "cls.predictions.decoder.weight": tensors["embeddings.word_embeddings.weight"],
            "cls.predictions.transform.dense.weight": SQUARE,
            "cls.predictions.transform.LayerNorm.gamma": ROW,
            "cls.seq_relationship.bias": ROW,
        },
        nothing,
    ),
    "RoBERTa's head": (
        adding(lm_head__dense__weight=SQUARE, lm_head__layer_norm__bias=ROW, lm_head__bias=ROW),
        nothing,
    ),
    "a classifier": (
        adding(classifier__weight=SQUARE, classifier__out_proj__bias=ROW, qa_outputs__bias=ROW),
        nothing,
    ),
    "TensorFlow's names": (
        renaming(
            lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            )
        ),
        nothing,
    ),
    "fp16": (converting(np.float16), nothing),
    "bf16": (converting(ml_dtypes.bfloat16), nothing),
    "fp64": (converting(np.float64), nothing),
    "shards": (keep, write_shards),
    "pickled": (keep, write_pickle),
    "pickled in bf16": (converting(ml_dtypes.bfloat16), write_pickle),
    "pickled before 1.6": (keep, partial(write_pickle, zipped=False)),
    "pickled shards": (keep, partial(write_shards, suffix=".bin")),
    "pickled otherwise, too": (
        keep, lambda folder: save_pickle({"other": ROW}, folder / "pytorch_model.bin"),
    ),
    "another save's shards": (
        keep, lambda folder: (folder / "model.safetensors.index.json").write_text("not read"),
    ),
    "a file and an index of pickles": (
        keep,
        lambda folder: (
            write_pickle(folder),
            (folder / "pytorch_model.bin.index.json").write_text("not read"),
        ),
    ),
}  # fmt: skip
"""What published checkpoints hold and how, and their models' vectors do not depend on."""


@pytest.mark.parametrize("name", HARMLESS)
def test_what_makes_no_difference_is_accepted(plain: Path, tmp_path: Path, name: str):
    change, rewrite = HARMLESS[name]
    folder = changed(plain, tmp_path / "checkpoint", change)
    rewrite(folder)
    weights, expected = load(folder).state_dict(), load(plain).state_dict()
    narrow = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}.get(name[-4:], np.float32)
    for key, weight in expected.items():
        if not key.startswith("pooler."):  # random where a file lacks it
            rounded = weight.numpy().astype(narrow).astype(np.float32)
            np.testing.assert_array_equal(weights[key].numpy(), rounded)


def test_a_trained_model_is_accepted(minilm_checkpoint: Path):
    assert load(minilm_checkpoint).config.hidden_size == 384


def test_published_configurations_are_accepted(shared_data: Path):
    paths = sorted(shared_data.glob("models/*/config.json"))
    assert paths
    for path in paths:
        check_config_keys(json.loads(path.read_text()), source=path.parent.name)


def damaged(value: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def damage(tensor: NDArray[Any]) -> NDArray[Any]:
        tensor = tensor.copy()
        tensor.reshape(-1)[-1] = value
        return tensor

    return damage


WORDS = "embeddings.word_embeddings.weight"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [WORDS, "embeddings.position_embeddings.weight", QUERY])
def test_a_weight_that_is_no_number_is_refused(
    plain: Path, tmp_path: Path, name: str, value: float
):
    # The last row of a table: no text that proves the graphs may hold that token.
    folder = changed(plain, tmp_path / "checkpoint", only(name, damaged(value)))
    with pytest.raises(ExportError, match=f"{name} of the checkpoint holds NaN or infinity"):
        load(folder)


@pytest.mark.parametrize("rewrite", [nothing, write_shards, write_pickle])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_it_is_refused_in_every_type_and_file(plain: Path, tmp_path: Path, dtype, rewrite):
    def change(tensors: Tensors) -> Tensors:
        # What fp32 has no place for is infinity there.
        value = 1e300 if dtype == np.float64 else float("nan")
        return only(WORDS, damaged(value))(converting(dtype)(tensors))

    folder = changed(plain, tmp_path / "checkpoint", change)
    rewrite(folder)
    with pytest.raises(ExportError, match=f"{WORDS} of the checkpoint holds NaN or infinity"):
        load(folder)


def test_what_transformers_reads_otherwise_is_refused(plain: Path, monkeypatch):
    import torch
    import transformers

    original = transformers.AutoModel.from_pretrained

    def shifted(*arguments, **options):
        model, report = original(*arguments, **options)
        with torch.no_grad():
            model.encoder.layer[0].attention.self.query.weight[-1, -1] += 1e-6
        return model, report

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", shifted)
    with pytest.raises(ExportError, match=r"query\.weight of .* with other numbers than the file"):
        load(plain)


def test_a_tensor_in_two_files_is_refused(plain: Path, tmp_path: Path):
    for suffix in (".safetensors", ".bin"):
        folder = Path(shutil.copytree(plain, tmp_path / suffix[1:]))
        write_shards(folder, suffix)
        _, second = sorted(folder.glob(f"*-of-00002{suffix}"))
        if suffix == ".bin":
            save_pickle(load_file(plain / "model.safetensors"), second)
        else:
            shutil.copy(plain / "model.safetensors", second)
        with pytest.raises(ExportError, match=r"is in .*00001-of-00002|is in .*00002-of-00002"):
            load(folder)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_weights_of_an_adapter_beside_the_models_are_refused(
    plain: Path, tmp_path: Path, name: str
):
    folder = Path(shutil.copytree(plain, tmp_path / "checkpoint"))
    (folder / name).write_bytes(b"x")
    with pytest.raises(ExportError, match=rf"LoRA adapter.*{name}.*merge_and_unload"):
        load(folder)


@pytest.mark.parametrize("change", ["overlap", "gap", "short"])
def test_a_header_that_points_elsewhere_is_refused(plain: Path, tmp_path: Path, change: str):
    folder = Path(shutil.copytree(plain, tmp_path / "checkpoint"))
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    place = header[QUERY]
    if change == "overlap":
        place["data_offsets"] = [offset - 4 for offset in place["data_offsets"]]
    elif change == "gap":
        del header[QUERY]
    else:
        place["shape"] = [24, 48]
    text = json.dumps(header).encode().ljust(length)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(ExportError, match=r"does not lie where the header says"):
        load(folder)


OWN_CODE = """
import torch
from transformers import BertConfig, BertModel

class OwnConfig(BertConfig):
    model_type = "own"

class OwnModel(BertModel):
    config_class = OwnConfig

    def __init__(self, config, add_pooling_layer=False):
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        self.register_buffer("scale", torch.arange(1, 49).float() / 48, persistent=False)

    def forward(self, *arguments, **options):
        outputs = super().forward(*arguments, **options)
        outputs.last_hidden_state = outputs.last_hidden_state * self.scale
        return outputs
"""


@pytest.fixture
def own_code(plain: Path, tmp_path: Path, monkeypatch) -> Callable[..., Path]:
    """A checkpoint whose code computes with numbers that are in no file."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))

    def write(change: Callable[[Tensors], Tensors] = keep) -> Path:
        auto_map = {"AutoConfig": "code.OwnConfig", "AutoModel": "code.OwnModel"}
        folder = changed(
            plain, tmp_path / "own", change, model_type="own", auto_map=auto_map,
            architectures=["OwnModel", "OwnForTokenClassification"],
        )  # fmt: skip
        (folder / "code.py").write_text(OWN_CODE)
        return folder

    return write


def with_a_head(tensors: Tensors) -> Tensors:
    """Name tensors as gte-multilingual-base does."""
    encoder = {f"bert.{name}": tensor for name, tensor in tensors.items()}
    return encoder | {"classifier.weight": ROW[None], "classifier.bias": ROW[:1]}


@pytest.mark.parametrize("change", [keep, with_a_head])
def test_numbers_that_only_its_own_code_has_are_computed(own_code, change):
    # transformers 5 leaves what the memory held.
    encoder = load(own_code(change), trust_remote_code=True)
    np.testing.assert_array_equal(encoder.scale.numpy(), np.arange(1, 49, dtype=np.float32) / 48)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (LEFT_OVERS["LoRA"][0], "lora_A.*merge_and_unload"),
        (lambda t: {n: x for n, x in t.items() if n != QUERY}, "lacks .*query.weight, which"),
        (only(QUERY, lambda x: x[:24]), r"query\.weight of .* shape \(24, 48\)"),
        (only(WORDS, damaged(float("nan"))), f"{WORDS} of the checkpoint holds NaN"),
    ],
)
def test_weights_of_own_code_are_checked_as_well(own_code, change, message: str):
    with pytest.raises(ExportError, match=message):
        load(own_code(change), trust_remote_code=True)


def heads(tmp_path: Path, name: str, state: Tensors) -> None:
    import torch

    folder = write_tiny_m3(tmp_path / "m3", layers=1)
    path = folder / f"{name}_linear.pt"
    changed = {key: torch.from_numpy(np.asarray(array)) for key, array in state.items()}
    torch.save(torch.load(path) | changed, path)
    checkpoint = inspect_checkpoint(
        folder, source=str(folder), pooling="cls", model_class="encoder-only-m3"
    )
    load_heads(checkpoint, width=48)


@pytest.mark.parametrize("name", ["sparse", "colbert"])
@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"lora_A.weight": SQUARE}, "holds lora_A.weight in addition to"),
        ({"bias": np.float32([np.nan])}, "bias in .* holds NaN"),
        ({"weight": np.full((1, 48), np.inf, np.float32)}, "weight in .* holds NaN or infinity"),
        ({"weight": np.ones((1, 47), np.float32)}, r"matrix of \(1, 47\)"),
        ({"weight": np.ones((2, 48, 1), np.float32)}, "is a matrix of"),
        ({"weight": np.float32(1.0)}, "is a matrix of"),
        ({"weight": np.ones((1, 48), np.int8)}, "int8"),
    ],
)  # fmt: skip
def test_heads_are_checked_as_well(tmp_path: Path, name: str, state: dict, message: str):
    with pytest.raises(ExportError, match=message):
        heads(tmp_path, name, state)


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Tiny decoders by family, each written once."""
    root = tmp_path_factory.mktemp("decoders")
    return lambda family: (
        root / family if (root / family).exists() else write_tiny_decoder(root / family, family)
    )


def find(folder: Path) -> tuple[dict[str, str], DecoderConfig, SafetensorsReader]:
    checkpoint = inspect_checkpoint(folder, source=str(folder))
    config = DecoderConfig.from_json(checkpoint.config, source=checkpoint.source)
    reader = SafetensorsReader(checkpoint.folder, checkpoint.weight_files)
    return find_weights(config, reader, source=checkpoint.source), config, reader


def changed_decoder(
    source: Path, folder: Path, change: Callable[[Tensors], Tensors], **config
) -> Path:
    """Copy a decoder, with its one shard as ``model.safetensors``."""
    shutil.copytree(source, folder)
    (shard,) = folder.glob("*.safetensors")
    shard.rename(folder / "model.safetensors")
    (folder / "model.safetensors.index.json").unlink()
    return changed(folder, folder.with_name("changed"), change, **config)


VECTOR = np.ones(64, ml_dtypes.bfloat16)

DECODER_LEFT_OVERS = {
    "LoRA": (
        "mistral",
        adding(**{"layers.0.self_attn.q_proj.lora_B.weight": VECTOR}),
        r"layers\.0\.self_attn\.q_proj\.lora_B\.weight.*merge_and_unload",
    ),
    "a bias": ("mistral", adding(**{"layers.0.self_attn.q_proj.bias": VECTOR}), r"q_proj\.bias"),
    "a bias of attention's output": (
        "qwen2", adding(**{"layers.0.self_attn.o_proj.bias": VECTOR}), r"o_proj\.bias",
    ),
    "norms of queries": (
        "qwen2", adding(**{"layers.2.self_attn.q_norm.weight": VECTOR}), r"layers\.2.*q_norm",
    ),
    "norms behind attention": (
        "qwen3", adding(**{"layers.0.pre_feedforward_layernorm.weight": VECTOR}), "pre_feedforward",
    ),
    "experts": (
        "mistral", adding(**{"layers.0.block_sparse_moe.gate.weight": VECTOR}), "block_sparse_moe",
    ),
    "a layer more": (
        "gemma2",
        adding(**{"layers.3.input_layernorm.weight": VECTOR}),
        r"layers\.3\.input_layernorm.*num_hidden_layers in its config\.json is 3",
    ),
    "a reward head": ("mistral", adding(**{"score.weight": VECTOR}), r"score\.weight"),
    "GPTQ": (
        "mistral", adding(**{"layers.0.mlp.up_proj.scales": VECTOR}), r"up_proj\.scales.*quantized",
    ),
    "a wrapper": (
        "mistral", renaming(lambda name: f"base_model.{name}"), r"base_model\.embed_tokens.*lacks",
    ),
    "all of it twice": (
        "mistral",
        lambda tensors: tensors | {f"model.{name}": x for name, x in tensors.items()},
        "with and without a prefix",
    ),
    "quantized": (
        "mistral",
        only("layers.0.mlp.up_proj.weight", lambda x: x.astype(ml_dtypes.float8_e5m2)),
        r"up_proj\.weight in .* F8_E5M2, which quantized",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DECODER_LEFT_OVERS)
def test_what_a_decoders_graph_does_not_read_is_refused(decoders, tmp_path: Path, name: str):
    family, change, message = DECODER_LEFT_OVERS[name]
    with pytest.raises(ExportError, match=message):
        find(changed_decoder(decoders(family), tmp_path / "decoder", change))


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("mistral", {"num_hidden_layers": 4}, r"lacks .*layers\.3\."),
        ("mistral", {"num_hidden_layers": 2}, r"layers\.2\..*num_hidden_layers .* is 2"),
        ("mistral", {"vocab_size": 9001}, r"embed_tokens\.weight .* \(9000, 64\), .* \(9001, 64\)"),
        ("qwen2", {"quantization_config": {"quant_method": "awq"}}, "weights are quantized"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("qwen3", {"layer_types": ["linear_attention"] * 3}, "'linear_attention'"),
        ("mistral", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rotary"),
    ],
)
def test_what_a_decoders_graph_does_not_compute_is_refused(
    decoders, tmp_path: Path, family: str, config: dict, message: str
):
    with pytest.raises(ExportError, match=message):
        find(changed_decoder(decoders(family), tmp_path / "decoder", keep, **config))


@pytest.mark.parametrize(
    "change",
    [
        adding(lm_head__weight=VECTOR),
        adding(
            **{
                f"layers.{n}.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)
                for n in range(3)
            }
        ),
        lambda tensors: (
            {f"model.{name}": x for name, x in tensors.items()}
            | {"lm_head.weight": VECTOR, "model.rotary_emb.inv_freq": np.ones(8, np.float32)}
        ),
    ],
)
def test_what_makes_no_difference_to_a_decoder_is_accepted(decoders, tmp_path: Path, change):
    plain_names, *_ = find(decoders("mistral"))
    names, _, reader = find(changed_decoder(decoders("mistral"), tmp_path / "decoder", change))
    assert names.keys() == plain_names.keys()
    assert set(names.values()) <= set(reader.names())


@pytest.mark.parametrize("storage", ["FLOAT", "BFLOAT16", "FLOAT16", "INT8", "INT4"])
@pytest.mark.parametrize(
    "name", ["embed_tokens.weight", "layers.1.mlp.up_proj.weight", "norm.weight"]
)
def test_a_decoders_weight_that_is_no_number_is_refused(
    decoders, tmp_path: Path, storage: str, name: str
):
    import onnx_ir as ir

    change = only(name, damaged(float("nan")))
    found, config, reader = find(changed_decoder(decoders("mistral"), tmp_path / "decoder", change))
    plans = plan_weights(config, found, storage=ir.DataType[storage])
    with pytest.raises(ExportError, match=f"{name} of the checkpoint holds NaN or infinity"):
        write_external_data(plans, reader, tmp_path / "data")


def test_json_that_only_python_reads_is_refused(tmp_path: Path):
    (tmp_path / "tokenizer_config.json").write_text('{"a": [1, {"b": Infinity}]}')
    with pytest.raises(ExportError, match=r"tokenizer_config\.json would hold Infinity"):
        check_json_files(tmp_path)


@pytest.mark.parametrize("number", [1e5, -1e5])
def test_numbers_beyond_fp16_are_refused_for_openvino(tmp_path: Path, number: float):
    # Its converter would cut them to 65504.
    import onnx_ir as ir

    from bge_export.encoder.openvino_ir import write_openvino
    from bge_export.passes.precision.half_precision import check_range
    from bge_export.targets import OPENVINO

    table = np.float32([[0, np.finfo(np.float32).min], [0, number]])
    value = ir.Value(name="table", const_value=ir.tensor(table))
    graph = ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 21})
    with pytest.raises(ExportError, match=r"table holds 1e\+05, .* leave --target openvino out"):
        write_openvino(ir.Model(graph, ir_version=10), OPENVINO, tmp_path, token_ids=[])
    # What a mask adds where there is no token.
    check_range(table[:1], "mask", leave_out="it")
