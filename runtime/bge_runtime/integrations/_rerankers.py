"""What the integrations of rerankers share: open one in fp32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bge_runtime.integrations._arguments import drop_foreign_options
from bge_runtime.rerankers import AnyReranker, FlagAutoReranker


def open_reranker(
    model_name: str,
    *,
    normalize: bool,
    max_length: int | None,
    model_kwargs: Mapping[str, Any],
    **options: Any,
) -> AnyReranker:
    """Open a reranker with `bge_runtime.FlagAutoReranker`, in fp32 unless options differ.

    Args:
        model_name: As in `bge_runtime.FlagReranker`.
        normalize: Whether scores are between 0 and 1.
        max_length: Tokens that a pair is cut to; None for all that the model reads, as in the tools
            that the integrations replace.
        model_kwargs: Arguments of ``from_finetuned``; ``device`` as another name of ``devices``;
            and arguments of sentence-transformers that change nothing.
        **options: The same, as arguments of their own. None leaves one out.

    Raises:
        TypeError: If an argument is given twice, once in ``model_kwargs``.
        ValueError: If an option of sentence-transformers would change something.
        BgeError: As `bge_runtime.FlagReranker`.
    """
    own = {name: value for name, value in options.items() if value is not None}
    twice = {"normalize", "max_length", *own} & model_kwargs.keys()
    if twice:
        name = min(twice)
        raise TypeError(f"{name} is an argument of its own; leave it out of model_kwargs")
    options = drop_foreign_options({**own, **model_kwargs}, model_name)
    model = FlagAutoReranker.from_finetuned(model_name, normalize=normalize, **options)
    model.max_length = model.model_max_length if max_length is None else max_length
    return model
