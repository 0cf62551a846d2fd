"""FlagEmbedding's M3 class, run on hidden states that a test provides."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

CLS, PAD, EOS, UNK, FIRST = 0, 1, 2, 3, 4
EXCLUDED = (CLS, EOS, PAD, UNK)
VOCABULARY = 60


@dataclass(frozen=True)
class Text:
    """Token ids with [CLS] and end token, and the hidden states of the encoder."""

    ids: list[int]
    hidden: NDArray[np.float32]

    @classmethod
    def random(
        cls,
        generator: np.random.Generator,
        length: int,
        *,
        width: int = 8,
        vocabulary: int = VOCABULARY,
    ) -> Self:
        ids = [CLS, *generator.integers(PAD, vocabulary, length - 2).tolist(), EOS]
        return cls(ids, generator.normal(size=(length, width)).astype(np.float32))


class Upstream:
    """FlagEmbedding's model, whose sentences are the positions of texts in decimal.

    Everything but the tokenizer and the encoder is FlagEmbedding's own code. The encoder returns
    hidden states for padding too, as a real one does.
    """

    def __init__(
        self,
        texts: Sequence[Text],
        *,
        normalize: bool = True,
        truncate_dim: int | None = None,
        seed: int = 0,
    ) -> None:
        self.texts = texts
        with warnings.catch_warnings():
            # Deprecations in its own dependencies.
            warnings.simplefilter("ignore")
            from FlagEmbedding.finetune.embedder.encoder_only.m3 import (
                EncoderOnlyEmbedderM3ModelForInference,
            )
            from FlagEmbedding.inference.embedder.encoder_only import m3
        import torch

        class Quiet(m3.M3Embedder):  # type: ignore[misc, unused-ignore]
            def __del__(self) -> None:
                """Skip FlagEmbedding's garbage collection, which takes half a second here."""

        m3.tqdm, m3.trange = (lambda steps, **_: steps), (lambda *steps, **_: range(*steps))
        torch.manual_seed(seed)
        width = texts[0].hidden.shape[1] if texts else 8

        model = EncoderOnlyEmbedderM3ModelForInference.__new__(
            EncoderOnlyEmbedderM3ModelForInference
        )
        torch.nn.Module.__init__(model)
        model.model = self._encoder(torch, width)
        model.sparse_linear = torch.nn.Linear(width, 1)
        model.colbert_linear = torch.nn.Linear(width, width)
        model.vocab_size = VOCABULARY
        model.temperature = 1.0
        model.sentence_pooling_method = "cls"
        model.normalize_embeddings = normalize
        model.tokenizer = self._tokenizer()

        self.embedder = Quiet.__new__(Quiet)
        self.embedder.model = model
        self.embedder.tokenizer = model.tokenizer
        self.embedder.target_devices = ["cpu"]
        self.embedder.truncate_dim = truncate_dim
        self.embedder.use_bf16 = False

    def _tokenizer(self) -> Any:
        from transformers import BatchEncoding

        class Tokenizer:
            special_tokens_map = {  # noqa: RUF012
                "cls_token": "<s>",
                "eos_token": "</s>",
                "pad_token": "<pad>",
                "unk_token": "<unk>",
                "mask_token": "<mask>",
            }
            cls_token_id, eos_token_id, pad_token_id, unk_token_id = EXCLUDED

            def convert_tokens_to_ids(self, token: str) -> int:
                return {"<s>": CLS, "</s>": EOS, "<pad>": PAD, "<unk>": UNK}[token]

            def __call__(
                tokenizer,  # noqa: N805  # `self` is the upstream model
                sentences: Sequence[str],
                *,
                return_tensors: str | None = None,
                **_: Any,
            ) -> Any:
                rows = [int(sentence) for sentence in sentences]
                ids = [self.texts[row].ids for row in rows]
                encoded = {"input_ids": ids, "row": rows}
                return encoded if return_tensors is None else tokenizer.pad(encoded)

            def pad(self, encoded: Any, **_: Any) -> Any:
                longest = max(map(len, encoded["input_ids"]))
                ids = [[*row, *[PAD] * (longest - len(row))] for row in encoded["input_ids"]]
                mask = [[1] * len(row) + [0] * (longest - len(row)) for row in encoded["input_ids"]]
                columns = {"input_ids": ids, "attention_mask": mask, "row": encoded["row"]}
                return BatchEncoding(columns, tensor_type="pt")

        return Tokenizer()

    def _encoder(self, torch: Any, width: int) -> Any:
        texts = self.texts

        class Encoder(torch.nn.Module):  # type: ignore[misc, unused-ignore]
            def forward(
                self, input_ids: Any, attention_mask: Any, row: Any, return_dict: bool
            ) -> SimpleNamespace:
                hidden = np.full((*input_ids.shape, width), 0.7, dtype=np.float32)
                for index, position in enumerate(row.tolist()):
                    hidden[index, : len(texts[position].ids)] = texts[position].hidden
                return SimpleNamespace(last_hidden_state=torch.from_numpy(hidden))

        return Encoder()

    def encode(self, *, batch_size: int = 256, **outputs: bool) -> Any:
        """Return what FlagEmbedding's ``encode`` returns for all texts."""
        return self.embedder.encode_single_device(
            [str(row) for row in range(len(self.texts))], batch_size=batch_size, **outputs
        )

    def compute_score(self, pairs: Sequence[tuple[int, int]], **options: Any) -> Any:
        """Return what FlagEmbedding's ``compute_score`` returns for pairs of positions."""
        return self.embedder.compute_score_single_device(
            [(str(query), str(passage)) for query, passage in pairs], **options
        )

    def graph(self, rows: Sequence[int]) -> tuple[NDArray[Any], ...]:
        """Return what our graph returns for these texts: (ids, mask, weights, colbert, dense)."""
        import torch

        batch = self.embedder.tokenizer([str(row) for row in rows], return_tensors="pt")
        hidden = self.embedder.model.model(**batch, return_dict=True).last_hidden_state
        with torch.no_grad():
            weights = torch.relu(self.embedder.model.sparse_linear(hidden)).squeeze(-1)
            colbert = self.embedder.model.colbert_linear(hidden[:, 1:])
        columns = batch["input_ids"], batch["attention_mask"], weights, colbert, hidden[:, 0]
        return tuple(column.numpy() for column in columns)
