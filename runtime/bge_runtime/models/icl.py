"""``FlagICLModel``: models such as bge-en-icl, which read examples before the query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bge_runtime.encoding import PrefixCache, TokenizationPlan, as_texts, encode
from bge_runtime.models.decoder import (
    PREFIX_CACHE_MB,
    check_last_token,
    check_room,
    plan_with_prefix,
)
from bge_runtime.models.dense import DenseEmbedder, check_torch, format_output
from bge_runtime.models.instructions import check_format, join_instruction, text_before_sentence
from bge_runtime.models.options import DEFAULT_LENGTH, CallDefaults, Devices, OpenOptions
from bge_runtime.models.parts import TextKind
from bge_runtime.sources import DECODER_ONLY_BASE, DECODER_ONLY_ICL

Examples = Sequence[Mapping[str, str]]
"""Dictionaries with ``"query"``, ``"response"`` and ``"instruct"``; without the last one, the
model's query instruction is used."""

_SPECIAL_TOKENS = 16
"""Maximum special tokens that FlagEmbedding adds to examples, suffix and query."""


class FlagICLModel(DenseEmbedder):
    r"""A decoder embedder that takes examples, with the interface of FlagEmbedding 1.4.2's.

    Positional order, defaults and results follow ``FlagEmbedding.FlagICLModel``; keyword-only
    arguments are our own. Intended differences: those of `FlagLLMModel`, and
    examples that lack something are an error.

    Attributes:
        examples_for_task: The constructor's examples.
        prefix: Text of the examples in force.
        suffix: Text put behind each query.

    Args:
        model_name_or_path: As in `bge_runtime.FlagModel`.
        normalize_embeddings: Scale vectors to unit length.
        use_fp16: As in `bge_runtime.FlagModel`.
        use_bf16: As in `bge_runtime.FlagModel`.
        query_instruction_for_retrieval: Put before each text of ``encode_queries``, and
            before each example without one.
        query_instruction_format: How instruction and query are joined: two ``{}``. A
            literal ``\n`` is a newline.
        suffix: Put behind each text of ``encode_queries``, examples or not.
        devices: Device or devices. None means the CPU.
        examples_for_task: Examples to put before each query; see `set_examples`.
        examples_instruction_format: How instruction, query and response of an example
            are joined: three ``{}``. A literal ``\n`` is a newline.
        trust_remote_code: As in `bge_runtime.FlagModel`.
        cache_dir: Folder of the Hub's cache.
        batch_size: Maximum texts in a batch.
        query_max_length: Tokens at which a query is cut, instruction and suffix included,
            examples not.
        passage_max_length: Tokens at which a passage is cut, and a text of ``encode``.
        convert_to_numpy: False returns torch tensors, if torch is installed.
        truncate_dim: Components to keep, before normalization.
        pooling_method: ``"last_token"``, or None for it.
        engine: As in `bge_runtime.FlagModel`.
        precision: As in `bge_runtime.FlagModel`.
        threads: As in `bge_runtime.FlagModel`.
        revision: As in `bge_runtime.FlagModel`.
        prefix_cache_mb: As in `bge_runtime.FlagLLMModel`.
        **kwargs: As in `bge_runtime.FlagModel`.

    Raises:
        TypeError: If the examples are not a list of dictionaries.
        ValueError: If an example or a format lacks something, or the examples are
            longer than what the model can read.
        PoolingError: If ``pooling_method`` is another one.
        BundleError: If the model is an encoder, or its bundle is damaged.
        BgeError: As `bge_runtime.FlagModel`.
    """

    MODEL_CLASSES: ClassVar[tuple[str, ...]] = (DECODER_ONLY_ICL, DECODER_ONLY_BASE)

    def __init__(
        self,
        model_name_or_path: str,
        normalize_embeddings: bool = True,
        use_fp16: bool = True,
        use_bf16: bool = False,
        query_instruction_for_retrieval: str | None = None,
        query_instruction_format: str = "<instruct>{}\n<query>{}",
        suffix: str = "\n<response>",
        devices: Devices = None,
        examples_for_task: Examples | None = None,
        examples_instruction_format: str = "<instruct>{}\n<query>{}\n<response>{}",
        trust_remote_code: bool = False,
        cache_dir: str | None = None,
        batch_size: int = 256,
        query_max_length: int = DEFAULT_LENGTH,
        passage_max_length: int = DEFAULT_LENGTH,
        convert_to_numpy: bool = True,
        truncate_dim: int | None = None,
        *,
        pooling_method: str | None = None,
        engine: str = "auto",
        precision: str | None = None,
        threads: int | None = None,
        revision: str | None = None,
        prefix_cache_mb: int = PREFIX_CACHE_MB,
        **kwargs: Any,
    ) -> None:
        """Open a model; see the class for the arguments."""
        check_last_token(pooling_method)
        super().__init__(
            model_name_or_path,
            OpenOptions(
                devices=devices,
                use_fp16=use_fp16,
                use_bf16=use_bf16,
                pooling_method=pooling_method,
                trust_remote_code=trust_remote_code,
                cache_dir=cache_dir,
                engine=engine,
                precision=precision,
                threads=threads,
                revision=revision,
                prefix_cache_mb=prefix_cache_mb,
            ),
            CallDefaults(
                normalize_embeddings=normalize_embeddings,
                query_instruction_for_retrieval=query_instruction_for_retrieval,
                query_instruction_format=query_instruction_format.replace("\\n", "\n"),
                batch_size=batch_size,
                query_max_length=query_max_length,
                passage_max_length=passage_max_length,
                truncate_dim=truncate_dim,
            ),
        )
        self.convert_to_numpy = convert_to_numpy
        self.examples_for_task = examples_for_task
        self.examples_instruction_format = examples_instruction_format.replace("\\n", "\n")
        self.suffix = suffix
        self.query_pool = None
        self.prefix = ""
        self._keep_options(kwargs)
        self.set_examples()

    def set_examples(self, examples_for_task: Examples | None = None) -> None:
        """Set the examples that are put before the queries of later calls.

        Args:
            examples_for_task: The examples. None takes those of ``examples_for_task``, the
                constructor's, again.

        Raises:
            TypeError: If they are not a list of dictionaries.
            ValueError: If one lacks its query, response or instruction, or they are longer
                than what the model can read.
        """
        examples = self.examples_for_task if examples_for_task is None else examples_for_task
        prefix = "" if examples is None else self._join_examples(examples)
        self._count_tokens(prefix, self.suffix)
        self.prefix = prefix

    @staticmethod
    def get_detailed_example(
        instruction_format: str, instruction: str, query: str, response: str
    ) -> str:
        r"""Return the parts of an example joined; a literal ``\n`` in the format is a newline."""
        return join_instruction(instruction_format, instruction, query, response)

    def encode_queries(  # type: ignore[override]  # takes no other instruction, as upstream
        self,
        queries: Sequence[str] | str,
        batch_size: int | None = None,
        max_length: int | None = None,
        convert_to_numpy: bool | None = None,
        *,
        pad_to_multiple_of: int | None = None,  # noqa: ARG002
        show_progress_bar: bool | None = None,
    ) -> NDArray[np.float32]:
        """Embed queries, between the examples and the suffix.

        As FlagEmbedding does, instruction and query are cut to their tokens, and these made
        text again before examples and suffix are put around them.

        Args:
            queries: A query, or a list of queries; the list may be empty.
            batch_size: Maximum texts in a batch; None for the model's.
            max_length: Maximum tokens of instruction, query and suffix; None for
                ``query_max_length``.
            convert_to_numpy: False returns a torch tensor; None for the model's.
            pad_to_multiple_of: Accepted for compatibility; padding changes no vector.
            show_progress_bar: None shows one for ``batch_size`` texts or more, on a
                terminal.

        Returns:
            As ``encode``.

        Raises:
            TypeError: If a query is not a string, or the queries have no order.
            ValueError: If a number is out of range, or a text is not valid Unicode.
            NotFiniteError: If a vector holds NaN or infinity.
            InferenceError: If the engine fails.
        """
        return self._encode_queries(
            queries,
            self.target_devices[:1] if isinstance(queries, str) else self.target_devices,
            batch_size=self.batch_size if batch_size is None else batch_size,
            max_length=self.query_max_length if max_length is None else max_length,
            as_numpy=self.convert_to_numpy if convert_to_numpy is None else convert_to_numpy,
            show_progress_bar=show_progress_bar,
        )

    def encode_queries_single_device(
        self,
        queries: Sequence[str] | str,
        batch_size: int = 256,
        max_length: int = 512,
        convert_to_numpy: bool = True,
        device: str | int | None = None,
        *,
        pad_to_multiple_of: int | None = None,  # noqa: ARG002
        show_progress_bar: bool | None = None,
    ) -> NDArray[np.float32]:
        """Embed queries on one of the model's devices; otherwise as `encode_queries`.

        Raises:
            ValueError: If the model was not opened on ``device``.
        """
        return self._encode_queries(
            queries,
            [self._one_device(device)],
            batch_size=batch_size,
            max_length=max_length,
            as_numpy=convert_to_numpy,
            show_progress_bar=show_progress_bar,
        )

    def stop_self_query_pool(self) -> None:
        """Do nothing: there are no processes to stop."""

    @property
    def prefix_cache(self) -> PrefixCache:
        """Keys and values of common prefixes, kept between calls; see its ``stats``."""
        return self._engines.prefix_cache

    def _encode_queries(
        self,
        queries: Sequence[str] | str,
        devices: Sequence[str],
        *,
        batch_size: int,
        max_length: int,
        as_numpy: bool,
        show_progress_bar: bool | None,
    ) -> NDArray[np.float32]:
        check_torch(as_numpy=as_numpy)
        texts, single = as_texts(queries, name="queries")
        instruction, template = self.query_instruction_for_retrieval, self.query_instruction_format
        texts = self._add_instruction(texts, instruction, template)
        before = "" if instruction is None else text_before_sentence(template, instruction)
        plan = self._plan(
            self._query_tokenization(max_length, before),
            devices=devices,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
        )
        vectors = self._new_vectors(len(texts))
        encode(texts, plan, self._engines, vectors.add)
        return format_output(vectors, single=single, as_numpy=as_numpy)

    def _tokenization(
        self, max_length: int, instruction: str | None, instruction_format: str | None
    ) -> TokenizationPlan:
        return plan_with_prefix(
            self.tokenizer,
            instruction,
            instruction_format,
            max_length=self._readable_length(max_length),
            model_length=self.max_length,
        )

    def _text_plan(self, *, kind: TextKind, max_length: int) -> TokenizationPlan:
        if kind != "query":
            return super()._text_plan(kind=kind, max_length=max_length)
        instruction, template = self.query_instruction_for_retrieval, self.query_instruction_format
        before = "" if instruction is None else text_before_sentence(template, instruction)
        # Only what is left beside the examples can be asked for.
        taken = self._count_tokens(self.prefix, self.suffix) + _SPECIAL_TOKENS
        plan = self._query_tokenization(min(max_length, self.max_length - taken), before)
        return self._instructed(plan, instruction, template)

    def _query_tokenization(self, max_length: int, before: str) -> TokenizationPlan:
        """Return how queries that begin with ``before`` become tokens."""
        tokenizer = self.tokenizer
        # Another thread may set other examples in the meantime.
        prefix, suffix = self.prefix, self.suffix
        taken = self._count_tokens(prefix, suffix)
        length = self._readable_length(max_length, taken=taken + _SPECIAL_TOKENS)
        # Both lengths are FlagEmbedding's, down to the names of special tokens that a model
        # need not have.
        start, end = tokenizer.encode_bare(["<s>", f"{suffix}</s>"])
        room = length - len(start) - len(end)
        total = (taken + length + 8) // 8 * 8 + 8
        check_room(tokenizer, before, room=room, max_length=length, model_length=self.max_length)

        def add_examples(ids: Sequence[NDArray[np.int64]]) -> list[str]:
            return [prefix + text + suffix for text in tokenizer.decode_batch(ids)]

        def tokenize(
            texts: Sequence[str], *, first: int = 0, truncated: list[int] | None = None
        ) -> list[NDArray[np.int64]]:
            ids = tokenizer.encode_bare(texts, max_length=room + 1, first=first)
            if truncated is not None:
                truncated += [first + row for row, each in enumerate(ids) if len(each) > room]
            ids = [each[:room] for each in ids]
            return tokenizer.encode(add_examples(ids), max_length=total, first=first)

        (known,) = tokenizer.decode_batch(tokenizer.encode_bare([before]))
        return TokenizationPlan(tokenize, tokenizer.encode_start(prefix + known))

    def _count_tokens(self, prefix: str, suffix: str) -> int:
        """Return the number of tokens of examples and suffix.

        Raises:
            ValueError: If they leave no room for a query.
        """
        taken = sum(map(len, self.tokenizer.encode_bare([prefix, suffix])))
        model = self.bundle.manifest.model
        if taken + _SPECIAL_TOKENS >= model.max_length:
            raise ValueError(
                f"the examples and the suffix take {taken} tokens, and {model.name} can read "
                f"{model.max_length}, of which {_SPECIAL_TOKENS} are kept for special tokens, so "
                "that no query fits. Pass fewer examples, or shorter ones"
            )
        return taken

    def _join_examples(self, examples: Examples) -> str:
        """Return the text of examples, joined as in FlagEmbedding."""
        if not isinstance(examples, list | tuple):
            raise TypeError(
                "examples_for_task must be a list of dictionaries, but is "
                f"{type(examples).__name__}"
            )
        template = self.examples_instruction_format
        check_format(template, ("instruct", "query", "response"))
        texts = []
        for index, example in enumerate(examples):
            where = f"examples_for_task[{index}]"
            if not isinstance(example, Mapping):
                raise TypeError(
                    f"{where} must be a dictionary with 'instruct', 'query' and 'response', but "
                    f"is {type(example).__name__}"
                )
            parts = {"instruct": self.query_instruction_for_retrieval, **example}
            names = ("instruct", "query", "response")
            missing = [name for name in names if not isinstance(parts.get(name), str)]
            if missing:
                raise ValueError(
                    f"{where} needs strings {', '.join(map(repr, names))}, where "
                    "query_instruction_for_retrieval may stand in for the first one; it lacks "
                    f"{', '.join(map(repr, missing))}, and has {dict(example)!r:.200}"
                )
            texts.append(
                self.get_detailed_example(
                    template, str(parts["instruct"]), parts["query"], parts["response"]
                )
            )
        return "\n\n".join(texts) + "\n\n"
