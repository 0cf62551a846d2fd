"""Rerankers: bge-runtime's, and those that run the checkpoint on PyTorch.

They score pairs: ``encode`` takes pairs of query and passage, and returns logits. Shape:
``(len(pairs), 1)``.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bge_bench.systems.base import Batched, Ours, SystemSpec, flagembedding, quiet
from bge_bench.systems.pytorch import dtype, torch_in_force

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Pairs = Sequence[tuple[str, str]]


class OurReranker(Ours):
    """The class of bge-runtime, by ``rerank`` for the pairs of one query."""

    def __init__(self, spec: SystemSpec) -> None:
        """Open it."""
        super().__init__(spec, max_length=spec.max_length)

    def encode(self, pairs: Pairs) -> NDArray[np.float32]:
        """Score pairs; see `bge_bench.systems.base.System`."""
        options = {"batch_size": self.batch_size, "show_progress_bar": False}
        if len({query for query, _ in pairs}) > 1:
            return column(self._model.compute_score([tuple(pair) for pair in pairs], **options))
        ranked = self._model.rerank(pairs[0][0], [passage for _, passage in pairs], **options)
        return column([found.score for found in sorted(ranked, key=lambda found: found.index)])


class FlagEmbedding(Batched):
    """FlagEmbedding's class, in fp32 on a CPU and in fp16 on a GPU."""

    def __init__(self, spec: SystemSpec) -> None:
        """Open it."""
        self.precision = spec.torch_precision
        with quiet():
            in_force = torch_in_force(spec)
            self._model: Any = flagembedding(
                spec.model,
                spec.model_class,
                device=spec.device,
                use_fp16=self.precision == "fp16",
                max_length=spec.max_length,
            )
        self.name = f"FlagEmbedding {importlib.metadata.version('FlagEmbedding')}"
        super().__init__(in_force, spec.batch_size)

    def encode(self, pairs: Pairs) -> NDArray[np.float32]:
        """Score pairs; see `bge_bench.systems.base.System`."""
        with quiet():
            return column(
                self._model.compute_score(
                    [tuple(pair) for pair in pairs], batch_size=self.batch_size
                )
            )


class Transformers(Batched):
    """A plain forward pass of ``AutoModelForSequenceClassification``, over pairs sorted by length.

    With a batch size of 1 nothing is padded; that is the reference for parity.
    """

    def __init__(self, spec: SystemSpec) -> None:
        """Open it."""
        self.precision = spec.torch_precision
        with quiet():
            from transformers import AutoModelForSequenceClassification, AutoTokenizer

            in_force = torch_in_force(spec)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(spec.model)
            model = AutoModelForSequenceClassification.from_pretrained(
                spec.model, dtype=dtype(spec)
            )
        self.model: Any = model.eval().to(spec.device)
        self._spec = spec
        self.name = f"transformers {importlib.metadata.version('transformers')}"
        super().__init__(in_force, spec.batch_size)

    def encode(self, pairs: Pairs) -> NDArray[np.float32]:
        """Score pairs; see `bge_bench.systems.base.System`."""
        with quiet():
            rows = cut_pairs(self._tokenizer, pairs, self._spec.max_length)
            return score_sorted(
                self.model, self._tokenizer, rows, self._spec.device, batch_size=self.batch_size
            )


class TransformersCompiled(Transformers):
    """`Transformers` with each layer compiled by ``torch.compile`` for dynamic lengths."""

    def __init__(self, spec: SystemSpec) -> None:
        """Open it."""
        super().__init__(spec)
        for layer in self.model.base_model.encoder.layer:
            layer.compile(dynamic=True)
        self._computes += ", compiled"


class CrossEncoder(Batched):
    """sentence-transformers' ``CrossEncoder``, without its sigmoid."""

    def __init__(self, spec: SystemSpec, backend: str, options: dict[str, Any]) -> None:
        """Open it; the subclass then describes what runs it."""
        super().__init__("", spec.batch_size)
        with quiet():
            import sentence_transformers
            import torch

            if spec.threads is not None:
                torch.set_num_threads(spec.threads)
            self._model: Any = sentence_transformers.CrossEncoder(
                spec.model,
                device=spec.device,
                backend=backend,
                model_kwargs=options,
                max_length=spec.max_length,
                activation_fn=torch.nn.Identity(),
                local_files_only=True,
            )
        version = importlib.metadata.version("sentence-transformers")
        self.name = f"sentence-transformers {version} {backend}"

    def encode(self, pairs: Pairs) -> NDArray[np.float32]:
        """Score pairs; see `bge_bench.systems.base.System`."""
        with quiet():
            return column(
                self._model.predict(
                    [tuple(pair) for pair in pairs],
                    batch_size=self.batch_size,
                    show_progress_bar=False,
                )
            )


class CrossEncoderTorch(CrossEncoder):
    """sentence-transformers on PyTorch, in fp32; on a GPU in fp16."""

    def __init__(self, spec: SystemSpec) -> None:
        """Open it."""
        self.precision = spec.torch_precision
        super().__init__(spec, "torch", {"dtype": dtype(spec)})
        self._computes = torch_in_force(spec)


class CrossEncoderBf16(CrossEncoder):
    """sentence-transformers in bf16, which its documentation on speed suggests."""

    precision = "bf16"

    def __init__(self, spec: SystemSpec) -> None:
        """Open it."""
        with quiet():
            import torch
        super().__init__(spec, "torch", {"dtype": torch.bfloat16})
        self._computes = torch_in_force(spec).replace("fp32", "bf16")


def column(scores: Any) -> NDArray[np.float32]:
    """Return scores as an array of shape ``(n, 1)``."""
    import numpy as np

    return np.asarray(scores, dtype=np.float32).reshape(-1, 1)


def cut_pairs(tokenizer: Any, pairs: Pairs, max_length: int) -> list[Any]:
    """Return the inputs of each pair, cut as FlagEmbedding does.

    Queries are cut at three quarters of the length, and then passages.
    """

    def cut(texts: list[str], most: int) -> list[list[int]]:
        ids: list[list[int]] = tokenizer(
            texts, add_special_tokens=False, truncation=True, max_length=most
        )["input_ids"]
        return ids

    queries = cut([query for query, _ in pairs], max_length * 3 // 4)
    passages = cut([passage for _, passage in pairs], max_length)
    return [
        tokenizer.prepare_for_model(query, passage, truncation="only_second", max_length=max_length)
        for query, passage in zip(queries, passages, strict=True)
    ]


def score_sorted(
    model: Any, tokenizer: Any, rows: Sequence[Any], device: str, *, batch_size: int
) -> NDArray[np.float32]:
    """Run a plain forward pass over pairs sorted by their tokens.

    Args:
        model: Model that returns ``logits``.
        tokenizer: transformers' tokenizer of the model.
        rows: Inputs of each pair.
        device: Where to run it.
        batch_size: Most pairs in a batch.

    Returns:
        Logits in input order. Shape: ``(len(rows), 1)``.
    """
    import torch

    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]["input_ids"]))
    scores = torch.empty(len(rows), 1)
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            padded = tokenizer.pad([rows[index] for index in batch], return_tensors="pt")
            scores[batch] = model(**padded.to(device)).logits.float().cpu()
    return column(scores)
