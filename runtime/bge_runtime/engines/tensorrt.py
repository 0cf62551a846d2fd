"""TensorRT as an engine, through ONNX Runtime's provider. It has not run on a GPU yet.

What TensorRT makes of a graph is an engine for one GPU and a range of shapes, which takes minutes
to build. The provider could hold several ranges in one engine, but always runs in the first of
them (microsoft/onnxruntime, pull request 31624): here each range of lengths is a session with an
engine of its own, built and opened when a text of such a length comes. Engines are kept in the
cache, under all that they depend on.
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
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bge_runtime.bundle import Variant
from bge_runtime.engines import ort_providers
from bge_runtime.engines.ort import leak
from bge_runtime.engines.ort_cuda import OrtCudaEngine
from bge_runtime.engines.ort_providers import CUDA, TENSORRT
from bge_runtime.errors import EngineError, ProviderError
from bge_runtime.system import cache, hold_file_lock, nvidia, on_terminal

logger = logging.getLogger(__name__)

LIBRARY = "libnvinfer.so.10"
"""What onnxruntime-gpu 1.27 to 1.31 are linked to; TensorRT 11 has another name."""

PACKAGE = "tensorrt-cu13-libs==10.14.1.48.post1"
"""The very version that these were compiled against."""

_PARSER = "libnvonnxparser.so.10"
_LENGTHS = (64, 512, 2048, 8192)
"""Most tokens of each range: queries, passages, and long ones of models that read them."""

_USUAL = 512
_TOKENS = 16384
_ROWS = 256
_BUILT = "built.json"


class Profile(NamedTuple):
    """Shapes that an engine is built for.

    Attributes:
        shortest: Fewest tokens of the longest text of a batch.
        longest: Most.
        rows: Most texts of a batch.
    """

    shortest: int
    longest: int
    rows: int

    def options(self, inputs: Sequence[str]) -> dict[str, str]:
        """Say it as the provider wants it, for inputs of shape ``(batch, sequence)``."""
        shapes = {
            "min": f"1x{self.shortest}",
            # What most batches are like: full, and of nearly the largest length.
            "opt": f"{self.rows}x{self.longest}",
            "max": f"{self.rows}x{self.longest}",
        }
        return {
            f"trt_profile_{kind}_shapes": ",".join(f"{name}:{shape}" for name in inputs)
            for kind, shape in shapes.items()
        }


def profiles(max_length: int) -> tuple[Profile, ...]:
    """Give the ranges for a model that reads so many tokens, without gaps."""
    ends = [length for length in _LENGTHS if length < max_length] + [max_length]
    starts = [1, *(end + 1 for end in ends[:-1])]
    return tuple(
        Profile(start, end, max(1, min(_ROWS, _TOKENS // end)))
        for start, end in zip(starts, ends, strict=True)
    )


def version() -> str | None:
    """Tell which TensorRT can be loaded here; None if there is none that the provider can use."""
    library, parser = (_loaded(name) for name in (LIBRARY, _PARSER))
    return _version_of(library) if library is not None and parser is not None else None


def newer_version() -> str | None:
    """Tell which newer TensorRT is here, which the provider cannot use."""
    library = _loaded(LIBRARY.replace(".10", ".11"))
    return None if library is None else _version_of(library)


def _loaded(name: str) -> ctypes.CDLL | None:
    spec = importlib.util.find_spec("tensorrt_libs")
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    # By their paths first: so NVIDIA's packages need not be on the loader's path.
    for candidate in [*(str(Path(place) / name) for place in places), name]:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
    return None


def _version_of(library: ctypes.CDLL) -> str:
    number = int(library.getInferLibVersion())
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


class TensorRtEngine(OrtCudaEngine):
    """Sessions of ONNX Runtime's TensorRT provider, one for each range of lengths."""

    _sessions: dict[Profile, Any]
    provider: ClassVar[str] = TENSORRT
    has_cuda_graphs: ClassVar[bool] = False

    @classmethod
    def unavailable_reason(cls, variant: Variant) -> str | None:
        """Tell why this machine cannot run a variant; None if it can."""
        if (reason := super().unavailable_reason(variant)) is not None:
            return reason
        if version() is None:
            return f"there is no TensorRT 10 here ({LIBRARY}, {_PARSER}): pip install {PACKAGE}"
        return None

    def build(self) -> None:
        """Build and open the engines for texts of usual lengths, 512 tokens at most."""
        for profile in self._profiles:
            if profile.shortest <= _USUAL:
                self._session_for(profile)

    def run(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        outputs: Sequence[str],
        *,
        past: Sequence[NDArray[np.float32]] | None = None,
    ) -> list[NDArray[np.float32]]:
        """Run one batch, in as many pieces as its engine's largest batch takes."""
        columns = input_ids.shape[1]
        profile = next(each for each in self._profiles if columns <= each.longest)
        session = self._session_for(profile)
        starts = range(0, len(input_ids), profile.rows)
        pieces = [slice(start, start + profile.rows) for start in starts]
        parts = [
            self._run_in(session, input_ids[rows], attention_mask[rows], outputs, past)
            for rows in pieces
        ]
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def release_after_fork(self) -> None:
        """Leak all sessions; see `bge_runtime.engines.Engine.release_after_fork`."""
        for session in self._sessions.values():
            leak(session)
        self._sessions = {}
        self._session = None

    def _first_session(self) -> Any:
        self._profiles = profiles(self._bundle.manifest.model.max_length)
        self._sessions = {}
        self._opening = threading.Lock()
        return self._session_for(self._profiles[0])

    def _session_for(self, profile: Profile) -> Any:
        session = self._sessions.get(profile)
        if session is not None:
            return session
        with self._opening:
            if profile not in self._sessions:
                self._sessions[profile] = self._built(profile)
            return self._sessions[profile]

    def _built(self, profile: Profile) -> Any:
        folder = self.cache_folder(profile)
        options = self.options(profile, folder)
        cuda = (CUDA, ort_providers.cuda_options(self._index))
        providers = [(TENSORRT, options), cuda]
        if (folder / _BUILT).is_file():
            return self._opened(providers)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(
                f"cannot write to the cache {folder}: {error}. Set XDG_CACHE_HOME to a folder that "
                "can be written"
            ) from error
        waiting = f"another process is building {folder.name}; waiting for it"
        with hold_file_lock(folder / ".lock", waiting=waiting):
            if (folder / _BUILT).is_file():  # by whoever held the lock
                return self._opened(providers)
            logger.warning(
                "building TensorRT's engine for texts of up to %d tokens, once for this GPU; "
                "that takes minutes",
                profile.longest,
            )
            with _clock(f"building for {profile.longest} tokens"):
                session = self._opened(providers)
            (folder / _BUILT).write_text(json.dumps(options, indent=2), encoding="utf-8")
            return session

    def options(self, profile: Profile, folder: Path) -> dict[str, str]:
        """Give the TensorRT provider's options.

        Of precision they say nothing: the network is then strongly typed, as the graph is.
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
        """Name the folder for an engine, by all that the engine depends on.

        Raises:
            ProviderError: If the driver does not say which GPU this is.
        """
        driver = nvidia.find_driver()
        if isinstance(driver, str) or self._index >= len(driver.gpus):
            found = driver if isinstance(driver, str) else f"there are {len(driver.gpus)} GPUs here"
            raise ProviderError(f"requested device 'cuda:{self._index}', but {found}")
        gpu = driver.gpus[self._index]
        files = (self._graph.file, self._graph.weights)
        made_of = [
            [self._bundle.manifest.files[name].sha256 for name in files],
            [gpu.name, gpu.compute_capability, gpu.memory_bytes, driver.version, driver.cuda],
            [version(), self._ort.__version__],
            profile,
        ]
        key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
        name = f"{self._bundle.manifest.model.name}-{profile.longest}-{key}"
        return cache.cache_folder() / "tensorrt" / name


@contextlib.contextmanager
def _clock(what: str) -> Iterator[None]:
    """Show on a terminal that something long is going on."""
    if not on_terminal():
        yield
        return
    done = threading.Event()
    with tqdm(desc=what, bar_format="{desc} {elapsed}") as bar:

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
