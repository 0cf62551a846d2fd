"""What ``--target`` and ``--precision`` choose: every pair is a graph that runs so, or an error."""

from __future__ import annotations

import pytest

from bge_export.targets import (
    DECODER_TARGETS,
    ENCODER_TARGETS,
    format_target_table,
    select_decoder_targets,
    select_encoder_targets,
)
from bge_runtime.errors import ExportError

SIDES = {
    "encoder": (ENCODER_TARGETS, select_encoder_targets),
    "decoder": (DECODER_TARGETS, select_decoder_targets),
}
NAMES = ("portable", "cpu", "openvino", "onnxruntime", "int8", "cuda", "cuda-even", "tensorrt")
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "int4")


def runs(table, name: str, precision: str) -> bool:
    """Return whether a graph of a table is called so, or runs there, in that precision."""
    return any(
        target.precision == precision
        and (
            name in (target.name, target.device)
            or any(name == engine and precision == form for _, engine, form in target.variants)
        )
        for target in table
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", SIDES)
def test_a_target_in_a_precision_is_written_or_refused(side: str, name: str, precision: str):
    table, select = SIDES[side]
    if runs(table, name, precision):
        chosen = [target for target in select([name], [precision]) if target.name != "portable"]
        assert chosen or name in ("portable", "onnxruntime")
        # What goes with another graph is of the same precision.
        assert {target.precision for target in chosen} <= {precision}
        return
    with pytest.raises(ExportError) as caught:
        select([name], [precision])
    for target in table:
        assert f"--target {target.name:<9} --precision {target.precision}" in str(caught.value)


@pytest.mark.parametrize("side", SIDES)
def test_the_table_marks_what_is_not_written_by_default(side: str):
    table, select = SIDES[side]
    for target in table:
        assert (target in select([], [])) != ("on request" in format_target_table([target]))


@pytest.mark.parametrize(
    ("side", "names", "precisions", "files"),
    [
        ("encoder", ["cpu"], ["int8"], ["onnx/model_int8.onnx"]),
        ("encoder", ["openvino"], ["int8"], ["onnx/model_int8.onnx"]),
        ("encoder", ["int8"], [], ["onnx/model_int8.onnx"]),
        ("encoder", ["cpu"], ["bf16"], ["openvino/openvino_model.xml"]),
        ("encoder", ["openvino"], ["fp32"], ["onnx/model_cpu_fp32.onnx"]),
        ("encoder", ["cpu"], [], ["onnx/model_cpu_fp32.onnx"]),
        (
            "encoder",
            ["cpu"],
            ["fp32", "int8"],
            ["onnx/model_cpu_fp32.onnx", "onnx/model_int8.onnx"],
        ),
        ("encoder", ["tensorrt"], ["fp16"], ["onnx/model_tensorrt_fp16.onnx"]),
        (
            "encoder",
            ["cuda"],
            ["fp16"],
            ["onnx/model_cuda_fp16.onnx", "onnx/model_cuda_even_fp16.onnx"],
        ),
        ("decoder", ["cpu"], ["int8"], ["onnx/model_cpu_int8.onnx"]),
        ("decoder", ["openvino"], ["int8"], ["onnx/model_cpu_int8.onnx"]),
        ("decoder", [], [], ["onnx/model.onnx"]),
        ("decoder", ["cuda"], ["bf16"], ["onnx/model_cuda_bf16.onnx"]),
    ],
)
def test_a_device_or_an_engine_stands_for_the_graph_that_runs_there(
    side: str, names: list[str], precisions: list[str], files: list[str]
):
    _, select = SIDES[side]
    chosen = [target.file for target in select(names, precisions) if target.name != "portable"]
    assert chosen == files
