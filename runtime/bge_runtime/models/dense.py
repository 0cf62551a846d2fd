"""What the classes that give one vector a text share: FlagEmbedding's ``encode`` methods."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import SENTENCE_EMBEDDING
from bge_runtime.encoding import Batch, as_texts, check_positive, normalize, truncate
from bge_runtime.models.base import FlagBase
from bge_runtime.models.embedder import TokenizationPlan


class FlagDense(FlagBase):
    """The ``encode`` methods, for classes with a constructor of their own.

    Attributes:
        convert_to_numpy: Whether calls that do not say give arrays, and not tensors.
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

        Texts of more than ``max_length`` tokens, special tokens included, are cut on
        the right. Values do not depend on the other texts of the call, but for
        floating-point rounding. Nor do they in int8: each token's numbers are rounded to 8
        bits by scales of their own, not by one of the whole batch. A difference in the last
        bit may there become a step of 8 bits; a unit vector moves by less than 0.005.

        Args:
            sentences: A text, or texts in order, such as a list, an iterator, an array or a
                column of a table; there may be none.
            batch_size: Most texts in a batch; None for the model's.
            max_length: Most tokens of a text; None for ``passage_max_length``.
            convert_to_numpy: False gives a torch tensor; None for the model's.
            instruction: Put before each text.
            instruction_format: How it is put there; needed with ``instruction``.
            pad_to_multiple_of: Taken for compatibility; padding changes no vector.
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
        texts = self._instructed(texts, instruction, instruction_format)
        # One text is not worth sharing out, as upstream.
        devices = self.target_devices[:1] if single else self.target_devices
        vectors = self._encode(
            texts,
            devices,
            reading=self._reading(
                self.passage_max_length if max_length is None else max_length,
                instruction,
                instruction_format,
            ),
            batch_size=self.batch_size if batch_size is None else batch_size,
            show_progress_bar=show_progress_bar,
        )
        return self._format_output(vectors, single=single, as_numpy=as_numpy)

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
            batch_size: Most texts in a batch.
            max_length: Most tokens of a text.
            convert_to_numpy: False gives a torch tensor.
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
        vectors = self._encode(
            texts,
            [self._one_device(device)],
            reading=self._reading(max_length, None, None),
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
        )
        return self._format_output(vectors, single=single, as_numpy=convert_to_numpy)

    def encode_multi_process(
        self,
        sentences: Sequence[str],
        pool: dict[str, Any],  # noqa: ARG002
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """Embed a list on all devices; ``pool`` is what `start_multi_process_pool` gave."""
        return self.encode(sentences, **kwargs)

    def _reading(
        self,
        max_length: int,
        instruction: str | None,
        instruction_format: str | None,
    ) -> TokenizationPlan:
        """Tell how texts are read that an instruction was put before."""
        length = self._length_for(max_length, instruction, instruction_format, stacklevel=4)
        return TokenizationPlan(partial(self.tokenizer.encode, max_length=length))

    def _encode(
        self,
        texts: list[str],
        devices: Sequence[str],
        *,
        reading: TokenizationPlan,
        batch_size: int,
        show_progress_bar: bool | None,
    ) -> NDArray[np.float32]:
        check_positive("batch_size", batch_size)
        self._check_truncate_dim(stacklevel=4)
        cut = partial(truncate, dim=self.truncate_dim)
        scale = self.normalize_embeddings
        vectors = np.empty((len(texts), self.dim), dtype=self.vector_dtype)

        def take(batch: Batch, outputs: list[NDArray[np.float32]]) -> None:
            rows = cut(outputs[0])
            vectors[batch.rows] = self._rounded(normalize(rows) if scale else rows, batch.rows)

        self._run(
            texts,
            take,
            reading=reading,
            outputs=[SENTENCE_EMBEDDING],
            batch_size=batch_size,
            devices=devices,
            show_progress_bar=show_progress_bar,
        )
        return vectors

    @staticmethod
    def _format_output(
        vectors: NDArray[np.float32], *, single: bool, as_numpy: bool
    ) -> NDArray[np.float32]:
        result: Any = vectors[0] if single else vectors
        if not as_numpy:
            import torch

            result = torch.from_numpy(result)
        return result  # type: ignore[no-any-return]


def check_torch(*, as_numpy: bool) -> None:
    """Find out before anything is computed whether tensors can be given."""
    if not as_numpy and importlib.util.find_spec("torch") is None:
        raise ImportError(
            "convert_to_numpy=False asks for torch tensors, and torch is not installed. "
            "Leave it out, or run `pip install torch`"
        )
