"""From a PyTorch encoder to one ONNX graph."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass

from bge_export.targets import TRACE_OPSET
from bge_runtime.bundle import CUMULATIVE_LENGTHS, HEAD_OUTPUTS, SENTENCE_EMBEDDING
from bge_runtime.errors import ExportError


class PooledEncoder(torch.nn.Module):
    """An encoder with its pooling and heads, as it goes into the graph.

    The pooled vectors and those of tokens are not normalised: ``truncate_dim`` comes
    before that.

    Attributes:
        output_names: Names of what ``forward`` gives, in order.
    """

    def __init__(
        self,
        encoder: torch.nn.Module,
        *,
        pooling: str,
        token_types: bool,
        heads: Mapping[str, torch.nn.Linear] | None = None,
    ) -> None:
        """Wrap an encoder.

        Args:
            encoder: Takes ``input_ids`` and ``attention_mask``, gives ``last_hidden_state``.
            pooling: ``"cls"``, ``"mean"`` or ``"last_token"``.
            token_types: Whether it takes ``token_type_ids`` as well.
            heads: ``"sparse"`` and ``"colbert"`` of a model of M3's class.
        """
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.token_types = token_types
        self.heads = torch.nn.ModuleDict(dict(heads or {}))
        self.output_names = ("last_hidden_state", SENTENCE_EMBEDDING) + (
            HEAD_OUTPUTS if self.heads else ()
        )

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Encode and pool.

        Args:
            input_ids: int64. Shape: ``(batch, sequence)``.
            attention_mask: int64, 1 for a token. Shape: ``(batch, sequence)``.
            token_type_ids: int64, or None. Shape: ``(batch, sequence)``.

        Returns:
            Hidden states, shape ``(batch, sequence, dim)``; vectors, shape
            ``(batch, dim)``. With heads also weights of tokens, shape
            ``(batch, sequence)``, and vectors of all tokens but the first, shape
            ``(batch, sequence - 1, colbert_dim)``; both hold anything at padding.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.token_types:
            inputs["token_type_ids"] = token_type_ids
        hidden = self.encoder(**inputs, return_dict=True).last_hidden_state
        outputs = (hidden, self._pool(hidden, attention_mask))
        if not self.heads:
            return outputs
        weights = torch.relu(self.heads["sparse"](hidden)).squeeze(-1)
        return (*outputs, weights, self.heads["colbert"](hidden[:, 1:]))

    def _pool(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        if self.pooling == "cls":
            return hidden[:, 0]
        if self.pooling == "last_token":
            last = attention_mask.sum(dim=1) - 1
            index = last.view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
            return hidden.gather(1, index).squeeze(1)
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


class PackedEncoder(torch.nn.Module):
    """The same encoder over texts that lie behind each other in one row, without padding.

    It attends to all of them: a pass has to put another attention into the graph.
    """

    def __init__(self, pooled: PooledEncoder, *, padding_position: int | None) -> None:
        """Take over a pooled encoder.

        Args:
            pooled: The encoder. Its inner model takes ``position_ids``.
            padding_position: As `bge_export.encoder.load.padding_position` gives it; also the id
                of padding, which a text may spell.
        """
        super().__init__()
        self.pooled = pooled
        self.padding_position = padding_position
        self.output_names = pooled.output_names[1:]

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        cumulative_lengths: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Encode and pool.

        Args:
            input_ids: int64, of all texts. Shape: ``(tokens,)``.
            position_ids: int64; each text counts from 0. Shape: ``(tokens,)``.
            cumulative_lengths: int32; where each text begins, and where the last one ends.
                Shape: ``(texts + 1,)``.

        Returns:
            Vectors, shape ``(texts, dim)``. With heads also weights of tokens, shape
            ``(tokens,)``, and vectors of all tokens, shape ``(tokens, colbert_dim)``.
        """
        row = input_ids[None]
        positions = self._positions(input_ids, position_ids)[None]
        inputs = {"input_ids": row, "position_ids": positions}
        # Even if there is one type only: an encoder's own zeros are no more than a text has tokens.
        if "token_type_ids" in inspect.signature(self.pooled.encoder.forward).parameters:
            inputs["token_type_ids"] = torch.zeros_like(row)
        hidden = self.pooled.encoder(**inputs, return_dict=True).last_hidden_state
        vectors = self._pool(hidden, cumulative_lengths)
        if not self.pooled.heads:
            return (vectors,)
        weights = torch.relu(self.pooled.heads["sparse"](hidden)).flatten()
        return (vectors, weights, self.pooled.heads["colbert"](hidden).squeeze(0))

    def _positions(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        if self.padding_position is None:
            return position_ids
        counts = (input_ids != self.padding_position).to(torch.int64)
        through = torch.cumsum(counts, 0)
        first = torch.arange(position_ids.shape[0]) - position_ids
        return (through - (through - counts)[first]) * counts + self.padding_position

    def _pool(self, hidden: torch.Tensor, cumulative_lengths: torch.Tensor) -> torch.Tensor:
        starts, ends = cumulative_lengths[:-1], cumulative_lengths[1:]
        if self.pooled.pooling == "cls":
            return hidden.index_select(1, starts).squeeze(0)
        if self.pooled.pooling == "last_token":
            return hidden.index_select(1, ends - 1).squeeze(0)
        tokens = torch.arange(hidden.shape[1], dtype=starts.dtype)
        within = (tokens >= starts[:, None]) & (tokens < ends[:, None])
        shares = within.to(hidden.dtype) / (ends - starts)[:, None].to(hidden.dtype)
        return shares @ hidden[0]


@torch.no_grad()
def trace_packed(
    encoder: PooledEncoder, *, padding_position: int | None, max_length: int
) -> ir.Model:
    """Trace an encoder into a graph over texts that lie behind each other.

    Args:
        encoder: The encoder.
        padding_position: As in `PackedEncoder`.
        max_length: Most tokens of a text.

    Returns:
        A model of opset 23 with inputs ``input_ids``, ``position_ids`` and
        ``cumulative_sequence_length``, whose attention takes no notice of where a text ends.

    Raises:
        ExportError: If PyTorch cannot trace the encoder, or it takes no positions.
    """
    if "position_ids" not in inspect.signature(encoder.encoder.forward).parameters:
        raise ExportError(
            f"{type(encoder.encoder).__name__} cannot be told the positions of tokens, and its "
            "texts not be packed for --target cuda; leave that out"
        )
    tokens = torch.export.Dim("tokens", min=2, max=(1 << 20) * max(1, max_length // 512))
    texts = torch.export.Dim("texts_and_1", min=3, max=65536)
    example = {
        "input_ids": torch.full((9,), 5),
        "position_ids": torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2]),
        CUMULATIVE_LENGTHS: torch.tensor([0, 6, 9], dtype=torch.int32),
    }
    axes = ({0: tokens}, {0: tokens}, {0: texts})
    packed = PackedEncoder(encoder, padding_position=padding_position)
    return _traced(packed, encoder, example, axes, packed.output_names)


@torch.no_grad()
def trace(encoder: PooledEncoder, *, max_length: int) -> ir.Model:
    """Trace an encoder into a graph with free batch and sequence axes.

    Returns:
        A model of opset 23 with inputs ``input_ids``, ``attention_mask`` and, if the
        encoder takes them, ``token_type_ids``; outputs are those of the encoder.

    Raises:
        ExportError: If PyTorch cannot trace the encoder.
    """
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * encoder.token_types
    # Two rows of unequal length, so that no axis looks like a constant.
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
    return _traced(encoder, encoder, given, axes, encoder.output_names)


def _traced(
    module: torch.nn.Module,
    encoder: PooledEncoder,
    example: Mapping[str, torch.Tensor],
    axes: Sequence[Mapping[int, Any]],
    output_names: Sequence[str],
) -> ir.Model:
    try:
        with _quiet():
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
    except Exception as error:  # the exporter raises one class for each of its stages
        first_line = str(error).strip().partition("\n")[0]
        raise ExportError(
            f"PyTorch {torch.__version__} cannot trace {type(encoder.encoder).__name__}: "
            f"{type(error).__name__}: {first_line}"
        ) from error
    assert program is not None
    model = program.model
    # Node metadata holds Python stacks with the paths of this machine.
    ClearMetadataAndDocStringPass()(model)
    RemoveUnusedNodesPass()(model)
    model.producer_name = "bge-export"
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes about packages that are not needed off the terminal."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
