"""``FlagModel``: encoder embedders behind FlagEmbedding's own interface."""

from __future__ import annotations

import importlib.util
import shlex
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.embedder import Embedder, as_texts
from bge_runtime.errors import PoolingError
from bge_runtime.postprocess import normalize, truncate
from bge_runtime.resolving import ExportOptions

_DEFAULT_LENGTH = 512
_PASSAGE_OPTIONS = ("passage_instruction_for_retrieval", "passage_instruction_format")

Devices = str | int | list[str] | list[int] | None


class FlagModel(Embedder):
    """A BERT or XLM-R embedder, with the interface of FlagEmbedding 1.4.2's.

    Positional order, defaults and results follow ``FlagEmbedding.FlagModel``; what is
    keyword-only here is our own. Differences, each on purpose: pooling that is not
    given is the bundle's, an empty list gives an empty array, and one call computes
    each text once.
    """

    def __init__(
        self,
        model_name_or_path: str,
        normalize_embeddings: bool = True,
        use_fp16: bool = True,
        use_bf16: bool = False,
        query_instruction_for_retrieval: str | None = None,
        query_instruction_format: str = "{}{}",
        devices: Devices = None,
        pooling_method: str | None = None,
        trust_remote_code: bool = False,
        cache_dir: str | None = None,
        batch_size: int = 256,
        query_max_length: int = _DEFAULT_LENGTH,
        passage_max_length: int = _DEFAULT_LENGTH,
        convert_to_numpy: bool = True,
        truncate_dim: int | None = None,
        *,
        engine: str = "auto",
        precision: str | None = None,
        threads: int | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Open a model.

        Args:
            model_name_or_path: Folder that ``bge-export`` wrote, hub id of such a one
                (nothing of PyTorch is needed for these two), or hub id or folder of a
                checkpoint, which is exported into the cache the first time.
            normalize_embeddings: Scale vectors to unit length.
            use_fp16: Allow 16 bit where the device computes in it and parity was
                measured; elsewhere fp32 is used. False demands fp32.
            use_bf16: Demand bf16; wins over ``use_fp16``.
            query_instruction_for_retrieval: Put before each text of ``encode_queries``.
            query_instruction_format: How instruction and query are joined: two ``{}``.
            devices: Device or devices. None means the CPU.
            pooling_method: ``"cls"`` or ``"mean"``. None takes the bundle's; another
                one than the bundle's is an error.
            trust_remote_code: Let an export run code from the checkpoint, in its own
                process. Such code never runs here.
            cache_dir: Folder of the hub's cache.
            batch_size: Most texts in a batch. Batches are filled by tokens, so that
                fewer are usual; vectors change by rounding only.
            query_max_length: Tokens a query is cut to, special tokens included.
            passage_max_length: The same for a passage, and for ``encode``.
            convert_to_numpy: False gives torch tensors, if torch is installed.
            truncate_dim: Components to keep, before normalisation.
            engine: ``"auto"``, or the name of an engine.
            precision: Name of a precision; wins over ``use_fp16`` and ``use_bf16``.
            threads: Threads to compute with. None means all that the process may use.
            revision: Branch, tag or commit on the hub.
            **kwargs: ``passage_instruction_for_retrieval`` and
                ``passage_instruction_format``. As in FlagEmbedding any other becomes
                an attribute; here it also gives a warning.

        Raises:
            ModelNotFoundError: If there is no bundle and none can be made here; the
                message says how to make it.
            ExportError: If the export fails.
            BundleError: If the bundle is damaged, or newer than this package.
            PoolingError: If the bundle pools differently.
            EngineError: If engine, device or precision cannot be had.
        """
        super().__init__(
            model_name_or_path,
            devices=devices,
            engine=engine,
            precision=precision or _precision(use_fp16=use_fp16, use_bf16=use_bf16),
            threads=threads,
            revision=revision,
            cache_dir=cache_dir,
            options=ExportOptions(pooling=pooling_method, trust_remote_code=trust_remote_code),
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
        self.convert_to_numpy = convert_to_numpy
        self.truncate_dim = truncate_dim
        self._check_truncate_dim(stacklevel=3)
        self.kwargs = kwargs
        self.pool = None
        for name, value in kwargs.items():
            if hasattr(self, name):
                raise TypeError(f"{type(self).__name__}() has no option {name!r}")
            if name not in _PASSAGE_OPTIONS:
                warnings.warn(
                    f"{type(self).__name__}() has no option {name!r}; it is kept as an "
                    "attribute, as FlagEmbedding does, and has no effect",
                    stacklevel=2,
                )
            setattr(self, name, value)

    @staticmethod
    def get_detailed_instruct(instruction_format: str, instruction: str, sentence: str) -> str:
        r"""Join instruction and sentence; a literal ``\n`` in the format is a newline."""
        return instruction_format.replace("\\n", "\n").format(instruction, sentence)

    def encode_queries(
        self,
        queries: Sequence[str] | str,
        batch_size: int | None = None,
        max_length: int | None = None,
        convert_to_numpy: bool | None = None,
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """Embed queries, with the model's query instruction if one was given.

        As `encode`, with ``query_max_length`` as the default length.
        """
        return self.encode(
            queries,
            batch_size=batch_size,
            max_length=self.query_max_length if max_length is None else max_length,
            convert_to_numpy=convert_to_numpy,
            instruction=self.query_instruction_for_retrieval,
            instruction_format=self.query_instruction_format,
            **kwargs,
        )

    def encode_corpus(
        self,
        corpus: Sequence[str] | str,
        batch_size: int | None = None,
        max_length: int | None = None,
        convert_to_numpy: bool | None = None,
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """Embed passages, with the passage instruction given to the constructor.

        As `encode`, with ``passage_max_length`` as the default length.
        """
        return self.encode(
            corpus,
            batch_size=batch_size,
            max_length=max_length,
            convert_to_numpy=convert_to_numpy,
            instruction=self.kwargs.get("passage_instruction_for_retrieval"),
            instruction_format=self.kwargs.get("passage_instruction_format", "{}{}"),
            **kwargs,
        )

    def encode(
        self,
        sentences: Sequence[str] | str,
        batch_size: int | None = None,
        max_length: int | None = None,
        convert_to_numpy: bool | None = None,
        *,
        instruction: str | None = None,
        instruction_format: str | None = None,
        pad_to_multiple_of: int | None = None,  # noqa: ARG002
        show_progress_bar: bool | None = None,
    ) -> NDArray[np.float32]:
        """Embed texts.

        Texts of more than ``max_length`` tokens, special tokens included, are cut on
        the right. Values do not depend on the other texts of the call, but for
        floating-point rounding.

        Args:
            sentences: A text, or a list of texts; the list may be empty.
            batch_size: Most texts in a batch; None for the model's.
            max_length: Most tokens of a text; None for ``passage_max_length``.
            convert_to_numpy: False gives a torch tensor; None for the model's.
            instruction: Put before each text.
            instruction_format: How it is put there; needed with ``instruction``.
            pad_to_multiple_of: Taken for compatibility; padding changes no vector.
            show_progress_bar: None shows one for ``batch_size`` texts or more, on a
                terminal.

        Returns:
            Vectors in input order, of unit length if ``normalize_embeddings``.

            Shape: ``(len(sentences), dim)``, or ``(dim,)`` for a single text. float32.

        Raises:
            TypeError: If a text is not a string.
            ValueError: If a number is out of range, or a text is not valid Unicode.
            InferenceError: If the engine fails.
        """
        as_numpy = self.convert_to_numpy if convert_to_numpy is None else convert_to_numpy
        _check_torch(as_numpy=as_numpy)
        texts, single = as_texts(sentences, name="sentences")
        if instruction is not None:
            _check_format(instruction_format)
            texts = [
                self.get_detailed_instruct(str(instruction_format), instruction, text)
                for text in texts
            ]
        # One text is not worth sharing out, as upstream.
        devices = self.target_devices[:1] if single else self.target_devices
        vectors = self._encode(
            texts,
            devices,
            batch_size=self.batch_size if batch_size is None else batch_size,
            max_length=self.passage_max_length if max_length is None else max_length,
            show_progress_bar=show_progress_bar,
        )
        return self._hand_out(vectors, single=single, as_numpy=as_numpy)

    def encode_single_device(
        self,
        sentences: Sequence[str] | str,
        batch_size: int = 256,
        max_length: int = 512,
        convert_to_numpy: bool = True,
        device: str | None = None,
        *,
        pad_to_multiple_of: int | None = None,  # noqa: ARG002
        show_progress_bar: bool | None = None,
    ) -> NDArray[np.float32]:
        """Embed texts on one of the model's devices, without an instruction.

        Args:
            sentences: A text, or a list of texts.
            batch_size: Most texts in a batch.
            max_length: Most tokens of a text.
            convert_to_numpy: False gives a torch tensor.
            device: One of ``target_devices``; None for the first.
            pad_to_multiple_of: As in `encode`.
            show_progress_bar: As in `encode`.

        Returns:
            As `encode`.

        Raises:
            ValueError: If the model was not opened on ``device``.
        """
        _check_torch(as_numpy=convert_to_numpy)
        texts, single = as_texts(sentences, name="sentences")
        device = device or self.target_devices[0]
        if device not in self.target_devices:
            raise ValueError(
                f"this model was opened on {', '.join(self.target_devices)}, not on {device!r}; "
                f"pass devices={device!r} when you make it"
            )
        vectors = self._encode(
            texts,
            [device],
            batch_size=batch_size,
            max_length=max_length,
            show_progress_bar=show_progress_bar,
        )
        return self._hand_out(vectors, single=single, as_numpy=convert_to_numpy)

    def start_multi_process_pool(
        self,
        process_target_func: object = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Stand in for FlagEmbedding's pool: devices are threads here, always running.

        Returns:
            What `encode_multi_process` and `stop_multi_process_pool` take.
        """
        return {"input": None, "output": None, "processes": []}

    def encode_multi_process(
        self,
        sentences: Sequence[str],
        pool: dict[str, Any],  # noqa: ARG002
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """Embed a list on all devices; ``pool`` is what `start_multi_process_pool` gave."""
        return self.encode(sentences, **kwargs)

    @staticmethod
    def stop_multi_process_pool(pool: dict[str, Any]) -> None:
        """Do nothing: there are no processes to stop."""

    def stop_self_pool(self) -> None:
        """Do nothing: there are no processes to stop."""

    def _encode(
        self,
        texts: list[str],
        devices: Sequence[str],
        *,
        batch_size: int,
        max_length: int,
        show_progress_bar: bool | None,
    ) -> NDArray[np.float32]:
        _check_positive("batch_size", batch_size)
        self._check_truncate_dim(stacklevel=4)
        dim = self.bundle.manifest.model.dim
        cut = partial(truncate, dim=self.truncate_dim)
        scale = self.normalize_embeddings
        return self._embed(
            texts,
            (lambda raw: normalize(cut(raw))) if scale else cut,
            output="sentence_embedding",
            dim=min(self.truncate_dim or dim, dim),
            batch_size=batch_size,
            max_length=self._readable_length(max_length),
            devices=devices,
            show_progress_bar=show_progress_bar,
        )

    def _readable_length(self, length: int) -> int:
        """Bring a length within what the model can read."""
        _check_positive("max_length", length)
        limit = self.bundle.manifest.model.max_length
        # The default is FlagEmbedding's 512 whatever the model, and nobody's choice.
        if length > limit and length != _DEFAULT_LENGTH:
            warnings.warn(
                f"max_length={length} is more than the {limit} tokens that "
                f"{self.bundle.manifest.model.name} can read; longer texts are cut at {limit}",
                stacklevel=4,
            )
        return min(length, limit)

    def _check_truncate_dim(self, *, stacklevel: int) -> None:
        if self.truncate_dim is None:
            return
        _check_positive("truncate_dim", self.truncate_dim)
        dim = self.bundle.manifest.model.dim
        if self.truncate_dim > dim:
            warnings.warn(
                f"truncate_dim={self.truncate_dim} is more than the {dim} components of "
                f"{self.bundle.manifest.model.name}; vectors keep all {dim}",
                stacklevel=stacklevel,
            )

    @staticmethod
    def _hand_out(
        vectors: NDArray[np.float32], *, single: bool, as_numpy: bool
    ) -> NDArray[np.float32]:
        result: Any = vectors[0] if single else vectors
        if not as_numpy:
            import torch

            result = torch.from_numpy(result)
        return result  # type: ignore[no-any-return]


def _check_torch(*, as_numpy: bool) -> None:
    """Find out before anything is computed whether tensors can be given."""
    if not as_numpy and importlib.util.find_spec("torch") is None:
        raise ImportError(
            "convert_to_numpy=False asks for torch tensors, and torch is not installed. "
            "Leave it out, or run `pip install torch`"
        )


def _precision(*, use_fp16: bool, use_bf16: bool) -> str:
    if use_bf16:
        return "bf16"
    return "auto" if use_fp16 else "fp32"


def _check_positive(name: str, value: object) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, but is {value!r}")


def _check_format(instruction_format: str | None) -> None:
    if instruction_format is None:
        raise TypeError("instruction needs an instruction_format, such as '{}{}'")
    try:
        joined = instruction_format.format("\0instruction", "\0sentence")
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError(
            f"instruction format {instruction_format!r} cannot be filled in "
            f"({type(error).__name__}: {error}); it needs two places, such as '{{}}{{}}'"
        ) from error
    if "\0sentence" not in joined:
        raise ValueError(
            f"instruction format {instruction_format!r} has one place, so that every text would "
            "be lost; it needs two, for instruction and text, such as '{}{}'"
        )
