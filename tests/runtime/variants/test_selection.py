"""Which variant is selected for CUDA graphs, and that it is never selected alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bge_runtime.bundle.bundle import Bundle
from bge_runtime.bundle.parity import Parity
from bge_runtime.errors import EngineError
from bge_runtime.variants.selection import select_cuda_graph_variant, select_variant
from tests.helpers.gpu import find_variant


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
