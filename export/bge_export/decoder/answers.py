"""What a decoder that reranks is asked, and which rows of its head its score is made of.

Of the head, a row for each token of the vocabulary, only those of the answers are read. The score
is linear in the last hidden state, so "yes" less "no" is one row too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_export.checkpoint import Checkpoint, SafetensorsReader
from bge_export.checkpoint.tokenizer import CheckpointTokenizer
from bge_export.decoder.config import DecoderConfig
from bge_export.parity_pairs import PARITY_PAIRS
from bge_runtime.bundle import TOKENIZER_FILE, PairReference, RerankerPrompt
from bge_runtime.encoding import PromptTokenizer, TextTokenizer
from bge_runtime.errors import ExportError
from bge_runtime.sources import RerankerQuestion

_HEAD = "lm_head.weight"

_PAIRS = tuple(pair for number, pair in enumerate(PARITY_PAIRS) if number % 4 in (0, 3))
"""Pairs of the parity gate: of each question one, half of them with a passage that answers it."""

_PAIR_TOKENS = 48
"""Most tokens of query and passage in the pairs of the parity gate, beside those of the prompt. As
for texts, all are in memory at once."""


@dataclass(frozen=True)
class Answers:
    """The tokens whose logits make the score.

    Attributes:
        source: The matrix that holds their rows, by its name in the checkpoint.
        yes: Id of the token of a passage that fits.
        no: Id of that of one that does not; None if only the logit of ``yes`` counts.
    """

    source: str
    yes: int
    no: int | None

    def score(self, vectors: NDArray[np.float32], reader: SafetensorsReader) -> NDArray[np.float32]:
        """Return the scores of last hidden states. Shape: ``(pairs,)``."""
        wide = vectors.astype(np.float64)
        logits = [
            wide @ reader.read(self.source, first=row, rows=1)[0].astype(np.float64)
            for row in self.rows
        ]
        scores = logits[0] if self.no is None else logits[0] - logits[1]
        return np.asarray(scores, dtype=np.float32)

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows of the matrix that are read."""
        return (self.yes,) if self.no is None else (self.yes, self.no)


def join_rows(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Return the row whose product with a hidden state is the score.

    Args:
        rows: The rows of `Answers.rows`. Shape: ``(1 or 2, hidden_size)``.

    Returns:
        Shape: ``(1, hidden_size)``.
    """
    wide = rows.astype(np.float32)
    return wide if len(wide) == 1 else wide[:1] - wide[1:]


def find_answers(
    checkpoint: Checkpoint,
    config: DecoderConfig,
    reader: SafetensorsReader,
    found: dict[str, str],
    tokenizer: CheckpointTokenizer,
) -> Answers | None:
    """Find the rows of the head that a reranker's score is made of; None for an embedder.

    Raises:
        ExportError: If it has no such rows, or its score is no product with them.
    """
    question, source = checkpoint.question, checkpoint.source
    if question is None:
        return None
    if config.logit_softcap is not None:
        raise ExportError(
            f"{source} softcaps its logits (final_logit_softcapping of its type {config.family}), "
            "which graphs of rerankers do not do; its scores would be others"
        )
    yes = _first_token(tokenizer, question.yes, source)
    no = None if question.no is None else _first_token(tokenizer, question.no, source)
    if yes == no:
        raise ExportError(
            f"the tokenizer of {source} begins {question.yes!r} and {question.no!r} with the same "
            "token, so all scores would be 0; pass the tokenizer that the model was trained with"
        )
    table = found["embed_tokens"]
    answers = Answers(table if config.tied_head else _HEAD, yes, no)
    if _HEAD in reader.names():
        _check_head(answers, table, reader, source)
    elif not config.tied_head:
        raise ExportError(
            f"{source} has no {_HEAD}, and tie_word_embeddings in its config.json is not true: "
            "its scores would be random. Save the model with its head (AutoModelForCausalLM)"
        )
    return answers


def _check_head(answers: Answers, table: str, reader: SafetensorsReader, source: str) -> None:
    if reader.shape(_HEAD) != reader.shape(table):
        raise ExportError(
            f"{_HEAD} of {source} has the shape {reader.shape(_HEAD)}, and {table} has "
            f"{reader.shape(table)}; a decoder's are the same"
        )
    if answers.source == _HEAD:
        return
    for row in answers.rows:
        theirs, own = (reader.read(name, first=row, rows=1) for name in (_HEAD, table))
        if (theirs != own).any():
            raise ExportError(
                f"{source} has tie_word_embeddings in its config.json, and a {_HEAD} that is not "
                f"{table}: of transformers, version 4 scores with one and version 5 with the "
                "other. Set it to false in a copy, or leave the tensor out, as the model was "
                "trained"
            )


def _first_token(tokenizer: CheckpointTokenizer, text: str, source: str) -> int:
    ids = _encode(tokenizer, text)
    if not ids:
        raise ExportError(f"the tokenizer of {source} makes no token of {text!r}")
    return ids[0]


def _encode(tokenizer: CheckpointTokenizer, text: str) -> list[int]:
    return list(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)


def make_prompt(question: RerankerQuestion, tokenizer: CheckpointTokenizer) -> RerankerPrompt:
    """Return a question's prompt, which starts as FlagEmbedding's for this tokenizer.

    That is with the beginning-of-sequence token, if there is one that is not used for padding.

    Raises:
        ExportError: If the tokenizer does not read that token as such.
    """
    start = tokenizer.special_tokens.get("bos_token")
    if question.prompt.start or start is None:
        return question.prompt
    number = tokenizer.token_id("bos_token")
    if number == tokenizer.pad_token_id:
        return question.prompt
    if _encode(tokenizer, start) != [number]:
        raise ExportError(
            f"the tokenizer does not read its bos_token {start!r} as one token; list it in "
            f"added_tokens of a copy of its {TOKENIZER_FILE}"
        )
    return replace(question.prompt, start=start)


def tokenize_prompts(
    draft: Path, tokenizer: CheckpointTokenizer, prompt: RerankerPrompt, *, max_length: int
) -> tuple[list[NDArray[np.int64]], Callable[[NDArray[np.float32]], PairReference]]:
    """Tokenize some of the parity pairs with the runtime's tokenizer.

    Args:
        draft: The bundle, with its ``tokenizer.json``.
        tokenizer: The checkpoint's tokenizer.
        prompt: The bundle's prompt.
        max_length: Most tokens that the model reads.

    Returns:
        The tokens of each pair, and what makes a reference of PyTorch's scores for them.

    Raises:
        ExportError: If these are not the tokens that FlagEmbedding puts together from the
            checkpoint's tokenizer.
    """
    runtime = PromptTokenizer(TextTokenizer(draft / TOKENIZER_FILE), prompt)
    queries, passages = zip(*_PAIRS, strict=True)
    whole = runtime.encode(queries, passages, max_length=1 << 20, query_max_length=1 << 20)
    for (query, passage), ids in zip(_PAIRS, whole, strict=True):
        parts = (
            prompt.start,
            prompt.query_format.format(prompt.query_instruction, query),
            prompt.separator,
            prompt.passage_format.format(prompt.passage_instruction, passage),
            *prompt.end,
        )
        expected = [number for part in parts for number in _encode(tokenizer, part)]
        if ids.tolist() != expected:
            raise ExportError(
                f"the runtime makes other tokens of the pair {query[:40]!r} and {passage[:40]!r} "
                "than the checkpoint's tokenizer does of its parts. Nothing was written; please "
                "report this model"
            )
    fixed = min(map(len, whole)) if prompt.counts_all else 0
    length = min(max_length, fixed + _PAIR_TOKENS)
    rows = runtime.encode(queries, passages, max_length=length, query_max_length=length * 3 // 4)
    return rows, lambda logits: PairReference(
        queries=queries,
        passages=passages,
        token_ids=tuple(rows),
        logits=logits,
        max_length=length,
    )
