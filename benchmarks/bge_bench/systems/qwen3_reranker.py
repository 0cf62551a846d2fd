"""Qwen3-Reranker on transformers, as its model card has it and as FlagEmbedding would."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any, ClassVar

from bge_bench.systems.base import Batched, System, SystemSpec, quiet
from bge_bench.systems.pytorch import dtype, torch_in_force
from bge_bench.systems.rerankers import FlagEmbedding, Pairs, column
from bge_runtime.sources import find_model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
_FORMAT = "<Instruct>: {}\n<Query>: {}\n<Document>: {}"
_PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


class Transformers(Batched):
    """The code of the model card, over pairs sorted by length.

    The score is the difference of the two logits, which the card makes a probability.
    """

    padding: ClassVar[dict[str, Any]] = {}
    outputs: ClassVar[dict[str, Any]] = {}

    def __init__(self, spec: SystemSpec) -> None:
        """Open it."""
        self.precision = spec.torch_precision
        with quiet():
            from transformers import AutoModelForCausalLM, AutoTokenizer

            in_force = torch_in_force(spec)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(spec.model, padding_side="left")
            model = AutoModelForCausalLM.from_pretrained(spec.model, dtype=dtype(spec))
        self._model: Any = model.eval().to(spec.device)
        self._spec = spec
        self._prefix, self._suffix = (
            self._tokenizer.encode(text, add_special_tokens=False) for text in (_PREFIX, _SUFFIX)
        )
        self._answers = [self._tokenizer.convert_tokens_to_ids(text) for text in ("yes", "no")]
        self.name = f"transformers {importlib.metadata.version('transformers')}"
        super().__init__(in_force, spec.batch_size)

    def encode(self, pairs: Pairs) -> NDArray[np.float32]:
        """Score pairs; see `bge_bench.systems.base.System`."""
        import torch

        rows = self._tokens(pairs)
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        scores = torch.empty(len(rows))
        with quiet(), torch.inference_mode():
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                scores[batch] = self._score([rows[index] for index in batch])
        return column(scores)

    def _score(self, rows: list[list[int]]) -> Any:
        padded = self._tokenizer.pad({"input_ids": rows}, return_tensors="pt", **self.padding)
        outputs = self._model(**padded.to(self._spec.device), **self.outputs)
        yes, no = outputs.logits[:, -1, self._answers].float().cpu().T
        return yes - no

    def _tokens(self, pairs: Pairs) -> list[list[int]]:
        with quiet():
            bodies = self._tokenizer(
                [_FORMAT.format(_INSTRUCTION, query, passage) for query, passage in pairs],
                truncation=True,
                max_length=self._spec.max_length - len(self._prefix) - len(self._suffix),
            )["input_ids"]
        return [self._prefix + body + self._suffix for body in bodies]


class LikeFlagEmbedding(Transformers):
    """What FlagEmbedding's class does, whose separator and answer cannot be Qwen3-Reranker's.

    Rows are padded to a multiple of 8, the hidden states of all layers are kept, and the first
    batch, which is the longest, runs twice: the first time to find out whether it fits.
    """

    padding: ClassVar[dict[str, Any]] = {"pad_to_multiple_of": 8}
    outputs: ClassVar[dict[str, Any]] = {"output_hidden_states": True}

    def __init__(self, spec: SystemSpec) -> None:
        """Open it."""
        super().__init__(spec)
        self.name = f"FlagEmbedding's loop on {self.name}"

    def encode(self, pairs: Pairs) -> NDArray[np.float32]:
        """Score pairs; see `bge_bench.systems.base.System`."""
        import torch

        longest = sorted(self._tokens(pairs), key=len, reverse=True)[: self.batch_size]
        with quiet(), torch.inference_mode():
            self._score(longest)
        return super().encode(pairs)


def open_flagembedding(spec: SystemSpec) -> System:
    """Open FlagEmbedding's class, or what does the same with Qwen3-Reranker's question."""
    known = find_model(spec.model)
    own = known is not None and known.question is not None and known.question.no is not None
    return LikeFlagEmbedding(spec) if own else FlagEmbedding(spec)
