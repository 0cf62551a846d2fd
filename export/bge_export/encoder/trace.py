"""Trace a PyTorch encoder into one ONNX graph."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass

from bge_export.encoder.pooling import PackedEncoder, PooledEncoder
from bge_export.library_output import hide_onnx_exporter_output
from bge_export.targets import TRACE_OPSET
from bge_runtime.bundle import CUMULATIVE_LENGTHS
from bge_runtime.errors import ExportError


@torch.no_grad()
def trace_packed(
    encoder: PooledEncoder, *, padding_position: int | None, max_length: int
) -> ir.Model:
    """Trace an encoder into a graph over packed texts.

    Args:
        encoder: The encoder.
        padding_position: See `PackedEncoder`.
        max_length: Most tokens of a text.

    Returns:
        A model of opset 23 with inputs ``input_ids``, ``position_ids``,
        ``cumulative_sequence_length`` and, for a reranker that reads them, ``token_type_ids``. Its
        attention ignores where a text ends.

    Raises:
        ExportError: If PyTorch cannot trace the encoder, or it does not take positions.
    """
    if "position_ids" not in inspect.signature(encoder.encoder.forward).parameters:
        raise ExportError(
            f"{type(encoder.encoder).__name__} does not take the positions of tokens, so its texts "
            "cannot be packed for --target cuda; leave that out"
        )
    tokens = torch.export.Dim("tokens", min=2, max=(1 << 20) * max(1, max_length // 512))
    texts = torch.export.Dim("texts_and_1", min=3, max=65536)
    example = {
        "input_ids": torch.full((9,), 5),
        "position_ids": torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2]),
        CUMULATIVE_LENGTHS: torch.tensor([0, 6, 9], dtype=torch.int32),
    }
    axes = [{0: tokens}, {0: tokens}, {0: texts}]
    if encoder.scorer is not None and encoder.token_types:
        example["token_type_ids"] = torch.tensor([0, 0, 0, 1, 1, 1, 0, 0, 1])
        axes.append({0: tokens})
    packed = PackedEncoder(encoder, padding_position=padding_position)
    return _trace(packed, encoder, example, axes, packed.output_names)


@torch.no_grad()
def trace(encoder: PooledEncoder, *, max_length: int) -> ir.Model:
    """Trace an encoder into a graph with dynamic batch and sequence axes.

    Returns:
        A model of opset 23 with inputs ``input_ids``, ``attention_mask`` and, if the
        encoder takes them, ``token_type_ids``; outputs are those of the encoder.

    Raises:
        ExportError: If PyTorch cannot trace the encoder.
    """
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * encoder.token_types
    # Two rows of different lengths, so that no axis looks constant.
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, 5:] = 0
    example = {
        "input_ids": torch.full((2, 7), 5),
        "attention_mask": mask,
        "token_type_ids": torch.zeros(2, 7, dtype=torch.int64),
    }
    batch = torch.export.Dim("batch", min=1, max=65536)
    sequence = torch.export.Dim("sequence", min=2, max=max_length)
    axes = tuple({0: batch, 1: sequence} for _ in names)
    given = {name: example[name] for name in names}
    return _trace(encoder, encoder, given, axes, encoder.output_names)


def _trace(
    module: torch.nn.Module,
    encoder: PooledEncoder,
    example: Mapping[str, torch.Tensor],
    axes: Sequence[Mapping[int, Any]],
    output_names: Sequence[str],
) -> ir.Model:
    try:
        with hide_onnx_exporter_output():
            program = torch.onnx.export(
                module,
                tuple(example.values()),
                dynamo=True,
                opset_version=TRACE_OPSET,
                input_names=list(example),
                output_names=list(output_names),
                dynamic_shapes=tuple(axes),
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # each stage of the exporter raises another class
        first_line = str(error).strip().partition("\n")[0]
        raise ExportError(
            f"PyTorch {torch.__version__} cannot trace {type(encoder.encoder).__name__}: "
            f"{type(error).__name__}: {first_line}"
        ) from error
    assert program is not None
    model = program.model
    # Node metadata contains Python stacks with paths of this machine.
    ClearMetadataAndDocStringPass()(model)
    RemoveUnusedNodesPass()(model)
    model.producer_name = "bge-export"
    return model
