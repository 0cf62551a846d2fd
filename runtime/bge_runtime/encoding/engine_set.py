"""The life of a model's engines: select, open, run in parallel, fork."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from bge_runtime.bundle import Bundle, Variant, past_names_of, present_name
from bge_runtime.encoding.parallel import ParallelBatches
from bge_runtime.encoding.prefix_cache import PrefixCache
from bge_runtime.engines import Engine, EngineOptions, open_engine
from bge_runtime.variants import select_cuda_graph_variant, select_variant

_alive: weakref.WeakSet[EngineSet] = weakref.WeakSet()


@dataclass(frozen=True, kw_only=True)
class EngineSetOptions:
    """Which engines to open, and how.

    Attributes:
        devices: Devices to share the work, such as ``("cpu",)``; at least one.
        engine: Name of an engine, or ``"auto"``.
        precision: Name of a precision, or ``"auto"``.
        threads: Threads of each engine; None for all that the process may use.
        outputs: Outputs of the graph that will be asked for; see
            `bge_runtime.engines.EngineOptions`.
        prefix_cache_mb: Memory for prefixes of a causal model; 0 disables the cache.
        cuda_graphs: Run single short texts as CUDA graphs.
        parallel_batches: On a CPU, compute several batches in parallel where that is faster.
    """

    devices: Sequence[str]
    engine: str
    precision: str
    threads: int | None
    outputs: Sequence[str]
    prefix_cache_mb: int
    cuda_graphs: bool
    parallel_batches: bool


class EngineSet:
    """A bundle's engines, one for each device, and those for parallel batches.

    Any number of threads may use a set at once. After a fork, a child opens engines of its own on
    first use.

    Attributes:
        bundle: The bundle.
        options: What was asked for.
        opened: The engine of each device; empty until the first use of a lazy set.
        parallel: What decides about parallel batches, by device.
        prefix_cache: Keys and values of prefixes, for causal models.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: EngineSetOptions,
        *,
        lazy: bool = False,
        on_compile: Callable[[], object] = lambda: None,
    ) -> None:
        """Select a variant for each device, and open it.

        Args:
            bundle: The bundle.
            options: Which engines to open, and how.
            lazy: Open engines on first use.
            on_compile: As in `bge_runtime.engines.EngineOptions`, for engines opened now.

        Raises:
            EngineError: If a device, engine or precision is not available.
            BundleError: If the bundle has no graph for it, or one cannot be read.
        """
        self.bundle = bundle
        self.options = options
        self._variants = self._select_variants()
        self.parallel: dict[str, ParallelBatches] = {}
        self.opened = {} if lazy else self._open_all(on_compile)
        # Keys and values can be reused only where no token depends on those that follow it.
        causal = any(map(self._past_names, self._variants.values()))
        self.prefix_cache = PrefixCache(options.prefix_cache_mb << 20 if causal else 0)
        self._lock = threading.Lock()
        _alive.add(self)

    def on_device(self, device: str) -> Engine:
        """Return the engine of a device; a lazy set, or one after a fork, opens its engines."""
        return self._ensure_open()[device]

    @property
    def all(self) -> list[Engine]:
        """All open engines: each device's, those for parallel batches and for CUDA graphs."""
        first = list(self._ensure_open().values())
        beside = [
            *(parallel.opened for parallel in self.parallel.values()),
            *(engine.cuda_graph_engine for engine in first),
        ]
        return [*first, *(engine for engine in beside if engine is not None)]

    def for_texts(self, devices: Sequence[str], lengths: Sequence[int]) -> list[Engine]:
        """Return the engines for a call, each as often as it computes batches at once.

        Args:
            devices: Devices to share the work.
            lengths: Tokens of the call's texts, or of the first 2,048 of them.
        """
        fastest = [self._fastest(device, lengths) for device in dict.fromkeys(devices)]
        return [engine for engine in fastest for _ in range(engine.batches.concurrent_runs)]

    def streams_on(self, device: str) -> Engine | None:
        """Return the engine of a CPU that computes several batches in parallel, opened now.

        None on other devices, with one thread, and where ``parallel_batches`` is off or there is
        not enough memory, which is warned of.
        """
        engine = self._ensure_open()[device]
        if device not in self.parallel:
            return None
        return self.parallel[device].streams(engine, partial(self._open_streams, device, engine))

    def for_bulk(self, devices: Sequence[str]) -> list[Engine]:
        """Return the engines for texts without end, each as often as it computes batches at once.

        Args:
            devices: Devices to share the work.
        """
        found = [self.streams_on(device) or self.on_device(device) for device in devices]
        return [engine for engine in found for _ in range(engine.batches.concurrent_runs)]

    def reopen(self) -> None:
        """Open all engines again, after one of them has failed."""
        with self._lock:
            self.bundle.check_files()
            self.parallel = {}
            self.opened = self._open_all()

    def reset_after_fork(self) -> None:
        """Drop all engines, whose threads stayed in the parent; called in the child.

        The next call opens new ones.
        """
        for engine in self.opened.values():
            engine.release_after_fork()
        for parallel in self.parallel.values():
            parallel.release_after_fork()
        self.opened, self.parallel = {}, {}
        self.prefix_cache.reset_after_fork()
        self._lock = threading.Lock()  # another thread of the parent may have held the old one

    def _select_variants(self) -> dict[str, Variant]:
        asked = self.options
        return {
            device: select_variant(
                self.bundle, device=device, engine=asked.engine, precision=asked.precision
            )
            for device in dict.fromkeys(asked.devices)
        }

    def _ensure_open(self) -> dict[str, Engine]:
        if self.opened:
            return self.opened
        with self._lock:
            if not self.opened:
                # Another export may have replaced the bundle in the meantime.
                self.bundle.check_files()
                self.opened = self._open_all()
            return self.opened

    def _open_all(self, on_compile: Callable[[], object] = lambda: None) -> dict[str, Engine]:
        engines = {}
        for device, variant in self._variants.items():
            engine = engines[device] = self._open(device, variant, on_compile=on_compile)
            if device == "cpu" and self.options.parallel_batches and engine.info.threads > 1:
                weights = self.bundle.manifest.files[self.bundle.graph(variant.graph).weights]
                self.parallel[device] = ParallelBatches(weights_bytes=weights.size_bytes)
        return engines

    def _open(
        self,
        device: str,
        variant: Variant,
        *,
        streams: int = 1,
        on_compile: Callable[[], object] = lambda: None,
    ) -> Engine:
        graphs = self.options.cuda_graphs
        options = EngineOptions(
            device=device,
            threads=self.options.threads,
            outputs=(*self.options.outputs, *map(present_name, self._past_names(variant))),
            streams=streams,
            cuda_graph_variant=select_cuda_graph_variant(self.bundle, variant) if graphs else None,
            on_compile=on_compile,
        )
        return open_engine(self.bundle, variant, options)

    def _past_names(self, variant: Variant) -> tuple[str, ...]:
        return past_names_of(self.bundle.graph(variant.graph).inputs)

    def _fastest(self, device: str, lengths: Sequence[int]) -> Engine:
        engine = self._ensure_open()[device]
        if device not in self.parallel:
            return engine
        return self.parallel[device].engine_for(
            lengths, engine, partial(self._open_streams, device, engine)
        )

    def _open_streams(self, device: str, engine: Engine) -> Engine:
        # Another export may have replaced the bundle since the first engine was opened.
        self.bundle.check_files()
        return self._open(device, self._variants[device], streams=engine.info.threads)


def _reset_after_fork() -> None:
    # The threads of tokenizers stayed in the parent, too. The library handles that itself, unless
    # the user has set this variable to "true": then the child would wait for them for ever.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for engines in list(_alive):
        engines.reset_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
