"""One session of ONNX Runtime for a graph of a bundle; engines hold one or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import (
    COMPUTE_HEADS,
    CUMULATIVE_LENGTHS,
    HEAD_OUTPUTS,
    UNIFORM_BATCH,
    Bundle,
    Graph,
    Variant,
    past_names_of,
)
from bge_runtime.engines import ort_providers
from bge_runtime.engines.base import EngineInfo, inference_error, keep_forever
from bge_runtime.engines.batch_arrays import PastInputs, graph_inputs, split_by_text
from bge_runtime.engines.linked_files import graph_beside_weights
from bge_runtime.engines.ort_providers import CPU_PROVIDER, Provider
from bge_runtime.errors import BundleError, ProviderError
from bge_runtime.system import multiplies_in_8_bits

Feeds = dict[str, NDArray[Any]]
"""Arrays of a batch by input."""

Compute = Callable[[Any, Sequence[str], Feeds], list[NDArray[np.float32]]]
"""Function that computes outputs with an ``InferenceSession``, in a thread of its choice."""


class OrtSession:
    """An ``InferenceSession`` that takes batches of texts and returns outputs by text.

    Attributes:
        session: The ``InferenceSession``.
        provider: Execution provider it runs on.
        input_names: Names of the graph's inputs.
        packed: Whether the graph takes the tokens of a batch without padding.
        past: Inputs for keys and values of a prefix.
    """

    def __init__(self, session: Any) -> None:
        """Wrap an open ``InferenceSession``."""
        shapes = {value.name: value.shape for value in session.get_inputs()}
        self.session = session
        self.provider: str = session.get_providers()[0]
        self.input_names = frozenset(shapes)
        self.packed = CUMULATIVE_LENGTHS in shapes
        self.past = PastInputs(
            {name: (shapes[name][1], shapes[name][3]) for name in past_names_of(shapes)}
        )
        self._uniform = UNIFORM_BATCH in shapes
        self._has_heads_input = COMPUTE_HEADS in shapes

    @classmethod
    def open(
        cls,
        ort: Any,
        bundle: Bundle,
        graph: Graph,
        providers: Sequence[Provider],
        *,
        threads: int,
    ) -> OrtSession:
        """Open a session on the first of some providers.

        Raises:
            BundleError: If ONNX Runtime cannot read the graph.
            ProviderError: If that provider is unavailable, or the session runs on another one.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Memory patterns only help a shape that comes again; nearly every batch has a new one.
        options.enable_mem_pattern = False
        # On a CPU: a plan that reserves a freed buffer for a later tensor keeps it from all
        # tensors in between. Without it 26 batches of mixed length take 73 MB above the model
        # instead of 126 (bge-base), and one of 8192 tokens 0.5 GB instead of 0.7 (BGE-M3), in the
        # same time.
        options.enable_mem_reuse = providers[0][0] != CPU_PROVIDER
        # By default idle threads spin for a millisecond and more, on the very processors that
        # another session or program wants: one query took 21 ms alone, and 49 ms when alternating
        # with two other models (bge-base, 2 cores); with 50 us it takes 20 ms either way.
        options.add_session_config_entry("session.intra_op.spin_duration_us", "50")
        if graph.quantization_block is not None and not multiplies_in_8_bits():
            # Products of whole numbers with static scales add two at a time in 16 bits there, and
            # could overflow. This way they are rounded, and multiplied in fp32.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        # Errors are raised; ONNX Runtime would print them to stderr as well.
        options.log_severity_level = 4
        try:
            with graph_beside_weights(bundle, graph, follows_graph=True) as file:
                return cls(ort_providers.open_session(ort, file, options, providers))
        except (BundleError, ProviderError):
            raise
        except Exception as error:  # one unrelated class for each status code
            raise BundleError(
                f"ONNX Runtime {ort.__version__} cannot open {bundle.path / graph.file} (opset "
                f"{graph.opset}) on {providers[0][0]}: {error}"
            ) from error

    def run(
        self,
        compute: Compute,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        outputs: Sequence[str],
        past: Sequence[NDArray[np.float32]] | None = None,
    ) -> list[NDArray[np.float32]]:
        """Run one batch by ``compute``; for the rest see `bge_runtime.engines.Engine.run`."""
        if self._uniform and not attention_mask.all():
            return self._run_each_length(compute, input_ids, attention_mask, outputs)
        feeds = graph_inputs(self.input_names, input_ids, attention_mask) | self.past.feeds(past)
        if self._has_heads_input:
            # A session computes every output of a graph, also those that are not requested.
            feeds[COMPUTE_HEADS] = np.array(any(name in HEAD_OUTPUTS for name in outputs))
        try:
            results = compute(self.session, outputs, feeds)
        except Exception as error:  # one unrelated class for each status code
            raise inference_error("ONNX Runtime", input_ids, error) from error
        if self.packed:
            pairs = zip(outputs, results, strict=True)
            return [split_by_text(name, values, attention_mask) for name, values in pairs]
        return results

    def _run_each_length(
        self,
        compute: Compute,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        outputs: Sequence[str],
    ) -> list[NDArray[np.float32]]:
        """Run the texts of each length as a batch of their own, as a uniform graph needs them."""
        lengths = attention_mask.sum(axis=1)
        found: dict[str, NDArray[Any]] = {}
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            ids = np.ascontiguousarray(input_ids[rows, :length])
            results = self.run(compute, ids, np.ones_like(ids), outputs)
            for name, values in zip(outputs, results, strict=True):
                by_token = name in HEAD_OUTPUTS and values.dtype != object
                rest = (int(lengths.max()),) if by_token else values.shape[1:]
                all_rows = found.setdefault(
                    name, np.zeros((len(lengths), *rest), dtype=values.dtype)
                )
                if by_token:
                    all_rows[rows, :length] = values
                else:
                    all_rows[rows] = values
        return [found[name] for name in outputs]

    def info(self, variant: Variant, *, version: str, threads: int, streams: int = 1) -> EngineInfo:
        """Return what an engine that holds this session for a variant reports."""
        return EngineInfo(
            engine=variant.engine,
            version=version,
            device=variant.device,
            precision=variant.precision,
            provider=self.provider,
            variant=variant.name,
            threads=threads,
            streams=streams,
        )

    def release_after_fork(self) -> None:
        """Drop the session without closing it; see `Engine.release_after_fork`."""
        keep_forever(self.session)
        self.session = None
