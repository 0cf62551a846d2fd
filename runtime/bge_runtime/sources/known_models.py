"""The table of published models. To add one, add a row to `_ALL`.

The table is for export and for looking a model up by name, as FlagEmbedding's
``FlagAutoModel`` does. Opening a bundle does not need it: a bundle describes itself.

Names, classes, pooling and query formats are those of ``AUTO_EMBEDDER_MAPPING`` in
FlagEmbedding 1.4.2. Query instructions are from the model list on that project's
embedder page, shapes from each checkpoint's ``config.json``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import PurePath

from bge_runtime.sources.model_classes import (
    DECODER_ONLY_BASE,
    DECODER_ONLY_ICL,
    ENCODER_ONLY_BASE,
    ENCODER_ONLY_M3,
    RERANKER_DECODER,
    RERANKER_ENCODER,
    RERANKER_LAYERWISE,
    RERANKER_LIGHTWEIGHT,
)
from bge_runtime.sources.reranker_prompts import BGE_QUESTION, QWEN3_QUESTION, RerankerQuestion
from bge_runtime.sources.shapes import (
    BERT_SHAPES,
    GEMMA2_9B,
    GEMMA_2B,
    MINILM,
    MISTRAL_7B,
    QWEN2_7B,
    QWEN3_06B,
    XLM_ROBERTA_BASE,
    XLM_ROBERTA_LARGE,
    BertShape,
    DecoderShape,
)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What is known about a published model before its files are read.

    Attributes:
        hub_id: Repository on the Hugging Face hub.
        model_class: FlagEmbedding's class name, one of `MODEL_CLASSES`.
        pooling: ``"cls"``, ``"mean"`` or ``"last_token"``.
        query_instruction: The instruction its authors recommend for queries.
        query_instruction_format: How instruction and query are joined.
        trust_remote_code: Whether the model's code lives in its checkpoint.
        question: How a decoder that reranks is asked.
        shape: Its size, if the model can be exported with random weights.
    """

    hub_id: str
    model_class: str = ENCODER_ONLY_BASE
    pooling: str = "cls"
    query_instruction: str | None = None
    query_instruction_format: str = "{}{}"
    trust_remote_code: bool = False
    question: RerankerQuestion | None = None
    shape: BertShape | DecoderShape | None = None

    @property
    def name(self) -> str:
        """The repository's name without its owner."""
        return self.hub_id.rpartition("/")[2]


_ENGLISH = "Represent this sentence for searching relevant passages: "
_CHINESE = "为这个句子生成表示以用于检索相关文章："


def _bert_family() -> list[ModelSpec]:
    return [
        ModelSpec(
            hub_id=f"BAAI/bge-{size}{version}",
            query_instruction=_CHINESE if size.endswith("zh") else _ENGLISH,
            shape=shape,
        )
        for version in ("-v1.5", "")
        for size, shape in BERT_SHAPES.items()
    ]


def _specs(hub_ids: str, **fields: str | bool) -> list[ModelSpec]:
    return [ModelSpec(hub_id=hub_id, **fields) for hub_id in hub_ids.split()]  # type: ignore[arg-type]


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
        shape=replace(XLM_ROBERTA_LARGE, max_length=8192),
    ),
    ModelSpec(
        hub_id="BAAI/bge-en-icl",
        model_class=DECODER_ONLY_ICL,
        pooling="last_token",
        query_instruction_format=_TAGGED,
        shape=replace(MISTRAL_7B, vocab_size=32003),
    ),
    ModelSpec(
        hub_id="BAAI/bge-multilingual-gemma2",
        model_class=DECODER_ONLY_BASE,
        pooling="last_token",
        query_instruction_format=_TAGGED,
        shape=GEMMA2_9B,
    ),
    *_specs(
        "BAAI/bge-code-v1",
        **{**_DECODER, "query_instruction_format": _TAGGED, "trust_remote_code": True},
    ),
    *_specs("BAAI/bge-reasoner-embed-qwen3-8b-0923", **_DECODER),
    *_specs(
        "Qwen/Qwen3-Embedding-0.6B Qwen/Qwen3-Embedding-4B Qwen/Qwen3-Embedding-8B",
        **{**_DECODER, "query_instruction_format": "Instruct: {}\nQuery:{}"},
    ),
    *_specs(
        "intfloat/e5-mistral-7b-instruct Salesforce/SFR-Embedding-2_R "
        "Salesforce/SFR-Embedding-Mistral Linq-AI-Research/Linq-Embed-Mistral",
        **_DECODER,
    ),
    *_specs(
        "Alibaba-NLP/gte-Qwen2-7B-instruct Alibaba-NLP/gte-Qwen2-1.5B-instruct "
        "Alibaba-NLP/gte-Qwen1.5-7B-instruct",
        **{**_DECODER, "trust_remote_code": True},
    ),
    *_specs(
        "intfloat/e5-large-v2 intfloat/e5-base-v2 intfloat/e5-small-v2 "
        "intfloat/e5-large intfloat/e5-base intfloat/e5-small "
        "intfloat/multilingual-e5-large intfloat/multilingual-e5-base "
        "intfloat/multilingual-e5-small "
        "thenlper/gte-large thenlper/gte-base thenlper/gte-small",
        pooling="mean",
    ),
    *_specs(
        "intfloat/multilingual-e5-large-instruct",
        pooling="mean",
        query_instruction_format=_E5_INSTRUCT,
    ),
    *_specs(
        "Alibaba-NLP/gte-multilingual-base Alibaba-NLP/gte-large-en-v1.5 "
        "Alibaba-NLP/gte-base-en-v1.5",
        trust_remote_code=True,
    ),
    *_specs(
        "thenlper/gte-large-zh thenlper/gte-base-zh thenlper/gte-small-zh "
        "maidalun1020/bce-embedding-base_v1"
    ),
]

_DECODER_SHAPES = {
    "e5-mistral-7b-instruct": MISTRAL_7B,
    "gte-Qwen2-7B-instruct": QWEN2_7B,
    "Qwen3-Embedding-0.6B": QWEN3_06B,
}

MODELS: dict[str, ModelSpec] = {
    spec.name: replace(spec, shape=spec.shape or _DECODER_SHAPES.get(spec.name)) for spec in _ALL
}
"""The models that FlagEmbedding's ``FlagAutoModel`` knows, by name without owner."""


_QWEN3_RERANKER = ModelSpec(
    hub_id="Qwen/Qwen3-Reranker-0.6B",
    model_class=RERANKER_DECODER,
    pooling="last_token",
    question=QWEN3_QUESTION,
    shape=QWEN3_06B,
)

_ALL_RERANKERS: list[ModelSpec] = [
    *(
        ModelSpec(hub_id=hub_id, model_class=RERANKER_ENCODER, shape=shape)
        for hub_id, shape in (
            ("BAAI/bge-reranker-base", XLM_ROBERTA_BASE),
            ("BAAI/bge-reranker-large", XLM_ROBERTA_LARGE),
            ("BAAI/bge-reranker-v2-m3", replace(XLM_ROBERTA_LARGE, max_length=8192)),
            ("maidalun1020/bce-reranker-base_v1", XLM_ROBERTA_BASE),
            ("cross-encoder/ms-marco-MiniLM-L6-v2", MINILM),
            ("cross-encoder/ms-marco-MiniLM-L12-v2", replace(MINILM, layers=12)),
        )
    ),
    *_specs(
        "jinaai/jina-reranker-v2-base-multilingual jinaai/jina-reranker-v1-turbo-en "
        "Alibaba-NLP/gte-multilingual-reranker-base",
        model_class=RERANKER_ENCODER,
        trust_remote_code=True,
    ),
    ModelSpec(
        hub_id="BAAI/bge-reranker-v2-gemma",
        model_class=RERANKER_DECODER,
        pooling="last_token",
        question=BGE_QUESTION,
        shape=GEMMA_2B,
    ),
    _QWEN3_RERANKER,
    replace(_QWEN3_RERANKER, hub_id="Qwen/Qwen3-Reranker-4B", shape=None),
    replace(_QWEN3_RERANKER, hub_id="Qwen/Qwen3-Reranker-8B", shape=None),
    ModelSpec(
        hub_id="BAAI/bge-reranker-v2-minicpm-layerwise",
        model_class=RERANKER_LAYERWISE,
        pooling="last_token",
        trust_remote_code=True,
    ),
    ModelSpec(
        hub_id="BAAI/bge-reranker-v2.5-gemma2-lightweight",
        model_class=RERANKER_LIGHTWEIGHT,
        pooling="last_token",
        trust_remote_code=True,
    ),
]

RERANKERS: dict[str, ModelSpec] = {spec.name: spec for spec in _ALL_RERANKERS}
"""The rerankers that FlagEmbedding's ``FlagAutoReranker`` knows, Qwen3-Reranker and
sentence-transformers' MS MARCO models, by name without owner."""


def find_model(model_name_or_path: object) -> ModelSpec | None:
    """Return the published model that an id or path is named after.

    As in FlagEmbedding, the last part of the path counts, or the one before ``checkpoint-*``,
    where Hugging Face's trainers write. Unlike FlagEmbedding, this follows links, resolves ``.``
    and knows the layouts of caches; see `candidate_names`.

    Returns:
        None if the table has no such name.
    """
    if not isinstance(model_name_or_path, str | PurePath):
        return None  # opening the model raises a TypeError
    known = MODELS | RERANKERS
    found = (known.get(name) for name in candidate_names(model_name_or_path))
    return next((spec for spec in found if spec is not None), None)


def candidate_names(model_name_or_path: str | PurePath) -> list[str]:
    """List the names that an id or path may stand for, the most reliable one first.

    The hub's cache names a snapshot after its commit and the model in a folder above:
    ``models--OWNER--NAME/snapshots/COMMIT``. ModelScope's cache writes ``___`` for a dot.
    """
    given = os.path.expanduser(model_name_or_path)
    paths = [PurePath(given)]
    if os.path.isdir(given):
        paths.append(PurePath(os.path.realpath(given)))
    paths = [path.parent if path.name.startswith("checkpoint-") else path for path in paths]
    names = [_repository_name(path) for path in paths]
    names += [path.name.replace("___", ".") for path in paths]
    return [name for name in names if name]


def _repository_name(path: PurePath) -> str | None:
    """Return the repository's name if a path is a snapshot in the hub's cache."""
    repository = path.parent.parent.name
    if path.parent.name != "snapshots" or not repository.startswith("models--"):
        return None
    return repository.rpartition("--")[2]
