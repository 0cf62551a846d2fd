"""A decoder's weights: which there are, where the checkpoint has them, how they are stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bge_export.checkpoint import SafetensorsReader, match_weights, require_match
from bge_export.decoder.answers import Answers, join_rows
from bge_export.decoder.config import DecoderConfig
from bge_export.decoder.external_data import TensorPlan, Transform, place_tensors
from bge_export.decoder.graph import ANSWER, Matrix
from bge_runtime.errors import ExportError

_FLOAT = ir.DataType.FLOAT

BLOCK = 32
"""Inputs of a matrix in 8 or 4 bits that share a scale: the smallest block that the kernels of both
ONNX Runtime and OpenVINO support."""


class Weight(NamedTuple):
    """A weight of a decoder.

    Attributes:
        name: Name in the graph, and in the checkpoint without prefix and ``.weight``.
        shape: Shape in the checkpoint.
        kind: ``"embedding"``, ``"matrix"``, ``"norm"`` or ``"bias"``.
    """

    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def stem(self) -> str:
        """Its name in a checkpoint, without prefix."""
        return self.name if self.kind == "bias" else f"{self.name}.weight"


def list_weights(config: DecoderConfig) -> Iterator[Weight]:
    """Yield the weights that a decoder's vectors depend on."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    yield Weight("embed_tokens", (config.vocab_size, width), "embedding")
    norms = ["input_layernorm", "post_attention_layernorm"]
    if config.post_norms:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    for layer in range(config.layers):
        name = f"layers.{layer}."
        for norm in norms:
            yield Weight(name + norm, (width,), "norm")
        for part, rows in (("q", queries), ("k", keys), ("v", keys)):
            yield Weight(f"{name}self_attn.{part}_proj", (rows, width), "matrix")
            if config.qkv_bias:
                yield Weight(f"{name}self_attn.{part}_proj.bias", (rows,), "bias")
            if config.query_key_norms and part != "v":
                yield Weight(f"{name}self_attn.{part}_norm", (config.head_dim,), "norm")
        yield Weight(f"{name}self_attn.o_proj", (width, queries), "matrix")
        if config.output_bias:
            yield Weight(f"{name}self_attn.o_proj.bias", (width,), "bias")
        yield Weight(f"{name}mlp.gate_proj", (inner, width), "matrix")
        yield Weight(f"{name}mlp.up_proj", (inner, width), "matrix")
        yield Weight(f"{name}mlp.down_proj", (width, inner), "matrix")
    yield Weight("norm", (width,), "norm")


def find_weights(
    config: DecoderConfig, reader: SafetensorsReader, *, source: str
) -> dict[str, str]:
    """Locate a decoder's weights in its checkpoint.

    Returns:
        Names in the checkpoint, by name in the graph.

    Raises:
        ExportError: If one is missing, or has another shape than ``config.json`` says; or if
            there are others.
    """
    weights = {weight.stem: weight for weight in list_weights(config)}
    # The name of the decoder in transformers' classes with a language-model head.
    match = match_weights(reader.names(), weights, prefix="model")
    require_match(match, weights, source=source)
    found = {}
    for stem, weight in weights.items():
        name = match.found[stem]
        if reader.shape(name) != weight.shape:
            raise ExportError(
                f"{name} of {source} has the shape {reader.shape(name)}, where its config.json "
                f"calls for {weight.shape}"
            )
        found[weight.name] = name
    return found


def plan_weights(
    config: DecoderConfig,
    found: Mapping[str, str],
    *,
    storage: ir.DataType,
    answers: Answers | None = None,
) -> list[TensorPlan]:
    """Decide how each weight is stored.

    Matrices are transposed to ``(inputs, outputs)``, as MatMul reads them. Norms and biases are
    small and stay in fp32: Gemma's norms store the difference to 1, and bf16 cannot represent the
    sum.

    Args:
        config: The decoder.
        found: From `find_weights`.
        storage: Type of the embeddings and matrices. For INT8 and INT4, matrices have one scale for
            each block of `BLOCK` inputs and each output; embeddings stay in bf16.
        answers: Rows of the head, for a reranker. Their row stays in fp32 too.

    Raises:
        ExportError: If a matrix does not divide into blocks.
    """
    bits = {ir.DataType.INT8: 8, ir.DataType.INT4: 4}.get(storage)
    plans = []
    for weight in list_weights(config):
        source = found[weight.name]

        def plan(
            name: str,
            dtype: ir.DataType,
            shape: tuple[int, ...],
            transform: Transform | None = None,
            source: str = source,
        ) -> None:
            plans.append(
                TensorPlan(name=name, source=source, dtype=dtype, shape=shape, transform=transform)
            )

        if weight.kind == "embedding":
            plan(weight.name, ir.DataType.BFLOAT16 if bits else storage, weight.shape)
        elif weight.kind == "bias":
            plan(weight.name, _FLOAT, weight.shape)
        elif weight.kind == "norm":
            plan(weight.name, _FLOAT, weight.shape, _add_offset(config.norm_offset))
        else:
            transposed = weight.shape[::-1]
            if bits is None:
                plan(weight.name, storage, transposed, _transpose(storage))
                continue
            if transposed[0] % BLOCK:
                raise ExportError(
                    f"{weight.name} has {transposed[0]} inputs, not a multiple of {BLOCK}; "
                    "leave --precision int8 and int4 out"
                )
            plan(weight.name, storage, transposed, _quantize(bits))
            plan(
                f"{weight.name}.scale",
                _FLOAT,
                (transposed[0] // BLOCK, transposed[1]),
                _compute_scales(bits),
            )
    if answers is not None:
        plans.append(
            TensorPlan(
                name=ANSWER,
                source=answers.source,
                dtype=_FLOAT,
                shape=(1, config.hidden_size),
                transform=join_rows,
                rows=answers.rows,
            )
        )
    return plans


def place_weights(plans: Sequence[TensorPlan], *, folder: Path, location: str) -> dict[str, Matrix]:
    """Return the stored weights, as `DecoderGraph` takes them.

    Args:
        plans: From `plan_weights`.
        folder: Folder of the graph.
        location: Name of the external data file in it.
    """
    tensors = place_tensors(plans, folder=folder, location=location)
    return {
        name: Matrix(tensor, scales, BLOCK) if scales is not None else Matrix(tensor)
        for name, tensor in tensors.items()
        if not name.endswith(".scale")
        for scales in (tensors.get(f"{name}.scale"),)
    }


def _add_offset(offset: float) -> Transform:
    return lambda array: array.astype(np.float32) + np.float32(offset)


def _transpose(storage: ir.DataType) -> Transform:
    dtype = storage.numpy()
    return lambda array: np.ascontiguousarray(array.astype(dtype, copy=False).T)


def _quantize(bits: int) -> Transform:
    def quantize(array: NDArray[Any]) -> NDArray[Any]:
        limit = 2 ** (bits - 1) - 1
        blocks = _split_blocks(array)
        scale = _scale_blocks(blocks, limit)
        whole = np.rint(blocks / scale[..., None]).clip(-limit, limit).astype(np.int8)
        transposed = np.ascontiguousarray(whole.reshape(array.shape).T)
        if bits == 8:
            return transposed
        pairs = transposed.reshape(-1, 2).view(np.uint8)
        # Two in each byte, the first in the lower half (onnx.proto, TensorProto.INT4).
        return np.asarray((pairs[:, 0] & 0x0F) | (pairs[:, 1] << 4), dtype=np.uint8)

    return quantize


def _compute_scales(bits: int) -> Transform:
    limit = 2 ** (bits - 1) - 1
    return lambda array: np.ascontiguousarray(_scale_blocks(_split_blocks(array), limit).T)


def _split_blocks(array: NDArray[Any]) -> NDArray[np.float32]:
    return array.astype(np.float32).reshape(array.shape[0], -1, BLOCK)


def _scale_blocks(blocks: NDArray[np.float32], limit: int) -> NDArray[np.float32]:
    largest = np.abs(blocks).max(axis=-1)
    scale: NDArray[np.float32] = np.where(largest > 0, largest / np.float32(limit), 1)
    return scale.astype(np.float32)
