"""Encoders with pooling and heads, or a reranker's score, as they are traced.

To add a pooling method:

1. Add it to `bge_runtime.sources.POOLING_METHODS`.
2. Add it to `PooledEncoder._pool` (texts with padding) and to `PackedEncoder._pool` (packed texts).
   The parity gate then compares the graphs with PyTorch.
3. If sentence-transformers has it, add it to `POOLING_MODES` in
   `bge_export.checkpoint.sentence_transformers_keys`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from bge_runtime.bundle import HEAD_OUTPUTS, LOGITS, SENTENCE_EMBEDDING


class PooledEncoder(torch.nn.Module):
    """An encoder with pooling and heads.

    Vectors are not normalized, because ``truncate_dim`` comes before that.

    Attributes:
        output_names: Names of the outputs of ``forward``, in order.
        pooled_names: Those that do not have a value for each token of a padded batch.
    """

    def __init__(
        self,
        encoder: torch.nn.Module,
        *,
        pooling: str,
        token_types: bool,
        heads: Mapping[str, torch.nn.Linear] | None = None,
        scorer: torch.nn.Module | None = None,
    ) -> None:
        """Wrap an encoder.

        Args:
            encoder: Takes ``input_ids`` and ``attention_mask``, returns ``last_hidden_state``.
            pooling: ``"cls"``, ``"mean"`` or ``"last_token"``.
            token_types: Whether it takes ``token_type_ids`` as well.
            heads: M3's heads ``"sparse"`` and ``"colbert"``, if the model has them.
            scorer: For a reranker, what makes its logit from a pooled vector.
        """
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.token_types = token_types
        self.heads = torch.nn.ModuleDict(dict(heads or {}))
        self.scorer = scorer
        self.pooled_names: tuple[str, ...] = (SENTENCE_EMBEDDING, *(HEAD_OUTPUTS if heads else ()))
        self.output_names: tuple[str, ...] = ("last_hidden_state", *self.pooled_names)
        if scorer is not None:
            self.pooled_names = self.output_names = (LOGITS,)

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
            ``(batch, dim)``. With heads also token weights, shape ``(batch, sequence)``, and
            vectors of all tokens but the first, shape ``(batch, sequence - 1, colbert_dim)``;
            both are undefined at padding. A reranker returns logits only, shape ``(batch, 1)``.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.token_types:
            inputs["token_type_ids"] = token_type_ids
        hidden = self.encoder(**inputs, return_dict=True).last_hidden_state
        vectors = self._pool(hidden, attention_mask)
        if self.scorer is not None:
            return (self.scorer(vectors),)
        outputs = (hidden, vectors)
        if not self.heads:
            return outputs
        weights = torch.relu(self.heads["sparse"](hidden)).squeeze(-1)
        return (*outputs, weights, self.heads["colbert"](hidden[:, 1:]))

    def _pool(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        match self.pooling:
            case "cls":
                return hidden[:, 0]
            case "last_token":
                last = attention_mask.sum(dim=1) - 1
                index = last.view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
                return hidden.gather(1, index).squeeze(1)
            case "mean":
                weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
                return (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        raise NotImplementedError(f"pooling {self.pooling!r} of texts with padding")


class LastLayer(torch.nn.Module):
    """The last layer of a reranker: a sum of products, and no matrix product.

    OpenVINO rounds the result of a matrix product to bf16, in which a logit of 8 has 0.06 as the
    next step, and many passages would be equal. What follows the last matrix product is in fp32
    there. A graph for a GPU is in fp16 to its end, as FlagEmbedding's model; its steps are an
    eighth of these.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        """Take weight and bias of a layer with one output."""
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the logits of vectors, shape ``(batch, 1)``."""
        return (vectors * self.weight).sum(dim=-1, keepdim=True) + self.bias


class PackedEncoder(torch.nn.Module):
    """The same encoder over packed texts: all in one row, without padding.

    It attends across texts. `bge_export.passes.PackAttention` replaces the attention in the graph.
    """

    def __init__(self, pooled: PooledEncoder, *, padding_position: int | None) -> None:
        """Wrap a pooled encoder.

        Args:
            pooled: The encoder. Its inner model takes ``position_ids``.
            padding_position: From `bge_export.encoder.load.find_padding_position`. It is also the
                padding id, which a text may contain.
        """
        super().__init__()
        self.pooled = pooled
        self.padding_position = padding_position
        self.output_names = pooled.pooled_names

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        cumulative_lengths: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Encode and pool.

        Args:
            input_ids: int64, of all texts. Shape: ``(tokens,)``.
            position_ids: int64, from 0 in each text. Shape: ``(tokens,)``.
            cumulative_lengths: int32, the start of each text, and the end of the last one.
                Shape: ``(texts + 1,)``.
            token_type_ids: int64; None if all are 0. Shape: ``(tokens,)``.

        Returns:
            Logits, shape ``(texts, 1)``; or vectors, shape ``(texts, dim)``. With heads also token
            weights, shape ``(tokens,)``, and vectors of all tokens, shape
            ``(tokens, colbert_dim)``.
        """
        row = input_ids[None]
        positions = self._encoder_positions(input_ids, position_ids)[None]
        inputs = {"input_ids": row, "position_ids": positions}
        # Passed even if there is one type only: an encoder's own zeros are as long as one text.
        if "token_type_ids" in inspect.signature(self.pooled.encoder.forward).parameters:
            types = torch.zeros_like(row) if token_type_ids is None else token_type_ids[None]
            inputs["token_type_ids"] = types
        hidden = self.pooled.encoder(**inputs, return_dict=True).last_hidden_state
        vectors = self._pool(hidden, cumulative_lengths)
        if self.pooled.scorer is not None:
            return (self.pooled.scorer(vectors),)
        if not self.pooled.heads:
            return (vectors,)
        weights = torch.relu(self.pooled.heads["sparse"](hidden)).flatten()
        return (vectors, weights, self.pooled.heads["colbert"](hidden).squeeze(0))

    def _encoder_positions(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        if self.padding_position is None:
            return position_ids
        counts = (input_ids != self.padding_position).to(torch.int64)
        through = torch.cumsum(counts, 0)
        first = torch.arange(position_ids.shape[0]) - position_ids
        return (through - (through - counts)[first]) * counts + self.padding_position

    def _pool(self, hidden: torch.Tensor, cumulative_lengths: torch.Tensor) -> torch.Tensor:
        starts, ends = cumulative_lengths[:-1], cumulative_lengths[1:]
        match self.pooled.pooling:
            case "cls":
                return hidden.index_select(1, starts).squeeze(0)
            case "last_token":
                return hidden.index_select(1, ends - 1).squeeze(0)
            case "mean":
                tokens = torch.arange(hidden.shape[1], dtype=starts.dtype)
                within = (tokens >= starts[:, None]) & (tokens < ends[:, None])
                shares = within.to(hidden.dtype) / (ends - starts)[:, None].to(hidden.dtype)
                return shares @ hidden[0]
        raise NotImplementedError(f"pooling {self.pooled.pooling!r} of packed texts")
