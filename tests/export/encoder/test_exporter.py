"""What an export writes, refuses to write, and leaves behind when it fails."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bge_export.bundle import Progress
from bge_export.bundle.staging import commit_directory
from bge_runtime import FlagModel
from bge_runtime.bundle.bundle import Bundle
from bge_runtime.errors import ExportError
from tests.helpers.bundles import TINY, export, write_tiny_bert


def test_bundle_holds_what_its_manifest_says(tiny_bundle: Path):
    bundle = Bundle.open(tiny_bundle)
    files = {
        path.relative_to(tiny_bundle).as_posix()
        for path in tiny_bundle.rglob("*")
        if path.is_file()
    }
    assert files == {"bge.json", *bundle.manifest.files}
    assert {
        "onnx/model.onnx",
        "onnx/model.onnx_data",
        "onnx/model_cpu_fp32.onnx",
        "parity.npz",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "modules.json",
        "1_Pooling/config.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
    } <= files


def test_manifest_states_the_model(tiny_bundle: Path, tiny_checkpoint: Path):
    manifest = Bundle.open(tiny_bundle).manifest
    assert manifest.model.name == "tiny"
    assert manifest.model.dim == TINY.hidden_size
    assert manifest.model.max_length == 512
    assert manifest.model.pooling == "cls"
    assert [variant.name for variant in manifest.variants] == [
        "cpu-fp32",
        "openvino-fp32",
        "portable-fp32",
    ]
    for variant in manifest.variants:
        assert variant.parity is not None
        assert not variant.parity.failures("fp32")
    assert manifest.provenance.source == str(tiny_checkpoint)
    assert manifest.provenance.random_seed is None
    assert manifest.provenance.weights_sha256.keys() == {"model.safetensors"}


def test_portable_graph_is_what_other_tools_expect(tiny_bundle: Path):
    import onnx

    model = onnx.load(tiny_bundle / "onnx/model.onnx", load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert [value.name for value in model.graph.output] == [
        "last_hidden_state",
        "sentence_embedding",
    ]
    assert [value.name for value in model.graph.input] == [
        "input_ids",
        "attention_mask",
        "token_type_ids",
    ]
    onnx.checker.check_model(str(tiny_bundle / "onnx/model.onnx"), full_check=True)


def test_graphs_share_one_weight_file(tiny_bundle: Path):
    import onnx

    for name in ("model.onnx", "model_cpu_fp32.onnx"):
        model = onnx.load(tiny_bundle / "onnx" / name, load_external_data=False)
        places = {
            entry.value
            for tensor in model.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        assert places == {"model.onnx_data"}
        # What stays inline is shapes and scalars.
        assert (tiny_bundle / "onnx" / name).stat().st_size < 100_000


def test_tokenizer_is_written_without_padding_and_truncation(
    minilm_bundle: Callable[[str], Path],
):
    tokenizer = json.loads((minilm_bundle("mean") / "tokenizer.json").read_text())
    assert tokenizer["padding"] is None
    assert tokenizer["truncation"] is None


@pytest.fixture
def no_leftovers(tmp_path: Path):
    """Check that a failed export leaves nothing behind."""
    (tmp_path / "out").mkdir()
    yield tmp_path / "out" / "bundle"
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "module",
    ["encoder.write.ir.save", "bundle.finish.file_hash.file_sha256", "bundle.gate.measure_parity"],
)
def test_failure_leaves_nothing(
    tiny_checkpoint: Path, no_leftovers: Path, module: str, monkeypatch: pytest.MonkeyPatch
):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"bge_export.{module}", full)
    with pytest.raises(ExportError, match="No space left on device"):
        export(tiny_checkpoint, no_leftovers)


def test_interrupt_leaves_nothing(
    tiny_checkpoint: Path, no_leftovers: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("bge_export.encoder.exporter.check_variant", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(tiny_checkpoint, no_leftovers)


def test_target_whose_engine_is_missing_is_refused_at_once(
    tiny_checkpoint: Path, no_leftovers: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ExportError, match="leave it out with --target cpu"):
        export(tiny_checkpoint, no_leftovers, targets=())


def test_too_little_space_is_found_at_once(
    tiny_checkpoint: Path, no_leftovers: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(ExportError, match="MB free"):
        export(tiny_checkpoint, no_leftovers)


@pytest.mark.parametrize("parent", ["/proc/nowhere", "/dev/null/below"])
def test_unwritable_output(tiny_checkpoint: Path, parent: str):
    with pytest.raises(ExportError, match="cannot write"):
        export(tiny_checkpoint, Path(parent) / "bundle")


def test_existing_bundle_is_kept_without_force(tiny_checkpoint: Path, bundle_copy: Path):
    before = (bundle_copy / "bge.json").stat()
    with pytest.raises(ExportError, match="is a bundle already; pass --force"):
        export(tiny_checkpoint, bundle_copy)
    assert (bundle_copy / "bge.json").stat() == before


def test_force_replaces_a_bundle(tiny_checkpoint: Path, bundle_copy: Path):
    export(tiny_checkpoint, bundle_copy, pooling="mean", force=True)
    assert Bundle.open(bundle_copy).manifest.model.pooling == "mean"
    assert [path.name for path in bundle_copy.parent.iterdir()] == ["bundle"]


def test_force_deletes_nothing_of_others(tiny_checkpoint: Path, bundle_copy: Path):
    (bundle_copy / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"also holds notes\.txt"):
        export(tiny_checkpoint, bundle_copy, force=True)
    assert (bundle_copy / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("force", [False, True])
def test_other_folders_are_never_written_over(tiny_checkpoint: Path, tmp_path: Path, force: bool):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ExportError, match="is not a bundle"):
        export(tiny_checkpoint, tmp_path, force=force)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_failed_force_keeps_the_old_bundle(
    tiny_checkpoint: Path, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("bge_export.encoder.exporter.check_variant", fail)
    with pytest.raises(ExportError, match="Input/output error"):
        export(tiny_checkpoint, bundle_copy, force=True)
    assert FlagModel(str(bundle_copy)).encode("still here").shape == (TINY.hidden_size,)


def test_weights_of_another_architecture_are_refused(tiny_checkpoint: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    weights = load_file(checkpoint / "model.safetensors")
    weights.pop("encoder.layer.1.attention.self.query.weight")
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"lacks encoder\.layer\.1\.attention\.self\.query"):
        export(checkpoint, tmp_path / "bundle")


def test_pickled_weights_are_loaded_without_running_code(tiny_checkpoint: Path, tmp_path: Path):
    import torch
    from safetensors.torch import load_file

    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    torch.save(weights, checkpoint / "pytorch_model.bin")
    bundle = export(checkpoint, tmp_path / "bundle")
    assert FlagModel(str(bundle)).encode("text").shape == (TINY.hidden_size,)

    marker = tmp_path / "ran"
    torch.save({**weights, "evil": _Evil(marker)}, checkpoint / "pytorch_model.bin")
    with pytest.raises(ExportError, match="a pickle that holds more than tensors and may run code"):
        export(checkpoint, tmp_path / "evil")
    assert not marker.exists()


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def xlm_roberta(folder: Path) -> Path:
    """Write a tiny XLM-R with a Unigram tokenizer trained on the parity texts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

    from bge_export.parity_texts import PARITY_TEXTS
    from bge_export.synthetic.encoder import widen

    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=600, special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(PARITY_TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=128,
    )
    config = XLMRobertaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=130,
        type_vocab_size=1,
        pad_token_id=1,
    )
    model = XLMRobertaModel(config, add_pooling_layer=False)
    widen(model, seed=1)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_xlm_roberta(tmp_path: Path, pooling: str):
    bundle = export(xlm_roberta(tmp_path / "xlmr"), tmp_path / "bundle", pooling=pooling)
    manifest = Bundle.open(bundle).manifest
    # Positions are counted from the padding id on: 130 rows serve 128 tokens.
    assert manifest.model.max_length == 128
    assert manifest.model.pad_token_id == 1
    assert manifest.graphs["portable"].inputs == ("input_ids", "attention_mask")
    model = FlagModel(str(bundle))
    texts = ["a", "longer than the other one, by some words", "好"]
    alone = np.stack([model.encode(text, max_length=128) for text in texts])
    # Batch mates change the order of additions, not the sums.
    np.testing.assert_allclose(model.encode(texts, max_length=128), alone, atol=1e-6)


_CUSTOM_CODE = """
from transformers import BertModel, BertConfig

class OwnConfig(BertConfig):
    model_type = "own"

class OwnModel(BertModel):
    config_class = OwnConfig
"""


def test_remote_code_runs_only_when_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    checkpoint = write_tiny_bert(tmp_path / "own", layers=1)
    (checkpoint / "code.py").write_text(_CUSTOM_CODE)
    config = json.loads((checkpoint / "config.json").read_text())
    auto_map = {"AutoConfig": "code.OwnConfig", "AutoModel": "code.OwnModel"}
    config |= {"model_type": "own", "architectures": ["OwnModel"], "auto_map": auto_map}
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match="trust_remote_code=True"):
        export(checkpoint, tmp_path / "bundle")

    from bge_export.bundle import ExportOptions
    from bge_export.checkpoint.inspect import inspect_checkpoint
    from bge_export.encoder.exporter import export_encoder
    from bge_export.targets import select_encoder_targets

    inspected = inspect_checkpoint(
        checkpoint, source=str(checkpoint), pooling="cls", trust_remote_code=True
    )
    options = ExportOptions(trust_remote_code=True)
    export_encoder(inspected, tmp_path / "bundle", select_encoder_targets([], []), options)
    assert Bundle.open(tmp_path / "bundle").manifest.model.architecture == "own"


def test_folder_that_appears_during_the_export_is_kept(tiny_checkpoint: Path, tmp_path: Path):
    output = tmp_path / "bundle"

    class Intruder(Progress):
        def step(self, message: str) -> None:
            if message.startswith("putting"):
                output.mkdir()
                (output / "thesis.tex").write_text("years of work")

    with pytest.raises(ExportError, match="is not a bundle"):
        export(tiny_checkpoint, output, progress=Intruder())
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (output / "thesis.tex").read_text() == "years of work"


def test_link_to_a_bundle_stays_a_link(tiny_checkpoint: Path, bundle_copy: Path, tmp_path: Path):
    (tmp_path / "current").symlink_to(bundle_copy)
    export(tiny_checkpoint, tmp_path / "current", pooling="mean", force=True)
    assert (tmp_path / "current").is_symlink()
    assert Bundle.open(bundle_copy).manifest.model.pooling == "mean"


def test_current_folder_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match="is the current folder"):
        export(tiny_checkpoint, Path())


@pytest.mark.parametrize("content", [b"{", b"\xff"])
def test_damaged_bundle_is_not_written_over(
    tiny_checkpoint: Path, bundle_copy: Path, content: bytes
):
    (bundle_copy / "bge.json").write_bytes(content)
    with pytest.raises(ExportError, match="delete it, or choose another --output"):
        export(tiny_checkpoint, bundle_copy, force=True)


def test_tokenizer_that_the_runtime_reads_otherwise_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from bge_export.bundle import parity_tokens

    encode = parity_tokens.TextTokenizer.encode

    def one_token_less(self, texts, **options):
        return [ids[:-1] for ids in encode(self, texts, **options)]

    monkeypatch.setattr(parity_tokens.TextTokenizer, "encode", one_token_less)
    with pytest.raises(ExportError, match="otherwise than the checkpoint's"):
        export(tiny_checkpoint, tmp_path / "bundle")


@pytest.mark.parametrize("damage", ["cut", "no padding token"])
def test_unusable_tokenizer(tiny_checkpoint: Path, tmp_path: Path, damage: str):
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    path = checkpoint / "tokenizer.json"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:500])
    else:
        # transformers 5 has what it says in tokenizer_config.json alone.
        (checkpoint / "special_tokens_map.json").unlink(missing_ok=True)
        config = json.loads((checkpoint / "tokenizer_config.json").read_text())
        config.pop("pad_token")
        (checkpoint / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match="tokenizer"):
        export(checkpoint, tmp_path / "bundle")


def test_sentence_transformers_folder_of_the_old_layout(tiny_checkpoint: Path, tmp_path: Path):
    root = tmp_path / "st"
    shutil.copytree(tiny_checkpoint, root / "0_Transformer")
    modules = [
        {"type": "sentence_transformers.models.Transformer", "path": "0_Transformer"},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
    ]
    (root / "modules.json").write_text(json.dumps(modules))
    (root / "1_Pooling").mkdir()
    (root / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (root / "config_sentence_transformers.json").write_text('{"prompts": {"query": "find: "}}')
    manifest = Bundle.open(export(root, tmp_path / "bundle", pooling=None)).manifest
    assert (manifest.model.name, manifest.model.pooling) == ("st", "mean")
    assert manifest.model.query_instruction == "find: "
    assert manifest.provenance.source == str(root)


def test_a_token_without_an_embedding_is_refused(tiny_checkpoint: Path, tmp_path: Path):
    from transformers import AutoTokenizer

    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.add_tokens(["<acme>"])
    tokenizer.save_pretrained(checkpoint)
    with pytest.raises(ExportError, match=r"1 tokens that its model has no embedding.*'<acme>'"):
        export(checkpoint, tmp_path / "bundle")


def test_an_end_between_two_renames_brings_the_old_bundle_back(
    bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    draft = shutil.copytree(bundle_copy, tmp_path / "draft")
    rename = Path.rename

    def ended(self: Path, target: Path) -> None:
        rename(self, target)
        if self == bundle_copy:  # a signal's handler raises when the call returns
            raise SystemExit(143)

    monkeypatch.setattr(Path, "rename", ended)
    with pytest.raises(SystemExit):
        commit_directory(draft, bundle_copy, force=True)
    monkeypatch.undo()
    assert (bundle_copy / "bge.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == [bundle_copy.name, "draft"]
