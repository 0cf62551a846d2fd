"""What a checkpoint is taken for, wherever it lies, and that a wrong one costs nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from bge_export.checkpoint.inspect import inspect_checkpoint
from bge_runtime import BGEM3FlagModel, FlagAutoModel, FlagICLModel, FlagLLMModel, FlagModel
from bge_runtime.errors import BundleError, EngineError, ExportError, PrecisionError
from bge_runtime.sources import export_subprocess
from bge_runtime.system import file_hash
from tests.helpers.checkpoints import COMMIT, KINDS, PLACES
from tests.helpers.hub import BARE, local_hub

CLASSES = {cls.__name__: cls for cls in (FlagModel, BGEM3FlagModel, FlagLLMModel, FlagICLModel)}
RENAMED = "my-own-model"


class Exporting(Exception):  # noqa: N818  # no error
    """An exporter would have been started."""


@pytest.fixture
def bundles(monkeypatch, tmp_path):
    """An empty cache, and an exporter that only says how it was called."""

    def run(command, environment):
        raise Exporting(*command[3:])

    monkeypatch.setattr(export_subprocess, "run_export", run)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bge-runtime" / "bundles"


def exported(call) -> dict[str, str]:
    """Return the options that the exporter would have got."""
    with pytest.raises(Exporting) as caught:
        call()
    source, *options = caught.value.args
    return {"source": source, **dict(zip(options[::2], options[1::2], strict=True))}


def identity(checkpoint):
    return (
        checkpoint.name,
        checkpoint.model_class,
        checkpoint.query_instruction,
        checkpoint.query_instruction_format,
    )


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("layout", PLACES.values(), ids=PLACES)
def test_a_published_model_is_recognised_in_every_place(
    bundles, tmp_path, monkeypatch, layout, kind
):
    place = layout(tmp_path, kind)
    kind.write(place.folder)
    monkeypatch.chdir(place.standing_in)
    found = inspect_checkpoint(place.folder, source=place.path)
    assert identity(found) == (kind.name, kind.model_class, kind.instruction, kind.form)
    options = exported(lambda: FlagAutoModel.from_finetuned(place.path))
    assert options["--output"].startswith(f"{bundles / kind.name}-")
    # The exporter's options identify the same class.
    assert identity(inspect_checkpoint(place.folder, source=options["source"])) == identity(found)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("name", [RENAMED, f"models--me--{RENAMED}/snapshots/{COMMIT}"])
def test_files_show_the_class_of_an_unknown_name(bundles, tmp_path, kind, name):
    folder = kind.write(tmp_path / name)
    if kind is KINDS["bert"]:  # nothing says how it pools
        with pytest.raises(ExportError, match="pooling_method='cls'"):
            inspect_checkpoint(folder, source=str(folder))
        with pytest.raises(ExportError, match="pooling_method='cls'"):
            FlagAutoModel.from_finetuned(str(folder))
        return
    found = inspect_checkpoint(folder, source=str(folder))
    assert (found.name, found.model_class) == (RENAMED, kind.model_class)
    said = "query: " if kind is KINDS["sentence-transformers"] else None
    assert found.query_instruction == said
    options = exported(lambda: FlagAutoModel.from_finetuned(str(folder)))
    assert options["--output"].startswith(f"{bundles / RENAMED}-")


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        (
            "bge-m3",
            "bert",
            r"bge-m3, a model of class encoder-only-m3, but lacks sparse_linear\.pt and",
        ),
        ("bge-m3", "decoder", "of type 'gemma2' and class decoder-only-base, but is named"),
        ("bge-base-en-v1.5", "m3", "of type 'xlm-roberta' and class encoder-only-m3, but is named"),
        ("bge-base-en-v1.5", "icl", "class decoder-only-icl, but is named bge-base-en"),
        ("bge-en-icl", "bert", "of type 'bert' and class encoder-only-base, but is named"),
        ("bge-en-icl", "decoder", "of type 'gemma2' and class decoder-only-base, but is named"),
        ("e5-mistral-7b-instruct", "decoder", "of type 'gemma2' .* of class decoder-only-base"),
        (f"models--BAAI--bge-en-icl/snapshots/{COMMIT}", "m3", "is named bge-en-icl"),
        ("bge-m3/checkpoint-4", "sentence-transformers", "of class encoder-only-m3, but lacks"),
    ],
)
def test_a_name_that_contradicts_the_files_is_an_error_or_ignored(
    bundles, tmp_path, name, kind, message
):
    kind = KINDS[kind]
    folder = str(kind.write(tmp_path / name))
    for ask in (
        lambda: inspect_checkpoint(tmp_path / name, source=folder),
        lambda: FlagAutoModel.from_finetuned(folder),
    ):
        with pytest.raises(ExportError, match=message) as caught:
            ask()
        assert f"model_class='{kind.model_class}'" in str(caught.value)
    # Who says which class it is has the model, and nothing that goes with the name.
    found = inspect_checkpoint(tmp_path / name, source=folder, model_class=kind.model_class)
    assert found.query_instruction in (None, "query: ")
    assert found.query_instruction_format == "{}{}"
    opens = next(cls for cls in CLASSES.values() if kind.model_class in cls.MODEL_CLASSES)
    assert exported(lambda: opens(folder))["--model-class"] == kind.model_class


def test_the_heads_of_m3_may_be_in_a_module_folder(tmp_path):
    folder = KINDS["m3"].write(tmp_path / "tuned" / "0_Transformer").parent
    modules = [
        {"path": path, "type": f"sentence_transformers.models.{path[2:]}"}
        for path in ("0_Transformer", "1_Pooling")
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    assert inspect_checkpoint(folder, source=str(folder)).model_class == "encoder-only-m3"


def without_a_head(folder):
    folder = KINDS["m3"].write(folder)
    (folder / "colbert_linear.pt").unlink()
    return folder


WRITERS = {
    **{name: kind.write for name, kind in KINDS.items()},
    "m3 without a head": without_a_head,
}
OPENED = {
    "FlagModel": ("bert", "m3", "sentence-transformers", "m3 without a head"),
    "BGEM3FlagModel": ("m3",),
    "FlagLLMModel": ("decoder", "icl"),
    "FlagICLModel": ("decoder", "icl"),
}


@pytest.mark.parametrize("by_auto", [False, True], ids=["class", "auto"])
@pytest.mark.parametrize("model", WRITERS)
@pytest.mark.parametrize("name", CLASSES)
def test_a_model_of_another_class_is_rejected_before_the_export(
    bundles, tmp_path, monkeypatch, name, model, by_auto
):
    cls = CLASSES[name]
    folder = WRITERS[model](tmp_path / RENAMED)
    path, options = str(folder), {"model_class": cls.MODEL_CLASSES[0]} if by_auto else {}
    opens = FlagAutoModel.from_finetuned if by_auto else cls
    if model in OPENED[name]:
        kind = KINDS.get(model)
        model_class = kind.model_class if kind else "encoder-only-base"
        assert exported(lambda: opens(path, **options))["--model-class"] == model_class
        return
    # Nor are the weights hashed.
    monkeypatch.setattr(file_hash, "remembered_sha256", lambda path: 1 / 0)
    with pytest.raises(BundleError, match=rf"{RENAMED} is a model of class .*Open it with "):
        opens(path, **options)
    assert not bundles.exists()


@pytest.mark.parametrize("model_type", ["llama", "t5", ["bert"], None])
@pytest.mark.parametrize("name", CLASSES)
def test_the_exporter_reports_an_unknown_model_type(bundles, tmp_path, name, model_type):
    folder = KINDS["bert"].write(tmp_path / RENAMED)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    options = exported(lambda: CLASSES[name](str(folder)))
    with pytest.raises(ExportError, match=r"of type|lacks"):
        inspect_checkpoint(folder, source=str(folder), model_class=options["--model-class"])


@pytest.mark.parametrize("name", CLASSES)
def test_a_given_class_brings_flagembeddings_pooling(bundles, tmp_path, upstream, name):
    kind = KINDS[OPENED[name][0]]
    folder = kind.write(tmp_path / "output" / "checkpoint-1200")
    cls = CLASSES[name]
    theirs = getattr(upstream, name).DEFAULT_POOLING_METHOD
    options = exported(lambda: cls(str(folder)))
    assert "--pooling" not in options  # the folder may say
    for model_class in (options["--model-class"], kind.model_class):
        found = inspect_checkpoint(folder, source=str(folder), model_class=model_class)
        assert found.pooling == theirs
    if name == "FlagModel":
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
        found = inspect_checkpoint(folder, source=str(folder), model_class=kind.model_class)
        assert found.pooling == "mean"


def test_a_bundle_with_a_classs_default_pooling_is_not_used_without_that_class(bundles, tmp_path):
    folder = str(KINDS["bert"].write(tmp_path / RENAMED))
    entry = exported(lambda: FlagModel(folder))["--output"]
    assert exported(lambda: FlagModel(folder, pooling_method="cls"))["--output"] != entry
    shutil.copytree(folder, entry)  # as if it had been exported
    with pytest.raises(ExportError, match="nothing says how"):
        FlagAutoModel.from_finetuned(folder)


@pytest.mark.parametrize(
    ("kind", "ways"),
    [
        ("m3", [(FlagModel, {}), (BGEM3FlagModel, {}), (FlagAutoModel.from_finetuned, {})]),
        ("icl", [(FlagLLMModel, {}), (FlagICLModel, {}), (FlagAutoModel.from_finetuned, {})]),
        (
            "sentence-transformers",
            [
                (FlagModel, {"use_fp16": False}),
                (FlagModel, {"precision": "fp32", "engine": "onnxruntime"}),
                (FlagAutoModel.from_finetuned, {"model_class": "encoder-only-base"}),
            ],
        ),
    ],
)
def test_every_class_that_opens_a_model_shares_its_bundle(bundles, tmp_path, kind, ways):
    folder = str(KINDS[kind].write(tmp_path / RENAMED))
    outputs = {
        exported(lambda: opens(folder, **options))["--output"]  # noqa: B023
        for opens, options in ways
    }
    assert len(outputs) == 1


def test_the_same_files_with_another_name_are_another_bundle(bundles, tmp_path):
    # An instruction goes with the name.
    folders = [KINDS["bert"].write(tmp_path / name) for name in (RENAMED, "bge-base-en-v1.5")]
    folders.append(KINDS["bert"].write(tmp_path / "bge-base-en" / "checkpoint-1"))
    folders.append(KINDS["bert"].write(tmp_path / "other" / "checkpoint-1"))
    outputs = {exported(lambda: FlagModel(str(f)))["--output"] for f in folders}  # noqa: B023
    assert len(outputs) == len(folders)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": "fp16"}, PrecisionError, "exported in fp32, bf16, int8"),
        ({"precision": "int7"}, PrecisionError, "'int7' on cpu"),
        ({"use_bf16": True, "engine": "onnxruntime"}, PrecisionError, "engine 'onnxruntime'"),
        ({"engine": "tensorrt"}, EngineError, "exported for onnxruntime, openvino there"),
        ({"engine": "mxnet"}, EngineError, "unknown engine 'mxnet'"),
        ({"devices": "npu"}, EngineError, "exported for cpu, cuda"),
        ({"devices": "cuda", "engine": "openvino"}, EngineError, "for onnxruntime, tensorrt there"),
    ],
)
def test_what_no_export_provides_is_rejected_before_the_export(
    bundles, tmp_path, options, error, message
):
    folder = str(KINDS["bert"].write(tmp_path / RENAMED))
    for opens in (FlagModel, FlagAutoModel.from_finetuned):
        with pytest.raises(error, match=message):
            opens(folder, **{"pooling_method": "cls", **options})
    assert not bundles.exists()


def test_what_this_machine_cannot_run_is_rejected_before_the_export(bundles, tmp_path, monkeypatch):
    from bge_runtime.sources import export_targets

    monkeypatch.setattr(
        export_targets, "unavailable_reason", lambda variant: f"no {variant.engine} here"
    )
    folder = str(KINDS["bert"].write(tmp_path / RENAMED))
    with pytest.raises(EngineError, match=r"no onnxruntime here.*Nothing was exported"):
        FlagModel(folder, devices="cuda:1")
    assert not bundles.exists()


@pytest.mark.parametrize(
    ("kind", "options", "graphs"),
    [
        ("bert", {"precision": "int8"}, ["cpu", "int8"]),
        ("decoder", {"precision": "int4"}, ["cpu", "int4"]),
        ("bert", {"devices": ["cuda:0", "cuda:1"]}, ["cuda", "fp16"]),
        ("decoder", {"devices": "cuda"}, ["cuda", "bf16"]),
        ("decoder", {"devices": "cuda", "engine": "tensorrt"}, ["tensorrt", "bf16"]),
        ("m3", {"devices": ["cpu", 0]}, ["cpu", "fp32", "cuda", "fp16"]),
        ("bert", {"use_bf16": True}, []),
        ("decoder", {"use_bf16": True}, []),
    ],
)
def test_an_export_has_the_requested_graphs(bundles, tmp_path, monkeypatch, kind, options, graphs):
    from bge_runtime.sources import export_targets

    monkeypatch.setattr(export_targets, "unavailable_reason", lambda variant: None)
    kind = KINDS[kind]
    opens = next(cls for cls in CLASSES.values() if kind.model_class in cls.MODEL_CLASSES)
    folder = str(kind.write(tmp_path / RENAMED))
    with pytest.raises(Exporting) as caught:
        opens(folder, **options)
    words = caught.value.args[3:]
    assert [
        value
        for option, value in zip(words[::2], words[1::2], strict=True)
        if option in ("--target", "--precision")
    ] == graphs
    plain = exported(lambda: opens(folder))["--output"]
    assert (caught.value.args[2] == plain) == (not graphs)


def test_the_table_of_export_targets_matches_the_exporters():
    from bge_export.targets import (
        DECODER_TARGETS,
        ENCODER_TARGETS,
        for_model,
        select_decoder_targets,
        select_encoder_targets,
    )
    from bge_runtime.sources.export_targets import _DECODERS, _ENCODERS, _M3

    def ways(targets):
        return {(t.device, engine, form) for t in targets for _, engine, form in t.variants}

    m3 = [for_model(target, 8192, heads=True) for target in ENCODER_TARGETS]
    for table, targets, select in (
        (_ENCODERS, ENCODER_TARGETS, select_encoder_targets),
        (_M3, m3, select_encoder_targets),
        (_DECODERS, DECODER_TARGETS, select_decoder_targets),
    ):
        assert {(way.device, way.engine, way.precision) for way in table} == ways(targets)
        unasked = {(w.device, w.engine, w.precision) for w in table if w.by_default}
        assert unasked == ways(select([], []))
        for way in table:
            chosen = select([way.target], [way.precision])
            assert (way.device, way.engine, way.precision) in ways(chosen) | unasked


def test_files_show_the_class_of_an_unknown_model_on_the_hub(tmp_path):
    program = """
import sys
from bge_runtime import BGEM3FlagModel, FlagAutoModel, FlagModel
from bge_runtime.sources import export_subprocess
from bge_runtime.system import file_hash
def run(command, environment):
    raise LookupError(" ".join(command[3:]))
export_subprocess.run_export = run
for call in (FlagAutoModel.from_finetuned, FlagModel, BGEM3FlagModel):
    for name in ("me/tuned", "me/plain"):
        try:
            call(name)
        except Exception as error:
            print(type(error).__name__, error)
"""
    tuned, plain = KINDS["m3"], KINDS["sentence-transformers"]
    with local_hub() as hub:
        for kind, name in ((tuned, "me/tuned"), (plain, "me/plain")):
            hub.add_folder(name, kind.write(tmp_path / name))
        command = [sys.executable, "-W", "ignore", "-c", program]
        settings = {**hub.environment(tmp_path), **BARE}
        said = []
        for offline in ({}, {}, {"HF_HUB_OFFLINE": "1"}):
            hub.requests.clear()
            done = subprocess.run(
                command, env={**settings, **offline}, capture_output=True, text=True, check=True
            )
            said.append((done.stdout.splitlines(), len(hub.requests)))
        assert not [line for line in hub.requests if "safetensors" in line]
    lines = said[0][0]
    assert "bundles/tuned-" in lines[0]
    assert "bundles/plain-" in lines[1]
    assert lines[2].endswith("--model-class encoder-only-m3")
    assert lines[3].endswith("--model-class encoder-only-base")
    assert lines[4].endswith("--model-class encoder-only-m3")
    assert lines[5].startswith("BundleError plain is a model of class encoder-only-base and has no")
    assert [each for each, _ in said] == [lines] * 3
    # One question each for news: what a commit holds is fetched once.
    assert (said[1][1], said[2][1]) == (6, 0)
