"""The table of the graphs that a decoder can be exported to."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from bge_export.targets.base import Target, TargetVariant


@dataclass(frozen=True, kw_only=True)
class DecoderTarget(Target):
    """A graph of a decoder.

    Attributes:
        storage: Type of its matrices in the file; None for the checkpoint's. Graphs for a GPU
            compute in it.
    """

    storage: ir.DataType | None


DECODER_TARGETS = (
    DecoderTarget(
        name="cpu",
        precision="fp32",
        file="onnx/model.onnx",
        variants=(
            TargetVariant("openvino-bf16", "openvino", "bf16"),
            TargetVariant("cpu-fp32", "onnxruntime", "fp32"),
        ),
        device="cpu",
        storage=None,
        description="decoders: the checkpoint's own weights, bit for bit",
    ),
    DecoderTarget(
        name="cpu",
        precision="bf16",
        file="onnx/model_cpu_bf16.onnx",
        variants=(TargetVariant("openvino-bf16", "openvino", "bf16"),),
        device="cpu",
        storage=ir.DataType.BFLOAT16,
        description="decoders: weights rounded to bf16, half the size of an fp32 checkpoint",
        on_request=True,
    ),
    DecoderTarget(
        name="cpu",
        precision="int8",
        file="onnx/model_cpu_int8.onnx",
        variants=(
            TargetVariant("openvino-int8", "openvino", "int8"),
            TargetVariant("cpu-int8", "onnxruntime", "int8"),
        ),
        device="cpu",
        storage=ir.DataType.INT8,
        description="decoders: matrices in 8 bits, one scale for 32 weights",
        on_request=True,
    ),
    DecoderTarget(
        name="cpu",
        precision="int4",
        file="onnx/model_cpu_int4.onnx",
        variants=(
            TargetVariant("openvino-int4", "openvino", "int4"),
            TargetVariant("cpu-int4", "onnxruntime", "int4"),
        ),
        device="cpu",
        storage=ir.DataType.INT4,
        description="decoders: matrices in 4 bits, for a first look at a large model",
        on_request=True,
    ),
    DecoderTarget(
        name="cuda",
        precision="bf16",
        file="onnx/model_cuda_bf16.onnx",
        variants=(TargetVariant("cuda-bf16", "onnxruntime", "bf16"),),
        device="cuda",
        storage=ir.DataType.BFLOAT16,
        description="decoders: ONNX Runtime on an NVIDIA GPU",
        on_request=True,
    ),
    DecoderTarget(
        name="cuda",
        precision="fp16",
        file="onnx/model_cuda_fp16.onnx",
        variants=(TargetVariant("cuda-fp16", "onnxruntime", "fp16"),),
        device="cuda",
        storage=ir.DataType.FLOAT16,
        description="decoders: the same in fp16; not yet run on a GPU; use bf16 for Gemma 2",
        on_request=True,
    ),
    DecoderTarget(
        name="tensorrt",
        precision="bf16",
        file="onnx/model_tensorrt_bf16.onnx",
        variants=(TargetVariant("tensorrt-bf16", "tensorrt", "bf16"),),
        device="cuda",
        storage=ir.DataType.BFLOAT16,
        description="decoders: TensorRT, standard operators; not yet run on a GPU",
        on_request=True,
    ),
)
"""All targets. Those with the same type of weights share one file."""
