"""A wrong checkpoint gets one clear error, before PyTorch is asked to load it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bge_export.checkpoint.find import find_checkpoint
from bge_export.checkpoint.inspect import inspect_checkpoint
from bge_runtime.errors import ExportError, HubError


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of one's own, to damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def inspect(folder: Path, **options):
    options.setdefault("pooling", "cls")
    return inspect_checkpoint(folder, source=options.pop("source", str(folder)), **options)


def change_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["BertForSequenceClassification"]}, "reranker"),
        ({"architectures": ["XLMRobertaForSequenceClassification"]}, "reranker"),
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "decoder"),
        (
            {"architectures": ["MistralForSequenceClassification"], "model_type": "mistral"},
            "reranker",
        ),
        ({"architectures": ["CLIPModel"], "model_type": "clip"}, "type 'clip'"),
        ({"is_decoder": True}, "is a decoder"),
        ({"auto_map": {"AutoModel": "code.Model"}, "model_type": "new"}, "trust_remote_code=True"),
    ],
)
def test_other_kinds_of_models_are_refused(checkpoint: Path, changes: dict, message: str):
    change_config(checkpoint, **changes)
    with pytest.raises(ExportError, match=message):
        inspect(checkpoint)


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["BertForMaskedLM"]},
        {"architectures": ["BertForPreTraining"]},
        {"architectures": ["XLMRobertaModel", "XLMRobertaForTokenClassification"]},
        {"architectures": ["BertForSequenceClassification", "BertModel"]},
        {"architectures": None, "auto_map": {}},
        {"auto_map": None},
    ],
)
def test_embedders_that_say_more_of_themselves_are_accepted(checkpoint: Path, changes: dict):
    change_config(checkpoint, **changes)
    assert inspect(checkpoint).model_class == "encoder-only-base"


def test_a_decoder_with_code_of_its_own_is_refused(checkpoint: Path):
    own = {
        "model_type": "mistral",
        "architectures": ["BiMistral"],
        "auto_map": {"AutoModel": "a.B"},
    }
    change_config(checkpoint, **own)
    for trust in (False, True):
        with pytest.raises(ExportError, match=r"brings its own model code .* own mistral"):
            inspect(checkpoint, pooling="last_token", trust_remote_code=trust)
    # What that of a known model computes is known.
    change_config(checkpoint, model_type="qwen2")
    known = "Alibaba-NLP/gte-Qwen2-7B-instruct"
    assert inspect(checkpoint, pooling="last_token", source=known).pooling == "last_token"


@pytest.mark.parametrize("weights", [True, False])
def test_an_adapter_is_refused(checkpoint: Path, weights: bool):
    (checkpoint / "adapter_config.json").write_text("{}")
    if not weights:
        (checkpoint / "config.json").unlink()
        (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ExportError, match=r"LoRA adapter.*merge_and_unload"):
        inspect(checkpoint)


def test_a_finetune_of_flagembedding_holds_its_adapter_merged(checkpoint: Path):
    (checkpoint / "adapter_config.json").write_text("{}")
    shutil.copytree(checkpoint, checkpoint / "merged_model")
    (checkpoint / "merged_model" / "adapter_config.json").unlink()
    with pytest.raises(ExportError, match=r"LoRA adapter.* Pass .*/merged_model, which holds"):
        inspect(checkpoint)
    assert inspect(checkpoint / "merged_model").name == "merged_model"


QWEN3 = "Instruct: Given a web search query, retrieve passages\nQuery:"


@pytest.mark.parametrize(
    ("source", "prompt", "instruction"),
    [
        ("Qwen/Qwen3-Embedding-0.6B", QWEN3, "Given a web search query, retrieve passages"),
        ("Qwen/Qwen3-Embedding-0.6B", "query: ", None),
        ("Qwen/Qwen3-Embedding-0.6B", None, None),
        ("me/mine", QWEN3, QWEN3),
        ("me/mine", "query: ", "query: "),
    ],
)
def test_an_instruction_is_what_the_prompt_holds_besides_its_form(
    checkpoint: Path, source: str, prompt: str | None, instruction: str | None
):
    change_config(checkpoint, model_type="qwen3", architectures=["Qwen3ForCausalLM"])
    (checkpoint / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {} if prompt is None else {"query": prompt}})
    )
    found = inspect(checkpoint, pooling="last_token", source=source)
    assert found.query_instruction == instruction
    if instruction is not None:
        assert found.query_instruction_format.format(instruction, "") == prompt


def test_a_name_known_as_a_decoder_has_to_be_one(checkpoint: Path):
    with pytest.raises(ExportError, match=r"type 'bert'.*decoder-only-icl"):
        inspect(checkpoint, source="BAAI/bge-en-icl")


def test_the_pseudo_moe_class_is_refused_by_name(checkpoint: Path):
    with pytest.raises(ExportError, match="class decoder-only-pseudo_moe, and this version"):
        inspect(checkpoint, model_class="decoder-only-pseudo_moe")


def test_folder_without_config(tmp_path: Path):
    (tmp_path / "README.md").write_text("")
    with pytest.raises(ExportError, match=r"no config\.json"):
        inspect(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "\ud800"])
def test_damaged_config(checkpoint: Path, text: str):
    (checkpoint / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ExportError, match=r"config\.json"):
        inspect(checkpoint)


def test_file_instead_of_folder(checkpoint: Path):
    with pytest.raises(ExportError, match="is a file"):
        inspect(checkpoint / "config.json")


def test_bundle_instead_of_checkpoint(tiny_bundle: Path):
    with pytest.raises(ExportError, match="is a bundle already"):
        inspect(tiny_bundle)


def test_folder_without_weights(checkpoint: Path):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ExportError, match="has no weights"):
        inspect(checkpoint)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_short_safetensors(checkpoint: Path, keep: int):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ExportError, match="is damaged"):
        inspect(checkpoint)


@pytest.mark.parametrize("header", [b"[]", b'{"a": {"data_offsets": []}}', b'{"a": 1}'])
def test_senseless_safetensors(checkpoint: Path, header: bytes):
    content = len(header).to_bytes(8, "little") + header
    (checkpoint / "model.safetensors").write_bytes(content)
    with pytest.raises(ExportError, match="is damaged"):
        inspect(checkpoint)


def test_missing_shard(checkpoint: Path):
    (checkpoint / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ExportError, match=r"model-00001-of-00002\.safetensors.* is missing"):
        inspect(checkpoint)


def write_modules(folder: Path, *kinds: str, package: str = "sentence_transformers.models") -> None:
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"{package}.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))


def write_pooling(folder: Path, config: dict) -> None:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"embedding_dimension": 48, "pooling_mode": "cls"}, "cls"),
        ({"embedding_dimension": 48, "pooling_mode": ["mean"]}, "mean"),
    ],
)
def test_pooling_is_what_the_folder_says(checkpoint: Path, config: dict, pooling: str):
    write_modules(checkpoint, "Transformer", "Pooling", "Normalize")
    write_pooling(checkpoint, config)
    assert inspect(checkpoint, pooling=None).pooling == pooling


def test_pooling_given_wins_over_the_folder(checkpoint: Path):
    write_pooling(checkpoint, {"pooling_mode_mean_tokens": True})
    assert inspect(checkpoint, pooling="cls").pooling == "cls"


@pytest.mark.parametrize(
    "config", [{"pooling_mode_max_tokens": True}, {"pooling_mode": "lasttoken"}, {}]
)
def test_other_pooling_is_refused(checkpoint: Path, config: dict):
    write_pooling(checkpoint, config)
    with pytest.raises(
        ExportError, match=r"this version supports cls, mean|pools the last token of"
    ):
        inspect(checkpoint, pooling=None)


def test_unknown_pooling_is_not_guessed(checkpoint: Path):
    with pytest.raises(ExportError, match="Pass pooling_method="):
        inspect(checkpoint, pooling=None)


def test_pooling_of_a_known_name(checkpoint: Path):
    assert inspect(checkpoint, pooling=None, source="thenlper/gte-base").pooling == "mean"
    found = inspect(checkpoint, pooling=None, source="BAAI/bge-large-zh-v1.5")
    assert (found.pooling, found.query_instruction) == (
        "cls",
        "为这个句子生成表示以用于检索相关文章：",
    )


def test_further_modules_are_refused(checkpoint: Path):
    write_modules(checkpoint, "Transformer", "Pooling", "Dense")
    with pytest.raises(ExportError, match="modules Dense"):
        inspect(checkpoint, pooling=None)


@pytest.mark.parametrize("name", ["bge-m3", "bge-m3-resaved-st5", "bge-small-zh-v1.5"])
def test_pooling_of_published_folders(shared_data: Path, name: str):
    from bge_export.checkpoint.sentence_transformers import read_folder

    assert read_folder(shared_data / "models" / name, name).pooling == "cls"


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "a/b/c", "nowhere"])
def test_unknown_source(source: str):
    with pytest.raises(ExportError, match="neither a folder nor a Hub ID"):
        find_checkpoint(source)


@pytest.mark.parametrize(
    "source", ["bge-base-en-v1.5", "https://huggingface.co/BAAI/bge-base-en-v1.5"]
)
def test_name_without_owner_or_in_an_address_hints_at_the_hub_id(source: str):
    with pytest.raises(ExportError, match=r"did you mean BAAI/bge-base-en-v1\.5"):
        find_checkpoint(source)


def test_revision_of_a_local_folder_is_refused(tiny_checkpoint: Path):
    with pytest.raises(ExportError, match="local path"):
        find_checkpoint(str(tiny_checkpoint), revision="main")


def test_offline_with_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubError, match="--offline forbids"):
        find_checkpoint("BAAI/bge-small-en", offline=True)
