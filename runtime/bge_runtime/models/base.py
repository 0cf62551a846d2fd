"""What FlagEmbedding's embedder classes share, but for what they give."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import SENTENCE_EMBEDDING
from bge_runtime.encoding import (
    as_text,
    check_positive,
    find_not_finite,
    resolve_devices,
    type_name,
)
from bge_runtime.errors import BundleError, NotFiniteError, PoolingError
from bge_runtime.models.embedder import Embedder
from bge_runtime.sources import ENCODER_CLASSES, OPENED_BY, ExportOptions

DEFAULT_LENGTH = 512
"""Tokens that a text is cut to, as in FlagEmbedding, whatever the model can read."""

_PASSAGE_OPTIONS = ("passage_instruction_for_retrieval", "passage_instruction_format")

_FACTS = ("dim", "max_length", "name")
"""Attributes of ours, which FlagEmbedding's classes keep an option of the name in."""

Devices = str | int | list[str] | list[int] | None


class FlagBase(Embedder):
    """Attributes, instructions and lengths of FlagEmbedding's embedder classes.

    Attributes:
        MODEL_CLASSES: Classes of the models that it opens. Its own comes first: what a checkpoint
            is exported as that does not tell its class.
    """

    MODEL_CLASSES: ClassVar[tuple[str, ...]] = ENCODER_CLASSES

    def __init__(
        self,
        model_name_or_path: str,
        *,
        normalize_embeddings: bool,
        use_fp16: bool,
        use_bf16: bool,
        query_instruction_for_retrieval: str | None,
        query_instruction_format: str,
        devices: Devices,
        pooling_method: str | None,
        trust_remote_code: bool,
        cache_dir: str | None,
        batch_size: int,
        query_max_length: int,
        passage_max_length: int,
        truncate_dim: int | None,
        engine: str,
        precision: str | None,
        threads: int | None,
        revision: str | None,
        outputs: Sequence[str] = (SENTENCE_EMBEDDING,),
        prefix_cache_mb: int = 0,
        cuda_graphs: bool = False,
        parallel_batches: bool = False,
    ) -> None:
        """Open a model; the arguments are those of `bge_runtime.FlagModel`, and two more.

        ``outputs`` are those of `bge_runtime.engines.EngineOptions`; ``prefix_cache_mb`` is that of
        `bge_runtime.FlagLLMModel`.
        """
        super().__init__(
            model_name_or_path,
            devices=devices,
            engine=engine,
            precision=precision or asked_precision(use_fp16=use_fp16, use_bf16=use_bf16),
            threads=threads,
            revision=revision,
            cache_dir=cache_dir,
            options=ExportOptions(
                model_class=self.MODEL_CLASSES[0],
                pooling=pooling_method,
                trust_remote_code=trust_remote_code,
            ),
            outputs=outputs,
            prefix_cache_mb=prefix_cache_mb,
            cuda_graphs=cuda_graphs,
            parallel_batches=parallel_batches,
        )
        pooling = self.bundle.manifest.model.pooling
        if pooling_method not in (None, pooling):
            raise PoolingError(
                f"requested pooling_method={pooling_method!r}, but the bundle "
                f"{self.bundle.path.name} was exported with {pooling!r}. Leave it out, or run "
                f"bge-export {shlex.quote(self.bundle.manifest.provenance.source)} "
                f"--pooling {pooling_method}"
            )
        self.model_name_or_path = model_name_or_path
        self.normalize_embeddings = normalize_embeddings
        self.use_fp16 = use_fp16
        self.use_bf16 = use_bf16
        self.query_instruction_for_retrieval = query_instruction_for_retrieval
        self.query_instruction_format = query_instruction_format
        self.pooling_method = pooling
        self.batch_size = batch_size
        self.query_max_length = query_max_length
        self.passage_max_length = passage_max_length
        self.truncate_dim = truncate_dim
        self._check_truncate_dim(stacklevel=4)
        self.kwargs: Mapping[str, Any] = {}
        self.pool = None

    @property
    def name(self) -> str:
        """The model's name, such as ``"bge-m3"``."""
        return self.bundle.manifest.model.name

    @property
    def dim(self) -> int:
        """Components of a dense vector, with ``truncate_dim`` taken into account."""
        dim = self.bundle.manifest.model.dim
        return min(self.truncate_dim or dim, dim)

    @property
    def max_length(self) -> int:
        """Most tokens of a text that the model can read, special tokens included.

        Calls cut at ``query_max_length`` or ``passage_max_length``, unless they say otherwise.
        """
        return self.bundle.manifest.model.max_length

    @classmethod
    def check_class(cls, name: str, model_class: str) -> None:
        """Refuse a model that this class is not for, before it is exported or opened.

        Args:
            name: The model's name, for the error.
            model_class: FlagEmbedding's class for it.

        Raises:
            BundleError: If another class opens it.
        """
        if model_class not in cls.MODEL_CLASSES:
            opens = OPENED_BY.get(model_class, "a newer bge-runtime")
            raise BundleError(
                f"{name} is a model of class {model_class}, which {cls.__name__} does not open. "
                f"Open it with {opens}, or with FlagAutoModel"
            )

    def _keep_options(self, options: Mapping[str, Any]) -> None:
        """Make attributes of options that only FlagEmbedding knows, as it does."""
        self.kwargs = options
        for name, value in options.items():
            if name in _FACTS:
                warnings.warn(
                    f"{type(self).__name__}() has no option {name!r}, and {name!r} is the model's "
                    "own; it has no effect. Lengths are query_max_length and passage_max_length",
                    stacklevel=3,
                )
                continue
            if hasattr(self, name):
                raise TypeError(f"{type(self).__name__}() has no option {name!r}")
            if name not in _PASSAGE_OPTIONS:
                warnings.warn(
                    f"{type(self).__name__}() has no option {name!r}; it is kept as an "
                    "attribute, as FlagEmbedding does, and has no effect",
                    stacklevel=3,
                )
            setattr(self, name, value)

    @staticmethod
    def get_detailed_instruct(instruction_format: str, instruction: str, sentence: str) -> str:
        r"""Join instruction and sentence; a literal ``\n`` in the format is a newline."""
        return instruction_format.replace("\\n", "\n").format(instruction, sentence)

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

    def _instructed(
        self, texts: list[str], instruction: str | None, instruction_format: str | None
    ) -> list[str]:
        """Put an instruction before each text, if there is one."""
        if instruction is None:
            return texts
        instruction = as_text(instruction, name="instruction")
        check_format(instruction_format, ("instruction", "sentence"))
        return [
            self.get_detailed_instruct(str(instruction_format), instruction, text) for text in texts
        ]

    def start_multi_process_pool(
        self,
        process_target_func: object = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Stand in for FlagEmbedding's pool: devices are threads here, always running.

        Returns:
            What ``encode_multi_process`` and `stop_multi_process_pool` take.
        """
        return {"input": None, "output": None, "processes": []}

    @staticmethod
    def stop_multi_process_pool(pool: dict[str, Any]) -> None:
        """Do nothing: there are no processes to stop."""

    def stop_self_pool(self) -> None:
        """Do nothing: there are no processes to stop."""

    def _rounded(self, vectors: NDArray[np.float32], rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Round vectors to the type that is handed out; ``rows`` are their places in the call.

        Raises:
            NotFiniteError: If one is too long for that type.
        """
        dtype = self.vector_dtype
        if vectors.dtype == dtype:
            return vectors
        with np.errstate(over="ignore"):
            rounded = vectors.astype(dtype)
        row = find_not_finite(rounded)
        if row is not None:
            raise NotFiniteError(
                f"text {rows[row]} has a vector with a component of "
                f"{np.abs(vectors[row]).max():g}, which float16 has no number for. Pass "
                "normalize_embeddings=True, or precision='fp32'"
            )
        return rounded

    def _one_device(self, device: str | int | None) -> str:
        """Check that the model was opened on a device.

        Raises:
            ValueError: If it was not.
        """
        if device is None:
            return self.target_devices[0]
        (name,) = resolve_devices(device)
        if name not in self.target_devices:
            raise ValueError(
                f"this model was opened on {', '.join(self.target_devices)}, not on {name!r}; "
                f"pass devices={name!r} when you make it"
            )
        return name

    def _readable_length(self, length: int, *, stacklevel: int, taken: int = 0) -> int:
        """Bring a length within what the model can read besides ``taken`` tokens."""
        check_positive("max_length", length)
        limit = self.bundle.manifest.model.max_length - taken
        # The default is FlagEmbedding's 512 whatever the model, and nobody's choice.
        if length > limit and length != DEFAULT_LENGTH:
            warnings.warn(
                f"max_length={length} is more than the {limit} tokens that "
                f"{self.bundle.manifest.model.name} can read; longer texts are cut at {limit}",
                stacklevel=stacklevel + 1,
            )
        return min(length, limit)

    def _length_for(
        self,
        max_length: int,
        instruction: str | None,
        instruction_format: str | None,
        *,
        stacklevel: int,
    ) -> int:
        """Bring a length within what the model can read, and warn if the instruction fills it."""
        length = self._readable_length(max_length, stacklevel=stacklevel + 1)
        if instruction is not None and instruction_format is not None:
            before = text_before_sentence(instruction_format, instruction)
            room = length - self.tokenizer.special_tokens
            filled = self._filled_by_instruction(before, room=room, max_length=length)
            if filled is not None:
                warnings.warn(filled, stacklevel=stacklevel + 1)
        return length

    def _filled_by_instruction(self, before: str, *, room: int, max_length: int) -> str | None:
        """Say how an instruction leaves no token for the text behind it; None if it does.

        Args:
            before: Instruction and what else stands before the text.
            room: Tokens that there are for both.
            max_length: The length that leaves so many.
        """
        # A token has a character at least; normalisers write some that are not ASCII as several.
        if before.isascii() and len(before) + 8 < room:
            return None
        # A space at the end may become part of the next word's first token.
        (tokens,) = self.tokenizer.encode_bare([before.rstrip()])
        if len(tokens) < room:
            return None
        least = max_length - room + len(tokens) + 1
        longer = least <= self.max_length
        return (
            f"max_length={max_length} leaves {max(room, 0)} tokens for instruction and text, and "
            f"the instruction alone takes {len(tokens)}, so that nothing of any text would be read "
            "and all vectors would be the same. Pass "
            + (f"max_length={least} at least, or " if longer else "")
            + "a shorter instruction"
        )

    def _check_truncate_dim(self, *, stacklevel: int) -> None:
        if self.truncate_dim is None:
            return
        check_positive("truncate_dim", self.truncate_dim)
        dim = self.bundle.manifest.model.dim
        if self.truncate_dim > dim:
            warnings.warn(
                f"truncate_dim={self.truncate_dim} is more than the {dim} components of "
                f"{self.bundle.manifest.model.name}; vectors keep all {dim}",
                stacklevel=stacklevel,
            )


def asked_precision(*, use_fp16: bool, use_bf16: bool) -> str:
    """Return the precision that FlagEmbedding's two flags ask for."""
    if use_bf16:
        return "bf16"
    return "auto" if use_fp16 else "fp32"


def check_format(template: str | None, places: Sequence[str]) -> None:
    """Check that a format has as many places as there are texts to fill in.

    Args:
        template: The format.
        places: Names of the texts. Any but the first must not be lost.

    Raises:
        TypeError: If it is no string.
        ValueError: If it has other places.
    """
    example = "{}" * len(places)
    if not isinstance(template, str):
        raise TypeError(
            f"{places[0]} needs an instruction_format, such as {example!r}, not "
            f"{type_name(template)}"
        )
    marks = [f"\0{place}" for place in places]
    try:
        joined = template.format(*marks)
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError(
            f"instruction format {template!r} cannot be filled in "
            f"({type(error).__name__}: {error}); it needs {_NUMBERS[len(places)]} places, such as "
            f"{example!r}"
        ) from error
    lost = [place for place, mark in zip(places, marks, strict=True) if mark not in joined]
    if set(lost) & set(places[1:]):
        raise ValueError(
            f"instruction format {template!r} has no place for {' and '.join(lost)}, so that every "
            f"text would be lost; it needs {_NUMBERS[len(places)]}, for {', '.join(places[:-1])} "
            f"and {places[-1]}, such as {example!r}"
        )


_NUMBERS = {2: "two", 3: "three"}


def text_before_sentence(instruction_format: str, instruction: str) -> str:
    """Give the part of an instructed text that does not depend on the sentence."""
    filled = FlagBase.get_detailed_instruct(instruction_format, instruction, "\0sentence")
    return filled.partition("\0sentence")[0]
