"""Hide what PyTorch and transformers print during an export."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

from transformers.utils import logging as transformers_logging


@contextlib.contextmanager
def hide_transformers_output() -> Iterator[None]:
    """Hide warnings and progress bars of transformers, which are meant for training."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def hide_onnx_exporter_output() -> Iterator[None]:
    """Hide notes of ``torch.onnx`` about optional packages."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)


def shorten(error: BaseException) -> str:
    """Return the beginning of an error's message in one line."""
    return " ".join(str(error).split())[:300]
