"""TensorRT, through ONNX Runtime's provider. It has not run on a GPU yet.

TensorRT compiles a graph into a TensorRT engine for one GPU and a range of shapes, which takes
minutes. The provider could hold several ranges in one such engine, but always runs in the first of
them (microsoft/onnxruntime, pull request 31624). So each range of lengths has a session and a
TensorRT engine of its own, built and opened with the first text of such a length. TensorRT engines
are kept in the cache, under a key of all that they depend on.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import json
import logging
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import Bundle, Variant
from bge_runtime.engines import ort_providers
from bge_runtime.engines.base import BatchLimits, EngineOptions
from bge_runtime.engines.cuda_threads import CudaThreads
from bge_runtime.engines.ort_providers import CUDA_PROVIDER, TENSORRT_PROVIDER, Provider
from bge_runtime.engines.ort_session import Feeds, OrtSession
from bge_runtime.errors import EngineError, ProviderError
from bge_runtime.system import cache, default_threads, hold_file_lock, nvidia, on_terminal

logger = logging.getLogger(__name__)

LIBRARY = "libnvinfer.so.10"
"""The library that onnxruntime-gpu 1.27 to 1.31 are linked to; TensorRT 11's has another name."""

PACKAGE = "tensorrt-cu13-libs==10.14.1.48.post1"
"""The version that these were compiled against."""

_PARSER = "libnvonnxparser.so.10"
_RANGE_ENDS = (64, 512, 2048, 8192)
"""Most tokens of each range: queries, passages, and long texts for models that read them."""

_USUAL_TOKENS = 512
_BATCH_TOKENS = 16384
_MOST_ROWS = 256
_CONCURRENT_RUNS = 2
_BUILT = "built.json"
"""File that marks a complete TensorRT engine, with the provider's options."""


class Profile(NamedTuple):
    """Shapes that a TensorRT engine is built for.

    Attributes:
        shortest: Fewest tokens of a batch's longest text.
        longest: Most tokens of a batch's longest text.
        rows: Most texts of a batch.
    """

    shortest: int
    longest: int
    rows: int

    def options(self, inputs: Sequence[str]) -> dict[str, str]:
        """Return the provider's options for inputs of shape ``(batch, sequence)``."""
        shapes = {
            "min": f"1x{self.shortest}",
            # Most batches are full, and of nearly the largest length.
            "opt": f"{self.rows}x{self.longest}",
            "max": f"{self.rows}x{self.longest}",
        }
        return {
            f"trt_profile_{kind}_shapes": ",".join(f"{name}:{shape}" for name in inputs)
            for kind, shape in shapes.items()
        }


def profiles(max_length: int) -> tuple[Profile, ...]:
    """Return the ranges, without gaps, for a model that reads up to ``max_length`` tokens."""
    ends = [length for length in _RANGE_ENDS if length < max_length] + [max_length]
    starts = [1, *(end + 1 for end in ends[:-1])]
    return tuple(
        Profile(start, end, max(1, min(_MOST_ROWS, _BATCH_TOKENS // end)))
        for start, end in zip(starts, ends, strict=True)
    )


def version() -> str | None:
    """Return the version of TensorRT that the provider can load here, or None."""
    library, parser = (_load_library(name) for name in (LIBRARY, _PARSER))
    return _version_of(library) if library is not None and parser is not None else None


def newer_version() -> str | None:
    """Return the version of an installed TensorRT that is too new for the provider, or None."""
    library = _load_library(LIBRARY.replace(".10", ".11"))
    return None if library is None else _version_of(library)


def _load_library(name: str) -> ctypes.CDLL | None:
    spec = importlib.util.find_spec("tensorrt_libs")
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    # First by path: so NVIDIA's packages need not be on the loader's path.
    for candidate in [*(str(Path(folder) / name) for folder in folders), name]:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
    return None


def _version_of(library: ctypes.CDLL) -> str:
    number = int(library.getInferLibVersion())
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


class TensorRtEngine:
    """Sessions of ONNX Runtime's TensorRT provider, one for each range of lengths."""

    package: ClassVar[str] = "onnxruntime"
    has_cuda_graphs: ClassVar[bool] = False
    accepts_streams: ClassVar[bool] = False
    cuda_graph_engine: ClassVar[None] = None

    load = staticmethod(ort_providers.load)

    @staticmethod
    def unavailable_reason(precision: str) -> str | None:  # noqa: ARG004  # one for all
        """Return why this machine cannot run a precision on the engine, or None if it can."""
        if (reason := ort_providers.missing_requirement(TENSORRT_PROVIDER)) is not None:
            return reason
        if version() is None:
            return f"there is no TensorRT 10 here ({LIBRARY}, {_PARSER}): pip install {PACKAGE}"
        return None

    def __init__(
        self,
        bundle: Bundle,
        variant: Variant,
        options: EngineOptions = EngineOptions(),  # noqa: B008  # frozen
    ) -> None:
        """Open the session for the shortest texts, and check that it runs on the GPU.

        Raises:
            EngineNotInstalledError: If onnxruntime is not installed.
            BundleError: If ONNX Runtime cannot read the graph.
            ProviderError: If the provider is unavailable, or the session runs on another one.
            EngineError: If the cache cannot be written.
        """
        self._ort = ort_providers.load_for(variant)
        ort_providers.require(
            TENSORRT_PROVIDER, variant, self.unavailable_reason(variant.precision)
        )
        self._bundle, self._graph = bundle, bundle.graph(variant.graph)
        self._index = options.device_index
        self._intra_op_threads = options.threads or default_threads()
        self._run_options: Any = self._ort.RunOptions()
        self._profiles = profiles(bundle.manifest.model.max_length)
        self._sessions: dict[Profile, OrtSession] = {}
        self._opening = threading.Lock()
        first = self._session_for(self._profiles[0])
        self._threads = CudaThreads(_CONCURRENT_RUNS)
        self.batches = BatchLimits(
            tokens=_BATCH_TOKENS,
            parallel_tokens=_BATCH_TOKENS,
            overhead_tokens=_BATCH_TOKENS // 8,
            concurrent_runs=_CONCURRENT_RUNS,
        )
        self.past_names = first.past.names
        self.past_token_bytes = first.past.token_bytes
        self.info = first.info(
            variant, version=self._ort.__version__, threads=self._intra_op_threads
        )

    def build(self) -> None:
        """Build and open the TensorRT engines for texts of up to 512 tokens."""
        for profile in self._profiles:
            if profile.shortest <= _USUAL_TOKENS:
                self._session_for(profile)

    def run(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        outputs: Sequence[str],
        *,
        past: Sequence[NDArray[np.float32]] | None = None,
    ) -> list[NDArray[np.float32]]:
        """Run one batch, in parts of as many texts as its TensorRT engine takes."""
        columns = input_ids.shape[1]
        profile = next(each for each in self._profiles if columns <= each.longest)
        session = self._session_for(profile)
        starts = range(0, len(input_ids), profile.rows)
        parts = [
            session.run(self._compute, input_ids[rows], attention_mask[rows], outputs, past)
            for rows in (slice(start, start + profile.rows) for start in starts)
        ]
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def _compute(
        self, session: Any, outputs: Sequence[str], feeds: Feeds
    ) -> list[NDArray[np.float32]]:
        return self._threads.run(partial(session.run, list(outputs), feeds, self._run_options))

    def release_after_fork(self) -> None:
        """Drop all sessions without closing them; see `Engine.release_after_fork`."""
        for session in self._sessions.values():
            session.release_after_fork()
        self._sessions = {}

    def _session_for(self, profile: Profile) -> OrtSession:
        session = self._sessions.get(profile)
        if session is not None:
            return session
        with self._opening:
            if profile not in self._sessions:
                self._sessions[profile] = self._open_or_build(profile)
            return self._sessions[profile]

    def _open_or_build(self, profile: Profile) -> OrtSession:
        folder = self.cache_folder(profile)
        options = self.options(profile, folder)
        cuda = (CUDA_PROVIDER, ort_providers.cuda_options(self._index))
        providers = [(TENSORRT_PROVIDER, options), cuda]
        if (folder / _BUILT).is_file():
            return self._open_session(providers)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(
                f"cannot write to the cache {folder}: {error}. Set XDG_CACHE_HOME to a folder that "
                "can be written"
            ) from error
        waiting = f"another process is building {folder.name}; waiting for it"
        with hold_file_lock(folder / ".lock", waiting=waiting):
            if (folder / _BUILT).is_file():  # by the process that held the lock
                return self._open_session(providers)
            logger.warning(
                "building TensorRT's engine for texts of up to %d tokens, once for this GPU; "
                "that takes minutes",
                profile.longest,
            )
            with _elapsed_time(f"building for {profile.longest} tokens"):
                session = self._open_session(providers)
            (folder / _BUILT).write_text(json.dumps(options, indent=2), encoding="utf-8")
            return session

    def _open_session(self, providers: Sequence[Provider]) -> OrtSession:
        return OrtSession.open(
            self._ort, self._bundle, self._graph, providers, threads=self._intra_op_threads
        )

    def options(self, profile: Profile, folder: Path) -> dict[str, str]:
        """Return the TensorRT provider's options.

        Without options for precision the network is strongly typed, as the graph is.
        """
        return {
            "device_id": str(self._index),
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(folder),
            **profile.options(self._graph.inputs),
        }

    def cache_folder(self, profile: Profile) -> Path:
        """Return the folder of a TensorRT engine, whose name has a hash of all it depends on.

        Raises:
            ProviderError: If the driver does not report which GPU this is.
        """
        driver = nvidia.find_driver()
        if isinstance(driver, str) or self._index >= len(driver.gpus):
            found = driver if isinstance(driver, str) else f"there are {len(driver.gpus)} GPUs here"
            raise ProviderError(f"requested device 'cuda:{self._index}', but {found}")
        gpu = driver.gpus[self._index]
        files = (self._graph.file, self._graph.weights)
        depends_on = [
            [self._bundle.manifest.files[name].sha256 for name in files],
            [gpu.name, gpu.compute_capability, gpu.memory_bytes, driver.version, driver.cuda],
            [version(), self._ort.__version__],
            profile,
        ]
        key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:16]
        name = f"{self._bundle.manifest.model.name}-{profile.longest}-{key}"
        return cache.cache_folder() / "tensorrt" / name


@contextlib.contextmanager
def _elapsed_time(task: str) -> Iterator[None]:
    """Show on a terminal how long a task has been running."""
    if not on_terminal():
        yield
        return
    done = threading.Event()
    from tqdm import tqdm

    with tqdm(desc=task, bar_format="{desc} {elapsed}") as bar:

        def tick() -> None:
            while not done.wait(1):
                bar.refresh()

        thread = threading.Thread(target=tick, name="bge-clock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
