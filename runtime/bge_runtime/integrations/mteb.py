"""mteb: ``BgeEncoder``, so that ``mteb.evaluate`` scores a bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.encoding import as_text_list, type_name
from bge_runtime.integrations import not_installed
from bge_runtime.integrations._models import (
    default_prompt,
    dense_vectors,
    document_prompt,
    longest,
    open_model,
    query_prompt,
    settings_of,
    width,
)
from bge_runtime.models import AnyFlagModel, FlagICLModel, FlagLLMModel
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


class BgeEncoder(AbsEncoder):
    """A model for mteb, in fp32 unless told otherwise.

    Attributes:
        model: The model behind it; ``model.engine.info`` tells what is in force.
        mteb_model_meta: What mteb files results under: ``bge-runtime/NAME``, a hash of the
            bundle, and how it is run, so that they mix with nobody else's.
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
            model_name: Bundle, or hub id or folder of a checkpoint; see
                `bge_runtime.FlagModel`.
            revision: Branch, tag or commit on the hub.
            device: Where to compute; None for the CPU.
            query_instruction: Put before each query, ``""`` for none. None for what the model's
                folder has for the task or for queries, or what its authors recommend; a language
                model gets each task's own, also for texts of which the task does not say
                whether they are queries.
            max_length: Tokens a text is cut to; None for as many as the model's folder says.
            model_kwargs: What `bge_runtime.FlagAutoModel.from_finetuned` takes.
                ``{"use_fp16": True}`` asks for more speed: 16 bit, where the processor
                computes in it and parity was measured.

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
        # By the names of mteb's tasks and of their types as well.
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
        """Embed what mteb hands over.

        Args:
            inputs: Batches of texts.
            task_metadata: The task.
            hf_split: Split of its data.
            hf_subset: Subset of its data.
            prompt_type: Whether they are queries or documents, where the task says so.
            batch_size: Most texts in a batch, of which mteb makes 32 unless told otherwise.
            show_progress_bar: As in ``encode`` of the model.
            precision: ``"float32"``; mteb's word for vectors that are quantised.

        Returns:
            Shape: ``(texts, dim)``.

        Raises:
            TypeError: If they are no such batches.
            ValueError: If ``precision`` is another one.
        """
        if precision != "float32":
            raise ValueError(
                f"requested precision={precision!r}, and BgeEncoder gives float32 vectors. Leave "
                "it out; arithmetic is chosen with model_kwargs"
            )
        texts: list[str] = []
        for number, batch in enumerate(inputs):
            if not isinstance(batch, Mapping) or "text" not in batch:
                raise TypeError(
                    f"inputs[{number}] must be a batch of mteb's with a 'text', not "
                    f"{type_name(batch)}. Pass [{{'text': texts}}]"
                )
            texts += as_text_list(batch["text"], name=f"inputs[{number}]['text']")
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
        """Give the instruction that is joined in the model's form; None leaves it to `_prompt`."""
        if self._per_task and prompt_type != PromptType.document:
            return str(self.get_instruction(task, prompt_type))
        return self._own_instruction if prompt_type == PromptType.query else None

    def _prompt(self, task: TaskMetadata, prompt_type: PromptType | None) -> str:
        """Give what the model's folder has texts of a task begin with."""
        name = self.get_prompt_name(task, prompt_type)
        return default_prompt(self.model) if name is None else self.model_prompts[name]

    def _describe(self, model_kwargs: dict[str, Any]) -> ModelMeta:
        manifest, info = self.model.bundle.manifest, self.model.engine.info
        facts, known = manifest.model, find_model(manifest.model.name)
        own = self._own_instruction
        instruction = self.model_prompts["query"] if own is None else own
        return ModelMeta(
            loader=None,
            name=f"bge-runtime/{facts.name}",
            revision=hashlib.sha256(manifest.to_json().encode()).hexdigest()[:40],
            adapted_from=known.hub_id if known else None,
            release_date=None,
            languages=None,
            n_parameters=None,
            memory_usage_mb=None,
            max_tokens=self.max_length or longest(self.model),
            embed_dim=width(self.model),
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=[_FRAMEWORKS[info.engine]],
            similarity_fn_name=ScoringFunction(facts.sentence_transformers.similarity),
            use_instructions=self._per_task or bool(instruction),
            training_datasets=None,
            experiment_kwargs={
                **model_kwargs,
                "engine": info.engine,
                "device": info.device,
                "precision": info.precision,
                "max_length": self.max_length or longest(self.model),
                "query_instruction": "per task" if self._per_task else instruction,
            },
        )
