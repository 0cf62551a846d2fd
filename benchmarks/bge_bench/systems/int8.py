"""Systems that compute in int8, each with a model that `bge_bench.systems.int8_models` makes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bge_bench.systems.base import Batched, SystemSpec
from bge_bench.systems.int8_models import STATIC_FILE, dynamic_file, how_made
from bge_bench.systems.onnx import openvino_in_force, session_in_force, session_options
from bge_bench.systems.pytorch import SentenceTransformers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class SentenceTransformersOpenVino(SentenceTransformers):
    """sentence-transformers on OpenVINO, with static scales as its own export makes them."""

    precision = "int8"

    def __init__(self, spec: SystemSpec) -> None:
        """Open it."""
        options = {"file_name": STATIC_FILE, "ov_config": _openvino_settings(spec)}
        super().__init__(spec, "openvino", options)
        _, self._computes = openvino_in_force(self.transformer.model.request, how_made(spec.model))


class SentenceTransformersOnnx(SentenceTransformers):
    """sentence-transformers on ONNX Runtime, in dynamic int8 as its own export makes it."""

    precision = "int8"

    def __init__(self, spec: SystemSpec) -> None:
        """Open it."""
        options = {
            "file_name": dynamic_file(),
            "provider": "CPUExecutionProvider",
            "session_options": session_options(spec.threads),
        }
        super().__init__(spec, "onnx", options)
        model = f"{how_made(spec.model)}, int8"
        self._computes = session_in_force(self.transformer.model.model, model)


class _Loop(Batched):
    """An engine in a loop: tokenize, sort by length, pad, run, pool."""

    precision = "int8"

    def __init__(self, spec: SystemSpec, computes: str) -> None:
        from tokenizers import Tokenizer

        super().__init__(computes, spec.batch_size)
        folder = Path(spec.model)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._padding: int = config["pad_token_id"]
        self._pooling = spec.pooling
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(spec.max_length)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts; see `bge_bench.systems.base.System`."""
        import numpy as np

        rows = [row.ids for row in self._tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        parts = []
        for start in range(0, len(order), self.batch_size):
            batch = [rows[index] for index in order[start : start + self.batch_size]]
            ids = np.full((len(batch), len(batch[0])), self._padding)
            mask = np.zeros_like(ids)
            for number, row in enumerate(batch):
                ids[number, : len(row)] = row
                mask[number, : len(row)] = 1
            parts.append(self._pooled(self._hidden(batch, ids, mask), mask))
        vectors = np.empty((len(rows), parts[0].shape[1]), np.float32)
        vectors[order] = np.concatenate(parts)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    def _pooled(self, hidden: NDArray[np.float32], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        if self._pooling == "cls":
            return hidden[:, 0].copy()  # an engine may write the next batch to the same place
        pooled: NDArray[np.float32] = (mask[:, None].astype(hidden.dtype) @ hidden)[:, 0]
        return pooled  # a sum, which is scaled to unit length as a mean is

    def _hidden(
        self, batch: Sequence[list[int]], ids: NDArray[np.int64], mask: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the hidden states of a batch: its rows of tokens, the same padded, and a mask."""
        raise NotImplementedError


class OpenVino(_Loop):
    """OpenVINO in a loop, with the model that sentence-transformers makes for itself."""

    def __init__(self, spec: SystemSpec) -> None:
        """Open it."""
        import numpy as np
        import openvino

        settings = {"PERFORMANCE_HINT": "LATENCY", **_openvino_settings(spec)}
        compiled = openvino.Core().compile_model(Path(spec.model) / STATIC_FILE, "CPU", settings)
        self._zeros = np.zeros_like
        self._inputs = [value.any_name for value in compiled.inputs]
        self._request: Any = compiled.create_infer_request()
        self.name = f"openvino {openvino.__version__.partition('-')[0]}, bare"
        super().__init__(spec, openvino_in_force(compiled, how_made(spec.model))[1])

    def _hidden(
        self,
        batch: Sequence[list[int]],  # noqa: ARG002  # it gets them padded
        ids: NDArray[np.int64],
        mask: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": self._zeros(ids)}
        self._request.infer({name: feeds[name] for name in self._inputs}, share_inputs=True)
        hidden: NDArray[np.float32] = self._request.get_output_tensor(0).data
        return hidden


class CTranslate2(_Loop):
    """CTranslate2's encoder in a loop, with what its converter makes."""

    def __init__(self, spec: SystemSpec) -> None:
        """Open it."""
        import ctranslate2
        import numpy as np

        self._encoder: Any = ctranslate2.Encoder(
            str(Path(spec.model, "ctranslate2")),
            device="cpu",
            compute_type="int8",
            inter_threads=1,
            intra_threads=spec.threads or 0,
        )
        self._array = np.array
        self.name = f"ctranslate2 {ctranslate2.__version__}, bare"
        threads = spec.threads or "default"
        computes = f"{self._encoder.compute_type} on cpu, {how_made(spec.model)}, {threads} threads"
        super().__init__(spec, computes)

    def _hidden(
        self,
        batch: Sequence[list[int]],
        ids: NDArray[np.int64],  # noqa: ARG002  # it pads by itself
        mask: NDArray[np.int64],  # noqa: ARG002
    ) -> NDArray[np.float32]:
        output = self._encoder.forward_batch(batch).last_hidden_state
        hidden: NDArray[np.float32] = self._array(output)
        return hidden


def _openvino_settings(spec: SystemSpec) -> dict[str, str]:
    return {} if spec.threads is None else {"INFERENCE_NUM_THREADS": str(spec.threads)}
