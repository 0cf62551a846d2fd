"""ONNX Runtime's execution providers: their options, and why one is unavailable."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bge_runtime.bundle import Variant
from bge_runtime.errors import EngineNotInstalledError, ProviderError
from bge_runtime.system import nvidia

CPU_PROVIDER, CUDA_PROVIDER, TENSORRT_PROVIDER = (
    "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider",
)  # fmt: skip

Provider = tuple[str, dict[str, str]]
"""Name and options."""

_LIBRARIES = {
    CUDA_PROVIDER: "libonnxruntime_providers_cuda.so",
    TENSORRT_PROVIDER: "libonnxruntime_providers_tensorrt.so",
}

_NEGATION = (
    b'\x08\x08:2\n\x0b\n\x01x\x12\x01y"\x03Neg\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08'
    b"\x01\x12\x04\n\x02\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x12"
)
"""A model of one operator, as ONNX writes it."""

INSTALL_GPU = (
    "on a machine with an NVIDIA GPU, run `pip uninstall onnxruntime` and then "
    "`pip install 'bge-runtime[cuda]'`"
)

_ADVICE = {
    CPU_PROVIDER: "Reinstall onnxruntime",
    CUDA_PROVIDER: f"Pass devices='cpu'; or, {INSTALL_GPU}",
    TENSORRT_PROVIDER: (
        f"Pass engine='onnxruntime', which runs on the GPU as well; or, {INSTALL_GPU}"
    ),
}


def load() -> Any:
    """Import ONNX Runtime without its telemetry.

    The telemetry's thread starts with the import, and a forked child waits for that thread
    forever when it ends (seen with 1.32). "0" in the environment keeps it on.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return importlib.import_module("onnxruntime")


def load_for(variant: Variant) -> Any:
    """Import ONNX Runtime to run a variant.

    Raises:
        EngineNotInstalledError: If it is not installed, or cannot be imported.
    """
    try:
        return load()
    except (ImportError, OSError) as error:
        raise EngineNotInstalledError(
            f"variant {variant.name!r} runs on ONNX Runtime, and onnxruntime cannot be imported "
            f"({error}). Run `pip install 'bge-runtime[cpu]'`"
        ) from error


def cuda_options(index: int) -> dict[str, str]:
    """Return the CUDA provider's options for the GPU with this number."""
    return {
        # ONNX Runtime 1.31 warns on stderr that no plugin serves a GPU that is named: so the first
        # one is not.
        **({"device_id": str(index)} if index else {}),
        # The default multiplies float32 with 10 bits of mantissa.
        "use_tf32": "0",
        # The default sums squares in the type of the tensor: in fp16 a norm is then accurate to
        # three digits, and overflows where a component exceeds 256 times the square root of the
        # width (skip_layer_norm_impl.cu).
        "enable_skip_layer_norm_strict_mode": "1",
        # The default doubles the arena whenever it grows, and other programs use this GPU as well.
        "arena_extend_strategy": "kSameAsRequested",
    }


def open_session(ort: Any, model: Path | bytes, options: Any, providers: Sequence[Provider]) -> Any:
    """Open a session on the first of some providers.

    Args:
        ort: The package, as `load` returns it.
        model: The graph.
        options: Its ``SessionOptions``.
        providers: The one that the session must run on, then those for nodes it cannot run.

    Raises:
        ProviderError: If the first provider is unavailable here.
    """
    wanted = providers[0][0]
    printed = _preload(ort) if wanted != CPU_PROVIDER else ""
    source = model if isinstance(model, bytes) else str(model)
    try:
        # With fallback, it would print to stdout that it continues on the CPU.
        session = ort.InferenceSession(
            source, options, providers=list(providers), enable_fallback=0
        )
    except Exception as error:  # one unrelated class for each status code
        if wanted == CPU_PROVIDER or (cause := _load_failure(ort, wanted)) is None:
            raise
        raise _not_in_force(wanted, f"it cannot be loaded: {cause}") from error
    in_force = session.get_providers()
    if in_force[0] != wanted:
        cause = (None if wanted == CPU_PROVIDER else _load_failure(ort, wanted)) or printed
        raise _not_in_force(wanted, f"the session is running on {in_force} {cause}".strip())
    return session


def _not_in_force(wanted: str, found: str) -> ProviderError:
    return ProviderError(f"requested {wanted}, but {found}. {_ADVICE[wanted]}")


def require(provider: str, variant: Variant, missing: str | None) -> None:
    """Raise ProviderError if a GPU's provider has a missing requirement."""
    if missing is not None:
        raise ProviderError(
            f"requested device {variant.device!r}, where variant {variant.name!r} runs on "
            f"{provider}, but {missing}. Pass devices='cpu'; or, {INSTALL_GPU}"
        )


def missing_requirement(provider: str) -> str | None:
    """Return what is missing for a provider on this machine, or None if it can be tried."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed"
    if provider == CPU_PROVIDER:
        return None
    try:
        ort = load()
    except (ImportError, OSError) as error:
        return f"onnxruntime cannot be imported ({error})"
    if provider not in ort.get_available_providers():
        return f"the installed onnxruntime {ort.__version__} has no {provider}"
    try:
        ctypes.CDLL(nvidia.DRIVER_LIBRARY)
    except OSError:
        return f"this machine has no NVIDIA driver ({nvidia.DRIVER_LIBRARY})"
    return None


def load_failure(provider: str) -> str | None:
    """Return why a provider fails to run a graph of one operator, or None if it does not."""
    ort = load()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        open_session(ort, _NEGATION, options, [(provider, {})])
    except Exception as error:  # noqa: BLE001  # one unrelated class for each status code
        return str(error)
    return None


def _preload(ort: Any) -> str:
    """Load CUDA from NVIDIA's packages if they are installed, and return what was printed.

    Otherwise ONNX Runtime finds them only once PyTorch has loaded them.
    """
    if not hasattr(ort, "preload_dlls") or not sys.platform.startswith("linux"):
        return ""
    # It prints to stdout, which may be a pipe full of vectors.
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        ort.preload_dlls(directory="")
    return "; ".join(printed.getvalue().split("\n")).strip("; ")


def _load_failure(ort: Any, provider: str) -> str | None:
    """Return why a provider's library cannot be loaded, or None if it can.

    Only for a provider that ONNX Runtime failed to load, which it does not report. Another library
    would be loaded before ONNX Runtime has initialized it, and break later.
    """
    folder = Path(ort.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / _LIBRARIES[provider]))
    except OSError as error:
        return str(error)
    return None
