"""A sentence-transformers folder: each file and key it may hold, and what is done about it.

FlagEmbedding reads none of them but its weights and tokenizer. sentence-transformers does, and so
do LangChain, LlamaIndex, Chroma and mteb by way of it. What changes vectors there is followed, or
the export is refused. The keys are those of versions 2.0 to 6.2.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers

from bge_runtime.bundle import SentenceTransformersSettings
from bge_runtime.errors import ExportError
from bge_runtime.sources import POOLING_METHODS
from bge_runtime.system import read_json

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
"""Names of the first module's settings; sentence-transformers reads the first that is there."""

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


@dataclass(frozen=True)
class _Only:
    """A key that is refused unless it has one of these values, which change nothing."""

    values: tuple[Any, ...]


def _only(*values: Any) -> _Only:
    return _Only(values)


_FOLLOWED, _NO_EFFECT = "read below", "changes no vector"

_LOADING: dict[str, Any] = dict.fromkeys(
    (
        "add_pooling_layer", "attn_implementation", "device_map", "dtype", "low_cpu_mem_usage",
        "safe_serialization", "torch_dtype", "trust_remote_code", "use_safetensors",
    ),
    _NO_EFFECT,
)  # fmt: skip
"""What transformers loads a model with: parts that no embedding uses, and arithmetic, which is
chosen when a bundle is opened."""

_TOKENIZER: dict[str, Any] = {
    "model_max_length": _FOLLOWED,
    "padding_side": _only("right"),
    "truncation_side": _only("right"),
    "trust_remote_code": _NO_EFFECT,
    "use_fast": _only(True),
}

_CONFIG: dict[str, Any] = {"trust_remote_code": _NO_EFFECT}

_TRANSFORMER: dict[str, Any] = {
    "max_seq_length": _FOLLOWED,
    "do_lower_case": _FOLLOWED,
    "tokenizer_name_or_path": _only(),
    "model_args": _LOADING,
    "model_kwargs": _LOADING,
    "tokenizer_args": _TOKENIZER,
    "processor_kwargs": _TOKENIZER,
    "config_args": _CONFIG,
    "config_kwargs": _CONFIG,
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

_OVERRULE = "pooling_method='cls' or pooling_method='mean'"

_POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "last_token",
}

_POOLING: dict[str, Any] = {
    **dict.fromkeys(_POOLING_MODES, _FOLLOWED),
    "pooling_mode": _FOLLOWED,
    "word_embedding_dimension": _FOLLOWED,
    "embedding_dimension": _FOLLOWED,
    "include_prompt": _only(True),
}

_NORMALIZE: dict[str, Any] = {
    "module_input_name": _only("sentence_embedding"),
    "module_output_name": _only("sentence_embedding"),
}

_PROMPTS: dict[str, Any] = {
    "__version__": _NO_EFFECT,
    "prompts": _FOLLOWED,
    "default_prompt_name": _FOLLOWED,
    "similarity_fn_name": _FOLLOWED,
    "truncate_dim": _FOLLOWED,
    # Any other makes sentence-transformers pool as it likes, whatever modules.json says.
    "model_type": _only("SentenceTransformer"),
}

_MODULE: dict[str, Any] = {
    "idx": _NO_EFFECT,
    "name": _NO_EFFECT,
    "path": _FOLLOWED,
    "type": _FOLLOWED,
    "kwargs": _NO_EFFECT,  # names of arguments that only a module with code of its own takes
}

_AFTER_POOLING: dict[str, dict[str, Any]] = {
    "Dropout": {"dropout": _NO_EFFECT},  # in training alone
    "Normalize": _NORMALIZE,
}
"""Modules that may stand behind the two that are always there, and their settings."""

_NO_LIMIT = 10**15
"""Below what a tokenizer of transformers says that has no length of its own."""


@dataclass(frozen=True, kw_only=True)
class SentenceTransformersFolder:
    """What a folder says of itself, if it is one of sentence-transformers'.

    Attributes:
        transformer: Where its model and tokenizer are.
        pooling: One of `bge_runtime.sources.POOLING_METHODS`; None if it does not say.
        dim: Components that its pooling is for; None if it does not say.
        settings: What else changes vectors. ``lowercase`` is what is asked for, and
            ``max_seq_length`` None where the tokenizer decides: see `settle`.
    """

    transformer: Path
    pooling: str | None
    dim: int | None
    settings: SentenceTransformersSettings

    def check_dim(self, width: Any) -> None:
        """Check that the folder's pooling is for a model so wide.

        Raises:
            ExportError: If it is for another.
        """
        if self.dim is not None and width is not None and self.dim != width:
            raise ExportError(
                f"the pooling of {self.transformer} is for vectors of {self.dim} components, and "
                f"its model's hidden_size is {width}: one of them is another model's. Correct it, "
                f"or pass {_OVERRULE} to override the folder's"
            )


def read_folder(
    root: Path, source: str, *, pooling: str | None = None
) -> SentenceTransformersFolder:
    """Read what a folder says, and check that all of it can be followed.

    Args:
        root: The folder.
        source: What the user called it.
        pooling: What the user overrides the folder's pooling with.

    Raises:
        ExportError: If a file is damaged, or holds what would be lost.
    """
    modules = _read_modules(root, source)
    transformer = root / (modules[0][1] if modules else "")
    first = _read_transformer(transformer)
    prompts = _read_settings(root / PROMPTS_FILE, _PROMPTS) or {}
    path = root / (modules[1][1] if modules else "1_Pooling") / "config.json"
    mode, dim = (pooling, None) if pooling is not None else _read_pooling(path)
    for kind, where in modules[2:]:
        _read_settings(root / where / "config.json", _AFTER_POOLING[kind])
    scaled = any(kind == "Normalize" for kind, _ in modules)
    settings = _settings(root / PROMPTS_FILE, prompts)
    return SentenceTransformersFolder(
        transformer=transformer,
        pooling=mode,
        dim=dim,
        # Without modules.json vectors are what FlagEmbedding makes of them.
        settings=replace(settings, normalize=scaled or not modules, **first),
    )


def settle(
    settings: SentenceTransformersSettings,
    tokenizer: Any,
    *,
    query_prompt: str | None,
    positions: int,
    limit: int,
    published: bool,
    source: str,
) -> SentenceTransformersSettings:
    """Complete what a folder says by what its tokenizer does.

    Args:
        settings: What `read_folder` gave.
        tokenizer: transformers' tokenizer of the checkpoint.
        query_prompt: What stands before queries if the folder does not say.
        positions: ``max_position_embeddings`` of the model.
        limit: Most tokens that the model can read.
        published: Whether it is a model that FlagEmbedding knows by name.
        source: What the user called it.

    Raises:
        ExportError: If FlagEmbedding and sentence-transformers would give vectors of
            different texts, and nothing says which are right.
    """
    length = settings.max_seq_length
    if length is None:  # what sentence-transformers takes then
        length = min(tokenizer.model_max_length, positions)
    lowercase = settings.lowercase and _differs_in_lowercase(tokenizer.backend_tokenizer)
    if lowercase and not published:
        raise ExportError(
            f"{source} asks for lowercase texts (do_lower_case in its {TRANSFORMER_FILES[0]}), and "
            "its tokenizer keeps capital letters. sentence-transformers follows that and "
            "FlagEmbedding does not, so that their vectors differ. If texts are to be lowercased, "
            'let the tokenizer do it: {"type": "Lowercase"} first in the normalizer of its '
            'tokenizer.json, and for BERT "do_lower_case": true in its tokenizer_config.json. If '
            f"not, set do_lower_case to false in {TRANSFORMER_FILES[0]}"
        )
    prompts = dict(settings.prompts)
    if query_prompt and not prompts.get("query"):
        prompts["query"] = query_prompt
    return replace(
        settings, max_seq_length=min(length, limit), lowercase=lowercase, prompts=prompts
    )


def write_folder(
    draft: Path, settings: SentenceTransformersSettings, *, pooling: str, dim: int
) -> None:
    """Write the files that make a bundle a sentence-transformers folder, with the same settings.

    The keys are those of versions before 5.4, which TEI knows and newer ones read.
    """
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling")]
    if settings.normalize:
        kinds.append(("Normalize", "2_Normalize"))
    documents: dict[str, Any] = {
        MODULES_FILE: [
            {
                "idx": index,
                "name": str(index),
                "path": path,
                "type": f"sentence_transformers.models.{kind}",
            }
            for index, (kind, path) in enumerate(kinds)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": dim,
            **{key: mode == pooling for key, mode in _POOLING_MODES.items()},
        },
        TRANSFORMER_FILES[0]: {
            "max_seq_length": settings.max_seq_length,
            "do_lower_case": settings.lowercase,
        },
        PROMPTS_FILE: {
            "prompts": dict(settings.prompts),
            "default_prompt_name": settings.default_prompt_name,
            "similarity_fn_name": settings.similarity,
            **({"truncate_dim": settings.truncate_dim} if settings.truncate_dim else {}),
        },
    }
    for name, document in documents.items():
        path = draft / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _read_modules(root: Path, source: str) -> list[tuple[str, str]]:
    """List kind and path of each module; none if the folder is not sentence-transformers'."""
    path = root / MODULES_FILE
    document = _read_json(path, list)
    if document is None:
        return []
    modules = []
    for module in document:
        if not isinstance(module, dict) or not all(
            isinstance(module.get(key), str) for key in ("type", "path")
        ):
            raise ExportError(f"{path} is not a list of modules, each with a type and a path")
        _check_keys(path, module, _MODULE)
        package, _, kind = module["type"].rpartition(".")
        if package.partition(".")[0] != "sentence_transformers":
            kind = module["type"]  # the folder's own code, whatever its name
        modules.append((kind, module["path"]))
    kinds = [kind for kind, _ in modules]
    known = ("Transformer", "Pooling", *_AFTER_POOLING)
    if unknown := sorted(set(kinds) - set(known)):
        raise ExportError(
            f"{source} has the sentence-transformers modules {', '.join(unknown)}; this version "
            f"has {', '.join(known)}, and vectors without the others would be wrong"
        )
    if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - set(_AFTER_POOLING):
        raise ExportError(
            f"{path} has the modules {', '.join(kinds) or 'none'}; this version has Transformer, "
            f"Pooling and then {' and '.join(_AFTER_POOLING)}, in this order, and vectors of "
            "another would be wrong"
        )
    return modules


def _read_transformer(folder: Path) -> dict[str, Any]:
    """Read the settings of the first module that are followed."""
    config: dict[str, Any] = {}
    for name in TRANSFORMER_FILES:
        path = folder / name
        if config := _read_json(path, dict) or {}:
            break
    _check_keys(path, config, _TRANSFORMER)
    length = _positive(path, config, "max_seq_length")
    for key in ("tokenizer_args", "processor_kwargs"):
        length = _positive(path, config.get(key) or {}, "model_max_length") or length
    return {"max_seq_length": length, "lowercase": _flag(path, config, "do_lower_case")}


def _read_pooling(path: Path) -> tuple[str | None, int | None]:
    """Read pooling method and number of components; None for what is not said."""
    overrule = f". Pass {_OVERRULE} to override it"
    config = _read_settings(path, _POOLING, remedy=overrule)
    if config is None:
        return None, None
    modes = [mode for key, mode in _POOLING_MODES.items() if _flag(path, config, key)]
    if "pooling_mode" in config:  # sentence-transformers 5.4 and later
        mode = config["pooling_mode"]
        modes = list(mode) if isinstance(mode, list) else [mode]
        modes = ["last_token" if mode == "lasttoken" else mode for mode in modes]
    old, new = "word_embedding_dimension", "embedding_dimension"
    dim = _positive(path, config, new) or _positive(path, config, old)
    if not set(config) & {*_POOLING_MODES, "pooling_mode"} and dim is not None:
        modes = ["mean"]  # the default of all versions
    if len(modes) != 1 or modes[0] not in POOLING_METHODS:
        raise ExportError(
            f"{path} asks for {' and '.join(map(str, modes)) or 'no'} pooling; this version has "
            f"{', '.join(POOLING_METHODS)}{overrule}"
        )
    return str(modes[0]), dim


def _settings(path: Path, document: Mapping[str, Any]) -> SentenceTransformersSettings:
    """Read prompts, similarity and a dimension to cut to."""
    prompts = document.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(
        isinstance(text, str | None) for text in prompts.values()
    ):
        raise ExportError(f"{path} has prompts {prompts!r:.200}, and they must be texts by name")
    default = document.get("default_prompt_name")
    # These two are always there in sentence-transformers, if empty.
    if default is not None and default not in {*prompts, "query", "document"}:
        raise ExportError(
            f"{path} has default_prompt_name {default!r}, which is not among its prompts "
            f"({', '.join(map(repr, prompts)) or 'none'}); add it, or set it to null"
        )
    similarity = document.get("similarity_fn_name") or "cosine"
    if similarity not in SIMILARITIES:
        raise ExportError(
            f"{path} has similarity_fn_name {similarity!r}; known are {', '.join(SIMILARITIES)}"
        )
    return SentenceTransformersSettings(
        prompts={name: text or "" for name, text in prompts.items()},
        default_prompt_name=default,
        similarity=similarity,
        truncate_dim=_positive(path, document, "truncate_dim"),
    )


def _read_settings(
    path: Path, table: Mapping[str, Any], *, remedy: str = ""
) -> dict[str, Any] | None:
    document: dict[str, Any] | None = _read_json(path, dict)
    if document is not None:
        _check_keys(path, document, table, remedy=remedy)
    return document


def _read_json(path: Path, kind: type) -> Any:
    """Read a file that may be missing; None if it is."""
    if not os.path.lexists(path):
        return None
    try:
        return read_json(path, error=ExportError, kind=kind)
    except FileNotFoundError as error:
        raise ExportError(f"{path} is a link to nothing; download it again") from error


def _check_keys(
    path: Path, document: Mapping[str, Any], table: Mapping[str, Any], *, remedy: str = ""
) -> None:
    """Refuse a key that would be lost. A key that is null is at its default."""
    for name, value, allowed in _lost(document, table):
        found = f"{path} has {name} {json.dumps(value, ensure_ascii=False)[:200]}"
        if allowed is None:
            raise ExportError(
                f"{found}, which this version does not know, so that vectors might differ from "
                "sentence-transformers'. If they do not depend on it, take it out of a copy of the "
                f"folder{remedy}"
            )
        values = " or ".join(json.dumps(value) for value in allowed) or "none"
        raise ExportError(
            f"{found}, and this version follows {values} only, so that vectors would differ from "
            f"sentence-transformers'. Use that in its place if the model allows it{remedy}"
        )


def _lost(
    document: Mapping[str, Any], table: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, tuple[Any, ...] | None]]:
    """Give name and value of what is not followed, and the values that would be."""
    for key, value in document.items():
        rule = table.get(key)
        if value is None:
            continue
        if isinstance(rule, dict) and isinstance(value, dict):
            yield from _lost(value, rule, f"{prefix}{key}.")
        elif rule is None or isinstance(rule, dict):
            yield prefix + key, value, None
        elif isinstance(rule, _Only) and not any(_same(value, known) for known in rule.values):
            yield prefix + key, value, rule.values


def _same(value: Any, known: Any) -> bool:
    return bool(value == known) and isinstance(value, bool) == isinstance(known, bool)


def _positive(path: Path, document: Mapping[str, Any], key: str) -> int | None:
    """Read a number of tokens or components; None for none, and for one beyond all bounds."""
    value = document.get(key)
    if value is None:
        return None
    whole = isinstance(value, int | float) and not isinstance(value, bool)
    if not whole or not math.isfinite(value) or value != int(value) or value < 1:
        raise ExportError(f"{path} has {key} {value!r}, and it must be a whole number above 0")
    return int(value) if value < _NO_LIMIT else None


def _flag(path: Path, document: Mapping[str, Any], key: str) -> bool:
    value = document.get(key)
    if value is not None and not isinstance(value, bool):
        raise ExportError(f"{path} has {key} {value!r}, and it must be true or false")
    return bool(value)


def _differs_in_lowercase(tokenizer: Tokenizer) -> bool:
    """Tell whether any character gives other tokens if it is lowercased first."""
    lower = normalizers.Lowercase()
    cased = [char for char in _characters() if char.lower() != char]
    as_is = tokenizer.encode_batch_fast(cased, add_special_tokens=False)
    lowered = tokenizer.encode_batch_fast(
        [lower.normalize_str(char) for char in cased], add_special_tokens=False
    )
    return any(a.ids != b.ids for a, b in zip(as_is, lowered, strict=True))


def _characters() -> Iterable[str]:
    surrogates = range(0xD800, 0xE000)
    return (chr(code) for code in range(sys.maxunicode + 1) if code not in surrogates)
