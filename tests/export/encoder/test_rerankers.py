"""An encoder that scores pairs is exported with its head, and compared with PyTorch on pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bge_runtime.bundle import LOGITS, SECOND_TEXT, Bundle, PairReference, ScoreParity
from bge_runtime.sources import RERANKER_ENCODER
from bge_runtime.variants import measure_parity
from tests.helpers.rerankers import SHAPES, reranker_bundle


@pytest.fixture(scope="module", params=["bert", "long xlm-roberta"])
def bundle(request: pytest.FixtureRequest, made_once: Callable[..., Path]) -> Bundle:
    return Bundle.open(reranker_bundle(request.param))


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
    reference = bundle.reference()
    assert isinstance(reference, PairReference)
    assert len(reference.queries) >= 40
    assert any((ids >= SECOND_TEXT).any() for ids in reference.token_ids) == reads_types


def test_the_last_layer_and_the_head_compute_cls_only(bundle: Bundle):
    import onnx

    model = bundle.manifest.model
    for graph in bundle.manifest.graphs.values():
        nodes = onnx.load(bundle.path / graph.file, load_external_data=False).graph.node
        heads = [node for node in nodes if node.op_type == "Gemm"]
        assert len(heads) == 2
        by_output = {name: node for node in nodes for name in node.output}
        pooled = by_output[heads[0].input[0]]
        assert pooled.op_type == "Squeeze", model.name
        assert by_output[pooled.input[0]].op_type == "LayerNormalization"


def test_the_gate_measures_the_bundle_as_the_export_did(bundle: Bundle):
    variant = bundle.manifest.variants[0]
    info, parity = measure_parity(bundle, variant)
    assert info.precision == "fp32"
    assert parity == variant.parity


@pytest.mark.parametrize("name", SHAPES)
def test_logits_of_random_weights_spread_over_several_units(
    name: str,
    made_once: Callable[..., Path],
):
    reference = Bundle.open(reranker_bundle(name)).reference()
    assert isinstance(reference, PairReference)
    assert np.std(reference.logits) > 1.5
