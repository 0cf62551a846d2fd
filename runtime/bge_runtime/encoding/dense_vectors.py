"""The dense vectors of a call, collected batch by batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.encoding.pipeline import Batch
from bge_runtime.encoding.postprocess import normalize, round_vectors, truncate


class DenseVectors:
    """The dense vectors of a call.

    Attributes:
        vectors: One row for each text, in input order.
    """

    def __init__(self, count: int, dim: int, *, dtype: np.dtype[Any], normalized: bool) -> None:
        """Allocate the vectors.

        Args:
            count: Number of texts.
            dim: Components to keep of each vector: the first ones.
            dtype: Type of the vectors.
            normalized: Scale vectors to unit length, in float32.
        """
        # Zero, since a text that is rejected leaves its row as it is.
        self.vectors: NDArray[Any] = np.zeros((count, dim), dtype=dtype)
        self._normalized = normalized

    def add(self, batch: Batch, outputs: list[NDArray[np.float32]]) -> None:
        """Keep the vectors of a batch, which are its first output.

        Raises:
            NotFiniteError: If a component is too large for the type of the vectors.
        """
        vectors = truncate(outputs[0], self.vectors.shape[1])
        if self._normalized:
            vectors = normalize(vectors)
        self.vectors[batch.rows] = round_vectors(vectors, self.vectors.dtype, batch.rows)
