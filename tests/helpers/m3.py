"""FlagEmbedding's M3 class on hidden states that a test makes up."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

CLS, PAD, EOS, UNK, FIRST = 0, 1, 2, 3, 4
EXCLUDED = (CLS, EOS, PAD, UNK)
VOCABULARY = 60


@dataclass(frozen=True)
class Text:
    """Token ids, [CLS] and end included, and what the encoder makes of them."""

    ids: list[int]
    hidden: np.ndarray

    @classmethod
    def random(cls, generator, length, *, width=8, vocabulary=VOCABULARY):
        ids = [CLS, *generator.integers(PAD, vocabulary, length - 2).tolist(), EOS]
        return cls(ids, generator.normal(size=(length, width)).astype(np.float32))


class Upstream:
    """FlagEmbedding's model. A sentence is the position of a text, in decimal.

    All but the tokenizer and the encoder is FlagEmbedding's own code. Where a batch is
    padded the encoder gives hidden states, as a real one does.
    """

    def __init__(self, texts, *, normalize=True, truncate_dim=None, seed=0):
        self.texts = texts
        with warnings.catch_warnings():
            # Deprecations in what it imports are not ours to mend.
            warnings.simplefilter("ignore")
            from FlagEmbedding.finetune.embedder.encoder_only.m3 import (
                EncoderOnlyEmbedderM3ModelForInference,
            )
            from FlagEmbedding.inference.embedder.encoder_only import m3
        import torch

        class Quiet(m3.M3Embedder):
            def __del__(self):
                """FlagEmbedding's collects garbage, which takes half a second here."""

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

    def _tokenizer(self):
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

            def convert_tokens_to_ids(self, token):
                return {"<s>": CLS, "</s>": EOS, "<pad>": PAD, "<unk>": UNK}[token]

            def __call__(tokenizer, sentences, *, return_tensors=None, **_):  # noqa: N805
                rows = [int(sentence) for sentence in sentences]
                ids = [self.texts[row].ids for row in rows]
                encoded = {"input_ids": ids, "row": rows}
                return encoded if return_tensors is None else tokenizer.pad(encoded)

            def pad(self, encoded, **_):
                longest = max(map(len, encoded["input_ids"]))
                ids = [[*row, *[PAD] * (longest - len(row))] for row in encoded["input_ids"]]
                mask = [[1] * len(row) + [0] * (longest - len(row)) for row in encoded["input_ids"]]
                columns = {"input_ids": ids, "attention_mask": mask, "row": encoded["row"]}
                return BatchEncoding(columns, tensor_type="pt")

        return Tokenizer()

    def _encoder(self, torch, width):
        texts = self.texts

        class Encoder(torch.nn.Module):
            def forward(self, input_ids, attention_mask, row, return_dict):
                hidden = np.full((*input_ids.shape, width), 0.7, dtype=np.float32)
                for index, position in enumerate(row.tolist()):
                    hidden[index, : len(texts[position].ids)] = texts[position].hidden
                return SimpleNamespace(last_hidden_state=torch.from_numpy(hidden))

        return Encoder()

    def encode(self, *, batch_size=256, **outputs):
        """What FlagEmbedding's ``encode`` gives for all texts."""
        return self.embedder.encode_single_device(
            [str(row) for row in range(len(self.texts))], batch_size=batch_size, **outputs
        )

    def compute_score(self, pairs, **options):
        """What FlagEmbedding's ``compute_score`` gives for pairs of positions."""
        return self.embedder.compute_score_single_device(
            [(str(query), str(passage)) for query, passage in pairs], **options
        )

    def graph(self, rows):
        """What our graph gives for these texts: (ids, mask, weights, colbert, dense)."""
        import torch

        batch = self.embedder.tokenizer([str(row) for row in rows], return_tensors="pt")
        hidden = self.embedder.model.model(**batch, return_dict=True).last_hidden_state
        with torch.no_grad():
            weights = torch.relu(self.embedder.model.sparse_linear(hidden)).squeeze(-1)
            colbert = self.embedder.model.colbert_linear(hidden[:, 1:])
        columns = batch["input_ids"], batch["attention_mask"], weights, colbert, hidden[:, 0]
        return tuple(column.numpy() for column in columns)
