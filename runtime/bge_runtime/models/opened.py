"""An opened bundle with its tokenizer and engines, as embedders and rerankers hold it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from bge_runtime.bundle import Bundle
from bge_runtime.encoding import (
    EngineSet,
    EngineSetOptions,
    TextTokenizer,
    check_positive,
    resolve_devices,
)
from bge_runtime.engines import Engine
from bge_runtime.errors import BundleError
from bge_runtime.models.instructions import join_instruction
from bge_runtime.models.options import DEFAULT_LENGTH, OpenOptions
from bge_runtime.sources import OPENED_BY, RERANKER_CLASSES, ExportRequest, Use, find_bundle
from bge_runtime.system import BackgroundTask, warn_user

_HEAD_START_S = 0.005
"""Seconds in which an engine begins to compile, before reading a tokenizer takes Python's lock."""


class OpenedModel:
    """A bundle that was found and opened, with its tokenizer and its engines.

    Any number of threads may use one model. It survives ``fork`` and ``pickle``: a copy selects
    variants for its own machine, and opens its engines on first use.

    Attributes:
        MODEL_CLASSES: Model classes that this class can open. The first one is the default for
            checkpoints that do not declare theirs.
        KEPT_OPTIONS: Further keyword arguments that have an effect as attributes.
        OWN_ATTRIBUTES: Read-only properties; FlagEmbedding would accept them as further keyword
            arguments.
        bundle: The opened bundle.
        tokenizer: The model's tokenizer.
        target_devices: Names of the devices that share the work.
        kwargs: Further keyword arguments, as FlagEmbedding keeps them.
    """

    MODEL_CLASSES: ClassVar[tuple[str, ...]] = ()
    KEPT_OPTIONS: ClassVar[tuple[str, ...]] = ()
    OWN_ATTRIBUTES: ClassVar[tuple[str, ...]] = ("name",)

    def __init__(self, model_name_or_path: str, options: OpenOptions) -> None:
        """Find a model's bundle, exporting it if need be, and open it.

        Args:
            model_name_or_path: As in `bge_runtime.sources.find_bundle`.
            options: How to open it.

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
        tokenizer = BackgroundTask(
            partial(_read_tokenizer, self.bundle.tokenizer_file), name="bge-tokenizer"
        )
        try:
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
                on_compile=tokenizer.start,
            )
            tokenizer.start()  # nothing, if it was started
            self.tokenizer = tokenizer.result()
        finally:
            tokenizer.wait()
        card = self.bundle.manifest
        if card.provenance.random_seed is not None:
            reranks = card.model.model_class in RERANKER_CLASSES
            warn_user(
                f"{self.bundle.path.name} has random weights (seed {card.provenance.random_seed}); "
                f"its {'scores' if reranks else 'vectors'} mean nothing, and serve benchmarks only"
            )
        self.model_name_or_path = model_name_or_path
        self.use_fp16 = options.use_fp16
        self.use_bf16 = options.use_bf16
        self.kwargs: Mapping[str, Any] = {}
        self.pool = None

    @property
    def name(self) -> str:
        """The model's name, such as ``"bge-m3"``."""
        return self.bundle.manifest.model.name

    @property
    def engine(self) -> Engine:
        """The engine of the first device; its ``info`` says what is in force."""
        return self._engines.on_device(self.target_devices[0])

    @property
    def engines(self) -> list[Engine]:
        """All open engines: each device's, those for parallel batches and for CUDA graphs."""
        return self._engines.all

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
            reranks = model_class in RERANKER_CLASSES
            auto = "FlagAutoReranker" if reranks else "FlagAutoModel"
            raise BundleError(
                f"{name} is a model of class {model_class}, which {cls.__name__} does not open. "
                f"Open it with {opens}, or with {auto}"
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

    def _keep_options(self, options: Mapping[str, Any]) -> None:
        """Store unknown keyword arguments as attributes and warn, as FlagEmbedding does."""
        self.kwargs = options
        for name, value in options.items():
            if name in self.OWN_ATTRIBUTES:
                warn_user(
                    f"{type(self).__name__}() has no option {name!r}, and {name!r} is the model's "
                    "own; it has no effect. Lengths are query_max_length and passage_max_length"
                )
                continue
            if hasattr(self, name):
                raise TypeError(f"{type(self).__name__}() has no option {name!r}")
            if name not in self.KEPT_OPTIONS:
                warn_user(
                    f"{type(self).__name__}() has no option {name!r}; it is kept as an "
                    "attribute, as FlagEmbedding does, and has no effect"
                )
            setattr(self, name, value)

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
        limit = self.bundle.manifest.model.max_length - taken
        # The default is FlagEmbedding's 512 for every model, and not the caller's choice.
        if length > limit and length != DEFAULT_LENGTH:
            warn_user(
                f"max_length={length} is more than the {limit} tokens that "
                f"{self.name} can read; longer texts are cut at {limit}"
            )
        return min(length, limit)


def _read_tokenizer(path: Path) -> TextTokenizer:
    """Return a tokenizer, which is read while an engine compiles; BGE-M3's takes as long as that.

    ``tokenizers`` keeps Python's lock meanwhile, and compiling does not need it.
    """
    time.sleep(_HEAD_START_S)
    return TextTokenizer(path)
