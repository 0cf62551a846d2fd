"""Decoders against FlagEmbedding with eager attention, past the windows of those that have one.

Three layers at true width ratios, seeded weights, the real Mistral tokenizer where it is, and
English, Chinese and code of 1 to 1,100 tokens, with windows of 512; the true windows of 4096, and
4,500 tokens, are slow.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_bench.systems.base import flagembedding, quiet
from bge_runtime import FlagICLModel, FlagLLMModel
from bge_runtime.bundle.parity import Tolerance, compare
from bge_runtime.sources import DECODER_ONLY_BASE, DECODER_ONLY_ICL, DecoderShape
from tests.helpers.bundles import SHARED
from tests.helpers.decoders import export_decoder

MISTRAL = DecoderShape(
    architecture="mistral", layers=3, hidden_size=512, heads=4, kv_heads=1, head_dim=128,
    intermediate_size=1792, vocab_size=32003, max_length=8192, rms_norm_eps=1e-5,
)  # fmt: skip
SHAPES = {
    "bge-en-icl": MISTRAL,
    "bge-multilingual-gemma2": replace(
        MISTRAL, architecture="gemma2", hidden_size=448, heads=4, kv_heads=2, head_dim=64
    ),
    "gte-Qwen2-7B-instruct": replace(
        MISTRAL, architecture="qwen2", hidden_size=448, heads=7, head_dim=64,
        intermediate_size=2368, rope_theta=1e6, causal=False,
    ),
    "Qwen2": replace(MISTRAL, architecture="qwen2", rope_theta=1e6),
    "Qwen3-Embedding-0.6B": replace(
        MISTRAL, architecture="qwen3", hidden_size=256, kv_heads=2, head_dim=64,
        intermediate_size=768, rope_theta=1e6,
    ),
}  # fmt: skip
"""A family each, at the ratios of width, heads and feed-forward layer of the model."""

LIMITS = {
    "fp32": Tolerance(
        min_cosine=0.99999, max_error=1e-4, max_error_share=0.01, reason="issue: a drop-in's"
    ),
    "bf16": Tolerance(
        min_cosine=0.998, max_error=0.02, max_error_share=0.05, reason="as in parity.py"
    ),
}

INSTRUCTION = "Given a question, retrieve passages that answer the question."
EXAMPLES = [
    {
        "instruct": "Given a web search query, retrieve relevant passages.",
        "query": "what is a virtual interface",
        "response": "A virtual interface mimics a physical network interface in software. " * 6,
    },
    {"query": "causes of back pain", "response": "Muscle strain, or how one sits. " * 9},
]
QUERIES = ["how much protein should a female eat", "summit define", "", " leading space", "s",
           "\nnewline first", "什么是热泵", "def f(x): return x", ":", "summit"]  # fmt: skip
"""Some whose tokens merge with what is put before them, and one of nothing."""


def write_checkpoint(folder: Path, name: str, *, window: int) -> Path:
    from transformers import LlamaTokenizerFast

    from bge_export.synthetic.decoder import write_random_decoder
    from bge_export.synthetic.encoder import make_tokenizer

    folder.mkdir(parents=True)
    write_random_decoder(SHAPES[name], folder, seed=3)
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    if "sliding_window" in config:
        path.write_text(json.dumps({**config, "sliding_window": window}), "utf-8")
    real = SHARED / "tokenizers" / "mistral-7b-v0.1" / "tokenizer.model"
    if real.is_file():
        tokenizer = LlamaTokenizerFast(str(real), add_eos_token=True, legacy=True)
        tokenizer.pad_token = "</s>"
        tokenizer.add_special_tokens(
            {"additional_special_tokens": ["<instruct>", "<query>", "<response>"]}
        )
    else:
        shape = SHAPES[name]
        tokenizer = make_tokenizer(shape.vocab_size, shape.architecture, reads_examples=True)
    tokenizer.save_pretrained(folder)
    return folder


def corpus() -> list[str]:
    """Texts of 1 to about 5,000 tokens, in two languages and Python."""
    code = Path(compare.__code__.co_filename).read_text()
    words = " ".join(f"{a} {b}" for a in code.split()[:40] for b in ("river", "mill", "热泵"))
    long = " ".join(code.split()) + words * 20
    return ["a", "好", "A heat pump moves warmth from outside air into a building.",
            "热泵把室外空气中的热量带进建筑物。" * 12, code[:1500], long[:6000],
            long, "Summits are high. " * 30]  # fmt: skip


class Sides:
    """Both models of one checkpoint."""

    def __init__(self, folder: Path, name: str) -> None:
        """Take a folder that `make` has filled."""
        self.name = name
        self.checkpoint, self.bundle = folder / "checkpoint", folder / "bundle"

    @classmethod
    def make(cls, folder: Path, name: str, *, window: int = 512) -> Sides:
        sides = cls(folder, name)
        write_checkpoint(sides.checkpoint, name, window=window)
        export_decoder(sides.checkpoint, sides.bundle, model_class=sides.model_class)
        return sides

    def theirs(self, call: Callable[[Any], Any], **options) -> Any:
        with quiet():
            model = flagembedding(str(self.checkpoint), self.model_class, **options)
            model.model.set_attn_implementation("eager")
            assert model.model.config._attn_implementation == "eager"
            return call(model)

    def ours(self, precision: str, **options) -> Any:
        kind = FlagICLModel if self.icl else FlagLLMModel
        model = kind(str(self.bundle), precision=precision, devices="cpu", **options)
        assert model.engine.info.precision == precision
        return model

    @property
    def icl(self) -> bool:
        return self.name == "bge-en-icl"

    @property
    def model_class(self) -> str:
        return DECODER_ONLY_ICL if self.icl else DECODER_ONLY_BASE


@pytest.fixture(scope="module", params=list(SHAPES))
def sides(request, made_once) -> Sides:
    name = request.param
    return Sides(made_once(f"fidelity-{name}", partial(Sides.make, name=name)), name)


@pytest.fixture(scope="module")
def their_queries(sides: Sides) -> Callable[..., np.ndarray]:
    """FlagEmbedding's vectors of `QUERIES` behind the instruction, by examples."""

    @cache
    def vectors(with_examples: bool) -> np.ndarray:
        options = asked(sides, with_examples)
        return sides.theirs(lambda model: model.encode_queries(QUERIES), **options)

    return vectors


def asked(sides: Sides, with_examples: bool) -> dict[str, Any]:
    """Give the options of queries behind the instruction."""
    options: dict[str, Any] = {"query_instruction_for_retrieval": INSTRUCTION}
    if sides.icl:
        options["examples_for_task"] = EXAMPLES if with_examples else None
    return options


def precisions(sides: Sides) -> list[str]:
    from bge_runtime.bundle.bundle import Bundle
    from bge_runtime.engines import unavailable_reason

    variants = Bundle.open(sides.bundle).manifest.variants
    return [
        variant.precision for variant in variants if unavailable_reason(variant.requirement) is None
    ]


def check(vectors: np.ndarray, expected: np.ndarray, precision: str) -> None:
    assert vectors.dtype == expected.dtype
    assert compare(vectors, expected).missed(LIMITS[precision]) == []


def test_passages_of_every_length(sides: Sides):
    check_passages(sides, 1100)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_passages_at_the_true_window(name: str, tmp_path: Path):
    check_passages(Sides.make(tmp_path, name, window=4096), 4500)


def check_passages(sides: Sides, longest: int) -> None:
    texts = corpus()
    options = {"max_length": longest}
    expected = sides.theirs(lambda model: model.encode_corpus(texts, batch_size=2, **options))
    for precision in precisions(sides):
        model = sides.ours(precision)
        lengths = [len(ids) for ids in model.tokenizer.encode(texts, **options)]
        assert min(lengths) <= 4
        assert max(lengths) == longest
        check(model.encode_corpus(texts, **options), expected, precision)


@pytest.mark.parametrize("reuse", [True, False], ids=["prefix reused", "every token run"])
@pytest.mark.parametrize("examples", [True, False], ids=["examples", "no examples"])
def test_queries_behind_an_instruction(sides: Sides, their_queries, examples, reuse):
    if not sides.icl and not examples:
        pytest.skip("takes no examples")
    options, expected = asked(sides, examples), their_queries(examples)
    for precision in precisions(sides):
        model = sides.ours(precision, prefix_cache_mb=1024 if reuse else 0, **options)
        check(model.encode_queries(QUERIES), expected, precision)
        alone = np.stack([model.encode_queries(query) for query in QUERIES])
        check(alone, expected, precision)
        stats = model.prefix_cache.stats
        causal = sides.name != "gte-Qwen2-7B-instruct"
        assert (stats.tokens_saved > 0) == (reuse and causal)


def test_reuse_changes_nothing_but_rounding(sides: Sides):
    models = [sides.ours("fp32", query_instruction_for_retrieval=INSTRUCTION,
                         prefix_cache_mb=mb) for mb in (1024, 0)]  # fmt: skip
    with_reuse, without = (model.encode_queries(QUERIES) for model in models)
    np.testing.assert_allclose(with_reuse, without, atol=1e-5)


def test_a_wrong_past_is_noticed(sides: Sides, their_queries, monkeypatch):
    """Seen failing: a prefix cache that hands out the keys of other tokens."""
    if sides.name != "bge-en-icl":
        pytest.skip("shown once")
    from bge_runtime.encoding import prefix_cache

    options, expected = asked(sides, with_examples=True), their_queries(True)
    right = prefix_cache.prefill
    monkeypatch.setattr(
        prefix_cache, "prefill", lambda engine, ids, past=None: right(engine, ids[::-1], past)
    )
    vectors = sides.ours("fp32", **options).encode_queries(QUERIES)
    assert compare(vectors, expected).missed(LIMITS["fp32"])
