"""Systems that run the checkpoint on PyTorch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bge_bench.systems.base import Batched, SystemSpec, flagembedding, quiet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class FlagEmbedding(Batched):
    """FlagEmbedding's class, in fp32 on a CPU and in fp16, its default, on a GPU."""

    def __init__(self, spec: SystemSpec) -> None:
        """Open it."""
        self.precision = spec.torch_precision
        with quiet():
            in_force = torch_in_force(spec)
            self._model: Any = flagembedding(
                spec.model,
                spec.model_class,
                device=spec.device,
                use_fp16=self.precision == "fp16",
                pooling_method=spec.pooling,
                passage_max_length=spec.max_length,
            )
        self._spec = spec
        self.name = f"FlagEmbedding {importlib.metadata.version('FlagEmbedding')}"
        super().__init__(in_force, spec.batch_size)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts; see `bge_bench.systems.base.System`."""
        with quiet():
            return self._spec.dense(self._model, list(texts), batch_size=self.batch_size)


class Transformers(Batched):
    """A plain forward pass of ``AutoModel``, over texts sorted by length.

    With a batch size of 1 nothing is padded; that is the reference for parity.
    """

    def __init__(self, spec: SystemSpec) -> None:
        """Open it."""
        self.precision = spec.torch_precision
        with quiet():
            from transformers import AutoModel, AutoTokenizer

            in_force = torch_in_force(spec)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(spec.model)
            model = AutoModel.from_pretrained(spec.model, dtype=dtype(spec))
        self._model: Any = model.eval().to(spec.device)
        self._spec = spec
        self.name = f"transformers {importlib.metadata.version('transformers')}"
        super().__init__(in_force, spec.batch_size)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts; see `bge_bench.systems.base.System`."""
        with quiet():
            return encode_sorted(
                self._model, self._tokenizer, texts, self._spec, batch_size=self.batch_size
            )


class TransformersCompiled(Transformers):
    """`Transformers` with each layer compiled by ``torch.compile`` for dynamic lengths.

    All layers share their code, so it is compiled once for all. Compiling bge-large as a whole is
    24 times the work, for each of several kinds of batch: it took minutes on an H200 with 16 CPUs.
    """

    def __init__(self, spec: SystemSpec) -> None:
        """Open it."""
        super().__init__(spec)
        for layer in self._model.encoder.layer:
            layer.compile(dynamic=True)
        self._computes += ", compiled"


def encode_sorted(
    model: Any, tokenizer: Any, texts: Sequence[str], spec: SystemSpec, *, batch_size: int
) -> NDArray[np.float32]:
    """Run a plain forward pass over texts sorted by their tokens, and pool.

    Args:
        model: Model that returns ``last_hidden_state``.
        tokenizer: transformers' tokenizer of the model.
        texts: The texts.
        spec: Provides device, maximum length and pooling.
        batch_size: Most texts in a batch.

    Returns:
        Unit-length vectors in input order. Shape: ``(len(texts), dim)``.
    """
    import torch

    encoded = tokenizer(list(texts), truncation=True, max_length=spec.max_length)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    order = sorted(range(len(texts)), key=lambda index: -lengths[index])
    rows: dict[int, torch.Tensor] = {}
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            chosen = {name: [values[index] for index in batch] for name, values in encoded.items()}
            padded = tokenizer.pad(chosen, return_tensors="pt").to(spec.device)
            hidden = model(**padded).last_hidden_state
            pooled = pool(hidden, padded["attention_mask"], spec.pooling)
            rows.update(zip(batch, torch.nn.functional.normalize(pooled, dim=-1), strict=True))
    stacked = torch.stack([rows[index] for index in range(len(texts))])
    vectors: NDArray[np.float32] = stacked.float().cpu().numpy()
    return vectors


class SentenceTransformers(Batched):
    """sentence-transformers with a transformer and a pooling module.

    They are combined here because a plain checkpoint has no ``modules.json`` to read them from.
    """

    def __init__(self, spec: SystemSpec, backend: str, options: dict[str, Any]) -> None:
        """Open it; the subclass then describes what runs it."""
        super().__init__("", spec.batch_size)
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
                modules=[self.transformer, pooling], device=spec.device
            )
        version = importlib.metadata.version("sentence-transformers")
        self.name = f"sentence-transformers {version} {backend}"

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts; see `bge_bench.systems.base.System`."""
        with quiet():
            vectors: NDArray[np.float32] = self._model.encode(
                list(texts),
                batch_size=self.batch_size,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
        return vectors


class SentenceTransformersTorch(SentenceTransformers):
    """sentence-transformers on PyTorch, in fp32; on a GPU in fp16.

    On a GPU it uses FlashAttention if that is installed, as its documentation on speed advises.
    """

    def __init__(self, spec: SystemSpec) -> None:
        """Open it."""
        self.precision = spec.torch_precision
        options = {"dtype": dtype(spec)}
        flash = self.precision == "fp16" and importlib.util.find_spec("flash_attn") is not None
        if flash:
            options["attn_implementation"] = "flash_attention_2"
        super().__init__(spec, "torch", options)
        self._computes = torch_in_force(spec) + (", FlashAttention 2" if flash else "")


class SentenceTransformersBf16(SentenceTransformers):
    """sentence-transformers in bf16, which its documentation on speed suggests."""

    precision = "bf16"

    def __init__(self, spec: SystemSpec) -> None:
        """Open it."""
        with quiet():
            import torch
        super().__init__(spec, "torch", {"dtype": torch.bfloat16})
        self._computes = torch_in_force(spec).replace("fp32", "bf16")

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts; see `bge_bench.systems.base.System`."""
        import numpy as np

        with quiet():
            rows = self._model.encode(
                list(texts),
                batch_size=self.batch_size,
                convert_to_tensor=True,
                show_progress_bar=False,
            )
        vectors: NDArray[np.float32] = rows.float().numpy()
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


def pool(hidden: Any, mask: Any, pooling: str) -> Any:
    """Pool tensors ``(batch, tokens, dim)`` by ``"cls"`` or ``"mean"`` to ``(batch, dim)``."""
    if pooling == "cls":
        return hidden[:, 0]
    weights = mask[:, :, None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def torch_in_force(spec: SystemSpec) -> str:
    """Set PyTorch's threads, and describe what runs."""
    import torch

    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    name = "cpu" if spec.device == "cpu" else torch.cuda.get_device_name(spec.device)
    threads = torch.get_num_threads()
    return f"torch {torch.__version__} on {name}, {spec.torch_precision}, {threads} threads"


def dtype(spec: SystemSpec) -> Any:
    """Return PyTorch's type of a system's weights."""
    import torch

    return torch.float16 if spec.torch_precision == "fp16" else torch.float32
