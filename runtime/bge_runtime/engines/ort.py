"""ONNX Runtime as an engine."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import Bundle
from bge_runtime.cpus import usable_cpus
from bge_runtime.engines.base import (
    BATCH_OVERHEAD_TOKENS,
    TOKENS_PER_THREAD,
    EngineInfo,
    PastInputs,
    graph_inputs,
    inference_error,
)
from bge_runtime.errors import (
    BundleError,
    DeviceError,
    EngineNotInstalledError,
    ProviderError,
)
from bge_runtime.manifest import Variant, past_names_of

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""Execution provider for each kind of device."""

_NVIDIA_DRIVER = "libcuda.so.1"
"""Without it the provider cannot be loaded, and ONNX Runtime goes on without that."""

_LARGE_RUN_TOKENS = 4096
"""Runs of more give the memory of their intermediate results back to the system."""


def open_session(ort: Any, path: Path, options: Any, *, device: str, index: int = 0) -> Any:
    """Open a session on a device.

    Args:
        ort: The package, as `OrtEngine.load` gives it.
        path: The graph.
        options: Its ``SessionOptions``.
        device: Kind of device, one of `PROVIDERS`.
        index: Which one of that kind.

    Raises:
        ProviderError: If it runs on another provider.
    """
    provider = PROVIDERS[device]
    settings = {} if device == "cpu" else {"device_id": index}
    session = ort.InferenceSession(str(path), options, providers=[(provider, settings)])
    in_force = session.get_providers()
    if in_force[0] != provider:
        raise ProviderError(
            f"requested {provider}, but the session for {path.name!r} is running on "
            f"{in_force}. Reinstall onnxruntime, or pass devices='cpu'"
        )
    return session


def _what_lacks(provider: str) -> str | None:
    """Tell what a provider for NVIDIA's GPUs lacks here; None if it can be tried."""
    try:
        ort = OrtEngine.load()
    except ImportError as error:
        return f"onnxruntime cannot be imported ({error})"
    if provider not in ort.get_available_providers():
        return f"the installed onnxruntime {ort.__version__} has no {provider}"
    try:
        ctypes.CDLL(_NVIDIA_DRIVER)
    except OSError:
        return f"this machine has no NVIDIA driver ({_NVIDIA_DRIVER})"
    return None


class OrtEngine:
    """One ONNX Runtime session. See `bge_runtime.engines.Engine`."""

    @staticmethod
    def load() -> Any:
        """Import ONNX Runtime without its telemetry.

        That has a thread from the import on, and a child of fork waits for this thread for
        ever when it ends (seen with 1.32). "0" in the environment keeps it on.
        """
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        return importlib.import_module("onnxruntime")

    @staticmethod
    def why_not(variant: Variant) -> str | None:
        """Tell why this machine cannot run a variant; None if it can."""
        if importlib.util.find_spec("onnxruntime") is None:
            return "onnxruntime is not installed"
        if variant.device not in PROVIDERS:
            return f"this version's onnxruntime engine serves {', '.join(PROVIDERS)} only"
        return None if variant.device == "cpu" else _what_lacks(PROVIDERS[variant.device])

    def __init__(
        self,
        bundle: Bundle,
        variant: Variant,
        *,
        index: int = 0,
        threads: int | None = None,
        outputs: Sequence[str] = (),  # noqa: ARG002  # decided for each run
    ) -> None:
        """Open a session and check that it runs where it was asked to.

        Raises:
            EngineNotInstalledError: If onnxruntime is not installed.
            DeviceError: If this engine does not serve the variant's device.
            BundleError: If ONNX Runtime cannot read the graph.
            ProviderError: If there is no provider for it, or the session runs on another one.
        """
        try:
            ort = self.load()
        except ImportError as error:
            raise EngineNotInstalledError(
                "variant "
                f"{variant.name!r} runs on ONNX Runtime, and onnxruntime cannot be imported "
                f"({error}). Run `pip install 'bge-runtime[cpu]'`"
            ) from error
        if variant.device not in PROVIDERS:
            raise DeviceError(
                f"requested device {variant.device!r}, but this version's onnxruntime engine "
                f"serves {', '.join(PROVIDERS)}"
            )
        if (reason := self.why_not(variant)) is not None:
            raise ProviderError(
                f"requested device {variant.device!r}, where variant {variant.name!r} runs on "
                f"{PROVIDERS[variant.device]}, but {reason}. Pass devices='cpu'; or, on a machine "
                "with an NVIDIA GPU, run `pip uninstall onnxruntime` and then "
                "`pip install 'onnxruntime-gpu[cuda,cudnn]'`"
            )
        threads = threads or usable_cpus()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Reuses buffers of the last shape; here nearly every batch has a new one.
        options.enable_mem_pattern = False
        # A plan to give a freed buffer to a later tensor keeps it from all tensors in between:
        # without it 26 batches of mixed length take 73 MB above the model, not 126 (bge-base),
        # and one of 8192 tokens 0.5 GB, not 0.7 (BGE-M3), in the same time.
        options.enable_mem_reuse = False
        # Idle threads look for work without sleep, a millisecond and more, on the very
        # processors that another session or program wants: one query took 21 ms alone and
        # 49 ms in turns with two other models (bge-base, 2 cores); with 50 us, 20 ms both ways.
        options.add_session_config_entry("session.intra_op.spin_duration_us", "50")
        # Errors are raised; on stderr as well they would be said twice.
        options.log_severity_level = 4
        graph = bundle.graph(variant.graph)
        path = bundle.path / graph.file
        try:
            session = open_session(ort, path, options, device=variant.device, index=index)
        except ProviderError:
            raise
        except Exception as error:  # one unrelated class for each status code
            raise BundleError(
                f"ONNX Runtime {ort.__version__} cannot open {path} (opset {graph.opset}): {error}"
            ) from error
        self._session: Any = session
        # Else every output is computed, whichever are asked for.
        self._run_options: Any = ort.RunOptions()
        self._run_options.only_execute_path_to_fetches = True
        self._large_run_options: Any = ort.RunOptions()
        self._large_run_options.only_execute_path_to_fetches = True
        self._large_run_options.add_run_config_entry(
            "memory.enable_memory_arena_shrinkage", "cpu:0"
        )
        shapes = {value.name: value.shape for value in session.get_inputs()}
        self._input_names = frozenset(shapes)
        self._past = PastInputs(
            {name: (shapes[name][1], shapes[name][3]) for name in past_names_of(shapes)}
        )
        self.batch_tokens = max(2, threads) * TOKENS_PER_THREAD
        self.batch_overhead_tokens = BATCH_OVERHEAD_TOKENS
        self.past_names = self._past.names
        self.past_token_bytes = self._past.token_bytes
        self.info = EngineInfo(
            engine="onnxruntime",
            version=ort.__version__,
            device=variant.device,
            precision=variant.precision,
            provider=session.get_providers()[0],
            variant=variant.name,
            threads=threads,
        )

    def run(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        outputs: Sequence[str],
        *,
        past: Sequence[NDArray[np.float32]] | None = None,
    ) -> list[NDArray[np.float32]]:
        """Run one batch; see `bge_runtime.engines.Engine.run`."""
        feeds = graph_inputs(self._input_names, input_ids, attention_mask) | self._past.feeds(past)
        large = input_ids.size > _LARGE_RUN_TOKENS
        options = self._large_run_options if large else self._run_options
        try:
            results: list[NDArray[np.float32]] = self._session.run(list(outputs), feeds, options)
        except Exception as error:  # one unrelated class for each status code
            raise inference_error("ONNX Runtime", input_ids, error) from error
        return results

    def abandon(self) -> None:
        """Leak the session; see `bge_runtime.engines.Engine.abandon`."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))
        self._session = None
