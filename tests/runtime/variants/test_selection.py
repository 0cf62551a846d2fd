"""Which variant is selected: one of a newer version never, nor one for CUDA graphs alone."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest

from bge_runtime import FlagModel
from bge_runtime.bundle.bundle import Bundle
from bge_runtime.bundle.manifest import Requirement
from bge_runtime.bundle.parity import Parity
from bge_runtime.engines import open_engine, unavailable_reason
from bge_runtime.errors import BundleError, DeviceError, EngineError, PrecisionError
from bge_runtime.variants.selection import (
    judge_variants,
    select_cuda_graph_variant,
    select_variant,
)
from tests.helpers.gpu import find_variant
from tests.helpers.runtime import edit_manifest


@pytest.fixture(scope="module")
def bundle(tiny_gpu_bundle):
    return tiny_gpu_bundle


def test_cuda_graphs_need_a_variant_that_passes_the_parity_check(bundle, monkeypatch):
    opened = Bundle.open(bundle)
    packed = find_variant(bundle, "cuda-fp16")
    near = Parity(texts=3, min_cosine=1.0, mean_cosine=1.0, max_error=0.0, error_share=0.0)
    measured = []

    def measure(of, even):
        measured.append(even.name)
        return near

    monkeypatch.setattr("bge_runtime.variants.selection.unavailable_reason", lambda _: None)
    monkeypatch.setattr("bge_runtime.variants.selection.cached_parity", measure)
    assert select_cuda_graph_variant(opened, packed).name == "cuda-even-fp16"
    near = replace(near, min_cosine=0.99)
    with pytest.raises(EngineError, match=r"cuda-even-fp16.*fails the parity check.*0\.99"):
        select_cuda_graph_variant(opened, packed)
    assert measured == ["cuda-even-fp16"] * 2
    with pytest.raises(EngineError, match="no graph for them to go with variant 'cuda-bf16'"):
        select_cuda_graph_variant(opened, replace(packed, name="cuda-bf16", precision="bf16"))
    with pytest.raises(EngineError, match="'tensorrt-fp16' is tensorrt's on cuda"):
        select_cuda_graph_variant(opened, find_variant(bundle, "tensorrt-fp16"))


def test_a_variant_for_cuda_graphs_is_never_selected_alone(bundle, monkeypatch):
    monkeypatch.setattr("bge_runtime.variants.selection.unavailable_reason", lambda _: None)
    monkeypatch.setattr(
        "bge_runtime.variants.selection._passes_parity", lambda _, v: v.engine == "tensorrt"
    )
    assert select_variant(Bundle.open(bundle), device="cuda").name == "tensorrt-fp16"


def with_variants(bundle, *variants):
    """Return an opened bundle with other variants."""
    return replace(bundle, manifest=replace(bundle.manifest, variants=variants))


def test_a_message_lists_only_devices_that_can_be_chosen(bundle):
    opened = Bundle.open(bundle)
    graphs, cpu = find_variant(bundle, "cuda-even-fp16"), find_variant(bundle, "cpu-fp32")
    with pytest.raises(DeviceError, match=r"has variants for cpu only\. Pass devices='cpu',"):
        select_variant(with_variants(opened, graphs, cpu), device="cuda")
    for device in ("cpu", "cuda"):
        with pytest.raises(BundleError, match="has only a graph for CUDA graphs"):
            select_variant(with_variants(opened, graphs), device=device)


NEWER = {
    "precision": Requirement("onnxruntime", "cpu", "fp8"),
    "engine": Requirement("mxnet", "cpu", "fp32"),
    "precision of an engine": Requirement("openvino", "cpu", "fp16"),
    "device": Requirement("openvino", "npu", "fp32"),
}
"""What a newer bge-runtime may run, and this one does not."""


@pytest.fixture
def newer(bundle_copy):
    """A function that puts a variant before those of a bundle, and returns the bundle's folder."""

    def make(needed):
        def change(data):
            first = data["variants"][0]
            data["variants"].insert(0, {**first, "name": "newer", **needed._asdict()})

        edit_manifest(bundle_copy, change)
        return str(bundle_copy)

    return make


@pytest.mark.parametrize("needed", NEWER.values(), ids=NEWER)
def test_a_variant_of_a_newer_version_is_passed_over(newer, tiny_bundle, needed):
    chosen = FlagModel(newer(needed)).engine.info.variant
    assert chosen == FlagModel(str(tiny_bundle)).engine.info.variant


@pytest.mark.parametrize(
    ("new", "options", "error", "message"),
    [
        ("precision", {"precision": "fp8"}, PrecisionError, "has no precision 'fp8', only fp32, "),
        ("engine", {"engine": "mxnet"}, EngineError, "unknown engine 'mxnet'; this bge-runtime"),
        ("precision of an engine", {"precision": "fp16"}, DeviceError, "requested fp16 on 'cpu'"),
        ("device", {"devices": "npu"}, DeviceError, "serves cpu only, not 'npu'"),
    ],
)
def test_a_variant_of_a_newer_version_is_refused_by_name(newer, new, options, error, message):
    with pytest.raises(error, match=message):
        FlagModel(newer(NEWER[new]), **options)


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        ("precision", "this bge-runtime has no precision 'fp8', only fp32"),
        ("engine", "this bge-runtime has no engine 'mxnet', only onnxruntime"),
        ("device", "openvino engine serves cpu only, not 'npu'"),
    ],
)
def test_what_needs_a_newer_version_is_a_reason_and_an_error(tiny_bundle, new, reason):
    assert reason in str(unavailable_reason(NEWER[new]))
    opened = Bundle.open(tiny_bundle)
    changed = replace(opened.manifest.variants[0], **NEWER[new]._asdict())
    with pytest.raises(EngineError, match=reason):
        open_engine(opened, changed)


@pytest.mark.parametrize("failing", [(), (0,), (0, 1), (0, 1, 2)])
def test_the_first_variant_without_an_objection_is_the_one_selected(tiny_bundle, failing):
    opened = Bundle.open(tiny_bundle)
    (fp32,) = (each for each in opened.manifest.variants if each.name == "cpu-fp32")
    near = Parity(texts=3, min_cosine=1.0, mean_cosine=1.0, max_error=0.0, error_share=0.0)
    listed = [
        replace(
            fp32,
            name=f"{number}-{precision}",
            precision=precision,
            parity=replace(near, min_cosine=0.5) if number in failing else near,
        )
        for number, precision in enumerate(["int8", "fp32", "fp32"])
    ]
    bundle = with_variants(opened, *listed)
    judged = list(judge_variants(bundle, device="cpu"))
    assert [each.variant for each in judged] == listed
    assert [each.on_request for each in judged] == [0 not in failing, False, False]
    chosen = [each.variant for each in judged if each.objection is None]
    if chosen:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # variants are skipped
            assert select_variant(bundle, device="cpu") == chosen[0]
    else:
        with pytest.warns(UserWarning, match="skipping"), pytest.raises(PrecisionError):
            select_variant(bundle, device="cpu")
