"""Systems that run a bundle's graphs on ONNX Runtime or OpenVINO."""

from __future__ import annotations

import importlib.metadata
import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bge_bench.systems.base import Batched, SystemSpec, quiet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
from bge_bench.systems.pytorch import SentenceTransformers, encode_sorted

ONNX_FILE = "onnx/model.onnx"
_OPENVINO_FILE = "openvino/openvino_model.xml"
"""Files of a bundle, named as in sentence-transformers' exports."""


class SentenceTransformersOnnx(SentenceTransformers):
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
        self._computes = session_in_force(self.transformer.model.model)


class SentenceTransformersOpenVino(SentenceTransformers):
    """sentence-transformers on OpenVINO, in OpenVINO's default precision or a given one.

    It reads the bundle's OpenVINO file, whose 16-bit weights are half the size and lose nothing in
    bf16. For fp32, or without that file, it reads the ONNX file.
    """

    def __init__(self, spec: SystemSpec) -> None:
        """Open it."""
        file, options = openvino_options(spec)
        super().__init__(spec, "openvino", options)
        self.precision, self._computes = openvino_in_force(self.transformer.model.request, file)


class OptimumModel(Batched):
    """A class of Optimum's, used as documented.

    Attributes:
        model_class: Its name.
    """

    precision = "fp32"
    model_class: str

    def __init__(self, spec: SystemSpec) -> None:
        """Open it."""
        with quiet():
            from optimum import onnxruntime
            from transformers import AutoTokenizer

            self._tokenizer: Any = AutoTokenizer.from_pretrained(spec.model)
            self._model: Any = getattr(onnxruntime, self.model_class).from_pretrained(
                spec.model,
                subfolder=str(Path(ONNX_FILE).parent),
                file_name=Path(ONNX_FILE).name,
                provider="CPUExecutionProvider",
                session_options=session_options(spec.threads),
            )
        self._spec = spec
        self.name = f"optimum-onnx {importlib.metadata.version('optimum-onnx')}"
        super().__init__(session_in_force(self._model.model), spec.batch_size)


class Optimum(OptimumModel):
    """Optimum's ``ORTModelForFeatureExtraction``, over sorted texts."""

    model_class = "ORTModelForFeatureExtraction"

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts; see `bge_bench.systems.base.System`."""
        with quiet():
            return encode_sorted(
                self._model, self._tokenizer, texts, self._spec, batch_size=self.batch_size
            )


class FastEmbed(Batched):
    """fastembed, with the bundle as a custom model."""

    precision = "fp32"

    def __init__(self, spec: SystemSpec) -> None:
        """Open it."""
        with quiet():
            from fastembed import TextEmbedding
            from fastembed.common.model_description import ModelSource, PoolingType

            config = json.loads((Path(spec.model) / "config.json").read_text(encoding="utf-8"))
            name = f"bge-bench/{uuid.uuid4()}"  # fastembed registers a name only once
            TextEmbedding.add_custom_model(
                model=name,
                pooling=PoolingType[spec.pooling.upper()],
                normalization=True,
                sources=ModelSource(hf=name),  # required; the path below takes precedence
                dim=config["hidden_size"],
                model_file=ONNX_FILE,
            )
            self._model: Any = TextEmbedding(
                name,
                threads=spec.threads,
                providers=["CPUExecutionProvider"],
                specific_model_path=spec.model,
            )
            self._model.model.tokenizer.enable_truncation(spec.max_length)
        self.name = f"fastembed {importlib.metadata.version('fastembed')}"
        super().__init__(session_in_force(self._model.model.model), spec.batch_size)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts; see `bge_bench.systems.base.System`."""
        import numpy as np

        return np.stack(list(self._model.embed(list(texts), batch_size=self.batch_size)))


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

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts; see `bge_bench.systems.base.System`."""
        import numpy as np

        batches = []
        for start in range(0, len(texts), self.batch_size):
            encoded = self._tokenizer.encode_batch(list(texts[start : start + self.batch_size]))
            feeds = padded_arrays(encoded, self._inputs)
            batches += self._session.run(["sentence_embedding"], feeds)
        vectors: NDArray[np.float32] = np.concatenate(batches)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


def padded_arrays(encoded: Sequence[Any], inputs: set[str]) -> dict[str, NDArray[np.int64]]:
    """Return the arrays of padded rows of ``tokenizers``, for a graph with these inputs."""
    import numpy as np

    feeds = {
        "input_ids": np.array([row.ids for row in encoded]),
        "attention_mask": np.array([row.attention_mask for row in encoded]),
        "token_type_ids": np.array([row.type_ids for row in encoded]),
    }
    return {name: array for name, array in feeds.items() if name in inputs}


def openvino_options(spec: SystemSpec) -> tuple[str, dict[str, Any]]:
    """Return the file that sentence-transformers reads for OpenVINO, and its options for it."""
    import openvino

    demanded = {"fp32": "f32"}.get(spec.precision, spec.precision)
    if demanded == "auto":
        hint = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT")
        demanded = hint.get_type_name()
    file = _OPENVINO_FILE
    options: dict[str, Any] = {"file_name": file}
    if demanded == "f32" or not (Path(spec.model) / file).is_file():
        file = ONNX_FILE
        options = {"file_name": file, "export": False, "from_onnx": True}
    settings = {"INFERENCE_PRECISION_HINT": demanded}
    if spec.threads is not None:
        settings["INFERENCE_NUM_THREADS"] = str(spec.threads)
    return file, {**options, "ov_config": settings}


def openvino_in_force(compiled: Any, file: str) -> tuple[str, str]:
    """Return the precision that a compiled model computes in, and a description of what runs."""
    import openvino

    computing = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    # f16 on ARM keeps its name, which has no tolerance and is refused.
    return {"f32": "fp32"}.get(computing, computing), (
        f"openvino {openvino.__version__.partition('-')[0]} on "
        f"{', '.join(compiled.get_property('EXECUTION_DEVICES'))}, {file}, "
        f"INFERENCE_PRECISION_HINT {computing}, "
        f"{compiled.get_property('INFERENCE_NUM_THREADS')} threads"
    )


def session_options(threads: int | None) -> Any:
    """Return the options of a session of ONNX Runtime with so many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def session_in_force(session: Any, model: str = f"{ONNX_FILE}, fp32") -> str:
    """Return a description of what runs a session of the bundle's ONNX file, or of another."""
    import onnxruntime

    threads = session.get_session_options().intra_op_num_threads or "default"
    return (
        f"onnxruntime {onnxruntime.__version__} on {', '.join(session.get_providers())}, "
        f"{model}, {threads} threads"
    )
