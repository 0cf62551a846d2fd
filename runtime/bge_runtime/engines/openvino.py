"""OpenVINO on a CPU."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import Bundle, Variant, past_names_of
from bge_runtime.engines.base import (
    BatchLimits,
    EngineInfo,
    EngineOptions,
    inference_error,
    keep_forever,
)
from bge_runtime.engines.batch_arrays import PastInputs, graph_inputs
from bge_runtime.engines.linked_files import graph_beside_weights
from bge_runtime.engines.weights_file import WeightsFile, map_weights
from bge_runtime.errors import (
    BundleError,
    DeviceError,
    EngineNotInstalledError,
    PrecisionError,
    ProviderError,
)
from bge_runtime.system import allowed_cpus, default_threads, multiplies_in_8_bits, once

_TOKENS_PER_THREAD = 512
"""Measured on 2 cores with bge-base and 1,430 and 1,000 real texts: 1,024 tokens a batch are 3 to
9 % faster than 512, in bf16 and int8, since weights are read, and kernels compiled for new shapes,
half as often. They also take less memory (659 MB instead of 720). 2,048 are no faster."""

_TOKENS_PER_STREAM = 1536
"""Measured on 2 cores (Zen 5) with 1,430 real texts: instead of 512 they are 16 % faster with
all-MiniLM-L6-v2 in int8, 5 % in bf16, and 2 % with bge-base."""

_BATCH_OVERHEAD_TOKENS = 64
"""Measured likewise: a new shape costs 8 ms in bf16 and 10 to 20 ms in int8, as much as some 20 to
60 more tokens, and each batch costs time that does not depend on its size: 64 are 2 % faster than
32 with all-MiniLM-L6-v2, and as fast with bge-base."""

_KERNELS_KEPT = "256"
"""Kernels of each kind that OpenVINO, and oneDNN within it, keep for shapes that came before. Their
defaults are 5,000 and 1,024, and memory grows for as long as new shapes come, by 0.6 to 0.9 MB each
(bge-small-zh); with this limit it stopped at 100 MB, at the same speed."""

_DEVICE = "CPU"
"""OpenVINO's name for all processors."""

_PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
"""OpenVINO's name for each precision. It is a setting, not a property of the file."""

_WEIGHT_PRECISIONS = ("int8", "int4")
"""Precisions of weights alone."""


def _load() -> Any:
    """Import OpenVINO without its telemetry, and with bounded memory.

    It reports its import, and each conversion, to Google Analytics from a process that it forks.
    Its own switch is a file in the user's home. Without the package for telemetry it reports
    nothing.

    oneDNN reads its limit once, and only from the environment; a limit that is set there stays.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _KERNELS_KEPT)
    if "openvino" not in sys.modules and "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        try:
            return importlib.import_module("openvino")
        finally:
            del sys.modules["openvino_telemetry"]
    return importlib.import_module("openvino")


@once()
def _core(process: int) -> Any:  # noqa: ARG001  # a forked child needs one of its own
    """Return OpenVINO's core for a process, which is never destroyed.

    A core sets a stack for signal handlers in the thread that creates it, and restores the previous
    one when it is destroyed. If two are not destroyed in reverse order, the one that is restored
    last has been freed, and the next signal that Python handles, such as Ctrl-C, is a segmentation
    fault (OpenVINO 2026.4.1).
    """
    core = _load().Core()
    keep_forever(core)
    return core


@once()
def cpu_capabilities() -> tuple[str, ...]:
    """Return what OpenVINO can compute on this processor, such as ``"BF16"``."""
    return tuple(_core(os.getpid()).get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def computing_precision(precision: str) -> str | None:
    """Return OpenVINO's name for the precision of a variant's activations.

    With weights of 8 or 4 bits, whose products round activations to 8 bits, the rest is computed
    in the fastest precision of the processor. None for a precision that OpenVINO does not run.
    """
    if precision in _WEIGHT_PRECISIONS:
        return "bf16" if "BF16" in cpu_capabilities() else "f32"
    return _PRECISIONS.get(precision)


class _Model:
    """A model compiled for some outputs of its graph.

    Attributes:
        compiled: OpenVINO's compiled model.
        outputs: Names of the outputs that it computes.
        inputs: Numbers of its inputs, by name.
        past: Names of the inputs that take a prefix, in order.
    """

    def __init__(
        self, *, compiled: Any, outputs: frozenset[str], tensor: Any, weights: WeightsFile | None
    ) -> None:
        self.compiled = compiled
        self.outputs = outputs
        self.inputs = {port.any_name: number for number, port in enumerate(compiled.inputs)}
        self.past = past_names_of(self.inputs)
        self._output_numbers = {
            name: number for number, port in enumerate(compiled.outputs) for name in port.names
        }
        self._tensor = tensor
        # A request holds the buffers of one run, so that threads cannot share it.
        self._requests: deque[Any] = deque()
        # The compiled model reads them and does not keep them: the last attribute is released last.
        self._weights = weights
        self._has_copied = False

    def infer(
        self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> list[NDArray[np.float32]]:
        """Return outputs, computed in a request that no other thread uses meanwhile.

        Arrays are set by number, and read in place: OpenVINO's own dispatch of a dictionary takes
        0.1 ms, an eighth of a query in a small model, and copies prefixes of a gigabyte.
        """
        numbers = [self._output_numbers[name] for name in outputs]
        try:
            request = self._requests.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        try:
            for name, array in feeds.items():
                request.set_input_tensor(self.inputs[name], self._tensor(array, shared_memory=True))
            self._run(request)
            return [np.array(request.get_output_tensor(number).data) for number in numbers]
        finally:
            self._requests.append(request)

    def _run(self, request: Any) -> None:
        """Run a request; of the weights that it reads, no page is kept in memory for long."""
        if self._weights is None:
            request.infer(share_outputs=True)
        elif self._has_copied:
            request.infer(share_outputs=True)
            self._weights.drop_rows()
        else:
            with self._weights.read_once():
                request.infer(share_outputs=True)
            self._has_copied = True


class OpenVinoEngine:
    """A compiled OpenVINO model. See `bge_runtime.engines.Engine`."""

    package: ClassVar[str] = "openvino"
    has_cuda_graphs: ClassVar[bool] = False
    accepts_streams: ClassVar[bool] = True
    cuda_graph_engine: ClassVar[None] = None

    load = staticmethod(_load)

    @staticmethod
    def unavailable_reason(precision: str) -> str | None:
        """Return why this machine cannot run a precision on the engine, or None if it can."""
        if importlib.util.find_spec("openvino") is None:
            return "openvino is not installed"
        if precision not in (*_PRECISIONS, *_WEIGHT_PRECISIONS):
            return f"this version's openvino engine has no {precision}"
        if precision != "bf16":
            return None
        try:
            capabilities = cpu_capabilities()
        except Exception as error:  # noqa: BLE001  # such as a missing shared library
            return f"openvino cannot be used ({error})"
        if "BF16" in capabilities:
            return None
        return "this processor does not compute in bf16 (it has neither AVX512-BF16 nor AMX)"

    def __init__(
        self,
        bundle: Bundle,
        variant: Variant,
        options: EngineOptions = EngineOptions(),  # noqa: B008  # frozen
    ) -> None:
        """Compile a model and check that it runs where and how it was requested.

        Raises:
            EngineNotInstalledError: If openvino is not installed, or cannot be imported.
            DeviceError: If this engine has no such precision on the variant's device.
            PrecisionError: If the processor does not compute in the variant's precision.
            BundleError: If OpenVINO cannot read the graph.
            ProviderError: If the model runs on another device, or in another precision.
        """
        try:
            ov = self.load()
        except (ImportError, OSError) as error:
            raise EngineNotInstalledError(
                f"variant {variant.name!r} runs on OpenVINO, and openvino cannot be imported "
                f"({error}). Run `pip install 'bge-runtime[cpu]'`"
            ) from error
        precision = computing_precision(variant.precision)
        if precision is None:
            raise DeviceError(
                f"requested {variant.precision} on {variant.device!r}, but this version's openvino "
                f"engine has {', '.join(_PRECISIONS)} there"
            )
        threads = options.threads or default_threads()
        if (reason := self.unavailable_reason(variant.precision)) is not None:
            raise PrecisionError(
                f"requested {variant.precision}, but {reason}. "
                "Pass precision='fp32', or leave it out"
            )
        self._settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": str(options.streams),
            "INFERENCE_NUM_THREADS": str(threads),
            "CPU_RUNTIME_CACHE_CAPACITY": _KERNELS_KEPT,
        }
        if threads < allowed_cpus():
            # Pinned, all processes with fewer threads than processors would share the first ones.
            self._settings["ENABLE_CPU_PINNING"] = "NO"
        graph = bundle.graph(variant.graph)
        if graph.quantization_block is not None:
            # By default it rounds groups of 32 channels, which takes a sixth more time.
            self._settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = str(graph.quantization_block)
            if not multiplies_in_8_bits():
                # Products of whole numbers with static scales add two at a time in 16 bits there,
                # and could overflow. This way all scales are chosen at run time.
                self._settings["LP_TRANSFORMS_MODE"] = "NO"
        self._bundle, self._graph = bundle, graph
        self._path = bundle.path / graph.file
        self._recompiling = threading.Lock()
        self._model = self._compile(frozenset(options.outputs), options.on_compile)
        self._past = PastInputs({name: self._heads(name) for name in self._model.past})
        self.batches = BatchLimits(
            tokens=threads * _TOKENS_PER_THREAD,
            parallel_tokens=_TOKENS_PER_STREAM,
            overhead_tokens=_BATCH_OVERHEAD_TOKENS,
        )
        self.past_names = self._past.names
        self.past_token_bytes = self._past.token_bytes
        self.info = EngineInfo(
            engine="openvino",
            version=ov.__version__.partition("-")[0],
            device=variant.device,
            precision=variant.precision,
            provider=f"OpenVINO {_DEVICE}",
            variant=variant.name,
            threads=int(self._model.compiled.get_property("INFERENCE_NUM_THREADS")),
            streams=int(self._model.compiled.get_property("NUM_STREAMS")),
        )

    def _compile(
        self, outputs: frozenset[str], on_compile: Callable[[], object] = lambda: None
    ) -> _Model:
        """Compile the graph for some of its outputs, so that no others are computed."""
        ov = self.load()
        try:
            core = _core(os.getpid())
            model, weights = self._read(core)
            for result in model.get_results():
                if not outputs & result.output(0).get_names():
                    model.remove_result(result)
            on_compile()
            compiled = core.compile_model(model, _DEVICE, self._settings)
        except BundleError:
            raise
        except Exception as error:  # OpenVINO raises RuntimeError and subclasses for everything
            raise BundleError(
                f"OpenVINO {ov.__version__} cannot open {self._path}: {error}"
            ) from error
        precision = self._settings["INFERENCE_PRECISION_HINT"]
        in_force = compiled.get_property("EXECUTION_DEVICES")
        computing = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if in_force != [_DEVICE] or computing != precision:
            raise ProviderError(
                f"requested {precision} on {_DEVICE}, but the model {self._path.name!r} runs "
                f"in {computing} on {', '.join(in_force)}. Update openvino, or pass "
                "engine='onnxruntime'"
            )
        return _Model(compiled=compiled, outputs=outputs, tensor=ov.Tensor, weights=weights)

    def _read(self, core: Any) -> tuple[Any, WeightsFile | None]:
        """Return the model, and the weights that it reads in place."""
        # Two graphs in OpenVINO's format may share a file of weights; ONNX names its file itself.
        if self._path.suffix != ".xml":
            with graph_beside_weights(self._bundle, self._graph, follows_graph=False) as file:
                return core.read_model(file), None
        ov = self.load()
        weights = map_weights(self._bundle.path / self._graph.weights)
        size = ov.Shape([weights.array.size])
        tensor = ov.Tensor(weights.array, size, ov.Type.u8)  # in place, although it is read-only
        return core.read_model(self._path.read_bytes(), tensor), weights

    def _heads(self, name: str) -> tuple[int, int]:
        shape = self._model.compiled.input(name).get_partial_shape()
        return shape[1].get_length(), shape[3].get_length()

    def _model_for(self, outputs: Sequence[str]) -> _Model:
        """Return a model that computes these outputs, compiled again if there is none.

        Two models of one file would hold its weights twice: so a model for more outputs replaces
        the one before.
        """
        model = self._model
        if model.outputs.issuperset(outputs):
            return model
        with self._recompiling:
            if not self._model.outputs.issuperset(outputs):
                self._model = self._compile(self._model.outputs | set(outputs))
            return self._model

    def run(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        outputs: Sequence[str],
        *,
        past: Sequence[NDArray[np.float32]] | None = None,
    ) -> list[NDArray[np.float32]]:
        """Run one batch; see `bge_runtime.engines.Engine.run`."""
        model = self._model_for(outputs)
        feeds = graph_inputs(model.inputs, input_ids, attention_mask) | self._past.feeds(past)
        try:
            return model.infer(feeds, outputs)
        except Exception as error:  # OpenVINO raises RuntimeError and subclasses
            raise inference_error("OpenVINO", input_ids, error) from error

    def release_after_fork(self) -> None:
        """Drop the model without closing it; see `Engine.release_after_fork`."""
        keep_forever(self._model)
