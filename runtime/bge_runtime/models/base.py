"""What all embedders share: FlagEmbedding's attributes, and instructions before texts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bge_runtime.encoding import (
    TokenizationPlan,
    as_text,
    check_positive,
)
from bge_runtime.errors import PoolingError
from bge_runtime.models.instructions import (
    check_format,
    explain_no_room,
    text_before_sentence,
)
from bge_runtime.models.opened import OpenedModel
from bge_runtime.models.options import CallDefaults, OpenOptions
from bge_runtime.models.parts import ModelParts, TextKind
from bge_runtime.sources import ENCODER_CLASSES
from bge_runtime.system import warn_user


class BaseEmbedder(OpenedModel):
    """The abstract base of the model classes."""

    MODEL_CLASSES: ClassVar[tuple[str, ...]] = ENCODER_CLASSES
    KEPT_OPTIONS: ClassVar[tuple[str, ...]] = (
        "passage_instruction_for_retrieval",
        "passage_instruction_format",
    )
    OWN_ATTRIBUTES: ClassVar[tuple[str, ...]] = ("dim", "max_length", "name")

    def __init__(
        self, model_name_or_path: str, options: OpenOptions, defaults: CallDefaults
    ) -> None:
        """Find a model's bundle, exporting it if need be, and open it.

        Args:
            model_name_or_path: As in `bge_runtime.sources.find_bundle`.
            options: How to open it.
            defaults: What calls do by default.

        Raises:
            ValueError: If ``prefix_cache_mb`` is not a number of megabytes.
            BgeError: As `bge_runtime.FlagModel`.
        """
        super().__init__(model_name_or_path, options)
        self._check_pooling(options.pooling_method)
        self.pooling_method = self.bundle.manifest.model.pooling
        self.normalize_embeddings = defaults.normalize_embeddings
        self.query_instruction_for_retrieval = defaults.query_instruction_for_retrieval
        self.query_instruction_format = defaults.query_instruction_format
        self.batch_size = defaults.batch_size
        self.query_max_length = defaults.query_max_length
        self.passage_max_length = defaults.passage_max_length
        self.truncate_dim = defaults.truncate_dim
        self._check_truncate_dim()

    @property
    def dim(self) -> int:
        """Components of a dense vector, with ``truncate_dim`` taken into account."""
        dim = self.bundle.manifest.model.dim
        return min(self.truncate_dim or dim, dim)

    @property
    def max_length(self) -> int:
        """Maximum tokens of a text that the model can read, special tokens included.

        Calls cut texts at ``query_max_length`` or ``passage_max_length``, unless they say
        otherwise.
        """
        return self.bundle.manifest.model.max_length

    @property
    def vector_dtype(self) -> np.dtype[Any]:
        """Type of the dense vectors, as FlagEmbedding's.

        float16 from a GPU that computes in fp16, except with mean pooling, which FlagEmbedding
        does in float32. Vectors are scaled to unit length in float32 and rounded once.
        """
        info = self.engine.info
        in_half = info.device != "cpu" and info.precision == "fp16"
        rounds = in_half and self.bundle.manifest.model.pooling != "mean"
        return np.dtype(np.float16 if rounds else np.float32)

    def parts(self) -> ModelParts:
        """Return what a server needs to batch the texts of many requests itself."""
        return ModelParts(
            bundle=self.bundle,
            tokenizer=self.tokenizer,
            engines=self._engines,
            devices=self.target_devices,
            vector_dtype=self.vector_dtype,
            text_plan=self._text_plan,
        )

    def _check_pooling(self, pooling_method: str | None) -> None:
        pooling = self.bundle.manifest.model.pooling
        if pooling_method not in (None, pooling):
            raise PoolingError(
                f"requested pooling_method={pooling_method!r}, but the bundle "
                f"{self.bundle.path.name} was exported with {pooling!r}. Leave it out, or run "
                f"bge-export {shlex.quote(self.bundle.manifest.provenance.source)} "
                f"--pooling {pooling_method}"
            )

    def _query_instruction(self) -> dict[str, Any]:
        return {
            "instruction": self.query_instruction_for_retrieval,
            "instruction_format": self.query_instruction_format,
        }

    def _passage_instruction(self) -> dict[str, Any]:
        return {
            "instruction": self.kwargs.get("passage_instruction_for_retrieval"),
            "instruction_format": self.kwargs.get("passage_instruction_format", "{}{}"),
        }

    def _add_instruction(
        self, texts: list[str], instruction: str | None, instruction_format: str | None
    ) -> list[str]:
        """Return texts with an instruction in front of each, if there is one."""
        if instruction is None:
            return texts
        instruction = as_text(instruction, name="instruction")
        check_format(instruction_format, ("instruction", "sentence"))
        return [
            self.get_detailed_instruct(str(instruction_format), instruction, text) for text in texts
        ]

    def _length_for(
        self,
        max_length: int,
        instruction: str | None,
        instruction_format: str | None,
    ) -> int:
        """Return a length that the model can read; warn if the instruction takes all of it."""
        length = self._readable_length(max_length)
        if instruction is not None and instruction_format is not None:
            reason = explain_no_room(
                self.tokenizer,
                text_before_sentence(instruction_format, instruction),
                room=length - self.tokenizer.special_tokens,
                max_length=length,
                model_length=self.max_length,
            )
            if reason is not None:
                warn_user(reason)
        return length

    def _tokenization(
        self,
        max_length: int,
        instruction: str | None,
        instruction_format: str | None,
    ) -> TokenizationPlan:
        """Return how texts with this instruction become tokens."""
        length = self._length_for(max_length, instruction, instruction_format)
        return TokenizationPlan(partial(self.tokenizer.encode, max_length=length))

    def _text_plan(self, *, kind: TextKind, max_length: int) -> TokenizationPlan:
        """Return how texts become tokens, the instruction for queries or passages included."""
        said: Mapping[str, Any] = {}
        if kind is not None:
            said = self._query_instruction() if kind == "query" else self._passage_instruction()
        instruction, template = said.get("instruction"), said.get("instruction_format")
        plan = self._tokenization(max_length, instruction, template)
        return self._instructed(plan, instruction, template)

    def _instructed(
        self, plan: TokenizationPlan, instruction: str | None, template: str | None
    ) -> TokenizationPlan:
        """Return a plan that puts an instruction before texts, and then does as another one."""

        def tokenize(texts: Sequence[str], **options: Any) -> list[NDArray[np.int64]]:
            texts = self._add_instruction(list(texts), instruction, template)
            return plan.tokenize(texts, **options)

        return TokenizationPlan(tokenize, plan.prefix)

    def _check_truncate_dim(self) -> None:
        if self.truncate_dim is None:
            return
        check_positive("truncate_dim", self.truncate_dim)
        dim = self.bundle.manifest.model.dim
        if self.truncate_dim > dim:
            warn_user(
                f"truncate_dim={self.truncate_dim} is more than the {dim} components of "
                f"{self.name}; vectors keep all {dim}"
            )
