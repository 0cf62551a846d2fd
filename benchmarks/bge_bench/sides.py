"""The embedders that are compared, behind one small interface.

Imported by the worker inside its timed start, so nothing heavy at the top: each side
pays for the imports that its users pay for, and for no others.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import logging
import os
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bge_runtime.registry import (
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
    "sentence-transformers-onnx",
    "sentence-transformers-openvino",
    "fastembed",
    "onnxruntime",
)
"""What a bundle can be compared with. Those after `PYTORCH` read the bundle's own graphs."""

_ONNX_FILE = "onnx/model.onnx"
_OPENVINO_FILE = "openvino/openvino_model.xml"
"""Where a bundle has them, as sentence-transformers' own exports do."""


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


def flagembedding(folder: str, model_class: str, **options: Any) -> Any:
    """Open FlagEmbedding's model in fp32 on the CPU, so that it computes what it should.

    That is nothing to see to, but for two decoders under transformers 4.57: Gemma 2's
    default attention leaves its softcapping out, so that it gets the eager one; and Qwen2
    takes no notice of ``is_causal``, so that a mask for both directions is put in.
    """
    import FlagEmbedding

    model = getattr(FlagEmbedding, CLASSES[model_class])(
        folder, use_fp16=False, devices="cpu", **options
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
        precision: Arithmetic in force; a key of `bge_runtime.parity.TOLERANCES`.
        in_force: What executes it, in words.
    """

    name: str
    precision: str
    in_force: str

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts.

        Returns:
            Unit-length vectors in input order. Shape: ``(len(texts), dim)``.
        """
        ...


def open_side(spec: SideSpec) -> Side:
    """Open a side in this process."""
    # As ours does: a benchmark sends nobody usage data, whichever side it opens first.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return _SIDES[spec.side](spec)


class _Ours:
    def __init__(self, spec: SideSpec) -> None:
        import bge_runtime

        self._spec = spec
        with quiet():
            self._model: Any = getattr(bge_runtime, CLASSES[spec.model_class])(
                spec.model,
                precision=spec.precision,
                devices="cpu",
                pooling_method=spec.pooling,
                batch_size=spec.batch_size,
                passage_max_length=spec.max_length,
                threads=spec.threads,
            )
        self.name = f"bge-runtime {bge_runtime.__version__}"
        self.precision = self._model.engine.info.precision
        self.in_force = str(self._model.engine.info)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._spec.dense(self._model, list(texts), show_progress_bar=False)


class _FlagEmbedding:
    precision = "fp32"

    def __init__(self, spec: SideSpec) -> None:
        with quiet():
            in_force = _torch_in_force(spec.threads)
            self._model: Any = flagembedding(
                spec.model,
                spec.model_class,
                pooling_method=spec.pooling,
                batch_size=spec.batch_size,
                passage_max_length=spec.max_length,
            )
        self._spec = spec
        self.name = f"FlagEmbedding {importlib.metadata.version('FlagEmbedding')}"
        self.in_force = f"{in_force}, batches of {spec.batch_size}"

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        with quiet():
            return self._spec.dense(self._model, list(texts))


class _Transformers:
    """A plain forward pass of ``AutoModel``, over texts sorted by length.

    With a batch size of 1 nothing is padded: that is the reference for parity.
    """

    precision = "fp32"

    def __init__(self, spec: SideSpec) -> None:
        with quiet():
            import torch
            from transformers import AutoModel, AutoTokenizer

            in_force = _torch_in_force(spec.threads)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(spec.model)
            model = AutoModel.from_pretrained(spec.model, dtype=torch.float32)
        self._model: Any = model.eval()
        self._spec = spec
        self.name = f"transformers {importlib.metadata.version('transformers')}"
        padding = "one text at a time" if spec.batch_size == 1 else f"batches of {spec.batch_size}"
        self.in_force = f"{in_force}, {padding}"

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import torch

        options = {"truncation": True, "max_length": self._spec.max_length}
        with quiet(), torch.inference_mode():
            lengths = [len(ids) for ids in self._tokenizer(list(texts), **options)["input_ids"]]
            order = sorted(range(len(texts)), key=lambda index: -lengths[index])
            rows: dict[int, torch.Tensor] = {}
            for start in range(0, len(order), self._spec.batch_size):
                batch = order[start : start + self._spec.batch_size]
                encoded = self._tokenizer(
                    [texts[index] for index in batch],
                    padding=True,
                    return_tensors="pt",
                    **options,
                )
                hidden = self._model(**encoded).last_hidden_state
                pooled = _pool(hidden, encoded["attention_mask"], self._spec.pooling)
                rows.update(zip(batch, torch.nn.functional.normalize(pooled, dim=-1), strict=True))
            vectors: NDArray[np.float32] = torch.stack(
                [rows[index] for index in range(len(texts))]
            ).numpy()
        return vectors


class _SentenceTransformers:
    """The modules that ``SentenceTransformer(folder)`` reads from ``modules.json``.

    Put together here, since a plain checkpoint has no such file.
    """

    def __init__(self, spec: SideSpec, backend: str, options: dict[str, Any]) -> None:
        with quiet():
            import torch
            from sentence_transformers import SentenceTransformer
            from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

            if spec.threads is not None:
                torch.set_num_threads(spec.threads)
            self.transformer: Any = Transformer(
                spec.model,
                backend=backend,
                model_kwargs=options,
                max_seq_length=spec.max_length,
            )
            pooling = Pooling(self.transformer.get_embedding_dimension(), spec.pooling)
            self._model: Any = SentenceTransformer(
                modules=[self.transformer, pooling], device="cpu"
            )
        self._batch_size = spec.batch_size
        version = importlib.metadata.version("sentence-transformers")
        self.name = f"sentence-transformers {version} {backend}"

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        with quiet():
            vectors: NDArray[np.float32] = self._model.encode(
                list(texts),
                batch_size=self._batch_size,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
        return vectors


class _SentenceTransformersTorch(_SentenceTransformers):
    precision = "fp32"

    def __init__(self, spec: SideSpec) -> None:
        with quiet():
            import torch
        super().__init__(spec, "torch", {"dtype": torch.float32})
        self.in_force = f"{_torch_in_force(spec.threads)}, batches of {spec.batch_size}"


class _SentenceTransformersOnnx(_SentenceTransformers):
    precision = "fp32"

    def __init__(self, spec: SideSpec) -> None:
        options = {
            "file_name": _ONNX_FILE,
            "provider": "CPUExecutionProvider",
            "session_options": _session_options(spec.threads),
        }
        super().__init__(spec, "onnx", options)
        self.in_force = _session_in_force(self.transformer.model.model, spec)


class _SentenceTransformersOpenVino(_SentenceTransformers):
    """OpenVINO, in the precision that it chooses by itself unless one is demanded.

    The bundle's OpenVINO file has 16-bit weights: half as much to read, and no loss in
    bf16. For fp32, or where that file is missing, it is the ONNX file.
    """

    def __init__(self, spec: SideSpec) -> None:
        import openvino

        demanded = {"fp32": "f32"}.get(spec.precision, spec.precision)
        if demanded == "auto":
            hint = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT")
            demanded = hint.get_type_name()
        file = _OPENVINO_FILE
        options: dict[str, Any] = {"file_name": file}
        if demanded == "f32" or not (Path(spec.model) / file).is_file():
            file = _ONNX_FILE
            options = {"file_name": file, "export": False, "from_onnx": True}
        settings = {"INFERENCE_PRECISION_HINT": demanded}
        if spec.threads is not None:
            settings["INFERENCE_NUM_THREADS"] = str(spec.threads)
        super().__init__(spec, "openvino", {**options, "ov_config": settings})
        compiled = self.transformer.model.request
        computing = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        # f16 on ARM, which no tolerance is known for, comes out as it is and is refused.
        self.precision = {"f32": "fp32"}.get(computing, computing)
        self.in_force = (
            f"openvino {openvino.__version__.partition('-')[0]} on "
            f"{', '.join(compiled.get_property('EXECUTION_DEVICES'))}, {file}, "
            f"INFERENCE_PRECISION_HINT {computing}, "
            f"{compiled.get_property('INFERENCE_NUM_THREADS')} threads, "
            f"batches of {spec.batch_size}"
        )


class _FastEmbed:
    precision = "fp32"

    def __init__(self, spec: SideSpec) -> None:
        with quiet():
            from fastembed import TextEmbedding
            from fastembed.common.model_description import ModelSource, PoolingType

            config = json.loads((Path(spec.model) / "config.json").read_text(encoding="utf-8"))
            name = f"bge-bench/{uuid.uuid4()}"  # of a registry that knows each name once
            TextEmbedding.add_custom_model(
                model=name,
                pooling=PoolingType[spec.pooling.upper()],
                normalization=True,
                sources=ModelSource(hf=name),  # must be given; the path below wins
                dim=config["hidden_size"],
                model_file=_ONNX_FILE,
            )
            self._model: Any = TextEmbedding(
                name,
                threads=spec.threads,
                providers=["CPUExecutionProvider"],
                specific_model_path=spec.model,
            )
            self._model.model.tokenizer.enable_truncation(spec.max_length)
        self._batch_size = spec.batch_size
        self.name = f"fastembed {importlib.metadata.version('fastembed')}"
        self.in_force = _session_in_force(self._model.model.model, spec)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import numpy as np

        return np.stack(list(self._model.embed(list(texts), batch_size=self._batch_size)))


class _OnnxRuntime:
    """The least that serves the bundle's ONNX file: a tokenizer, a session, a loop."""

    precision = "fp32"

    def __init__(self, spec: SideSpec) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        folder = Path(spec.model)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(spec.max_length)
        self._tokenizer.enable_padding(pad_id=config["pad_token_id"])
        self._session: Any = onnxruntime.InferenceSession(
            str(folder / _ONNX_FILE),
            _session_options(spec.threads),
            providers=["CPUExecutionProvider"],
        )
        self._inputs = {value.name for value in self._session.get_inputs()}
        self._batch_size = spec.batch_size
        self.name = f"onnxruntime {onnxruntime.__version__}, bare"
        self.in_force = _session_in_force(self._session, spec)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import numpy as np

        batches = []
        for start in range(0, len(texts), self._batch_size):
            encoded = self._tokenizer.encode_batch(list(texts[start : start + self._batch_size]))
            feeds = {
                "input_ids": np.array([text.ids for text in encoded]),
                "attention_mask": np.array([text.attention_mask for text in encoded]),
                "token_type_ids": np.array([text.type_ids for text in encoded]),
            }
            feeds = {name: array for name, array in feeds.items() if name in self._inputs}
            batches += self._session.run(["sentence_embedding"], feeds)
        vectors: NDArray[np.float32] = np.concatenate(batches)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


_SIDES: dict[str, Callable[[SideSpec], Side]] = {
    OURS: _Ours,
    "flagembedding": _FlagEmbedding,
    "transformers": _Transformers,
    "sentence-transformers": _SentenceTransformersTorch,
    "sentence-transformers-onnx": _SentenceTransformersOnnx,
    "sentence-transformers-openvino": _SentenceTransformersOpenVino,
    "fastembed": _FastEmbed,
    "onnxruntime": _OnnxRuntime,
}


def _pool(hidden: Any, mask: Any, pooling: str) -> Any:
    if pooling == "cls":
        return hidden[:, 0]
    weights = mask[:, :, None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def _torch_in_force(threads: int | None) -> str:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    return f"torch {torch.__version__} on cpu, fp32, {torch.get_num_threads()} threads"


def _session_options(threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _session_in_force(session: Any, spec: SideSpec) -> str:
    import onnxruntime

    threads = session.get_session_options().intra_op_num_threads or "default"
    return (
        f"onnxruntime {onnxruntime.__version__} on {', '.join(session.get_providers())}, "
        f"{_ONNX_FILE}, fp32, {threads} threads, batches of {spec.batch_size}"
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
