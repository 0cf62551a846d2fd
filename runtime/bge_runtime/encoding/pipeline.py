"""From texts to the outputs of their batches: the one path of every ``encode`` and score.

texts -> tokens, window by window -> batches of similar length -> engines -> checked outputs
"""

from __future__ import annotations

import itertools
import shlex
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import COLBERT_VECS, TOKEN_WEIGHTS
from bge_runtime.encoding.batching import balanced_batch_tokens, plan_batches
from bge_runtime.encoding.engine_set import EngineSet
from bge_runtime.encoding.postprocess import find_not_finite
from bge_runtime.encoding.prefill import is_long, run_in_chunks
from bge_runtime.encoding.prefix_cache import SharedPrefix
from bge_runtime.engines import Engine, pad_batch
from bge_runtime.errors import NotFiniteError, OutOfMemoryError
from bge_runtime.system import BackgroundTask, on_terminal

if TYPE_CHECKING:
    from tqdm import tqdm

_Work = TypeVar("_Work")

_WINDOW = 2048
"""Texts that are tokenized and sorted together. The next window is tokenized while one is computed;
batches of 2,048 sorted texts have almost no padding."""

_ONLY_ROW = np.zeros(1, dtype=np.intp)
"""Position of a text that is the only one of its call."""

_FIRST_CHARACTERS_ON_GPU = 65_536
"""Maximum characters of the first window on a GPU, half a batch of English tokens and two of
Chinese ones. The GPU waits for that window: of the 0.9 s that 1,000 texts of 512 tokens took on an
H100, it was idle for 0.2 s. Each further window has twice the texts, since tokenizing is 2.4 to 4.6
times as fast as computing bge-large (an H200 with 16 processors)."""


class Tokenize(Protocol):
    """A function from texts to token ids."""

    def __call__(
        self, texts: Sequence[str], *, first: int = 0, truncated: list[int] | None = None
    ) -> list[NDArray[np.int64]]:
        """Return the token ids of each text.

        Args:
            texts: The texts.
            first: Number of the first text in the call.
            truncated: Receives the numbers of the texts that were truncated.
        """
        ...


@dataclass(frozen=True)
class TokenizationPlan:
    """How the texts of a call become tokens.

    Attributes:
        tokenize: Returns the tokens of each text, at least one.
        prefix: Tokens that the texts of later calls will probably begin with. Only a causal model
            makes use of them.
    """

    tokenize: Tokenize
    prefix: NDArray[np.int64] | None = None


@dataclass(frozen=True, kw_only=True)
class EncodingPlan:
    """What one call computes, and how.

    Attributes:
        tokenization: How texts become tokens.
        outputs: Names of the graph's outputs to compute.
        batch_size: Maximum texts in a batch.
        devices: Devices to share the work.
        show_progress_bar: None shows one for ``batch_size`` texts or more, on a terminal.
        describe_text: Returns the name of a text by its number, for errors.
    """

    tokenization: TokenizationPlan
    outputs: Sequence[str]
    batch_size: int
    devices: Sequence[str]
    show_progress_bar: bool | None = None
    describe_text: Callable[[int], str] = "text {}".format


class Batch(NamedTuple):
    """Texts that are run together.

    Attributes:
        rows: Their positions in the call. Shape: ``(batch,)``.
        input_ids: Their tokens, without those of ``prefix``. Shape: ``(batch, sequence)``.
        attention_mask: 1 for a token, 0 for padding. Shape: ``(batch, sequence)``.
        prefix: What all of them begin with; None if nothing is shared.
    """

    rows: NDArray[np.intp]
    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    prefix: SharedPrefix | None = None


OnBatch = Callable[[Batch, list[NDArray[np.float32]]], object]
"""Receives each batch and its outputs, in any order and from several threads."""


def encode(texts: list[str], plan: EncodingPlan, engines: EngineSet, on_batch: OnBatch) -> None:
    """Compute the outputs of all texts, batch by batch.

    Args:
        texts: The texts.
        plan: What to compute.
        engines: The engines.
        on_batch: Receives each batch and its outputs.

    Raises:
        NotFiniteError: If an output has NaN or infinity.
        InferenceError: If an engine fails.
    """
    bar = progress_bar(len(texts), shown=plan.show_progress_bar, batch_size=plan.batch_size)
    with bar as progress:
        call = BatchCall(plan.outputs, plan.describe_text, engines.bundle.path, on_batch, progress)
        if len(texts) == 1:
            _encode_one(texts, plan, engines, call)
        else:
            _encode_many(texts, plan, engines, call)


def _encode_one(texts: list[str], plan: EncodingPlan, engines: EngineSet, call: BatchCall) -> None:
    """Compute one text, without the windows and generators of many.

    Those take 0.1 to 0.2 ms, where a query in a small model takes 0.8 ms.
    """
    # One text is worth neither sharing nor parallel batches.
    engine = engines.on_device(plan.devices[0])
    tokens = plan.tokenization.tokenize(texts)
    prefix = engines.prefix_cache.share([engine], tokens, plan.tokenization.prefix)
    ids = tokens[0][None, prefix.length if prefix else 0 :]
    mask = np.ones(ids.shape, dtype=np.int64)
    compute_batch(engine, Batch(_ONLY_ROW, ids, mask, prefix), call=call)


def _encode_many(texts: list[str], plan: EncodingPlan, engines: EngineSet, call: BatchCall) -> None:
    tokenize = plan.tokenization.tokenize
    windows = tokenize_windows(texts, tokenize, first_window=_first_window(texts, plan, engines))
    # Closed here, whatever happens. Left to the garbage collector, the generator would wait for its
    # tokenizing thread in whichever thread the collector runs, and has been seen to block the whole
    # process in one that was just starting.
    with closing(windows):
        first = list(itertools.islice(windows, 1))
        lengths = [len(ids) for _, tokens in first for ids in tokens]
        running = engines.for_texts(plan.devices, lengths)
        batches = _make_batches(itertools.chain(first, windows), plan, engines, running)
        share_batches(running, batches, partial(compute_batch, call=call))


class BatchCall(NamedTuple):
    """What is the same for all batches of a call.

    Attributes:
        outputs: Names of the graph's outputs to compute.
        describe_text: Returns the name of a text by its row, for errors.
        bundle: Folder of the bundle, for errors.
        on_batch: Receives each batch and its outputs.
        progress: Progress bar, if there is one.
    """

    outputs: Sequence[str]
    describe_text: Callable[[int], str]
    bundle: Path
    on_batch: OnBatch
    progress: tqdm[Any] | None = None


def compute_batch(engine: Engine, batch: Batch, *, call: BatchCall) -> None:
    """Run a batch, check its outputs and pass them on; in two halves if memory runs out.

    A function of the module, since a nested one that calls itself is a reference cycle: everything
    that it can reach, all vectors of the call included, would wait for the garbage collector.

    Raises:
        NotFiniteError: If an output has NaN or infinity.
        InferenceError: If the engine fails.
    """
    ids, mask, names = batch.input_ids, batch.attention_mask, call.outputs
    past = None if batch.prefix is None else batch.prefix.pasts[engine.info.variant]
    try:
        if is_long(engine, ids):
            outputs = run_in_chunks(engine, ids, mask, names, past=past)
        else:
            outputs = engine.run(ids, mask, names, past=past)
    except OutOfMemoryError as error:
        if len(batch.rows) == 1:
            raise
        warnings.warn(f"{error}. It is run in two halves", stacklevel=2)
        for half in halve_batch(batch):
            compute_batch(engine, half, call=call)
        return
    _check_finite(batch, outputs, engine, call)
    call.on_batch(batch, outputs)
    if call.progress is not None:
        call.progress.update(len(batch.rows))


def share_batches(
    engines: Sequence[Engine],
    batches: Iterator[_Work],
    compute: Callable[[Engine, _Work], None],
    *,
    endless: bool = False,
) -> None:
    """Run batches on engines: each takes the next one, until none is left or one fails.

    Args:
        engines: The engines.
        batches: The batches.
        compute: Runs a batch on an engine.
        endless: Whether many batches are to come, and a first one may have to be computed before
            there is a second one.
    """
    if len(engines) > 1 and not endless:
        first = list(itertools.islice(batches, 2))
        batches = itertools.chain(first, batches)
        if len(first) < 2:  # no threads for one query
            engines = engines[:1]
    if len(engines) == 1:
        for batch in batches:
            compute(engines[0], batch)
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
                compute(engine, batch)
        except BaseException:
            if not failed:  # only the first error is raised
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


def tokenize_windows(
    texts: Sequence[str], tokenize: Tokenize, *, first_window: int | None = None
) -> Generator[tuple[int, list[NDArray[np.int64]]], None, None]:
    """Tokenize texts, each window while the caller works on the one before.

    Args:
        texts: The texts.
        tokenize: Returns their tokens.
        first_window: Texts of the first window; each further one has twice as many, up to a full
            window. None for full windows only.

    Yields:
        The position of a window's first text, and the tokens of its texts. Close the generator:
        it may have a thread that tokenizes.
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


def _make_batches(
    windows: Iterable[tuple[int, list[NDArray[np.int64]]]],
    plan: EncodingPlan,
    engines: EngineSet,
    running: Sequence[Engine],
) -> Iterator[Batch]:
    distinct = list(dict.fromkeys(running))
    # Whichever engine is idle takes the next batch, so each batch has to suit all of them.
    max_tokens = min(engine.batches.tokens for engine in distinct)
    for start, tokens in windows:
        prefix = engines.prefix_cache.share(distinct, tokens, plan.tokenization.prefix)
        lengths = [len(ids) - (prefix.length if prefix else 0) for ids in tokens]
        for batch in batch_tokens(
            tokens,
            distinct,
            pad_token_id=engines.bundle.manifest.model.pad_token_id,
            max_tokens=balanced_batch_tokens(lengths, max_tokens, streams=len(running)),
            max_rows=plan.batch_size,
            prefix=prefix,
        ):
            yield batch._replace(rows=batch.rows + start)


def batch_tokens(
    tokens: Sequence[NDArray[np.int64]],
    engines: Sequence[Engine],
    *,
    pad_token_id: int,
    max_tokens: int,
    max_rows: int,
    prefix: SharedPrefix | None = None,
) -> Iterator[Batch]:
    """Yield batches of the texts of a window, longest first.

    Args:
        tokens: Token ids of each text.
        engines: Engines that may run a batch.
        pad_token_id: Id that fills shorter rows.
        max_tokens: Maximum tokens of a batch, padding included.
        max_rows: Maximum texts of a batch.
        prefix: What all texts begin with; None if nothing is shared.
    """
    rest = tokens if prefix is None else [ids[prefix.length :] for ids in tokens]
    positions = plan_batches(
        [len(ids) for ids in rest],
        max_tokens=max_tokens,
        max_rows=max_rows,
        max_padding=min(engine.batches.overhead_tokens for engine in engines),
    )
    for rows in positions:
        ids, mask = pad_batch([rest[row] for row in rows], pad_token_id=pad_token_id)
        yield Batch(rows, ids, mask, prefix)


def halve_batch(batch: Batch) -> Iterator[Batch]:
    """Yield the two halves of a batch, each without padding that it does not need."""
    middle = len(batch.rows) // 2
    for part in (slice(None, middle), slice(middle, None)):
        mask = batch.attention_mask[part]
        columns = int(mask.sum(axis=1).max())
        yield Batch(
            batch.rows[part],
            np.ascontiguousarray(batch.input_ids[part, :columns]),
            np.ascontiguousarray(mask[:, :columns]),
            batch.prefix,
        )


def _first_window(texts: Sequence[str], plan: EncodingPlan, engines: EngineSet) -> int | None:
    """Return the texts of the first window on a GPU; None where a full window costs no time."""
    engine = engines.on_device(plan.devices[0])
    waits = engine.info.device != "cpu" and not engine.past_names
    return first_window_on_gpu(texts) if waits else None


def first_window_on_gpu(texts: Sequence[str]) -> int:
    """Return the number of texts in a call's first window.

    A power of two, as a full window is: full batches then have one shape in all windows.
    """
    characters = itertools.accumulate(map(len, texts[:_WINDOW]))
    within = itertools.takewhile(lambda so_far: so_far <= _FIRST_CHARACTERS_ON_GPU, characters)
    return 1 << max(0, sum(1 for _ in within).bit_length() - 1)


def progress_bar(
    count: int,
    *,
    shown: bool | None,
    batch_size: int,
    activity: str = "embedding",
    unit: str = "text",
) -> AbstractContextManager[tqdm[Any] | None]:
    """Return a progress bar, or a context of None where there is none.

    Args:
        count: Texts to compute.
        shown: Whether there is one; None shows one for ``batch_size`` texts or more, on a terminal.
        batch_size: Maximum texts of a batch.
        activity: What is done.
        unit: What is counted.
    """
    if shown is None:
        shown = count >= batch_size and on_terminal()
    # A disabled tqdm takes a lock of the whole process, too, which a fork may copy while it is
    # held, and the first one starts a thread.
    if not shown:
        return nullcontext()
    from tqdm import tqdm

    progress: tqdm[Any] = tqdm(total=count, desc=activity, unit=unit)
    return progress


def _check_finite(
    batch: Batch, outputs: Sequence[NDArray[np.float32]], engine: Engine, call: BatchCall
) -> None:
    for name, values in zip(call.outputs, outputs, strict=True):
        if find_not_finite(values) is None:
            continue
        tokens = batch.attention_mask.sum(axis=1)
        lengths = {TOKEN_WEIGHTS: tokens, COLBERT_VECS: tokens - 1}
        row = find_not_finite(values, lengths.get(name))
        if row is None:  # only in padding
            continue
        raise NotFiniteError(
            f"{call.describe_text(int(batch.rows[row]))} has NaN or infinity in its {name}, "
            f"computed by {engine.info}. "
            + (
                f"Run `bge-runtime doctor --verify {shlex.quote(str(call.bundle))}`, which tells "
                "whether this variant computes what PyTorch does; if so, the checkpoint does not "
                "suit this text"
                if engine.info.precision == "fp32"
                else "Its numbers may be too large for that precision: pass precision='fp32'"
            )
        )
