"""How decoders that rerank are asked about a pair, and which answers count."""

from __future__ import annotations

from dataclasses import dataclass

from bge_runtime.bundle import RerankerPrompt


@dataclass(frozen=True, kw_only=True)
class RerankerQuestion:
    """A question about a pair, whose answer is one token.

    The score is the logit of ``yes``, less that of ``no`` if there is one.

    Attributes:
        prompt: The question. An empty ``start`` stands for the tokenizer's beginning-of-sequence
            token, if it has one.
        yes: The answer of a passage that fits; its first token counts.
        no: The answer of one that does not; None if only the logit of ``yes`` counts.
    """

    prompt: RerankerPrompt
    yes: str
    no: str | None


BGE_QUESTION = RerankerQuestion(
    prompt=RerankerPrompt(
        start="",
        query_instruction="A: ",
        query_format="{}{}",
        separator="\n",
        passage_instruction="B: ",
        passage_format="{}{}",
        end=(
            "\n",
            (
                "Given a query A and a passage B, determine whether the passage contains an answer "
                "to the query by providing a prediction of either 'Yes' or 'No'."
            ),
        ),
    ),
    yes="Yes",
    no=None,
)
"""That of FlagEmbedding 1.4.2 (``FlagLLMReranker``)."""

QWEN3_QUESTION = RerankerQuestion(
    prompt=RerankerPrompt(
        start="<|im_start|>system\nJudge whether the Document meets the requirements based on the "
        'Query and the Instruct provided. Note that the answer can only be "yes" or '
        '"no".<|im_end|>\n<|im_start|>user\n',
        query_instruction="Given a web search query, retrieve relevant passages that answer the "
        "query",
        query_format="<Instruct>: {}\n<Query>: {}\n<Document>:",
        separator="",
        passage_instruction="",
        passage_format="{} {}",
        end=("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",),
        counts_all=True,
    ),
    yes="yes",
    no="no",
)
"""That of Qwen3-Reranker's model cards. A space begins a word in its tokenizer, so the passage
begins with the one behind ``<Document>:``."""
