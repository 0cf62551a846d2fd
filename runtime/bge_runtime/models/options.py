"""Options shared by all model classes: how to open a model, and the defaults of its calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bge_runtime.bundle import SENTENCE_EMBEDDING

DEFAULT_LENGTH = 512
"""FlagEmbedding's default length of a text in tokens, whatever the model can read."""

Devices = str | int | list[str] | list[int] | None
"""A device, or devices to share the work: names such as ``"cpu"``, or numbers of GPUs."""


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """How to find and open a model; the names are those of `bge_runtime.FlagModel`.

    Attributes:
        outputs: Outputs of the graph that will be asked for; see
            `bge_runtime.engines.open_engine`.
        prefix_cache_mb: As in `bge_runtime.FlagLLMModel`; 0 for encoders.
    """

    devices: Devices
    use_fp16: bool
    use_bf16: bool
    pooling_method: str | None
    trust_remote_code: bool
    cache_dir: str | None
    engine: str
    precision: str | None
    threads: int | None
    revision: str | None
    cuda_graphs: bool = False
    parallel_batches: bool = False
    outputs: Sequence[str] = (SENTENCE_EMBEDDING,)
    prefix_cache_mb: int = 0

    @property
    def asked_precision(self) -> str:
        """The precision asked for by name, or else by FlagEmbedding's two flags."""
        return self.precision or precision_of_flags(use_fp16=self.use_fp16, use_bf16=self.use_bf16)


@dataclass(frozen=True, kw_only=True)
class CallDefaults:
    """What a call does unless it says otherwise; the names are those of `bge_runtime.FlagModel`.

    Each becomes an attribute of the model, which may be changed at any time.
    """

    normalize_embeddings: bool
    query_instruction_for_retrieval: str | None
    query_instruction_format: str
    batch_size: int
    query_max_length: int
    passage_max_length: int
    truncate_dim: int | None


def precision_of_flags(*, use_fp16: bool, use_bf16: bool) -> str:
    """Return the precision that FlagEmbedding's two flags ask for."""
    if use_bf16:
        return "bf16"
    return "auto" if use_fp16 else "fp32"
