"""``FlagLLMReranker``: decoders that answer yes or no, behind FlagEmbedding's own interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import LOGITS, RerankerPrompt
from bge_runtime.encoding import PairEncoder, PrefixCache, PromptTokenizer
from bge_runtime.errors import BundleError
from bge_runtime.models import DEFAULT_LENGTH, PREFIX_CACHE_MB, Devices, OpenOptions
from bge_runtime.rerankers.base import BaseReranker, RerankerDefaults
from bge_runtime.sources import BGE_QUESTION, RERANKER_DECODER

_FORMAT = "{}{}"

_TOKEN_CHARACTERS = 4
"""Characters of a token, about."""

_SAVED_TOKENS = 256
"""Tokens that a query must save to be computed apart from others. Each costs a run of its own, and
leaves smaller batches: 200 queries of two passages took twice as long one by one (a tiny model)."""


class FlagLLMReranker(BaseReranker):
    """A decoder that is asked about each pair, with the interface of FlagEmbedding 1.4.2's.

    Positional order, defaults and results follow ``FlagEmbedding.FlagLLMReranker``; keyword-only
    arguments are our own. A model that is asked otherwise, such as Qwen3-Reranker, has its prompt
    in the bundle; arguments that are FlagEmbedding's defaults leave it as it is. Intended
    differences are those of `bge_runtime.FlagReranker`, and what the passages of a query begin with
    is computed once.

    Args:
        model_name_or_path: As in `bge_runtime.FlagModel`.
        peft_path: None; an adapter has to be merged before the export.
        use_fp16: As in `bge_runtime.FlagReranker`.
        use_bf16: Require bf16; takes precedence over ``use_fp16``.
        query_instruction_for_rerank: Put before each query.
        query_instruction_format: How instruction and query are joined: two ``{}``.
        passage_instruction_for_rerank: Put before each passage.
        passage_instruction_format: How instruction and passage are joined: two ``{}``.
        cache_dir: Folder of the Hub's cache.
        trust_remote_code: As in `bge_runtime.FlagModel`.
        devices: Device or devices. None means the CPU.
        prompt: Question behind the passage; None for the model's own.
        batch_size: As in `bge_runtime.FlagReranker`.
        query_max_length: As in `bge_runtime.FlagReranker`, instruction included. Of Qwen3-Reranker
            a query never gets more than three quarters of what its prompt leaves.
        max_length: Tokens at which query and passage together are cut, at the end of the passage.
            For Qwen3-Reranker it counts the whole prompt.
        normalize: As in `bge_runtime.FlagReranker`.
        engine: As in `bge_runtime.FlagModel`.
        precision: As in `bge_runtime.FlagReranker`.
        threads: As in `bge_runtime.FlagModel`.
        revision: As in `bge_runtime.FlagModel`.
        prefix_cache_mb: Memory for keys and values of queries; see ``prefix_cache``. 0 reuses none.
            Scores change by rounding only.
        **kwargs: As in `bge_runtime.FlagReranker`.

    Raises:
        ValueError: If ``peft_path`` is given, or ``prompt`` for a model whose question is not
            behind the passage.
        BundleError: If the model is an embedder or an encoder, or its bundle is damaged.
        BgeError: As `bge_runtime.FlagModel`.
    """

    MODEL_CLASSES: ClassVar[tuple[str, ...]] = (RERANKER_DECODER,)

    def __init__(
        self,
        model_name_or_path: str,
        peft_path: str | None = None,
        use_fp16: bool = False,
        use_bf16: bool = False,
        query_instruction_for_rerank: str = "A: ",
        query_instruction_format: str = _FORMAT,
        passage_instruction_for_rerank: str = "B: ",
        passage_instruction_format: str = _FORMAT,
        cache_dir: str | None = None,
        trust_remote_code: bool = False,
        devices: Devices = None,
        prompt: str | None = None,
        batch_size: int = 128,
        query_max_length: int | None = None,
        max_length: int = DEFAULT_LENGTH,
        normalize: bool = False,
        *,
        engine: str = "auto",
        precision: str | None = None,
        threads: int | None = None,
        revision: str | None = None,
        prefix_cache_mb: int = PREFIX_CACHE_MB,
        **kwargs: Any,
    ) -> None:
        """Open a reranker; see the class for the arguments."""
        if peft_path is not None:
            raise ValueError(
                f"peft_path is {peft_path!r}, and adapters are not applied here. Merge it (peft's "
                "merge_and_unload), save the model and pass its folder"
            )
        super().__init__(
            model_name_or_path,
            OpenOptions(
                devices=devices,
                use_fp16=use_fp16,
                use_bf16=use_bf16,
                pooling_method=None,
                trust_remote_code=trust_remote_code,
                cache_dir=cache_dir,
                engine=engine,
                precision=precision,
                threads=threads,
                revision=revision,
                prefix_cache_mb=prefix_cache_mb,
                outputs=(LOGITS,),
            ),
            RerankerDefaults(
                query_instruction_for_rerank=query_instruction_for_rerank,
                query_instruction_format=query_instruction_format,
                passage_instruction_for_rerank=passage_instruction_for_rerank,
                passage_instruction_format=passage_instruction_format,
                batch_size=batch_size,
                query_max_length=query_max_length,
                max_length=max_length,
                normalize=normalize,
            ),
        )
        self.prompt = prompt
        self._find_prompt(prompt)
        self._keep_options(kwargs)

    @property
    def prefix_cache(self) -> PrefixCache:
        """Keys and values of queries, kept between calls; see its ``stats``."""
        return self._engines.prefix_cache

    @property
    def query_instruction(self) -> str | None:
        """What is put before queries, as an argument or by the model's own prompt."""
        return self._find_prompt(self.prompt).query_instruction

    def compute_score(
        self,
        sentence_pairs: Sequence[Sequence[str]] | Sequence[str],
        *,
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
        prompt: str | None = None,
        normalize: bool | None = None,
        use_dataloader: bool = False,  # noqa: ARG002
        num_workers: int | None = None,  # noqa: ARG002
        show_progress_bar: bool | None = None,
    ) -> list[float]:
        """Score pairs of a query and a passage.

        Args:
            sentence_pairs: As in `BaseReranker.compute_score`.
            batch_size: As in `BaseReranker.compute_score`.
            query_max_length: As in `BaseReranker.compute_score`.
            max_length: As in `BaseReranker.compute_score`.
            prompt: Question behind the passage; None for the reranker's.
            normalize: As in `BaseReranker.compute_score`.
            use_dataloader: Accepted for compatibility; there are no worker processes.
            num_workers: Likewise.
            show_progress_bar: As in `BaseReranker.compute_score`.

        Returns:
            As `BaseReranker.compute_score`.
        """
        return self._score_pairs(
            sentence_pairs,
            self._call(
                batch_size=batch_size,
                query_max_length=query_max_length,
                max_length=max_length,
                normalize=normalize,
                show_progress_bar=show_progress_bar,
                prompt=prompt,
            ),
        )

    def compute_score_single_gpu(
        self,
        sentence_pairs: Sequence[Sequence[str]] | Sequence[str],
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
        prompt: str | None = None,
        normalize: bool | None = None,
        use_dataloader: bool = False,  # noqa: ARG002
        num_workers: int | None = None,  # noqa: ARG002
        device: str | int | None = None,
    ) -> list[float]:
        """As `compute_score`, on one device that the model was opened on; None for the first."""
        return self._score_pairs(
            sentence_pairs,
            self._call(
                batch_size=batch_size,
                query_max_length=query_max_length,
                max_length=max_length,
                normalize=normalize,
                devices=[self._one_device(device)],
                prompt=prompt,
            ),
        )

    def _pair_encoder(self, prompt: str | None) -> PairEncoder:
        found = self._find_prompt(self.prompt if prompt is None else prompt)
        return PromptTokenizer(self.tokenizer, found, longest=self.model_max_length)

    def _find_prompt(self, prompt: str | None) -> RerankerPrompt:
        """Return the bundle's prompt, with what was asked for in place of its parts."""
        found = self.bundle.manifest.model.prompt
        if found is None:
            raise BundleError(
                f"{self.bundle.path / 'bge.json'} holds no prompt for a decoder that reranks. "
                "Export the model again with bge-export"
            )
        if prompt is not None and found.counts_all:
            raise ValueError(
                f"prompt is given, but {self.name} is asked before the query, not behind the "
                "passage. Pass query_instruction_for_rerank to tell it what to look for"
            )
        usual = BGE_QUESTION.prompt
        changes: dict[str, Any] = {
            name: given
            for name, given in (
                ("query_instruction", self.query_instruction_for_rerank),
                ("query_format", self.query_instruction_format),
                ("passage_instruction", self.passage_instruction_for_rerank),
                ("passage_format", self.passage_instruction_format),
            )
            if given != getattr(usual, name)
        }
        for text, name in (("query", "query_format"), ("passage", "passage_format")):
            # FlagEmbedding leaves the format out with an instruction of None.
            if changes.get(f"{text}_instruction", "") is None:
                changes |= {f"{text}_instruction": "", name: _FORMAT}
        if prompt is not None:
            changes["end"] = (*found.end[:-1], prompt)
        return replace(found, **changes)

    def _add_query_instruction(self, queries: list[str]) -> list[str]:
        return queries  # it is part of the prompt

    def _add_passage_instruction(self, passages: Sequence[str]) -> list[str]:
        return list(passages)

    def _groups(self, queries: list[str]) -> list[NDArray[np.intp]]:
        """Return the positions of the pairs of each query that is worth it, and of all others.

        Pairs that are computed together can share the tokens that all of them begin with.
        """
        if not self._engines.options.prefix_cache_mb:
            return super()._groups(queries)
        rows: dict[str, list[int]] = {}
        for row, query in enumerate(queries):
            rows.setdefault(query, []).append(row)
        groups, others = [], []
        for query, found in rows.items():
            saved = (len(found) - 1) * (len(query) // _TOKEN_CHARACTERS)
            if saved >= _SAVED_TOKENS:
                groups.append(found)
            else:
                others += found
        return [np.array(found) for found in (*groups, sorted(others)) if found]
