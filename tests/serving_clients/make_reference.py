"""Make three tiny bundles, and the vectors and scores that a server of them must answer with.

    python tests/serving_clients/make_reference.py FOLDER

Run by the environment that has PyTorch; the clients' has none. FOLDER gets `reference.json`.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from bge_runtime import BGEM3FlagModel, FlagModel, FlagReranker
from tests.helpers.bundles import MADE_ONCE, export, make_once, write_tiny_bert, write_tiny_m3
from tests.helpers.rerankers import reranker_bundle

TEXTS = [
    "What is BGE M3?",
    "BM25 ranks documents by the query terms that appear in each of them.",
    "zwei Wörter, Größe 10 µm",
    "多语言检索 with mixed scripts 🙂",
    "one",
    "a line\nand another one\tafter a tab",
    "words that go on " * 40,
]
"""None is longer than the models read."""

TOO_LONG = "a text that goes on for longer than either model reads, " * 200

MANY = [f"entry {i}: {'some words ' * (i % 7)}" for i in range(2048)]
"""As many texts as OpenAI takes in a request."""

QUERY = "which words are these"
"""What the texts are scored for."""

INSTRUCTION = "Represent this sentence for searching relevant passages: "


def dense_reference(bundle: Path) -> dict[str, Any]:
    """Return the vectors of a model that has dense ones only."""
    raw = FlagModel(str(bundle), use_fp16=False, normalize_embeddings=False)
    short = FlagModel(str(bundle), use_fp16=False, truncate_dim=7)
    model = FlagModel(
        str(bundle), use_fp16=False, query_instruction_for_retrieval=INSTRUCTION,
        query_instruction_format="{}{}",
    )  # fmt: skip
    return {
        "passages": model.encode(TEXTS).tolist(),
        "queries": model.encode_queries(TEXTS).tolist(),
        "unnormalized": raw.encode(TEXTS).tolist(),
        "7 dimensions": short.encode(TEXTS).tolist(),
        "too_long": model.encode(TOO_LONG).tolist(),
        "many": model.encode(MANY).tolist(),
    }


def m3_reference(bundle: Path) -> dict[str, Any]:
    """Return the three outputs of M3; lexical weights by token id, as ``{"id": weight}``."""
    model = BGEM3FlagModel(str(bundle), use_fp16=False)
    output = model.encode(TEXTS, return_sparse=True, return_colbert_vecs=True)
    assert output["dense_vecs"] is not None
    assert output["lexical_weights"] is not None
    assert output["colbert_vecs"] is not None
    return {
        "passages": output["dense_vecs"].tolist(),
        "lexical_weights": [
            {token: float(weight) for token, weight in weights.items()}
            for weights in output["lexical_weights"]
        ],
        "colbert_vecs": [vectors.tolist() for vectors in output["colbert_vecs"]],
    }


def reranker_reference(bundle: Path) -> dict[str, Any]:
    """Return the scores of the texts for a query, between 0 and 1 and as logits."""
    model = FlagReranker(str(bundle), use_fp16=False)
    pairs = [(QUERY, text) for text in TEXTS]
    length = model.model_max_length
    return {
        "query": QUERY,
        "scores": model.compute_score(pairs, max_length=length, normalize=True),
        "logits": model.compute_score(pairs, max_length=length),
        "too_long": model.compute_score([QUERY, TOO_LONG], max_length=length, normalize=True),
    }


def main(folder: Path) -> None:
    os.environ.setdefault(MADE_ONCE, str(folder))
    checkpoint = make_once("tiny", write_tiny_bert)
    bundle = make_once("serving-bundle", partial(export, checkpoint, targets=("cpu",)))
    m3_checkpoint = make_once("tiny-m3", write_tiny_m3)
    make_m3 = partial(export, m3_checkpoint, targets=("cpu",), model_class="encoder-only-m3")
    m3_bundle = make_once("serving-m3-bundle", make_m3)
    ranker = reranker_bundle("xlm-roberta", targets=("cpu",))
    reference = {
        "texts": TEXTS,
        "too_long": TOO_LONG,
        "many": MANY,
        "instruction": INSTRUCTION,
        "docs": {"bundle": str(bundle), **dense_reference(bundle)},
        "m3": {"bundle": str(m3_bundle), **m3_reference(m3_bundle)},
        "ranker": {"bundle": str(ranker), **reranker_reference(ranker)},
    }
    (folder / "reference.json").write_text(json.dumps(reference))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
