"""A progress bar on stderr, if that is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def progress(steps: int | None) -> Iterator[Callable[[str], object]]:
    """Show a progress bar of ``steps`` steps, or of an unknown number for None.

    Yields:
        A function to call with a short message at the start of each step.
    """
    with tqdm(total=steps, desc="bench", unit="step", disable=None, leave=False) as bar:
        begun = 0

        def step(message: str) -> None:
            nonlocal begun
            bar.update(min(begun, 1))
            bar.set_postfix_str(message)
            begun += 1

        yield step
        bar.update(1)
