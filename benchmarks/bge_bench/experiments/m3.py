"""Time what BGE-M3 adds to its encoder: heads, post-processing and matching of weights.

Everything runs in one process; the two sides of a ratio take turns.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_bench.errors import BenchError
from bge_bench.systems.base import quiet
from bge_runtime import BGEM3FlagModel, FlagModel
from bge_runtime.bundle import COLBERT_VECS, SENTENCE_EMBEDDING, TOKEN_WEIGHTS
from bge_runtime.engines import Engine
from bge_runtime.m3 import LexicalWeights

TOKENS = 512
"""Tokens of each text, as in measurements that users have reported."""

_EXCLUDED = (0, 1, 2, 3)
"""Ids of XLM-RoBERTa's [CLS], padding, end and unknown tokens."""

_VOCABULARY = 250_002
_BATCH = 32

Batch = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Token ids and their weights. Shape of both: ``(texts, tokens)``."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Seconds of two ways to do the same work, one entry for each round.

    Attributes:
        what: The work.
        mine: Seconds of the first way.
        other: Seconds of the way it is compared with.
        names: Names of the two.
        largest_difference: Largest difference between their results.
    """

    what: str
    names: tuple[str, str]
    mine: list[float]
    other: list[float]
    largest_difference: float

    @property
    def ratio(self) -> float:
        """Seconds of the other way divided by mine: the median over the rounds."""
        pairs = zip(self.other, self.mine, strict=True)
        return statistics.median(other / mine for other, mine in pairs)

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary with all numbers and the ratio."""
        return {**asdict(self), "times_faster": self.ratio}


def measure_heads(
    folder: Path,
    headless: Path,
    *,
    precision: str,
    rounds: int,
    texts: int = 2,
    step: Callable[[str], object],
) -> list[Pair]:
    """Time the engine's dense output without heads in the graph, with them, and all outputs.

    Args:
        folder: The model's bundle.
        headless: Bundle of the same checkpoint, exported as ``encoder-only-base``.
        precision: As for `BGEM3FlagModel`.
        rounds: Number of times that each is timed.
        texts: Texts of `TOKENS` tokens in the batch.
        step: Called with a message before each of ``3 + rounds`` steps.

    Raises:
        BenchError: If the two do not run on the same engine in the same precision.
    """
    dense, every = (SENTENCE_EMBEDDING,), (SENTENCE_EMBEDDING, TOKEN_WEIGHTS, COLBERT_VECS)

    def m3(*, all_outputs: bool) -> BGEM3FlagModel:
        # OpenVINO compiles a model for its outputs, so each way has its own model.
        return BGEM3FlagModel(
            str(folder),
            return_sparse=all_outputs,
            return_colbert_vecs=all_outputs,
            precision=precision,
            devices="cpu",
        )

    with quiet():
        bare = FlagModel(str(headless), precision=precision, devices="cpu")
        model = m3(all_outputs=False)
        ways: dict[str, tuple[Engine, tuple[str, ...]]] = {
            "without heads": (bare.engine, dense),
            "dense alone": (model.engine, dense),
            "all outputs": (m3(all_outputs=True).engine, every),
        }
    mine, other = model.engine.info, bare.engine.info
    if (mine.variant, mine.threads) != (other.variant, other.threads):
        raise BenchError(f"the encoder without heads runs as {other}, and the model as {mine}")
    vocabulary = model.bundle.manifest.model.vocab_size
    ids = np.random.default_rng(0).integers(len(_EXCLUDED), vocabulary, (texts, TOKENS))
    mask = np.ones_like(ids)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    vectors: dict[str, NDArray[np.float32]] = {}

    def run(name: str) -> float:
        engine, outputs = ways[name]
        start = time.perf_counter()
        results = engine.run(ids, mask, outputs)
        took = time.perf_counter() - start
        vectors[name] = results[0]
        return took

    names = list(ways)
    for name in names:
        step(f"heads: {name}, warm up")
        run(name)
    for number in range(rounds):
        step(f"heads: round {number + 1} of {rounds}")
        for turn in range(len(names)):
            name = names[(number + turn) % len(names)]
            seconds[name].append(run(name))
    return [
        Pair(
            what=f"one batch of {texts} texts of {TOKENS} tokens, {mine}",
            names=(name, before),
            mine=seconds[name],
            other=seconds[before],
            largest_difference=float(np.abs(vectors[name] - vectors[before]).max()),
        )
        for before, name in itertools.pairwise(names)
    ]


def passages(count: int) -> list[Batch]:
    """Return random token ids and weights; ids repeat as in text, half of the weights are positive.

    The id of rank r is drawn in proportion to 1 / (r + 10) ** 1.3, Zipf's law in Mandelbrot's
    form. 297 of a text's ids are different; in XQuAD's paragraphs, by XLM-RoBERTa's tokenizer,
    266 (Hindi) to 317 (Russian) of 510 are.
    """
    chance = np.random.default_rng(count)
    shares = 1 / (np.arange(_VOCABULARY - len(_EXCLUDED)) + 10) ** 1.3
    ids = chance.choice(len(shares), (count, TOKENS), p=shares / shares.sum()) + len(_EXCLUDED)
    ids[:, 0], ids[:, -1] = 0, 2
    weights = np.maximum(chance.normal(0, 0.1, ids.shape), 0).astype(np.float32)
    return [
        (ids[start : start + _BATCH], weights[start : start + _BATCH])
        for start in range(0, count, _BATCH)
    ]


def measure_postprocessing(
    folder: Path, batches: Sequence[Batch], *, rounds: int, step: Callable[[str], object]
) -> list[Pair]:
    """Time making dictionaries, and a CSR matrix, against FlagEmbedding's own dictionaries.

    Args:
        folder: A bundle, for its tokenizer.
        batches: Outputs of the graph, batch by batch.
        rounds: Number of times that each is timed.
        step: Called with a message before each of ``rounds`` steps.
    """
    theirs = _flagembedding(folder, batches)
    count = sum(len(ids) for ids, _ in batches)
    seconds: dict[str, list[float]] = {"dicts": [], "csr": [], "theirs": []}
    for number in range(rounds):
        step(f"post-processing: round {number + 1} of {rounds}")
        _, before = _timed(lambda: theirs(process=False))
        expected, took = _timed(theirs)
        seconds["theirs"].append(took - before)
        dicts, took = _timed(lambda: _lexical(batches).to_dicts())
        seconds["dicts"].append(took)
        csr, took = _timed(lambda: _lexical(batches, by_id=True).to_csr(_VOCABULARY))
        seconds["csr"].append(took)
    wrong = [row for row, (a, b) in enumerate(zip(dicts, expected, strict=True)) if a != b]
    if wrong or [list(row) for row in dicts] != [list(row) for row in expected]:
        raise BenchError(f"post-processing of {len(wrong)} passages differs from FlagEmbedding's")
    difference = np.abs(csr - LexicalWeights.from_dicts(expected).to_csr(_VOCABULARY)).max()
    what = f"weights of {count} passages of {TOKENS} tokens"
    return [
        Pair(
            what=what,
            names=(f"bge-runtime, into {kind}", "FlagEmbedding, into dictionaries"),
            mine=seconds[kind],
            other=seconds["theirs"],
            largest_difference=float(difference),
        )
        for kind in ("dicts", "csr")
    ]


def measure_matching(
    queries: Sequence[Batch], passages: Sequence[Batch], *, step: Callable[[str], object]
) -> Pair:
    """Time the lexical scores of all queries with all passages, once, from dictionaries."""
    step("matching: FlagEmbedding")
    left, right = _lexical(queries).to_dicts(), _lexical(passages).to_dicts()
    with quiet():
        from FlagEmbedding.inference.embedder.encoder_only.m3 import M3Embedder
    score = M3Embedder.compute_lexical_matching_score  # makes no use of the model
    expected, theirs = _timed(lambda: score(None, left, right))
    step("matching: bge-runtime")
    found, mine = _timed(lambda: BGEM3FlagModel.compute_lexical_matching_score(left, right))
    return Pair(
        what=f"lexical scores of {len(left)} x {len(right)} texts of {TOKENS} tokens",
        names=("bge-runtime", "FlagEmbedding"),
        mine=[mine],
        other=[theirs],
        largest_difference=float(np.abs(found - expected).max()),
    )


def _lexical(batches: Sequence[Batch], *, by_id: bool = False) -> LexicalWeights:
    parts = [
        LexicalWeights.from_tokens(weights, ids, np.ones_like(ids), excluded=_EXCLUDED, by_id=by_id)
        for ids, weights in batches
    ]
    return LexicalWeights.concatenate(parts, np.arange(sum(map(len, parts))))


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def _flagembedding(folder: Path, batches: Sequence[Batch]) -> Callable[..., Any]:
    """Return a function that runs FlagEmbedding's post-processing; ``process=False`` omits it.

    The post-processing is the end of ``M3Embedder.encode_single_device``. Tokens and outputs of the
    model are random; the tokenizer that it asks for special tokens, text by text, is the real one.
    """
    with quiet():
        import torch
        from FlagEmbedding.inference.embedder.encoder_only.m3 import M3Embedder
        from transformers import AutoTokenizer, BatchEncoding

        real = AutoTokenizer.from_pretrained(folder)

    texts = [ids for batch, _ in batches for ids in batch.tolist()]
    every = torch.from_numpy(np.concatenate([weights for _, weights in batches]))[:, :, None]

    class Tokenizer:
        @property
        def special_tokens_map(self) -> dict[str, str]:
            found: dict[str, str] = real.special_tokens_map
            return found

        def __call__(self, sentences: Sequence[int], **_: Any) -> dict[str, Any]:
            return {"input_ids": [texts[row] for row in sentences], "row": list(sentences)}

        def convert_tokens_to_ids(self, token: str) -> int:
            found: int = real.convert_tokens_to_ids(token)
            return found

        def pad(self, encoded: dict[str, Any], **_: Any) -> Any:
            return BatchEncoding(encoded, tensor_type="pt")  # all of one length

    class Model(torch.nn.Module):
        def forward(self, inputs: Any, **_: Any) -> dict[str, Any]:
            return {"sparse_vecs": every[inputs["row"]]}

    class Embedder(M3Embedder):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self.tokenizer, self.model = Tokenizer(), Model()
            self.target_devices, self.truncate_dim, self.pool = ["cpu"], None, None
            self.use_bf16 = False

        def __del__(self) -> None:
            """Skip FlagEmbedding's garbage collection, which would be timed."""

    embedder = Embedder()

    def call(*, process: bool = True) -> list[dict[str, Any]]:
        with quiet():
            results = embedder.encode_single_device(
                list(range(len(texts))),
                batch_size=_BATCH,
                return_dense=False,
                return_sparse=process,
            )
        weights: list[dict[str, Any]] = results["lexical_weights"]
        return weights

    return call
