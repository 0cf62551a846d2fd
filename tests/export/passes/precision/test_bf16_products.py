"""Products are rounded as in bf16, and corrected biases keep their mean."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st


def biased_product(rng: np.random.Generator, inputs: int, outputs: int):
    """``Relu(x @ matrix + bias)`` as a graph, with the two."""
    import onnx_ir as ir
    from onnx import TensorProto, helper, numpy_helper

    matrix = rng.normal(size=(inputs, outputs)).astype(np.float32)
    bias = rng.normal(size=outputs).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "matrix"], ["product"]),
        helper.make_node("Add", ["bias", "product"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["sentence_embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs])],
        [helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(matrix, "matrix"), numpy_helper.from_array(bias, "bias")],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    return model, matrix, bias


def run_product(model, x: np.ndarray) -> np.ndarray:
    import onnx_ir as ir
    import onnxruntime as ort

    content = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def test_round_products_rounds_as_pytorch_does():
    import torch

    from bge_export.passes import RoundProducts

    rng = np.random.default_rng(0)
    model, matrix, bias = biased_product(rng, 64, 8)
    x = rng.normal(size=(20, 64)).astype(np.float32)
    assert RoundProducts()(model).modified

    def rounded(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).bfloat16().float()

    total = rounded(x) @ rounded(matrix.astype(np.float16).astype(np.float32)) + rounded(bias)
    expected = total.bfloat16().float().relu().numpy()
    found = run_product(model, x)
    # Another order of summing may turn over what lies between two numbers in bf16.
    assert (found == expected).mean() > 0.95
    np.testing.assert_allclose(found, expected, rtol=2**-7)
    assert np.abs(found - np.maximum(x @ matrix + bias, 0)).max() > 1e-3


@given(seed=st.integers(0, 99), common=st.sampled_from([0.0, 1.0, 30.0]))
def test_corrected_biases_keep_the_mean_of_a_product(seed: int, common: float):
    from bge_export.passes import CorrectBiases
    from bge_export.passes.precision.bf16_products import stored_in_bf16

    rng = np.random.default_rng(seed)
    model, matrix, bias = biased_product(rng, 48, 8)
    x = rng.normal(size=(30, 48)).astype(np.float32) + common
    (product,) = (node for node in model.graph if node.op_type == "MatMul")
    assert CorrectBiases({product.inputs[0]: x.mean(axis=0)})(model).modified
    corrected = model.graph.initializers["bias.for_bf16"].const_value.numpy()
    np.testing.assert_allclose(
        (x @ stored_in_bf16(matrix) + corrected).mean(axis=0),
        (x @ matrix + bias).mean(axis=0),
        atol=1e-4 * (1 + common),
    )


def test_products_without_statistics_are_unchanged():
    from bge_export.passes import CorrectBiases

    model, _, _ = biased_product(np.random.default_rng(0), 16, 8)
    assert not CorrectBiases({})(model).modified
