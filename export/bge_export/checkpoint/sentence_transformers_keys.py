"""The keys that a sentence-transformers folder may hold, and what is done about each.

The keys are those of sentence-transformers 2.0 to 6.2.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bge_runtime.errors import ExportError

MODULES_FILE = "modules.json"
PROMPTS_FILE = "config_sentence_transformers.json"

TRANSFORMER_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
"""Names of the first module's settings; sentence-transformers reads the first one that exists."""

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


@dataclass(frozen=True)
class _Only:
    """A rule: the key is refused unless it has one of these values, which change no vector."""

    values: tuple[Any, ...]


def _only(*values: Any) -> _Only:
    return _Only(values)


_FOLLOWED = "read by sentence_transformers.py"
_NO_EFFECT = "changes no vector"


_LOADING_KEYS: dict[str, Any] = dict.fromkeys(
    (
        "add_pooling_layer", "attn_implementation", "device_map", "dtype", "low_cpu_mem_usage",
        "safe_serialization", "torch_dtype", "trust_remote_code", "use_safetensors",
    ),
    _NO_EFFECT,
)  # fmt: skip
"""Arguments of transformers' ``from_pretrained``. They choose parts that embeddings do not use, and
the precision, which is chosen when a bundle is opened."""


_TOKENIZER_KEYS: dict[str, Any] = {
    "model_max_length": _FOLLOWED,
    "padding_side": _only("right"),
    "truncation_side": _only("right"),
    "trust_remote_code": _NO_EFFECT,
    "use_fast": _only(True),
}


_CONFIG_KEYS: dict[str, Any] = {"trust_remote_code": _NO_EFFECT}


TRANSFORMER_KEYS: dict[str, Any] = {
    "max_seq_length": _FOLLOWED,
    "do_lower_case": _FOLLOWED,
    "tokenizer_name_or_path": _only(),
    "model_args": _LOADING_KEYS,
    "model_kwargs": _LOADING_KEYS,
    "tokenizer_args": _TOKENIZER_KEYS,
    "processor_kwargs": _TOKENIZER_KEYS,
    "config_args": _CONFIG_KEYS,
    "config_kwargs": _CONFIG_KEYS,
    # 5.4 and later. "message" among the modalities would put texts into a chat's template.
    "transformer_task": _only("feature-extraction"),
    "modality_config": _only(
        {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    ),
    "module_output_name": _only("token_embeddings"),
    "processing_kwargs": _only({}),
    "unpad_inputs": _NO_EFFECT,
    # 6.0 and later.
    "query_length": _only(),
    "document_length": _only(),
    "query_expansion": _only(),
}


POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "last_token",
}
"""Pooling methods by the key that turns each on, in versions before 5.4."""


POOLING_KEYS: dict[str, Any] = {
    **dict.fromkeys(POOLING_MODES, _FOLLOWED),
    "pooling_mode": _FOLLOWED,
    "word_embedding_dimension": _FOLLOWED,
    "embedding_dimension": _FOLLOWED,
    "include_prompt": _only(True),
}


NORMALIZE_KEYS: dict[str, Any] = {
    "module_input_name": _only("sentence_embedding"),
    "module_output_name": _only("sentence_embedding"),
}


PROMPT_KEYS: dict[str, Any] = {
    "__version__": _NO_EFFECT,
    "prompts": _FOLLOWED,
    "default_prompt_name": _FOLLOWED,
    "similarity_fn_name": _FOLLOWED,
    "truncate_dim": _FOLLOWED,
    # With any other value sentence-transformers ignores modules.json.
    "model_type": _only("SentenceTransformer"),
}


CROSS_ENCODER = "CrossEncoder"
"""The ``model_type`` of a reranker's folder in `PROMPTS_FILE`, in versions from 5.4 on."""


CROSS_ENCODER_KEYS: dict[str, Any] = {
    **TRANSFORMER_KEYS,
    "transformer_task": _only("sequence-classification"),
    "modality_config": _only({"text": {"method": "forward", "method_output_name": "logits"}}),
    "module_output_name": _only("scores"),
}


CROSS_ENCODER_PROMPT_KEYS: dict[str, Any] = {
    "__version__": _NO_EFFECT,
    "activation_fn": _FOLLOWED,
    "prompts": _NO_EFFECT,  # chosen by name, in each call
    "default_prompt_name": _only(),
    "model_type": _FOLLOWED,
}


MODULE_KEYS: dict[str, Any] = {
    "idx": _NO_EFFECT,
    "name": _NO_EFFECT,
    "path": _FOLLOWED,
    "type": _FOLLOWED,
    "kwargs": _NO_EFFECT,  # argument names, for modules with custom code only
}


OPTIONAL_MODULES: dict[str, dict[str, Any]] = {
    "Dropout": {"dropout": _NO_EFFECT},  # used in training only
    "Normalize": NORMALIZE_KEYS,
}
"""Settings of the modules that may follow Transformer and Pooling."""


def check_keys(
    path: Path, document: Mapping[str, Any], table: Mapping[str, Any], *, remedy: str = ""
) -> None:
    """Refuse keys and values that the bundle would lose. A null key has its default.

    Raises:
        ExportError: If there is one; `remedy` is added to the message.
    """
    for name, value, allowed in _find_lost(document, table):
        found = f"{path} has {name} {json.dumps(value, ensure_ascii=False)[:200]}"
        if allowed is None:
            raise ExportError(
                f"{found}, which this version does not know, so vectors might differ from "
                "sentence-transformers'. If they do not depend on it, remove it in a copy of the "
                f"folder{remedy}"
            )
        values = " or ".join(json.dumps(value) for value in allowed) or "none"
        raise ExportError(
            f"{found}, and this version supports {values} only, so vectors would differ from "
            f"sentence-transformers'. Use that instead if the model allows it{remedy}"
        )


def _find_lost(
    document: Mapping[str, Any], table: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, tuple[Any, ...] | None]]:
    """Yield name, value and supported values of each key that is lost; None for an unknown key."""
    for key, value in document.items():
        rule = table.get(key)
        if value is None:
            continue
        if isinstance(rule, dict) and isinstance(value, dict):
            yield from _find_lost(value, rule, f"{prefix}{key}.")
        elif rule is None or isinstance(rule, dict):
            yield prefix + key, value, None
        elif isinstance(rule, _Only) and not any(_is_same(value, known) for known in rule.values):
            yield prefix + key, value, rule.values


def _is_same(value: Any, known: Any) -> bool:
    return bool(value == known) and isinstance(value, bool) == isinstance(known, bool)
