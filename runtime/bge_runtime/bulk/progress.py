"""How far a job is: a bar on a terminal, elsewhere a line a minute."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from bge_runtime.system import on_terminal

if TYPE_CHECKING:
    from tqdm import tqdm


_INTERVAL_S = 60.0
"""Time between two lines."""

_LARGE_INPUT_BYTES = 1 << 28
"""Bytes from which reading takes a noticeable time: a second a gigabyte."""

_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:,}/{total:,} rows [{elapsed}<{remaining}{postfix}]"

logger = logging.getLogger("bge_runtime.bulk")


class Progress:
    """Counts rows, texts and tokens, and shows them. Any thread may call `update`.

    Lines go to the logger ``bge_runtime.bulk``, at the level INFO. One comes with the first update
    after a minute.
    """

    def __init__(self, total: int, *, initial: int = 0, show: bool | None = None) -> None:
        """Start the clock.

        Args:
            total: Rows of the job.
            initial: Rows that earlier runs have done.
            show: True shows a bar, False nothing; None shows a bar on a terminal and lines
                elsewhere.
        """
        self._lock = threading.Lock()
        self._total = total
        self._initial = self._rows = initial
        self._texts = self._tokens = 0
        self._started_s = self._shown_s = time.monotonic()
        self._lines = show is None
        self._bar: tqdm[Any] | None = None
        # A disabled bar of tqdm takes a lock of the whole process, too, which a fork may copy
        # while it is held.
        if show or (show is None and on_terminal()):
            from tqdm import tqdm

            self._lines = False
            self._bar = tqdm(
                total=total,
                initial=initial,
                desc="embedding",
                unit_scale=False,
                smoothing=0.1,  # rows come in windows of thousands
                dynamic_ncols=True,
                bar_format=_BAR,
            )

    def __enter__(self) -> Self:
        """Return the object."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bar as it is, and end its line."""
        if self._bar is not None:
            self._bar.close()

    def update(self, *, rows: int, texts: int, tokens: int) -> None:
        """Count what was done.

        Args:
            rows: Rows of the input, also those that were left out.
            texts: Texts, or chunks of texts, that were embedded.
            tokens: Their tokens.
        """
        with self._lock:
            self._rows += rows
            self._texts += texts
            self._tokens += tokens
            now_s = time.monotonic()
            if self._bar is not None:
                self._bar.set_postfix_str(self._speed(now_s), refresh=False)
                self._bar.update(rows)
            elif self._lines and now_s - self._shown_s >= _INTERVAL_S:
                self._shown_s = now_s
                logger.info("%s", self._line(now_s))

    def _speed(self, now_s: float) -> str:
        passed_s = max(now_s - self._started_s, 1e-9)
        return (
            f"{_rounded(self._texts / passed_s)} texts/s, "
            f"{_rounded(self._tokens / passed_s)} tokens/s"
        )

    def _line(self, now_s: float) -> str:
        done = self._rows - self._initial
        left_s = (self._total - self._rows) * (now_s - self._started_s) / done if done else None
        left = "" if left_s is None else f", {timedelta(seconds=round(left_s))} left"
        percent = 100 * self._rows // max(1, self._total)
        return f"{self._rows:,} of {self._total:,} rows ({percent} %), {self._speed(now_s)}{left}"


def _rounded(number: float) -> str:
    return f"{number:,.1f}" if number < 10 else f"{number:,.0f}"


@contextmanager
def show_reading(total_bytes: int, *, show: bool | None) -> Iterator[Callable[[int], object]]:
    """Show how much has been read of a large input, before the first row is embedded.

    Args:
        total_bytes: How much will be read.
        show: As in `Progress`; a small input shows nothing.

    Yields:
        What receives the number of bytes read since the last call, from any thread.
    """
    bar = show or (show is None and on_terminal())
    if show is False or total_bytes < _LARGE_INPUT_BYTES or not bar:
        if show is None and total_bytes >= _LARGE_INPUT_BYTES:
            logger.info("reading %.1f GB to count rows and hash files", total_bytes / 1e9)
        yield lambda _: None
        return
    from tqdm import tqdm

    lock = threading.Lock()
    with tqdm(total=total_bytes, desc="reading", unit="B", unit_scale=True) as shown:

        def update(count: int) -> None:
            with lock:
                shown.update(count)

        yield update
