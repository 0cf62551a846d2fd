"""Rerankers that run a bundle's graphs on ONNX Runtime or OpenVINO; see `rerankers`."""

from __future__ import annotations

import importlib.metadata
import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bge_bench.systems.base import Batched, SystemSpec, quiet
from bge_bench.systems.onnx import (
    ONNX_FILE,
    OptimumModel,
    openvino_in_force,
    openvino_options,
    padded_arrays,
    session_in_force,
    session_options,
)
from bge_bench.systems.rerankers import CrossEncoder, Pairs, column, score_sorted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class CrossEncoderOnnx(CrossEncoder):
    """sentence-transformers on ONNX Runtime."""

    precision = "fp32"

    def __init__(self, spec: SystemSpec) -> None:
        """Open it."""
        options = {
            "file_name": ONNX_FILE,
            "provider": "CPUExecutionProvider",
            "session_options": session_options(spec.threads),
        }
        super().__init__(spec, "onnx", options)
        self._computes = session_in_force(self._model.model.model)


class CrossEncoderOpenVino(CrossEncoder):
    """sentence-transformers on OpenVINO, in OpenVINO's default precision or a given one."""

    def __init__(self, spec: SystemSpec) -> None:
        """Open it."""
        file, options = openvino_options(spec)
        super().__init__(spec, "openvino", options)
        self.precision, self._computes = openvino_in_force(self._model.model.request, file)


class OptimumReranker(OptimumModel):
    """Optimum's ``ORTModelForSequenceClassification``, over sorted pairs."""

    model_class = "ORTModelForSequenceClassification"

    def encode(self, pairs: Pairs) -> NDArray[np.float32]:
        """Score pairs; see `bge_bench.systems.base.System`."""
        with quiet():
            # A bundle's tokenizer is of transformers' general class, which adds special tokens to
            # texts only.
            encoded = self._tokenizer(
                [query for query, _ in pairs],
                [passage for _, passage in pairs],
                truncation=True,
                max_length=self._spec.max_length,
            )
            rows = [
                dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)
            ]
            return score_sorted(
                self._model, self._tokenizer, rows, "cpu", batch_size=self.batch_size
            )


class FastEmbed(Batched):
    """fastembed's ``TextCrossEncoder``, with the bundle as a custom model."""

    precision = "fp32"

    def __init__(self, spec: SystemSpec) -> None:
        """Open it."""
        with quiet():
            from fastembed.common.model_description import ModelSource
            from fastembed.rerank.cross_encoder import TextCrossEncoder

            name = f"bge-bench/{uuid.uuid4()}"  # fastembed registers a name only once
            TextCrossEncoder.add_custom_model(
                model=name,
                sources=ModelSource(hf=name),  # required; the path below takes precedence
                model_file=ONNX_FILE,
            )
            self._model: Any = TextCrossEncoder(
                name,
                threads=spec.threads,
                providers=["CPUExecutionProvider"],
                specific_model_path=spec.model,
            )
            self._model.model.tokenizer.enable_truncation(spec.max_length)
        self.name = f"fastembed {importlib.metadata.version('fastembed')}"
        super().__init__(session_in_force(self._model.model.model), spec.batch_size)

    def encode(self, pairs: Pairs) -> NDArray[np.float32]:
        """Score pairs; see `bge_bench.systems.base.System`."""
        given = [tuple(pair) for pair in pairs]
        return column(list(self._model.rerank_pairs(given, batch_size=self.batch_size)))


class OnnxRuntime(Batched):
    """ONNX Runtime without a framework: a tokenizer, a session and a loop."""

    precision = "fp32"

    def __init__(self, spec: SystemSpec) -> None:
        """Open it."""
        import onnxruntime
        from tokenizers import Tokenizer

        folder = Path(spec.model)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(spec.max_length)
        self._tokenizer.enable_padding(pad_id=config["pad_token_id"])
        self._session: Any = onnxruntime.InferenceSession(
            str(folder / ONNX_FILE),
            session_options(spec.threads),
            providers=["CPUExecutionProvider"],
        )
        self._inputs = {value.name for value in self._session.get_inputs()}
        self.name = f"onnxruntime {onnxruntime.__version__}, bare"
        super().__init__(session_in_force(self._session), spec.batch_size)

    def encode(self, pairs: Pairs) -> NDArray[np.float32]:
        """Score pairs; see `bge_bench.systems.base.System`."""
        scores: list[Any] = []
        for start in range(0, len(pairs), self.batch_size):
            batch = [tuple(pair) for pair in pairs[start : start + self.batch_size]]
            feeds = padded_arrays(self._tokenizer.encode_batch(batch), self._inputs)
            scores += list(self._session.run(["logits"], feeds)[0])
        return column(scores)
