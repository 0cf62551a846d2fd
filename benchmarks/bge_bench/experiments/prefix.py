"""Time queries whose shared prefix, an instruction and examples, is computed once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import bge_runtime
from bge_bench.datasets.corpus import short_texts
from bge_bench.errors import BenchError
from bge_bench.experiments.m3 import Pair
from bge_bench.systems.base import CLASSES, flagembedding, quiet
from bge_runtime.bundle import Bundle
from bge_runtime.sources import DECODER_CLASSES, DECODER_ONLY_ICL

INSTRUCTION = "Given a question, retrieve passages that answer the question."

EXAMPLES = [
    {
        "instruct": INSTRUCTION,
        "query": "why does bread dough rise twice",
        "response": "The first rise lets the yeast multiply and the gluten relax; much of the gas "
        "it makes is pressed out again when the loaf is shaped. The second rise fills the shaped "
        "loaf with new and smaller bubbles, which the heat of the oven then sets. A loaf that is "
        "baked after one rise alone has large holes and a tight crumb between them, and it tastes "
        "of little, since flavour comes with time. Cold slows both rises down, which is why many "
        "bakers leave the dough in a cellar overnight and shape it in the morning.",
    },
    {
        "instruct": INSTRUCTION,
        "query": "what keeps a canal full on a hill",
        "response": "A canal that crosses a hill loses a lock of water at each end whenever a boat "
        "goes over, besides what seeps away and dries up. Reservoirs above the summit make "
        "up for it; they are filled in winter and let down by sluices through the summer. Where no "
        "stream is high enough, pumps bring the water back from below, and ponds beside the "
        "locks keep half of each filling for the next boat. In dry years boats have to wait for "
        "one another, so that each filling of a lock serves two.",
    },
]
"""Written here, about as long as those in FlagEmbedding's documentation."""

_WORDS = 13
"""Words of a query: about 20 tokens of Mistral's tokenizer."""

_BATCH_SIZE, _BATCH_SIZE_ON_GPU = 8, 256
"""FlagEmbedding's default is 256; on a CPU its padding costs more than it gains."""

_REUSED = "prefix computed once"


def read_examples(path: Path) -> list[dict[str, str]]:
    """Return the examples of a JSON file: a list of objects in the form of ``FlagICLModel``.

    Raises:
        BenchError: If it cannot be read.
    """
    try:
        examples: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"cannot read {path}: {error}") from error
    return examples


def measure_prefix(
    bundle: Bundle,
    checkpoint: Path,
    *,
    count: int,
    examples: Sequence[dict[str, str]],
    precision: str,
    rounds: int,
    step: Callable[[str], object],
    device: str = "cpu",
) -> tuple[list[Pair], dict[str, Any]]:
    """Time queries with their prefix computed once, with it computed each time, and FlagEmbedding.

    Each round starts with an empty cache, so it includes computing the prefix.

    Args:
        bundle: Bundle of a decoder.
        checkpoint: The checkpoint it was made from.
        count: Number of queries.
        examples: Examples before each query; only bge-en-icl uses them.
        precision: Precision of the bundle.
        rounds: Number of times that everything is measured, in turns.
        step: Called with a message before each of ``rounds * 3`` steps.
        device: Device of all; on a GPU FlagEmbedding computes in fp16, its default.

    Returns:
        Two pairs, and facts about what ran and what the cache saved.

    Raises:
        BenchError: If the bundle's model is not a decoder.
    """
    model_class = bundle.manifest.model.model_class
    if model_class not in DECODER_CLASSES:
        raise BenchError(
            f"{bundle.path.name} is an encoder, whose tokens attend to those after them, so no "
            "prefix can be computed once. Pass the bundle of a decoder"
        )
    queries = short_texts(count, words=_WORDS)
    batch_size = _BATCH_SIZE if device == "cpu" else _BATCH_SIZE_ON_GPU
    options: dict[str, Any] = {"query_instruction_for_retrieval": INSTRUCTION}
    if model_class == DECODER_ONLY_ICL:
        options["examples_for_task"] = list(examples)

    def ours(cache_mb: int) -> Any:
        return getattr(bge_runtime, CLASSES[model_class])(
            str(bundle.path), precision=precision, devices=device, prefix_cache_mb=cache_mb,
            **options,
        )  # fmt: skip

    with quiet():
        reusing = ours(1024)
        models = {
            _REUSED: reusing,
            "every token run": ours(0),
            "FlagEmbedding": flagembedding(
                str(checkpoint), model_class, device=device, use_fp16=device != "cpu",
                batch_size=batch_size, **options,
            ),
        }  # fmt: skip
        for model in models.values():
            model.encode_queries(queries[:2])
    pairs = _time_in_turns(models, queries, rounds=rounds, step=step)
    lengths = [len(ids) for ids in reusing.tokenizer.encode(queries, max_length=512)]
    reusing.prefix_cache.clear()
    with quiet():
        reusing.encode_queries(queries)
    return pairs, {
        "in_force": str(reusing.engine.info),
        "baseline_in_force": f"FlagEmbedding in {'fp32' if device == 'cpu' else 'fp16'}, "
        f"batches of {batch_size}",
        "median_query_tokens": float(np.median(lengths)),
        "prefix_cache": str(reusing.prefix_cache.stats),
    }


def _time_in_turns(
    models: Mapping[str, Any],
    queries: Sequence[str],
    *,
    rounds: int,
    step: Callable[[str], object],
) -> list[Pair]:
    """Time the models' queries in turn, and pair the first model with each of the others."""
    names = list(models)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    vectors: dict[str, NDArray[np.float32]] = {}
    for number in range(rounds):
        for name in names[number % 3 :] + names[: number % 3]:
            step(f"prefix: {name}, round {number + 1} of {rounds}")
            models[_REUSED].prefix_cache.clear()
            with quiet():
                start = time.perf_counter()
                vectors[name] = models[name].encode_queries(queries)
                seconds[name].append(time.perf_counter() - start)
    return [
        Pair(
            what=f"{len(queries)} queries",
            names=(_REUSED, other),
            mine=seconds[_REUSED],
            other=seconds[other],
            largest_difference=float(np.abs(vectors[_REUSED] - vectors[other]).max()),
        )
        for other in names[1:]
    ]
