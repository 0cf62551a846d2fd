"""What all embedding models share: from texts to rows of vectors.

texts ─ instruct ─ tokenize ─ plan batches ─ engine ─ post-process ─ input order
"""

from __future__ import annotations

import itertools
import os
import shlex
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bge_runtime.bundle import (
    COLBERT_VECS,
    TOKEN_WEIGHTS,
    Bundle,
    Variant,
    past_names_of,
    present_name,
)
from bge_runtime.encoding import (
    Batch,
    ParallelBatches,
    PrefixCache,
    TextTokenizer,
    Tokenize,
    balanced_batch_tokens,
    find_not_finite,
    first_window_on_gpu,
    pad_batch,
    plan_batches,
    resolve_devices,
    run_in_parts,
    share_batches,
    tokenized_windows,
)
from bge_runtime.engines import Engine, EngineOptions, open_engine
from bge_runtime.errors import NotFiniteError
from bge_runtime.sources import ExportOptions, Use, find_bundle
from bge_runtime.system import on_terminal
from bge_runtime.variants import select_cuda_graph_variant, select_variant


class TokenizationPlan(NamedTuple):
    """How a call's texts are read.

    Attributes:
        tokenize: Gives the tokens of a text, at least one.
        expected: Tokens that texts of further calls will begin with, too, as far as theirs
            are the same.
    """

    tokenize: Tokenize
    expected: NDArray[np.int64] | None = None


OnBatch = Callable[[Batch, list[NDArray[np.float32]]], object]

_alive: weakref.WeakSet[Embedder] = weakref.WeakSet()


class Embedder:
    """A bundle opened on one or more devices.

    Any number of threads may use one embedder at once. It survives ``fork`` and
    ``pickle``: the copy opens engines of its own when it is first used, by what was asked for and
    what its machine computes in.
    """

    def __init__(
        self,
        model_name_or_path: str,
        *,
        devices: str | int | Sequence[str] | Sequence[int] | None,
        engine: str,
        precision: str,
        threads: int | None,
        revision: str | None,
        cache_dir: str | None,
        options: ExportOptions,
        outputs: Sequence[str],
        prefix_cache_mb: int,
        cuda_graphs: bool,
        parallel_batches: bool,
    ) -> None:
        """Find a model's bundle and open it.

        Args:
            model_name_or_path: As in `bge_runtime.sources.resolve.find_bundle`.
            devices: Device, or devices to share the work, such as ``"cpu"``.
            engine: Name of an engine, or ``"auto"``.
            precision: Name of a precision, or ``"auto"``.
            threads: Threads that each engine computes with; None for all.
            revision: Branch, tag or commit on the hub.
            cache_dir: Folder of the hub's cache.
            options: How to export, if it has to be.
            outputs: Outputs of the graph that will be asked for; see
                `bge_runtime.engines.EngineOptions`.
            prefix_cache_mb: Memory for prefixes of a causal model; 0 reuses none.
            cuda_graphs: Run single short texts as CUDA graphs.
            parallel_batches: Compute batches side by side on a CPU where that pays.

        Raises:
            ValueError: If ``prefix_cache_mb`` is no such number.
        """
        if not isinstance(prefix_cache_mb, int) or prefix_cache_mb < 0:
            raise ValueError(
                "prefix_cache_mb must be a whole number of megabytes, 0 to reuse nothing, but is "
                f"{prefix_cache_mb!r}"
            )
        self.target_devices = resolve_devices(devices)
        use = Use(devices=self.target_devices, engine=engine, precision=precision)
        self.bundle = Bundle.at(
            find_bundle(
                model_name_or_path,
                revision=revision,
                cache_dir=cache_dir,
                options=replace(options, use=use),
                check_class=self.check_class,
            )
        )
        self.check_class(self.bundle.path.name, self.bundle.manifest.model.model_class)
        self.bundle.check_files()
        self.tokenizer = TextTokenizer(self.bundle.tokenizer_file)
        self._threads = threads
        self._outputs = tuple(outputs)
        self._cuda_graphs = cuda_graphs
        self._parallel_batches = parallel_batches
        self._asked_for = {"engine": engine, "precision": precision}
        self._variants = self._selected_variants()
        self._parallel: dict[str, ParallelBatches] = {}
        self._engines = self._opened_engines()
        # What texts begin with can be reused only where tokens do not see those behind them.
        causal = any(engine.past_names for engine in self._engines.values())
        self._prefixes = PrefixCache(prefix_cache_mb << 20 if causal else 0)
        self._lock = threading.Lock()
        _alive.add(self)
        seed = self.bundle.manifest.provenance.random_seed
        if seed is not None:
            warnings.warn(
                f"{self.bundle.path.name} has random weights (seed {seed}); its vectors mean "
                "nothing, and serve benchmarks only",
                stacklevel=4,
            )

    @property
    def engine(self) -> Engine:
        """The engine of the first device; its ``info`` tells what is in force."""
        return self._open_engines()[self.target_devices[0]]

    @property
    def engines(self) -> list[Engine]:
        """All engines that are open: each device's, and those beside them.

        These are one for batches side by side, and one for CUDA graphs.
        """
        first = list(self._open_engines().values())
        apart = [parallel.opened for parallel in self._parallel.values()]
        beside = [*apart, *(engine.cuda_graph_engine for engine in first)]
        return [*first, *(engine for engine in beside if engine is not None)]

    @property
    def vector_dtype(self) -> np.dtype[Any]:
        """Type of the vectors that are handed out: FlagEmbedding's.

        float16 from a GPU that computes in fp16, but of mean pooling, which FlagEmbedding does in
        float32. They come to unit length in float32 and are rounded once.
        """
        info = self.engine.info
        in_half = info.device != "cpu" and info.precision == "fp16"
        rounds = in_half and self.bundle.manifest.model.pooling != "mean"
        return np.dtype(np.float16 if rounds else np.float32)

    @classmethod
    def check_class(cls, name: str, model_class: str) -> None:
        """Refuse a model that this class is not for, before it is exported or opened."""

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_engines", "_parallel", "_lock", "_variants", "tokenizer"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # The copy may be on another machine, or the bundle replaced in the meantime.
        self.bundle.check_files()
        self._variants = self._selected_variants()
        self.tokenizer = TextTokenizer(self.bundle.tokenizer_file)
        self._engines, self._parallel = {}, {}
        self._lock = threading.Lock()
        _alive.add(self)

    def _selected_variants(self) -> dict[str, Variant]:
        return {
            device: select_variant(self.bundle, device=device, **self._asked_for)
            for device in dict.fromkeys(self.target_devices)
        }

    def _open_engines(self) -> dict[str, Engine]:
        engines = self._engines
        if engines:
            return engines
        with self._lock:
            if not self._engines:
                # Since it was opened first, another export may have taken its place.
                self.bundle.check_files()
                self._engines = self._opened_engines()
            return self._engines

    def _opened_engines(self) -> dict[str, Engine]:
        engines = {}
        for device, variant in self._variants.items():
            engines[device] = self._opened_engine(device, variant)
            if device == "cpu" and self._parallel_batches and engines[device].info.threads > 1:
                weights = self.bundle.manifest.files[self.bundle.graph(variant.graph).weights]
                self._parallel[device] = ParallelBatches(weights=weights.size_bytes)
        return engines

    def _opened_engine(self, device: str, variant: Variant, *, streams: int = 1) -> Engine:
        pasts = past_names_of(self.bundle.graph(variant.graph).inputs)
        options = EngineOptions(
            device=device,
            threads=self._threads,
            outputs=(*self._outputs, *map(present_name, pasts)),
            streams=streams,
            cuda_graph_variant=(
                select_cuda_graph_variant(self.bundle, variant) if self._cuda_graphs else None
            ),
        )
        return open_engine(self.bundle, variant, options)

    def _engine_for(self, device: str, tokens: Sequence[NDArray[np.int64]]) -> Engine:
        engine = self._open_engines()[device]
        if device not in self._parallel:
            return engine

        def open_apart() -> Engine:
            # Since the other one was opened, another export may have taken its place.
            self.bundle.check_files()
            variant, threads = self._variants[device], engine.info.threads
            return self._opened_engine(device, variant, streams=threads)

        return self._parallel[device].engine_for(
            [len(ids) for ids in tokens], engine, open_apart=open_apart
        )

    def reset_after_fork(self) -> None:
        """Forget what did not survive a fork; called in the child.

        The next call opens engines anew.
        """
        # The threads behind the engines stayed in the parent, and another of its
        # threads may have held the lock.
        for engine in self._engines.values():
            engine.release_after_fork()
        for parallel in self._parallel.values():
            parallel.release_after_fork()
        self._engines, self._parallel = {}, {}
        self._prefixes.reset_after_fork()
        self._lock = threading.Lock()

    def _run(
        self,
        texts: list[str],
        take: OnBatch,
        *,
        reading: TokenizationPlan,
        outputs: Sequence[str],
        batch_size: int,
        devices: Sequence[str],
        show_progress_bar: bool | None,
        place: Callable[[int], str] = "text {}".format,
    ) -> None:
        """Compute outputs for each text, batch by batch.

        Args:
            texts: The texts.
            take: Told of each batch and its outputs, in any order and from several
                threads.
            reading: How the texts are read.
            outputs: Names of the graph's outputs.
            batch_size: Most texts in a batch.
            devices: Devices to share the work.
            show_progress_bar: None shows it for a long call on a terminal.
            place: Names a text by its number, for errors.

        Raises:
            NotFiniteError: If an engine gives NaN or infinity.
            InferenceError: If one fails.
        """
        first_engine = self._open_engines()[devices[0]]
        waits = first_engine.info.device != "cpu" and not first_engine.past_names
        windows = tokenized_windows(
            texts, reading.tokenize, first_window=first_window_on_gpu(texts) if waits else None
        )
        if show_progress_bar is None:
            show_progress_bar = len(texts) >= batch_size and on_terminal()
        # A hidden tqdm would not do: each takes a lock of the whole process, which a fork
        # may copy while it is held, and the first one starts a thread.
        shown = tqdm(total=len(texts), desc="embedding", unit="text") if show_progress_bar else None

        # Closed here, whatever happens: left to the garbage collector, the generator would
        # wait for its tokenising thread in whichever thread the collector comes by, and
        # has been seen to lock the whole process in one that was just starting.
        with closing(windows), nullcontext() if shown is None else shown:
            first = list(itertools.islice(windows, 1))
            tokens = first[0][1] if first else []
            engines = [
                engine
                for one in (self._engine_for(device, tokens) for device in dict.fromkeys(devices))
                for engine in [one] * one.batches.concurrent_runs
            ]
            batches = self._batches(
                itertools.chain(first, windows), reading, batch_size=batch_size, engines=engines
            )

            def run(engine: Engine, batch: Batch) -> None:
                for part, results in run_in_parts(engine, batch, outputs):
                    self._check_finite(engine, part, outputs, results, place)
                    take(part, results)
                    if shown is not None:
                        shown.update(len(part.rows))

            share_batches(engines, batches, run)

    def _check_finite(
        self,
        engine: Engine,
        batch: Batch,
        outputs: Sequence[str],
        results: Sequence[NDArray[np.float32]],
        place: Callable[[int], str],
    ) -> None:
        for name, values in zip(outputs, results, strict=True):
            if find_not_finite(values) is None:
                continue
            tokens = batch.attention_mask.sum(axis=1)
            lengths = {TOKEN_WEIGHTS: tokens, COLBERT_VECS: tokens - 1}
            row = find_not_finite(values, lengths.get(name))
            if row is not None:  # and not in padding alone
                raise NotFiniteError(
                    f"{place(int(batch.rows[row]))} has NaN or infinity in its {name}, computed by "
                    f"{engine.info}. "
                    + (
                        "Run `bge-runtime doctor --verify "
                        f"{shlex.quote(str(self.bundle.path))}`, which tells whether this variant "
                        "computes what PyTorch does; if so, the checkpoint does not suit this text"
                        if engine.info.precision == "fp32"
                        else "Its numbers may be too large for that precision: pass "
                        "precision='fp32'"
                    )
                )

    def _batches(
        self,
        windows: Iterable[tuple[int, list[NDArray[np.int64]]]],
        reading: TokenizationPlan,
        *,
        batch_size: int,
        engines: Sequence[Engine],
    ) -> Iterator[Batch]:
        pad_token_id = self.bundle.manifest.model.pad_token_id
        engine = engines[0]
        for start, tokens in windows:
            shared = self._prefixes.share(list(dict.fromkeys(engines)), tokens, reading.expected)
            rest = tokens if shared is None else [ids[shared.length :] for ids in tokens]
            lengths = [len(ids) for ids in rest]
            plan = plan_batches(
                lengths,
                max_tokens=balanced_batch_tokens(lengths, engine.batches.tokens, runs=len(engines)),
                max_rows=batch_size,
                max_padding=engine.batches.overhead_tokens,
            )
            for rows in plan:
                ids, mask = pad_batch([rest[row] for row in rows], pad_token_id=pad_token_id)
                yield Batch(rows + start, ids, mask, shared)


def _after_fork_in_child() -> None:
    # The tokenizers' threads stayed in the parent, too. They see to this themselves,
    # unless the user has asked for parallelism in so many words: then they hang.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for embedder in list(_alive):
        embedder.reset_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
