"""``bge-runtime doctor --speed``: every variant's speed here, and which one is chosen."""

from __future__ import annotations

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from bge_runtime import FlagModel
from bge_runtime.bundle import Bundle, Parity, Variant
from bge_runtime.cli import doctor
from bge_runtime.cli.speed import command
from bge_runtime.cli.speed.process import VariantProcess
from bge_runtime.cli.speed.texts import TEXTS, sample_texts
from bge_runtime.engines import openvino
from bge_runtime.errors import BgeError, EngineError
from bge_runtime.variants import JudgedVariant
from tests.helpers.rerankers import reranker_bundle
from tests.helpers.runtime import edit_manifest


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Measure for a moment only."""
    monkeypatch.setattr(command, "_MEASURING_S", 0.05)


def examine(bundle):
    return CliRunner().invoke(doctor.main, ["doctor", "--speed", str(bundle)])


def row(output, start):
    (line,) = (line for line in output.splitlines() if line.startswith(f"{start} "))
    return line.split()


def test_every_variant_is_measured_and_the_chosen_one_is_what_runs(full_tiny_bundle):
    result = examine(full_tiny_bundle)
    assert result.exit_code == 0, result.output
    chosen = FlagModel(str(full_tiny_bundle)).engine.info.variant
    assert row(result.output, chosen)[-1] == "chosen"
    assert f"On cpu, precision='auto' chooses {chosen}, " in result.output
    for variant in Bundle.open(full_tiny_bundle).manifest.variants:
        cells = row(result.output, variant.name)
        if variant.name == "portable-fp32":
            assert "is not measured: cpu-fp32 has the same engine" in result.output
        elif cells[1:4] != ["is", "not", "measured:"]:
            assert cells[1] == variant.engine
            rate, query_ms, peak_mb = map(float, cells[3:6])
            assert rate > 0
            assert query_ms > 0
            assert peak_mb > 10
            assert cells[6] == variant.parity.cells()[0]
            assert variant.name == chosen or cells[7:] == ["proven,", "listed", "later"]
    assert "requested" not in result.output  # the table of what would run with other options


def test_a_processor_without_bf16_is_why_bf16_is_not_chosen(full_tiny_bundle, monkeypatch):
    monkeypatch.setattr(openvino, "cpu_capabilities", lambda: ("FP32",))
    result = examine(full_tiny_bundle)
    assert result.exit_code == 0, result.output
    reason = "openvino-bf16 is not measured: this processor does not compute in bf16"
    assert reason in result.output
    assert row(result.output, "cpu-fp32")[-1] == "chosen"


def test_a_variant_that_fails_the_parity_check_is_measured_and_not_chosen(
    full_tiny_bundle, tmp_path
):
    bundle = shutil.copytree(full_tiny_bundle, tmp_path / "copied")

    def fail_first(data):
        for variant in data["variants"]:
            if variant["name"] != "openvino-fp32":
                figures = {"texts": 3, "mean_cosine": 1.0, "max_error": 0.0, "error_share": 0.0}
                variant["parity"] = {**figures, "min_cosine": 0.5}

    edit_manifest(bundle, fail_first)
    result = examine(bundle)
    assert result.exit_code == 0, result.output
    assert "fails the parity check: minimum cosine 0.5" in result.output
    assert row(result.output, "openvino-fp32")[-1] == "chosen"


def test_a_reranker_is_measured_with_pairs(made_once):
    result = examine(reranker_bundle("bert"))
    assert result.exit_code == 0, result.output
    assert "pairs/s" in result.output
    assert "one pair, ms" in result.output
    assert "rank correlation" in result.output
    assert row(result.output, "cpu-fp32")[-1] == "chosen"


def test_a_decoder_is_measured(decoder):
    result = examine(decoder.bundle)
    assert result.exit_code == 0, result.output
    assert "texts/s" in result.output
    assert "chosen" in result.output


def test_without_memory_a_variant_is_left_out(full_tiny_bundle, monkeypatch):
    monkeypatch.setattr(command, "available_memory", lambda: 1000)
    result = examine(full_tiny_bundle)
    assert result.exit_code == 1
    assert "beside the others, and 0 MB of memory are free" in result.output
    assert "which is not measured" in result.output


def test_what_is_no_bundle_is_an_error(tiny_checkpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    result = examine(tiny_checkpoint)
    assert result.exit_code == 1
    assert "FAIL: no bundle at" in result.output


def test_a_process_raises_the_errors_of_its_model_and_tells_how_it_ended(full_tiny_bundle):
    bundle = Bundle.open(full_tiny_bundle)
    (variant,) = (each for each in bundle.manifest.variants if each.name == "cpu-fp32")
    with VariantProcess(bundle, replace(variant, precision="fp8"), device="cpu") as process:
        for _ in range(2):
            with pytest.raises(BgeError, match="unknown precision 'fp8'"):
                process.corpus_s(1)
        process._process.kill()
        with pytest.raises(EngineError, match="the process of cpu-fp32 ended with status -9"):
            process.corpus_s(1)
    assert not process._process.is_alive()


def test_the_texts_are_always_the_same_and_of_mixed_lengths():
    texts = sample_texts()
    assert texts == sample_texts()
    assert len(texts) == len(set(texts)) == TEXTS
    words = [len(text.split()) for text in texts]
    assert min(words) < 10
    assert max(words) > 300
    # The first ones tell how many of them there is time for.
    assert sum(words) / TEXTS == pytest.approx(sum(words[:4]) / 4, rel=0.25)


PROVEN = Parity(texts=3, min_cosine=1.0, mean_cosine=1.0, max_error=0.0, error_share=0.0)


def measured(name, rates, *, on_request=False):
    engine, precision = name.split("-")
    variant = Variant(
        name=name, graph="g", engine=engine, device="cpu", precision=precision, parity=PROVEN
    )
    judged = JudgedVariant(
        variant=variant,
        objection="only on request" if on_request else None,
        parity=PROVEN,
        on_request=on_request,
    )
    return command._Measured(judged=judged, process=SimpleNamespace(), rates=list(rates))


@pytest.mark.parametrize(
    ("fp32", "int8", "told"),
    [
        ((90, 80, 95), (99, 80, 90), ["openvino-bf16, the fastest that it may choose"]),
        # Faster once, by chance.
        ((90, 300, 95), (300, 80, 90), ["openvino-bf16, the fastest that it may choose"]),
        (
            (120, 110, 120),
            (100, 90, 90),
            [
                "openvino-bf16, but onnxruntime-fp32, which is proven as well, is 1.20 times",
            ],
        ),
        (
            (120, 110, 120),
            (240, 200, 240),
            [
                "here. To run that, pass engine='onnxruntime' and precision='fp32'.",
                "openvino-int8 is 2.00 times as fast as onnxruntime-fp32: pass engine='openvino'",
            ],
        ),
    ],
)
def test_it_is_said_plainly_where_another_variant_is_faster(fp32, int8, told):
    bf16 = measured("openvino-bf16", (100, 90, 100))
    others = [measured("onnxruntime-fp32", fp32), measured("openvino-int8", int8, on_request=True)]
    lines = list(command._conclusions([bf16, *others], bf16.judged, "cpu"))
    assert len(lines) == len(told)
    for line, part in zip(lines, told, strict=True):
        assert part in line


def test_a_busy_machine_is_noted():
    assert command._notes([measured("openvino-bf16", (100, 90, 100, 95))]) == []
    (note,) = command._notes([measured("openvino-bf16", (100, 30, 100, 90, 40))])
    assert "times as fast as others. Something else keeps this machine busy" in note
