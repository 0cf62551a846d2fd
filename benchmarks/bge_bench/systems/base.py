"""The embedders and rerankers that are compared, behind one small interface.

A worker imports this module inside its timed start, so it imports nothing heavy itself: each system
pays for the imports that its users pay for, and for no others.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from bge_runtime.sources import (
    DECODER_ONLY_BASE,
    DECODER_ONLY_ICL,
    ENCODER_ONLY_BASE,
    ENCODER_ONLY_M3,
    RERANKER_CLASSES,
    RERANKER_DECODER,
    RERANKER_ENCODER,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Item = str | tuple[str, str]
"""What a system computes: a text, or for a reranker a pair of query and passage."""

QUERY = "how long does glacier ice keep air"
_PASSAGE = "Air that the snow encloses stays in the ice of a glacier for thousands of years."

OURS = "bge-runtime"
PYTORCH = ("flagembedding", "transformers", "sentence-transformers")
"""Baselines that PyTorch computes in fp32 from the checkpoint; they serve as references."""
BASELINES = (
    *PYTORCH,
    "sentence-transformers-bf16",
    "sentence-transformers-onnx",
    "sentence-transformers-openvino",
    "optimum",
    "fastembed",
    "onnxruntime",
)
"""Baselines on a CPU."""
INT8_BASELINES = (
    "sentence-transformers-onnx-int8",
    "sentence-transformers-openvino-int8",
    "openvino-int8",
    "ctranslate2",
)
"""Baselines of embedders in int8 on a CPU; each reads a model that is made of the checkpoint."""
# The one that compiles comes last: a run that is cut off while it compiles has the others.
GPU_BASELINES = ("flagembedding", "transformers", "sentence-transformers", "transformers-compiled")
"""Baselines on a GPU, in fp16."""
ALL_BASELINES = tuple(dict.fromkeys((*BASELINES, *INT8_BASELINES, *GPU_BASELINES)))
"""All baselines."""
FROM_CHECKPOINT = (*PYTORCH, "sentence-transformers-bf16", "transformers-compiled")
"""Baselines that read the checkpoint; the others read the bundle's graphs."""
DECODER_RERANKERS = ("flagembedding", "transformers")
"""Baselines of rerankers on decoders: for BGE's question, and for Qwen3-Reranker's."""


@dataclass(frozen=True, kw_only=True)
class SystemSpec:
    """How to open a system.

    Attributes:
        system: `OURS`, or one of `BASELINES` or `INT8_BASELINES`.
        model: Folder of the checkpoint for one of `FROM_CHECKPOINT`, of the model that was made
            of it for one of `INT8_BASELINES`, else of the bundle.
        pooling: ``"cls"`` or ``"mean"``.
        max_length: Most tokens of a text, special tokens included.
        batch_size: Most texts in a batch.
        threads: Threads to compute with; None leaves the default.
        precision: Precision, for the systems that offer a choice: ours and OpenVINO's.
            ``"auto"`` is their default. The others compute in fp32.
        model_class: FlagEmbedding's class for the model. Only bge-runtime and FlagEmbedding
            have classes other than the default.
        all_outputs: For BGE-M3, also compute lexical weights and ColBERT vectors.
        device: ``"cpu"``, or a GPU's name such as ``"cuda:0"``: there the baselines compute in
            fp16, and `PYTORCH` in fp32 if ``precision`` says so.
        cuda_graphs: For bge-runtime, run single short texts as CUDA graphs.
        parallel_batches: For bge-runtime, compute several batches at once on a CPU.
    """

    system: str
    model: str
    pooling: str
    max_length: int
    batch_size: int
    threads: int | None = None
    precision: str = "fp32"
    model_class: str = ENCODER_ONLY_BASE
    all_outputs: bool = False
    device: str = "cpu"
    cuda_graphs: bool = False
    parallel_batches: bool = True

    @property
    def reranks(self) -> bool:
        """Whether it is a reranker, which scores pairs."""
        return self.model_class in RERANKER_CLASSES

    @property
    def first(self) -> Item:
        """What a new process computes first: a query, or a pair."""
        return (QUERY, _PASSAGE) if self.reranks else QUERY

    @property
    def torch_precision(self) -> str:
        """Precision of a system that runs on PyTorch."""
        return "fp32" if self.device == "cpu" or self.precision == "fp32" else "fp16"

    def dense(self, model: Any, texts: list[str], **options: Any) -> NDArray[np.float32]:
        """Return the dense vectors of ``encode`` of any class."""
        vectors: NDArray[np.float32]
        if self.model_class == ENCODER_ONLY_M3:
            more = self.all_outputs
            outputs = model.encode(texts, return_sparse=more, return_colbert_vecs=more, **options)
            vectors = outputs["dense_vecs"]
        else:
            vectors = model.encode(texts, **options)
        return vectors


def as_passages(texts: Sequence[str]) -> list[Item]:
    """Return pairs of one query with texts."""
    return [(QUERY, text) for text in texts]


CLASSES = {
    ENCODER_ONLY_BASE: "FlagModel",
    ENCODER_ONLY_M3: "BGEM3FlagModel",
    DECODER_ONLY_BASE: "FlagLLMModel",
    DECODER_ONLY_ICL: "FlagICLModel",
    RERANKER_ENCODER: "FlagReranker",
    RERANKER_DECODER: "FlagLLMReranker",
}
"""Name of each class, which is the same in bge-runtime and FlagEmbedding."""


def flagembedding(
    folder: str, model_class: str, *, device: str = "cpu", use_fp16: bool = False, **options: Any
) -> Any:
    """Open FlagEmbedding's model, by default in fp32, with two faults of transformers fixed.

    With transformers 4.57 the default attention of Gemma 2 omits its softcapping, so this uses the
    eager one. Qwen2 ignores ``is_causal=False``, so this passes a mask for both directions.
    """
    import FlagEmbedding

    model = getattr(FlagEmbedding, CLASSES[model_class])(
        folder, use_fp16=use_fp16, devices=device, **options
    )
    config = getattr(model.model, "config", None)
    if getattr(config, "attn_logit_softcapping", None) is not None:
        model.model.set_attn_implementation("eager")
    if getattr(config, "is_causal", True) is False:
        model.model.register_forward_pre_hook(_both_directions, with_kwargs=True)
    return model


def _both_directions(_: Any, arguments: Any, options: dict[str, Any]) -> Any:
    import torch

    mask = options["attention_mask"]
    seen = mask[:, None, None, :].bool().expand(-1, 1, mask.shape[1], -1)
    low = torch.finfo(torch.float32).min
    # transformers uses a complete mask without changing it.
    ready = torch.zeros(seen.shape).masked_fill(~seen, low)
    return arguments, {**options, "attention_mask": {"full_attention": ready}}


class System(Protocol):
    """An opened embedder or reranker.

    Attributes:
        name: Package and version.
        precision: Precision in force; a key of `bge_runtime.bundle.parity.TOLERANCES`.
        batch_size: Most texts in a batch; may be set between calls.
    """

    name: str
    precision: str
    batch_size: int

    @property
    def in_force(self) -> str:
        """Description of what runs it: library, device, precision, threads."""
        ...

    def encode(self, texts: Sequence[Any]) -> NDArray[np.float32]:
        """Embed texts, or score pairs.

        Args:
            texts: Texts; for a reranker pairs of query and passage.

        Returns:
            Unit-length vectors in input order. Shape: ``(len(texts), dim)``. Of a reranker the
            logits. Shape: ``(len(texts), 1)``.
        """
        ...


_SYSTEMS = {
    OURS: "base:_OurEmbedder",
    "flagembedding": "pytorch:FlagEmbedding",
    "transformers": "pytorch:Transformers",
    "transformers-compiled": "pytorch:TransformersCompiled",
    "sentence-transformers": "pytorch:SentenceTransformersTorch",
    "sentence-transformers-bf16": "pytorch:SentenceTransformersBf16",
    "sentence-transformers-onnx": "onnx:SentenceTransformersOnnx",
    "sentence-transformers-openvino": "onnx:SentenceTransformersOpenVino",
    "optimum": "onnx:Optimum",
    "fastembed": "onnx:FastEmbed",
    "onnxruntime": "onnx:OnnxRuntime",
    "sentence-transformers-onnx-int8": "int8:SentenceTransformersOnnx",
    "sentence-transformers-openvino-int8": "int8:SentenceTransformersOpenVino",
    "openvino-int8": "int8:OpenVino",
    "ctranslate2": "int8:CTranslate2",
}
"""Module and class of each embedder. A module is imported when one of its systems is opened."""

_RERANKERS = {
    OURS: "rerankers:OurReranker",
    "flagembedding": "rerankers:FlagEmbedding",
    "transformers": "rerankers:Transformers",
    "transformers-compiled": "rerankers:TransformersCompiled",
    "sentence-transformers": "rerankers:CrossEncoderTorch",
    "sentence-transformers-bf16": "rerankers:CrossEncoderBf16",
    "sentence-transformers-onnx": "rerankers_onnx:CrossEncoderOnnx",
    "sentence-transformers-openvino": "rerankers_onnx:CrossEncoderOpenVino",
    "optimum": "rerankers_onnx:OptimumReranker",
    "fastembed": "rerankers_onnx:FastEmbed",
    "onnxruntime": "rerankers_onnx:OnnxRuntime",
}
"""Module and class of each reranker on an encoder."""

_DECODER_RERANKERS = {
    OURS: "rerankers:OurReranker",
    "flagembedding": "qwen3_reranker:open_flagembedding",
    "transformers": "qwen3_reranker:Transformers",
}
"""Module and class of each reranker on a decoder; the last one asks as Qwen3-Reranker is asked."""


def without_telemetry() -> None:
    """Keep ONNX Runtime, OpenVINO and NNCF from sending usage data, as bge-runtime does."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # Both take an import that fails for a package that is not installed, and send nothing then.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def open_system(spec: SystemSpec) -> System:
    """Open a system in this process."""
    without_telemetry()
    tables = {RERANKER_ENCODER: _RERANKERS, RERANKER_DECODER: _DECODER_RERANKERS}
    module, _, name = tables.get(spec.model_class, _SYSTEMS)[spec.system].partition(":")
    opened: System = getattr(importlib.import_module(f"bge_bench.systems.{module}"), name)(spec)
    return opened


class Batched:
    """Base of the baselines, whose batch size can be set between calls."""

    def __init__(self, computes: str, batch_size: int) -> None:
        """Store the description of what runs the system, and the first batch size."""
        self._computes = computes
        self.batch_size = batch_size

    @property
    def in_force(self) -> str:
        """Description of what runs it: library, device, precision, threads."""
        return f"{self._computes}, batches of {self.batch_size}"


class Ours:
    """A class of bge-runtime, which one the model says."""

    def __init__(self, spec: SystemSpec, **options: Any) -> None:
        """Open it with further options of the class."""
        import bge_runtime

        self._spec = spec
        self.batch_size = spec.batch_size
        if not spec.parallel_batches:
            options["parallel_batches"] = False
        with quiet():
            self._model: Any = getattr(bge_runtime, CLASSES[spec.model_class])(
                spec.model,
                precision=spec.precision,
                devices=spec.device,
                threads=spec.threads,
                **options,
            )
        self.name = f"bge-runtime {bge_runtime.__version__}"
        self.precision = self._model.engine.info.precision

    @property
    def in_force(self) -> str:
        """Description of what runs it: library, device, precision, threads."""
        infos = [engine.info for engine in self._model.engines]
        if not self._spec.parallel_batches:  # the engine can, but does not here
            infos = [replace(info, streams=1) for info in infos]
        return "; ".join(map(str, infos))


class _OurEmbedder(Ours):
    def __init__(self, spec: SystemSpec) -> None:
        graphs = {"engine": "onnxruntime", "cuda_graphs": True} if spec.cuda_graphs else {}
        super().__init__(
            spec, pooling_method=spec.pooling, passage_max_length=spec.max_length, **graphs
        )

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._spec.dense(
            self._model, list(texts), batch_size=self.batch_size, show_progress_bar=False
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep other packages' progress bars, advice and warnings off the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
