"""What the integrations of rerankers share: open one in fp32."""

from __future__ import annotations

from typing import Any

from bge_runtime.integrations._arguments import drop_foreign_options
from bge_runtime.rerankers import AnyReranker, FlagAutoReranker


def open_reranker(
    model_name: str, *, normalize: bool, max_length: int | None, **options: Any
) -> AnyReranker:
    """Open a reranker with `bge_runtime.FlagAutoReranker`, in fp32 unless options differ.

    Args:
        model_name: As in `bge_runtime.FlagReranker`.
        normalize: Whether scores are between 0 and 1.
        max_length: Tokens that a pair is cut to; None for all that the model reads, as in the tools
            that the integrations replace.
        **options: Those of ``from_finetuned``; ``device`` as another name of ``devices``; and
            arguments of sentence-transformers that change nothing.

    Raises:
        TypeError: If an argument is given twice.
        ValueError: If an option of sentence-transformers would change something.
        BgeError: As `bge_runtime.FlagReranker`.
    """
    options = drop_foreign_options(options, model_name)
    model = FlagAutoReranker.from_finetuned(model_name, normalize=normalize, **options)
    model.max_length = model.model_max_length if max_length is None else max_length
    return model
