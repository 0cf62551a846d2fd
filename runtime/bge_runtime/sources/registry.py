"""Facts about published models: one row a model, read by export and runtime.

The runtime does not need this table to open a bundle, which describes itself.
It serves to look a model up by its name, as FlagEmbedding's ``FlagAutoModel`` does,
and to export one.

Names, classes, pooling and query formats follow ``AUTO_EMBEDDER_MAPPING`` of
FlagEmbedding 1.4.2; query instructions follow the model list on that project's
embedder page; shapes follow the ``config.json`` that each checkpoint publishes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import PurePath

ENCODER_ONLY_BASE = "encoder-only-base"
ENCODER_ONLY_M3 = "encoder-only-m3"
DECODER_ONLY_BASE = "decoder-only-base"
DECODER_ONLY_ICL = "decoder-only-icl"
DECODER_ONLY_PSEUDO_MOE = "decoder-only-pseudo_moe"

MODEL_CLASSES = (
    ENCODER_ONLY_BASE,
    ENCODER_ONLY_M3,
    DECODER_ONLY_BASE,
    DECODER_ONLY_ICL,
    DECODER_ONLY_PSEUDO_MOE,
)
"""The ``model_class`` values that FlagEmbedding knows."""

OPENED_BY = {
    ENCODER_ONLY_BASE: "FlagModel",
    ENCODER_ONLY_M3: "BGEM3FlagModel",
    DECODER_ONLY_BASE: "FlagLLMModel",
    DECODER_ONLY_ICL: "FlagICLModel",
}
"""Python class that opens models of each class."""

ENCODER_CLASSES = (ENCODER_ONLY_BASE, ENCODER_ONLY_M3)
"""Those of them that are encoders."""

DECODER_CLASSES = (DECODER_ONLY_BASE, DECODER_ONLY_ICL)
"""Those of them that are decoders and that this version runs."""

SUPPORTED_MODEL_CLASSES = (*ENCODER_CLASSES, *DECODER_CLASSES)
"""The ``model_class`` values that this version exports and runs."""

ENCODERS = ("bert", "roberta", "xlm-roberta")
"""``model_type`` values whose encoders are exported without remote code."""

DECODERS = ("mistral", "gemma2", "qwen2", "qwen3")
"""``model_type`` values whose decoders are; their graphs never run remote code."""

HEAD_FILES = ("sparse_linear.pt", "colbert_linear.pt")
"""The heads of a model of M3's class, beside its encoder."""

POOLING_METHODS = ("cls", "mean", "last_token")
"""Pooling methods that graphs can contain; the last one is for decoders and for M3."""


@dataclass(frozen=True, kw_only=True)
class BertShape:
    """The size of a BERT or XLM-RoBERTa encoder.

    Attributes:
        layers: Number of transformer layers.
        hidden_size: Width of the hidden states.
        heads: Attention heads per layer.
        intermediate_size: Width of the feed-forward layer.
        vocab_size: Rows of the word-embedding table.
        architecture: ``model_type`` of its configuration.
        max_length: Most tokens that it can read.
    """

    layers: int
    hidden_size: int
    heads: int
    intermediate_size: int
    vocab_size: int
    architecture: str = "bert"
    max_length: int = 512


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """The size of a decoder; what it leaves open is as transformers' configuration has it.

    Attributes:
        architecture: ``model_type`` of its configuration.
        layers: Number of transformer layers.
        hidden_size: Width of the hidden states.
        heads: Query heads per layer.
        kv_heads: Key and value heads per layer.
        head_dim: Width of a head.
        intermediate_size: Width of the feed-forward layer.
        vocab_size: Rows of the word-embedding table.
        max_length: Most tokens that it can read.
        rope_theta: Base of the rotary frequencies.
        rms_norm_eps: Added to the mean square in each norm.
        causal: Whether a token sees only those before it.
    """

    architecture: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_length: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    causal: bool = True


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What is known about a published model before its files are seen.

    Attributes:
        hub_id: Repository on the Hugging Face hub.
        model_class: FlagEmbedding's class name, one of `MODEL_CLASSES`.
        pooling: ``"cls"``, ``"mean"`` or ``"last_token"``.
        query_instruction: The instruction its authors recommend for queries.
        query_instruction_format: How instruction and query are joined.
        trust_remote_code: Whether the model's code lives in its checkpoint.
        shape: Its size, for the models that can be made with random weights.
    """

    hub_id: str
    model_class: str = ENCODER_ONLY_BASE
    pooling: str = "cls"
    query_instruction: str | None = None
    query_instruction_format: str = "{}{}"
    trust_remote_code: bool = False
    shape: BertShape | DecoderShape | None = None

    @property
    def name(self) -> str:
        """The repository's name without its owner."""
        return self.hub_id.rpartition("/")[2]


_ENGLISH = "Represent this sentence for searching relevant passages: "
_CHINESE = "为这个句子生成表示以用于检索相关文章："

_SHAPES = {
    "small-en": BertShape(
        layers=12, hidden_size=384, heads=12, intermediate_size=1536, vocab_size=30522
    ),
    "base-en": BertShape(
        layers=12, hidden_size=768, heads=12, intermediate_size=3072, vocab_size=30522
    ),
    "large-en": BertShape(
        layers=24, hidden_size=1024, heads=16, intermediate_size=4096, vocab_size=30522
    ),
    "small-zh": BertShape(
        layers=4, hidden_size=512, heads=8, intermediate_size=2048, vocab_size=21128
    ),
    "base-zh": BertShape(
        layers=12, hidden_size=768, heads=12, intermediate_size=3072, vocab_size=21128
    ),
    "large-zh": BertShape(
        layers=24, hidden_size=1024, heads=16, intermediate_size=4096, vocab_size=21128
    ),
}


_MISTRAL_7B = DecoderShape(
    architecture="mistral", layers=32, hidden_size=4096, heads=32, kv_heads=8, head_dim=128,
    intermediate_size=14336, vocab_size=32000, max_length=32768, rms_norm_eps=1e-5,
)  # fmt: skip
_GEMMA2_9B = DecoderShape(
    architecture="gemma2", layers=42, hidden_size=3584, heads=16, kv_heads=8, head_dim=256,
    intermediate_size=14336, vocab_size=256002, max_length=8192,
)  # fmt: skip
_QWEN2_7B = DecoderShape(
    architecture="qwen2", layers=28, hidden_size=3584, heads=28, kv_heads=4, head_dim=128,
    intermediate_size=18944, vocab_size=151646, max_length=131072, rope_theta=1e6, causal=False,
)  # fmt: skip
_QWEN3_06B = DecoderShape(
    architecture="qwen3", layers=28, hidden_size=1024, heads=16, kv_heads=8, head_dim=128,
    intermediate_size=3072, vocab_size=151669, max_length=32768, rope_theta=1e6,
)  # fmt: skip


def _bert_family() -> list[ModelSpec]:
    return [
        ModelSpec(
            hub_id=f"BAAI/bge-{size}{version}",
            query_instruction=_CHINESE if size.endswith("zh") else _ENGLISH,
            shape=shape,
        )
        for version in ("-v1.5", "")
        for size, shape in _SHAPES.items()
    ]


def _rows(hub_ids: str, **facts: str | bool) -> list[ModelSpec]:
    return [ModelSpec(hub_id=hub_id, **facts) for hub_id in hub_ids.split()]  # type: ignore[arg-type]


_E5_INSTRUCT = "Instruct: {}\nQuery: {}"
_DECODER: dict[str, str | bool] = {
    "model_class": DECODER_ONLY_BASE,
    "pooling": "last_token",
    "query_instruction_format": _E5_INSTRUCT,
}
_TAGGED = "<instruct>{}\n<query>{}"

_ALL: list[ModelSpec] = [
    *_bert_family(),
    ModelSpec(
        hub_id="BAAI/bge-m3",
        model_class=ENCODER_ONLY_M3,
        shape=BertShape(
            layers=24,
            hidden_size=1024,
            heads=16,
            intermediate_size=4096,
            vocab_size=250002,
            architecture="xlm-roberta",
            max_length=8192,
        ),
    ),
    ModelSpec(
        hub_id="BAAI/bge-en-icl",
        model_class=DECODER_ONLY_ICL,
        pooling="last_token",
        query_instruction_format=_TAGGED,
        shape=replace(_MISTRAL_7B, vocab_size=32003),
    ),
    ModelSpec(
        hub_id="BAAI/bge-multilingual-gemma2",
        model_class=DECODER_ONLY_BASE,
        pooling="last_token",
        query_instruction_format=_TAGGED,
        shape=_GEMMA2_9B,
    ),
    *_rows(
        "BAAI/bge-code-v1",
        **{**_DECODER, "query_instruction_format": _TAGGED, "trust_remote_code": True},
    ),
    *_rows("BAAI/bge-reasoner-embed-qwen3-8b-0923", **_DECODER),
    *_rows(
        "Qwen/Qwen3-Embedding-0.6B Qwen/Qwen3-Embedding-4B Qwen/Qwen3-Embedding-8B",
        **{**_DECODER, "query_instruction_format": "Instruct: {}\nQuery:{}"},
    ),
    *_rows(
        "intfloat/e5-mistral-7b-instruct Salesforce/SFR-Embedding-2_R "
        "Salesforce/SFR-Embedding-Mistral Linq-AI-Research/Linq-Embed-Mistral",
        **_DECODER,
    ),
    *_rows(
        "Alibaba-NLP/gte-Qwen2-7B-instruct Alibaba-NLP/gte-Qwen2-1.5B-instruct "
        "Alibaba-NLP/gte-Qwen1.5-7B-instruct",
        **{**_DECODER, "trust_remote_code": True},
    ),
    *_rows(
        "intfloat/e5-large-v2 intfloat/e5-base-v2 intfloat/e5-small-v2 "
        "intfloat/e5-large intfloat/e5-base intfloat/e5-small "
        "intfloat/multilingual-e5-large intfloat/multilingual-e5-base "
        "intfloat/multilingual-e5-small "
        "thenlper/gte-large thenlper/gte-base thenlper/gte-small",
        pooling="mean",
    ),
    *_rows(
        "intfloat/multilingual-e5-large-instruct",
        pooling="mean",
        query_instruction_format=_E5_INSTRUCT,
    ),
    *_rows(
        "Alibaba-NLP/gte-multilingual-base Alibaba-NLP/gte-large-en-v1.5 "
        "Alibaba-NLP/gte-base-en-v1.5",
        trust_remote_code=True,
    ),
    *_rows(
        "thenlper/gte-large-zh thenlper/gte-base-zh thenlper/gte-small-zh "
        "maidalun1020/bce-embedding-base_v1"
    ),
]

_DECODER_SHAPES = {
    "e5-mistral-7b-instruct": _MISTRAL_7B,
    "gte-Qwen2-7B-instruct": _QWEN2_7B,
    "Qwen3-Embedding-0.6B": _QWEN3_06B,
}

MODELS: dict[str, ModelSpec] = {
    facts.name: replace(facts, shape=facts.shape or _DECODER_SHAPES.get(facts.name))
    for facts in _ALL
}
"""Every model that ``FlagAutoModel`` maps, by name without owner."""


def find_model(model_name_or_path: object) -> ModelSpec | None:
    """Look a model up by its id or path.

    As in FlagEmbedding the last part of it counts, or the one before ``checkpoint-*``, as Hugging
    Face's trainers lay their output out. Beyond FlagEmbedding, links are followed, ``.`` is the
    folder that it stands for, and the layouts of caches are known; see `names_of`.

    Returns:
        The facts, or None for a name that the table does not hold.
    """
    if not isinstance(model_name_or_path, str | PurePath):
        return None  # which opening it refuses
    found = (MODELS.get(name) for name in names_of(model_name_or_path))
    return next((facts for facts in found if facts is not None), None)


def names_of(model_name_or_path: str | PurePath) -> list[str]:
    """List the names that a model goes by, the most telling one first.

    The hub's cache calls a snapshot by its commit, and the model by a folder above it:
    ``models--OWNER--NAME/snapshots/COMMIT``. ModelScope's writes ``___`` for a dot.
    """
    path = os.path.expanduser(model_name_or_path)
    places = [PurePath(path), *([PurePath(os.path.realpath(path))] if os.path.isdir(path) else [])]
    places = [place.parent if place.name.startswith("checkpoint-") else place for place in places]
    repositories = [name for place in places if (name := _repository(place)) is not None]
    return [*repositories, *(name for place in places if (name := place.name.replace("___", ".")))]


def _repository(place: PurePath) -> str | None:
    """Return the name of the repository that a path in the hub's cache is a snapshot of."""
    repository = place.parent.parent.name
    if place.parent.name != "snapshots" or not repository.startswith("models--"):
        return None
    return repository.rpartition("--")[2]
