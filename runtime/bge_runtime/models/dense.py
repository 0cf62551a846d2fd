"""The ``encode`` methods of the classes that return one vector for each text."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import SENTENCE_EMBEDDING
from bge_runtime.encoding import (
    DenseVectors,
    EncodingPlan,
    TokenizationPlan,
    as_texts,
    check_positive,
    encode,
)
from bge_runtime.models.base import BaseEmbedder


class DenseEmbedder(BaseEmbedder):
    """A model with one vector for each text; its classes add a constructor.

    Attributes:
        convert_to_numpy: Whether calls return arrays by default, and not tensors.
    """

    convert_to_numpy: bool

    def encode_queries(
        self,
        queries: Sequence[str] | str,
        batch_size: int | None = None,
        max_length: int | None = None,
        convert_to_numpy: bool | None = None,
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """Embed queries, with the model's query instruction if one was given.

        As `encode`, with ``query_max_length`` as the default length.
        """
        return self.encode(
            queries,
            batch_size=batch_size,
            max_length=self.query_max_length if max_length is None else max_length,
            convert_to_numpy=convert_to_numpy,
            **{**self._query_instruction(), **kwargs},
        )

    def encode_corpus(
        self,
        corpus: Sequence[str] | str,
        batch_size: int | None = None,
        max_length: int | None = None,
        convert_to_numpy: bool | None = None,
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """Embed passages, with the passage instruction given to the constructor.

        As `encode`, with ``passage_max_length`` as the default length.
        """
        return self.encode(
            corpus,
            batch_size=batch_size,
            max_length=max_length,
            convert_to_numpy=convert_to_numpy,
            **{**self._passage_instruction(), **kwargs},
        )

    def encode(
        self,
        sentences: Sequence[str] | str,
        batch_size: int | None = None,
        max_length: int | None = None,
        convert_to_numpy: bool | None = None,
        *,
        instruction: str | None = None,
        instruction_format: str | None = None,
        pad_to_multiple_of: int | None = None,  # noqa: ARG002
        show_progress_bar: bool | None = None,
    ) -> NDArray[np.float32]:
        """Embed texts.

        Texts of more than ``max_length`` tokens, special tokens included, are cut on the right.
        Vectors do not depend on the other texts of the call, apart from floating-point rounding.
        That holds in int8, too, where each token is rounded to 8 bits with scales of its own: a
        difference in the last bit may become a step of 8 bits, and moves a unit vector by less
        than 0.005.

        Args:
            sentences: A text, or texts in order, such as a list, an iterator, an array or a
                column of a table; there may be none.
            batch_size: Maximum texts in a batch; None for the model's.
            max_length: Maximum tokens of a text; None for ``passage_max_length``.
            convert_to_numpy: False returns a torch tensor; None for the model's.
            instruction: Put before each text.
            instruction_format: How it is put there; needed with ``instruction``.
            pad_to_multiple_of: Accepted for compatibility; padding changes no vector.
            show_progress_bar: None shows one for ``batch_size`` texts or more, on a
                terminal.

        Returns:
            Vectors in input order, of unit length if ``normalize_embeddings``.

            Shape: ``(len(sentences), dim)``, or ``(dim,)`` for a single text. float32;
            float16 where a GPU computes in fp16 (see ``vector_dtype``).

        Raises:
            TypeError: If a text is not a string, or the texts have no order.
            ValueError: If a number is out of range, or a text is not valid Unicode.
            NotFiniteError: If a vector holds NaN or infinity.
            InferenceError: If the engine fails.
        """
        as_numpy = self.convert_to_numpy if convert_to_numpy is None else convert_to_numpy
        check_torch(as_numpy=as_numpy)
        texts, single = as_texts(sentences, name="sentences")
        texts = self._add_instruction(texts, instruction, instruction_format)
        plan = self._plan(
            self._tokenization(
                self.passage_max_length if max_length is None else max_length,
                instruction,
                instruction_format,
            ),
            # One text is not worth sharing, as in FlagEmbedding.
            devices=self.target_devices[:1] if single else self.target_devices,
            batch_size=self.batch_size if batch_size is None else batch_size,
            show_progress_bar=show_progress_bar,
        )
        vectors = self._new_vectors(len(texts))
        encode(texts, plan, self._engines, vectors.add)
        return format_output(vectors, single=single, as_numpy=as_numpy)

    def encode_single_device(
        self,
        sentences: Sequence[str] | str,
        batch_size: int = 256,
        max_length: int = 512,
        convert_to_numpy: bool = True,
        device: str | int | None = None,
        *,
        pad_to_multiple_of: int | None = None,  # noqa: ARG002
        show_progress_bar: bool | None = None,
    ) -> NDArray[np.float32]:
        """Embed texts on one of the model's devices, without an instruction.

        Args:
            sentences: A text, or a list of texts.
            batch_size: Maximum texts in a batch.
            max_length: Maximum tokens of a text.
            convert_to_numpy: False returns a torch tensor.
            device: One of ``target_devices``; None for the first.
            pad_to_multiple_of: As in `encode`.
            show_progress_bar: As in `encode`.

        Returns:
            As `encode`.

        Raises:
            ValueError: If the model was not opened on ``device``.
        """
        check_torch(as_numpy=convert_to_numpy)
        texts, single = as_texts(sentences, name="sentences")
        plan = self._plan(
            self._tokenization(max_length, None, None),
            devices=[self._one_device(device)],
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
        )
        vectors = self._new_vectors(len(texts))
        encode(texts, plan, self._engines, vectors.add)
        return format_output(vectors, single=single, as_numpy=convert_to_numpy)

    def encode_multi_process(
        self,
        sentences: Sequence[str],
        pool: dict[str, Any],  # noqa: ARG002
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """Embed a list on all devices; ``pool`` is what `start_multi_process_pool` returned."""
        return self.encode(sentences, **kwargs)

    def _plan(
        self,
        tokenization: TokenizationPlan,
        *,
        devices: Sequence[str],
        batch_size: int,
        show_progress_bar: bool | None,
    ) -> EncodingPlan:
        check_positive("batch_size", batch_size)
        self._check_truncate_dim()
        return EncodingPlan(
            tokenization=tokenization,
            outputs=[SENTENCE_EMBEDDING],
            batch_size=batch_size,
            devices=devices,
            show_progress_bar=show_progress_bar,
        )

    def _new_vectors(self, count: int) -> DenseVectors:
        return DenseVectors(
            count, self.dim, dtype=self.vector_dtype, normalized=self.normalize_embeddings
        )


def format_output(vectors: DenseVectors, *, single: bool, as_numpy: bool) -> NDArray[np.float32]:
    """Return the vectors of a call as it asked for them: one or all, an array or a tensor."""
    result: Any = vectors.vectors[0] if single else vectors.vectors
    if not as_numpy:
        import torch

        result = torch.from_numpy(result)
    return result  # type: ignore[no-any-return]


def check_torch(*, as_numpy: bool) -> None:
    """Check before anything is computed whether tensors can be returned.

    Raises:
        ImportError: If tensors are asked for, and torch is not installed.
    """
    if not as_numpy and importlib.util.find_spec("torch") is None:
        raise ImportError(
            "convert_to_numpy=False asks for torch tensors, and torch is not installed. "
            "Leave it out, or run `pip install torch`"
        )
