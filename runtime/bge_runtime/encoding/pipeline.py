"""From texts to the outputs of batches: tokenised window by window, shared among engines."""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from bge_runtime.encoding.prefill import run_batch
from bge_runtime.encoding.prefix_cache import SharedPrefix
from bge_runtime.engines import Engine
from bge_runtime.errors import OutOfMemoryError
from bge_runtime.system import BackgroundTask

_WINDOW = 2048
"""Texts that are tokenised and sorted together. While one window is computed the next
one is tokenised; batches of 2,048 sorted texts hold next to no padding."""

_FIRST_CHARACTERS_ON_GPU = 65_536
"""A GPU waits for the first window, and is done with it so soon that this matters: of the 0.9 s
that 1,000 texts of 512 tokens took with an H100, 0.2 went by before it had anything to do. So that
window has no more characters than this, half a batch of English tokens and two of Chinese ones, and
each one twice the texts of the last: tokenising is 2.4 to 4.6 times as fast as computing bge-large
(an H200 with 16 processors)."""


class Batch(NamedTuple):
    """Texts that are run together.

    Attributes:
        rows: Their positions in the call. Shape: ``(batch,)``.
        input_ids: Their tokens, behind what they share. Shape: ``(batch, sequence)``.
        attention_mask: 1 for a token, 0 for padding. Shape: ``(batch, sequence)``.
        shared: What stands before each of them; None for an encoder.
    """

    rows: NDArray[np.intp]
    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    shared: SharedPrefix | None = None


class Tokenize(Protocol):
    """From texts to token ids."""

    def __call__(self, texts: Sequence[str], *, first: int = 0) -> list[NDArray[np.int64]]:
        """Tokenise texts, of which the first one is the call's text number ``first``."""
        ...


def run_in_parts(
    engine: Engine, batch: Batch, outputs: Sequence[str]
) -> Iterator[tuple[Batch, list[NDArray[np.float32]]]]:
    """Give a batch and its outputs, or its parts and theirs where the memory is too short.

    Not a closure that calls itself: such a one is a cycle, and what it can reach, every vector of
    the call among it, stays in memory until the garbage collector's last generation has its turn.
    """
    past = None if batch.shared is None else batch.shared.pasts[engine.info.variant]
    try:
        results = run_batch(engine, batch.input_ids, batch.attention_mask, outputs, past)
    except OutOfMemoryError as error:
        if len(batch.rows) == 1:
            raise
        warnings.warn(f"{error}. It is run in two halves", stacklevel=2)
        for half in _halves(batch):
            yield from run_in_parts(engine, half, outputs)
        return
    yield batch, results


def _halves(batch: Batch) -> Iterator[Batch]:
    middle = len(batch.rows) // 2
    for part in (slice(None, middle), slice(middle, None)):
        mask = batch.attention_mask[part]
        columns = int(mask.sum(axis=1).max())
        yield Batch(
            batch.rows[part],
            np.ascontiguousarray(batch.input_ids[part, :columns]),
            np.ascontiguousarray(mask[:, :columns]),
            batch.shared,
        )


def first_window_on_gpu(texts: Sequence[str]) -> int:
    """Give the texts of a call's first window.

    A power of two, as a full window is one: full batches then have one shape in all of them.
    """
    characters = itertools.accumulate(map(len, texts[:_WINDOW]))
    within = itertools.takewhile(lambda so_far: so_far <= _FIRST_CHARACTERS_ON_GPU, characters)
    return 1 << max(0, sum(1 for _ in within).bit_length() - 1)


def tokenized_windows(
    texts: Sequence[str], tokenize: Tokenize, *, first_window: int | None = None
) -> Generator[tuple[int, list[NDArray[np.int64]]], None, None]:
    """Tokenise texts, each window while the caller has the one before.

    Args:
        texts: The texts.
        tokenize: Gives their tokens.
        first_window: Texts of the first window, each further one has twice as many up to a full
            one; None for full ones only.

    Yields:
        The position of a window's first text, and the tokens of its texts. Close the generator:
        it may have a thread that tokenises.
    """
    starts, size = [0], first_window or _WINDOW
    while starts[-1] + size < len(texts):
        starts.append(starts[-1] + size)
        size = min(2 * size, _WINDOW)
    windows = [texts[a:b] for a, b in itertools.pairwise([*starts, len(texts)])] if texts else []
    if len(windows) <= 1:
        for window in windows:
            yield 0, tokenize(window)
        return
    coming = BackgroundTask(partial(tokenize, windows[0]), name="bge-tokenize")
    try:
        coming.start()
        for start, window, following in zip(starts, windows, [*windows[1:], None], strict=True):
            tokens = coming.result()
            if following is not None:
                further = partial(tokenize, following, first=start + len(window))
                coming = BackgroundTask(further, name="bge-tokenize")
                coming.start()
            yield start, tokens
    finally:
        coming.wait()


def share_batches(
    engines: Sequence[Engine],
    batches: Iterator[Batch],
    run: Callable[[Engine, Batch], None],
) -> None:
    """Let each engine take the next batch until none is left, or one has failed."""
    if len(engines) > 1:
        first = list(itertools.islice(batches, 2))
        batches = itertools.chain(first, batches)
        if len(first) < 2:  # no threads for one query
            engines = engines[:1]
    if len(engines) == 1:
        for batch in batches:
            run(engines[0], batch)
        return
    lock = threading.Lock()
    failed = False

    def work(engine: Engine) -> None:
        nonlocal failed
        try:
            while not failed:
                with lock:
                    batch = next(batches, None)
                if batch is None:
                    return
                run(engine, batch)
        except BaseException:
            if not failed:  # one error is told
                failed = True
                raise

    threads = [BackgroundTask(partial(work, engine), name="bge-engine") for engine in engines]
    with ExitStack() as stack:  # waits for all of them, even if one wait is interrupted
        for thread in threads:
            stack.callback(thread.wait)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.result()
        except BaseException:
            failed = True  # an interrupt reaches only the calling thread
            raise
