"""The embedders that are compared, behind one small interface.

Imported by the worker inside its timed start, so nothing heavy at the top: each side
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
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OURS = "bge-runtime"
PYTORCH = ("flagembedding", "transformers", "sentence-transformers")
"""Baselines that PyTorch computes in fp32, from the checkpoint: references for vectors."""
BASELINES = (
    *PYTORCH,
    "sentence-transformers-bf16",
    "sentence-transformers-onnx",
    "sentence-transformers-openvino",
    "optimum",
    "fastembed",
    "onnxruntime",
)
"""What a bundle can be compared with on a CPU."""
# What compiles comes last: whoever is cut off in it has the others.
GPU_BASELINES = ("flagembedding", "transformers", "sentence-transformers", "transformers-compiled")
"""And on a GPU, in fp16."""
FROM_CHECKPOINT = (*PYTORCH, "sentence-transformers-bf16", "transformers-compiled")
"""Those of them that read the checkpoint; the others read the bundle's own graphs."""


@dataclass(frozen=True, kw_only=True)
class SideSpec:
    """How to open a side.

    Attributes:
        side: `OURS` or one of `BASELINES`.
        model: Folder of the checkpoint for one of `PYTORCH`, else of the bundle.
        pooling: ``"cls"`` or ``"mean"``.
        max_length: Most tokens of a text, special tokens included.
        batch_size: Most texts in a batch.
        threads: Threads to compute with; None leaves the default.
        precision: Arithmetic, of a side that has a choice: ours and OpenVINO's. ``"auto"``
            is what its users get who do not choose. The others compute in fp32.
        model_class: FlagEmbedding's class for it; those but the first are ours and
            FlagEmbedding's only.
        all_outputs: Of BGE-M3, ask for lexical weights and ColBERT vectors too.
        device: ``"cpu"``, or a GPU's name such as ``"cuda:0"``: there the baselines compute in
            fp16, and `PYTORCH` in fp32 if ``precision`` says so.
        cuda_graphs: Of ours, run single short texts as CUDA graphs.
        parallel_batches: Of ours, compute batches side by side on a CPU.
    """

    side: str
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
    def torch_precision(self) -> str:
        """Arithmetic of a side that PyTorch computes."""
        return "fp32" if self.device == "cpu" or self.precision == "fp32" else "fp16"

    def dense(self, model: Any, texts: list[str], **options: Any) -> NDArray[np.float32]:
        """Call ``encode`` of either class, and give the dense vectors."""
        vectors: NDArray[np.float32]
        if self.model_class == ENCODER_ONLY_M3:
            more = self.all_outputs
            outputs = model.encode(texts, return_sparse=more, return_colbert_vecs=more, **options)
            vectors = outputs["dense_vecs"]
        else:
            vectors = model.encode(texts, **options)
        return vectors


CLASSES = {
    ENCODER_ONLY_BASE: "FlagModel",
    ENCODER_ONLY_M3: "BGEM3FlagModel",
    DECODER_ONLY_BASE: "FlagLLMModel",
    DECODER_ONLY_ICL: "FlagICLModel",
}
"""Names of the classes, ours and FlagEmbedding's."""


def flagembedding(
    folder: str, model_class: str, *, device: str = "cpu", use_fp16: bool = False, **options: Any
) -> Any:
    """Open FlagEmbedding's model so that it computes what it should, by default in fp32.

    That is nothing to see to, but for two decoders under transformers 4.57: Gemma 2's
    default attention leaves its softcapping out, so that it gets the eager one; and Qwen2
    takes no notice of ``is_causal``, so that a mask for both directions is put in.
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
    # One that is ready-made is taken as it is.
    ready = torch.zeros(seen.shape).masked_fill(~seen, low)
    return arguments, {**options, "attention_mask": {"full_attention": ready}}


class Side(Protocol):
    """An opened embedder.

    Attributes:
        name: Package and version.
        precision: Arithmetic in force; a key of `bge_runtime.bundle.parity.TOLERANCES`.
        batch_size: Most texts in a batch; may be set between calls.
    """

    name: str
    precision: str
    batch_size: int

    @property
    def in_force(self) -> str:
        """What executes it, in words."""
        ...

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts.

        Returns:
            Unit-length vectors in input order. Shape: ``(len(texts), dim)``.
        """
        ...


_SIDES = {
    OURS: "base:_Ours",
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
}
"""Module and class of each side. A module is imported with the first of its sides."""


def open_side(spec: SideSpec) -> Side:
    """Open a side in this process."""
    # As ours does: a benchmark sends nobody usage data, whichever side it opens first.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    module, _, name = _SIDES[spec.side].partition(":")
    opened: Side = getattr(importlib.import_module(f"bge_bench.systems.{module}"), name)(spec)
    return opened


class Batched:
    """What the baselines share: batches of a number of texts, which may be set between calls."""

    def __init__(self, computes: str, batch_size: int) -> None:
        """Take what computes, in words, and the first number."""
        self._computes = computes
        self.batch_size = batch_size

    @property
    def in_force(self) -> str:
        """What executes it, in words."""
        return f"{self._computes}, batches of {self.batch_size}"


class _Ours:
    def __init__(self, spec: SideSpec) -> None:
        import bge_runtime

        self._spec = spec
        self.batch_size = spec.batch_size
        more: dict[str, Any] = {}
        if spec.cuda_graphs:
            more |= {"engine": "onnxruntime", "cuda_graphs": True}
        if not spec.parallel_batches:
            more["parallel_batches"] = False
        with quiet():
            self._model: Any = getattr(bge_runtime, CLASSES[spec.model_class])(
                spec.model,
                precision=spec.precision,
                devices=spec.device,
                pooling_method=spec.pooling,
                passage_max_length=spec.max_length,
                threads=spec.threads,
                **more,
            )
        self.name = f"bge-runtime {bge_runtime.__version__}"
        self.precision = self._model.engine.info.precision

    @property
    def in_force(self) -> str:
        infos = [engine.info for engine in self._model.engines]
        if not self._spec.parallel_batches:  # it could, and was asked not to
            infos = [replace(info, streams=1) for info in infos]
        return "; ".join(map(str, infos))

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
