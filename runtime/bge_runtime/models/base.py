"""What all model classes share: bundle, tokenizer, engines and FlagEmbedding's attributes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import Bundle
from bge_runtime.encoding import (
    EngineSet,
    EngineSetOptions,
    TextTokenizer,
    TokenizationPlan,
    as_text,
    check_positive,
    resolve_devices,
)
from bge_runtime.engines import Engine
from bge_runtime.errors import BundleError, PoolingError
from bge_runtime.models.instructions import (
    check_format,
    explain_no_room,
    join_instruction,
    text_before_sentence,
)
from bge_runtime.models.options import DEFAULT_LENGTH, CallDefaults, OpenOptions
from bge_runtime.models.parts import ModelParts, TextKind
from bge_runtime.sources import ENCODER_CLASSES, OPENED_BY, ExportRequest, Use, find_bundle
from bge_runtime.system import warn_user

_PASSAGE_OPTIONS = ("passage_instruction_for_retrieval", "passage_instruction_format")

_OWN_ATTRIBUTES = ("dim", "max_length", "name")
"""Read-only properties here; FlagEmbedding would accept them as further keyword arguments."""


class BaseEmbedder:
    """The abstract base of the model classes.

    It finds and opens a bundle, and holds its tokenizer and its engines. Any number of threads may
    use one model. It survives ``fork`` and ``pickle``: a copy selects variants for its own machine,
    and opens its engines on first use.

    Attributes:
        MODEL_CLASSES: Model classes that this class can open. The first one is the default for
            checkpoints that do not declare theirs.
        bundle: The opened bundle.
        tokenizer: The model's tokenizer.
        target_devices: Names of the devices that share the work.
    """

    MODEL_CLASSES: ClassVar[tuple[str, ...]] = ENCODER_CLASSES

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
        cache_mb = options.prefix_cache_mb
        if not isinstance(cache_mb, int) or cache_mb < 0:
            raise ValueError(
                "prefix_cache_mb must be a whole number of megabytes, 0 to reuse nothing, but is "
                f"{cache_mb!r}"
            )
        self.target_devices = resolve_devices(options.devices)
        self.bundle = self._find_bundle(model_name_or_path, options)
        self.tokenizer = TextTokenizer(self.bundle.tokenizer_file)
        self._engines = EngineSet(
            self.bundle,
            EngineSetOptions(
                devices=self.target_devices,
                engine=options.engine,
                precision=options.asked_precision,
                threads=options.threads,
                outputs=tuple(options.outputs),
                prefix_cache_mb=cache_mb,
                cuda_graphs=options.cuda_graphs,
                parallel_batches=options.parallel_batches,
            ),
        )
        seed = self.bundle.manifest.provenance.random_seed
        if seed is not None:
            warn_user(
                f"{self.bundle.path.name} has random weights (seed {seed}); its vectors mean "
                "nothing, and serve benchmarks only"
            )
        self._check_pooling(options.pooling_method)
        self.model_name_or_path = model_name_or_path
        self.use_fp16 = options.use_fp16
        self.use_bf16 = options.use_bf16
        self.pooling_method = self.bundle.manifest.model.pooling
        self.normalize_embeddings = defaults.normalize_embeddings
        self.query_instruction_for_retrieval = defaults.query_instruction_for_retrieval
        self.query_instruction_format = defaults.query_instruction_format
        self.batch_size = defaults.batch_size
        self.query_max_length = defaults.query_max_length
        self.passage_max_length = defaults.passage_max_length
        self.truncate_dim = defaults.truncate_dim
        self._check_truncate_dim()
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
        """Maximum tokens of a text that the model can read, special tokens included.

        Calls cut texts at ``query_max_length`` or ``passage_max_length``, unless they say
        otherwise.
        """
        return self.bundle.manifest.model.max_length

    @property
    def engine(self) -> Engine:
        """The engine of the first device; its ``info`` says what is in force."""
        return self._engines.on_device(self.target_devices[0])

    @property
    def engines(self) -> list[Engine]:
        """All open engines: each device's, those for parallel batches and for CUDA graphs."""
        return self._engines.all

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

    @staticmethod
    def get_detailed_instruct(instruction_format: str, instruction: str, sentence: str) -> str:
        r"""Return instruction and sentence joined; a literal ``\n`` in the format is a newline."""
        return join_instruction(instruction_format, instruction, sentence)

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

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["tokenizer"]
        state["_engines"] = self._engines.options
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # The copy may be on another machine, or the bundle may have been replaced.
        self.bundle.check_files()
        self.tokenizer = TextTokenizer(self.bundle.tokenizer_file)
        self._engines = EngineSet(self.bundle, state["_engines"], lazy=True)

    def _find_bundle(self, model_name_or_path: str, options: OpenOptions) -> Bundle:
        use = Use(
            devices=self.target_devices, engine=options.engine, precision=options.asked_precision
        )
        folder = find_bundle(
            model_name_or_path,
            revision=options.revision,
            cache_dir=options.cache_dir,
            request=ExportRequest(
                model_class=self.MODEL_CLASSES[0],
                pooling=options.pooling_method,
                trust_remote_code=options.trust_remote_code,
                use=use,
            ),
            check_class=self.check_class,
        )
        bundle = Bundle.at(folder)
        self.check_class(bundle.path.name, bundle.manifest.model.model_class)
        bundle.check_files()
        return bundle

    def _check_pooling(self, pooling_method: str | None) -> None:
        pooling = self.bundle.manifest.model.pooling
        if pooling_method not in (None, pooling):
            raise PoolingError(
                f"requested pooling_method={pooling_method!r}, but the bundle "
                f"{self.bundle.path.name} was exported with {pooling!r}. Leave it out, or run "
                f"bge-export {shlex.quote(self.bundle.manifest.provenance.source)} "
                f"--pooling {pooling_method}"
            )

    def _keep_options(self, options: Mapping[str, Any]) -> None:
        """Store unknown keyword arguments as attributes and warn, as FlagEmbedding does."""
        self.kwargs = options
        for name, value in options.items():
            if name in _OWN_ATTRIBUTES:
                warn_user(
                    f"{type(self).__name__}() has no option {name!r}, and {name!r} is the model's "
                    "own; it has no effect. Lengths are query_max_length and passage_max_length"
                )
                continue
            if hasattr(self, name):
                raise TypeError(f"{type(self).__name__}() has no option {name!r}")
            if name not in _PASSAGE_OPTIONS:
                warn_user(
                    f"{type(self).__name__}() has no option {name!r}; it is kept as an "
                    "attribute, as FlagEmbedding does, and has no effect"
                )
            setattr(self, name, value)

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

    def _one_device(self, device: str | int | None) -> str:
        """Return the name of a device, the first one for None.

        Raises:
            ValueError: If the model was not opened on it.
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

    def _readable_length(self, length: int, *, taken: int = 0) -> int:
        """Return a length limited to what the model can read besides ``taken`` tokens."""
        check_positive("max_length", length)
        limit = self.max_length - taken
        # The default is FlagEmbedding's 512 for every model, and not the caller's choice.
        if length > limit and length != DEFAULT_LENGTH:
            warn_user(
                f"max_length={length} is more than the {limit} tokens that "
                f"{self.name} can read; longer texts are cut at {limit}"
            )
        return min(length, limit)

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
