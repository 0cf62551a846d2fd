"""mteb: ``BgeEncoder`` and ``BgeCrossEncoder``, with which ``mteb.evaluate`` scores a bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bge_runtime.encoding import as_text_list, type_name
from bge_runtime.integrations import not_installed
from bge_runtime.integrations._models import (
    default_max_length,
    default_prompt,
    dense_vectors,
    document_prompt,
    open_model,
    query_prompt,
    settings_of,
    vector_dim,
)
from bge_runtime.integrations._rerankers import open_reranker
from bge_runtime.models import AnyFlagModel, FlagICLModel, FlagLLMModel
from bge_runtime.rerankers import AnyReranker
from bge_runtime.sources import find_model

try:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.types import PromptType
except ImportError as error:
    raise not_installed("mteb", error) from error

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import BatchedInput
    from torch.utils.data import DataLoader

_FRAMEWORKS = {"onnxruntime": "ONNX", "openvino": "OpenVINO"}

_WINDOW = 8192
"""Pairs that are scored at a time, so that memory does not grow with the task."""


class BgeEncoder(AbsEncoder):
    """A model for mteb, in fp32 by default.

    Attributes:
        model: The model. ``model.engine.info`` shows the engine in force.
        mteb_model_meta: Under what mteb stores results: ``bge-runtime/NAME``, a hash of the
            bundle, and the engine in force, so that results of different bundles never mix.
    """

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        *,
        device: str | None = None,
        query_instruction: str | None = None,
        max_length: int | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Open a model.

        Args:
            model_name: A bundle, or a checkpoint's folder or Hub ID; see
                `bge_runtime.FlagModel`.
            revision: Branch, tag or commit on the hub.
            device: Where to compute; None for the CPU.
            query_instruction: Put before each query, ``""`` for none. None for the model folder's
                prompt for the task or for queries, or the one that its authors recommend. A
                language model then gets each task's instruction, also if the task does not say
                whether texts are queries.
            max_length: Tokens that a text is cut to; None for the model folder's setting.
            model_kwargs: Arguments of `bge_runtime.FlagAutoModel.from_finetuned`.
                ``{"use_fp16": True}`` computes in 16 bits, if the processor supports it and
                parity was measured.

        Raises:
            BgeError: As `bge_runtime.FlagModel`.
        """
        options = {"revision": revision, "device": device, **(model_kwargs or {})}
        self.model: AnyFlagModel = open_model(
            model_name, query_instruction=query_instruction or "", **options
        )
        self.max_length = max_length
        self._own_instruction = query_instruction
        self._per_task = query_instruction is None and isinstance(
            self.model, FlagLLMModel | FlagICLModel
        )
        # The folder's prompts may also have names of mteb's tasks or of their types.
        self.model_prompts = {
            "document": document_prompt(self.model),
            **settings_of(self.model).prompts,
            "query": query_prompt(self.model),
        }
        self.mteb_model_meta = self._describe(model_kwargs or {})

    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,  # noqa: ARG002
        hf_subset: str,  # noqa: ARG002
        prompt_type: PromptType | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        precision: str = "float32",
    ) -> NDArray[np.float32]:
        """Embed the texts of mteb's batches.

        Args:
            inputs: Batches of texts.
            task_metadata: The task.
            hf_split: Split of its data.
            hf_subset: Subset of its data.
            prompt_type: Whether they are queries or documents, if the task says so.
            batch_size: Most texts of a batch; mteb passes 32 by default.
            show_progress_bar: As in ``encode`` of the model.
            precision: Must be ``"float32"``. It is mteb's option to quantize vectors.

        Returns:
            Shape: ``(texts, dim)``.

        Raises:
            TypeError: If the inputs are not such batches.
            ValueError: If ``precision`` is not ``"float32"``.
        """
        if precision != "float32":
            raise ValueError(
                f"requested precision={precision!r}, but BgeEncoder returns float32 vectors. Leave "
                "it out, and choose the arithmetic with model_kwargs"
            )
        texts = [text for batch in _batches(inputs, "inputs") for text in batch]
        instruction = self._instruction(task_metadata, prompt_type)
        self.model.query_instruction_for_retrieval = instruction or None
        prompt = "" if instruction is not None else self._prompt(task_metadata, prompt_type)
        return dense_vectors(
            self.model,
            texts,
            queries=bool(instruction),
            prompt=prompt,
            max_length=self.max_length,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
        )

    def _instruction(self, task: TaskMetadata, prompt_type: PromptType | None) -> str | None:
        """Return the instruction to join in the model's format; None to use `_prompt` instead."""
        if self._per_task and prompt_type != PromptType.document:
            return str(self.get_instruction(task, prompt_type))
        return self._own_instruction if prompt_type == PromptType.query else None

    def _prompt(self, task: TaskMetadata, prompt_type: PromptType | None) -> str:
        """Return the model folder's prompt for texts of a task."""
        name = self.get_prompt_name(task, prompt_type)
        return default_prompt(self.model) if name is None else self.model_prompts[name]

    def _describe(self, model_kwargs: dict[str, Any]) -> ModelMeta:
        facts = self.model.bundle.manifest.model
        own = self._own_instruction
        instruction = self.model_prompts["query"] if own is None else own
        max_length = self.max_length or default_max_length(self.model)
        return _describe(
            self.model,
            model_kwargs,
            max_tokens=max_length,
            embed_dim=vector_dim(self.model),
            similarity_fn_name=ScoringFunction(facts.sentence_transformers.similarity),
            use_instructions=self._per_task or bool(instruction),
            settings={"query_instruction": "per task" if self._per_task else instruction},
        )


class BgeCrossEncoder:
    """A reranker for mteb, in fp32 by default.

    Attributes:
        model: The model. ``model.engine.info`` shows the engine in force.
        mteb_model_meta: As that of `BgeEncoder`.
    """

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        device: str | None = None,
        *,
        normalize: bool = True,
        max_length: int | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Open a model.

        Args:
            model_name: A bundle, or a checkpoint's folder or Hub ID; see
                `bge_runtime.FlagReranker`.
            revision: Branch, tag or commit on the hub.
            device: Where to compute; None for the CPU.
            normalize: Give scores between 0 and 1, the sigmoid of the model's, as
                sentence-transformers for BGE's rerankers. Some of mteb's metrics depend on it.
            max_length: Tokens that a pair is cut to; None for all that the model reads.
            model_kwargs: Arguments of `bge_runtime.FlagAutoReranker.from_finetuned`.
                ``{"use_fp16": True}`` computes in 16 bits, if the processor supports it and
                parity was measured.

        Raises:
            BgeError: As `bge_runtime.FlagReranker`.
        """
        self.model: AnyReranker = open_reranker(
            model_name,
            normalize=normalize,
            max_length=max_length,
            revision=revision,
            device=device,
            model_kwargs=model_kwargs or {},
        )
        self.mteb_model_meta = _describe(
            self.model,
            model_kwargs or {},
            max_tokens=self.model.max_length,
            embed_dim=None,
            similarity_fn_name=None,
            use_instructions=bool(self.model.bundle.manifest.model.prompt),
            settings={"normalize": normalize},
            model_type=["cross-encoder"],
        )

    def predict(
        self,
        inputs1: DataLoader[BatchedInput],
        inputs2: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,  # noqa: ARG002
        hf_split: str,  # noqa: ARG002
        hf_subset: str,  # noqa: ARG002
        prompt_type: PromptType | None = None,  # noqa: ARG002
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> NDArray[np.float64]:
        """Score the pairs of mteb's batches.

        Args:
            inputs1: Batches of queries, one for each pair.
            inputs2: Batches of as many documents.
            task_metadata: The task.
            hf_split: Split of its data.
            hf_subset: Subset of its data.
            prompt_type: Not used.
            batch_size: Most pairs of a batch; mteb passes 32 by default.
            show_progress_bar: Show a bar over mteb's batches; None shows one on a terminal.

        Returns:
            Shape: ``(pairs,)``.

        Raises:
            TypeError: If the inputs are not such batches.
            ValueError: If there are more of one than of the other.
        """
        scores: list[float] = []
        pairs: list[tuple[str, str]] = []
        batches = zip(_batches(inputs1, "inputs1"), _batches(inputs2, "inputs2"), strict=True)
        hide = None if show_progress_bar is None else not show_progress_bar
        for queries, documents in tqdm(batches, "scoring", disable=hide):
            pairs += zip(queries, documents, strict=True)
            if len(pairs) >= _WINDOW:
                scores += self._score(pairs, batch_size)
                pairs = []
        return np.array(scores + self._score(pairs, batch_size))

    def _score(self, pairs: list[tuple[str, str]], batch_size: int | None) -> list[float]:
        return self.model.compute_score(pairs, batch_size=batch_size, show_progress_bar=False)


def _batches(inputs: DataLoader[BatchedInput], name: str) -> Iterator[list[str]]:
    """Yield the texts of each batch.

    Raises:
        TypeError: If it is no batch of texts.
    """
    for number, batch in enumerate(inputs):
        if not isinstance(batch, Mapping) or "text" not in batch:
            raise TypeError(
                f"{name}[{number}] must be a batch of mteb with a 'text', not "
                f"{type_name(batch)}. Pass [{{'text': texts}}]"
            )
        yield as_text_list(batch["text"], name=f"{name}[{number}]['text']")


def _describe(
    model: AnyFlagModel | AnyReranker,
    model_kwargs: dict[str, Any],
    *,
    max_tokens: int,
    settings: dict[str, Any],
    **fields: Any,
) -> ModelMeta:
    """Return under what mteb stores the results of a model.

    Args:
        model: The model.
        model_kwargs: Arguments that it was opened with.
        max_tokens: Tokens that a text is cut to.
        settings: Further settings that change results.
        **fields: Further fields of the result.
    """
    manifest, info = model.bundle.manifest, model.engine.info
    known = find_model(manifest.model.name)
    return ModelMeta(
        loader=None,
        name=f"bge-runtime/{manifest.model.name}",
        revision=hashlib.sha256(manifest.to_json().encode()).hexdigest()[:40],
        adapted_from=known.hub_id if known else None,
        release_date=None,
        languages=None,
        n_parameters=None,
        memory_usage_mb=None,
        max_tokens=max_tokens,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=[_FRAMEWORKS[info.engine]],
        training_datasets=None,
        experiment_kwargs={
            **model_kwargs,
            "engine": info.engine,
            "device": info.device,
            "precision": info.precision,
            "max_length": max_tokens,
            **settings,
        },
        **fields,
    )
