"""Read the settings of a sentence-transformers folder.

FlagEmbedding reads only the weights and the tokenizer of such a folder. sentence-transformers reads
the settings too, and so do LangChain, LlamaIndex, Chroma and mteb through it. Settings that change
vectors are kept in the bundle, or the export is refused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bge_export.checkpoint.sentence_transformers_keys import (
    CROSS_ENCODER,
    CROSS_ENCODER_KEYS,
    CROSS_ENCODER_PROMPT_KEYS,
    MODULE_KEYS,
    MODULES_FILE,
    OPTIONAL_MODULES,
    POOLING_KEYS,
    POOLING_MODES,
    PROMPT_KEYS,
    PROMPTS_FILE,
    SIMILARITIES,
    TRANSFORMER_FILES,
    TRANSFORMER_KEYS,
    check_keys,
)
from bge_runtime.bundle import SentenceTransformersSettings
from bge_runtime.errors import ExportError
from bge_runtime.sources import POOLING_METHODS, find_model
from bge_runtime.system import read_json

_OVERRIDE = "pooling_method='cls' or pooling_method='mean'"


_NO_LIMIT = 10**15
"""transformers writes a larger number for a tokenizer without a maximum length."""


@dataclass(frozen=True, kw_only=True)
class SentenceTransformersFolder:
    """The settings of a checkpoint folder, as far as it is a sentence-transformers folder.

    Attributes:
        transformer: Folder of its model and tokenizer.
        pooling: One of `bge_runtime.sources.POOLING_METHODS`; None if it is not set.
        dim: Dimension of its pooling; None if it is not set.
        settings: Other settings that change vectors. ``max_seq_length`` is None if the tokenizer
            decides; `bge_export.bundle.complete_settings` fills it in.
        activation: What is applied to a reranker's logits there, as a name in Python; None if it is
            not set.
    """

    transformer: Path
    pooling: str | None
    dim: int | None
    settings: SentenceTransformersSettings
    activation: str | None = None

    def check_dim(self, width: Any) -> None:
        """Check that the pooling is for a model with hidden states of this width.

        Raises:
            ExportError: If it is for another width.
        """
        if self.dim is not None and width is not None and self.dim != width:
            raise ExportError(
                f"the pooling of {self.transformer} is for vectors of {self.dim} components, and "
                f"its model's hidden_size is {width}: one of them is another model's. Correct it, "
                f"or pass {_OVERRIDE} to override the folder's"
            )


def read_folder(
    root: Path, source: str, *, pooling: str | None = None
) -> SentenceTransformersFolder:
    """Read a folder's settings and check that a bundle can keep all of them.

    Args:
        root: The folder.
        source: What the user called it.
        pooling: Pooling method that the user chose instead of the folder's.

    Raises:
        ExportError: If a file is damaged, or holds a setting that a bundle cannot keep.
    """
    if (_read_json(root / PROMPTS_FILE, dict) or {}).get("model_type") == CROSS_ENCODER:
        return _read_cross_encoder(root, source)
    modules = _read_modules(root, source)
    transformer = root / (modules[0][1] if modules else "")
    first = _read_transformer(transformer)
    prompts = _read_settings(root / PROMPTS_FILE, PROMPT_KEYS) or {}
    path = root / (modules[1][1] if modules else "1_Pooling") / "config.json"
    mode, dim = (pooling, None) if pooling is not None else _read_pooling(path)
    for kind, where in modules[2:]:
        _read_settings(root / where / "config.json", OPTIONAL_MODULES[kind])
    normalizes = any(kind == "Normalize" for kind, _ in modules)
    settings = _read_prompts(root / PROMPTS_FILE, prompts)
    return SentenceTransformersFolder(
        transformer=transformer,
        pooling=mode,
        dim=dim,
        # Without modules.json, FlagEmbedding's default: normalized vectors.
        settings=replace(settings, normalize=normalizes or not modules, **first),
    )


def _read_cross_encoder(root: Path, source: str) -> SentenceTransformersFolder:
    """Read the folder of a reranker.

    One that is a decoder has a further module with the tokens of its answers. It is read as the
    model's authors ask it, and not by these settings.
    """
    modules = _list_modules(root / MODULES_FILE)
    kinds = [kind for kind, _ in modules]
    if kinds not in ([], ["Transformer"], ["Transformer", "LogitScore"]):
        raise ExportError(
            f"{source} has the sentence-transformers modules {', '.join(kinds)}; of rerankers this "
            "version supports Transformer, and LogitScore after it"
        )
    transformer = root / (modules[0][1] if modules else "")
    if "LogitScore" in kinds:
        if find_model(source) is None:
            raise ExportError(
                f"{source} is a decoder that answers yes or no (LogitScore in its modules.json), "
                "and its name is none that tells how it is asked. If it is asked as "
                "Qwen3-Reranker-0.6B, give its folder that name"
            )
        settings = SentenceTransformersSettings()
        return SentenceTransformersFolder(
            transformer=transformer, pooling=None, dim=None, settings=settings
        )
    document = _read_settings(root / PROMPTS_FILE, CROSS_ENCODER_PROMPT_KEYS) or {}
    first = _read_transformer(transformer, CROSS_ENCODER_KEYS)
    return SentenceTransformersFolder(
        transformer=transformer,
        pooling=None,
        dim=None,
        settings=SentenceTransformersSettings(**first),
        activation=document.get("activation_fn"),
    )


def _read_modules(root: Path, source: str) -> list[tuple[str, str]]:
    """Return kind and path of each module; empty if this is no sentence-transformers folder."""
    path = root / MODULES_FILE
    modules = _list_modules(path)
    if not path.is_file():
        return []
    kinds = [kind for kind, _ in modules]
    known = ("Transformer", "Pooling", *OPTIONAL_MODULES)
    if unknown := sorted(set(kinds) - set(known)):
        raise ExportError(
            f"{source} has the sentence-transformers modules {', '.join(unknown)}; this version "
            f"supports {', '.join(known)}, and vectors without the others would be wrong"
        )
    if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - set(OPTIONAL_MODULES):
        raise ExportError(
            f"{path} has the modules {', '.join(kinds) or 'none'}; this version supports "
            f"Transformer, Pooling and then {' and '.join(OPTIONAL_MODULES)}, in this order"
        )
    return modules


def _list_modules(path: Path) -> list[tuple[str, str]]:
    """Return kind and path of each module in a file; empty if there is no file."""
    document: list[Any] = _read_json(path, list) or []
    modules = []
    for module in document:
        if not isinstance(module, dict) or not all(
            isinstance(module.get(key), str) for key in ("type", "path")
        ):
            raise ExportError(f"{path} is not a list of modules, each with a type and a path")
        check_keys(path, module, MODULE_KEYS)
        package, _, kind = module["type"].rpartition(".")
        if package.partition(".")[0] != "sentence_transformers":
            kind = module["type"]  # custom code of the folder
        modules.append((kind, module["path"]))
    return modules


def _read_transformer(folder: Path, table: Mapping[str, Any] = TRANSFORMER_KEYS) -> dict[str, Any]:
    """Read maximum length and lowercasing from the settings of the first module."""
    config: dict[str, Any] = {}
    for name in TRANSFORMER_FILES:
        path = folder / name
        if config := _read_json(path, dict) or {}:
            break
    check_keys(path, config, table)
    length = _read_positive(path, config, "max_seq_length")
    for key in ("tokenizer_args", "processor_kwargs"):
        length = _read_positive(path, config.get(key) or {}, "model_max_length") or length
    return {"max_seq_length": length, "lowercase": _read_flag(path, config, "do_lower_case")}


def _read_pooling(path: Path) -> tuple[str | None, int | None]:
    """Return pooling method and dimension; None for what is not set."""
    override = f". Pass {_OVERRIDE} to override it"
    config = _read_settings(path, POOLING_KEYS, remedy=override)
    if config is None:
        return None, None
    modes = [mode for key, mode in POOLING_MODES.items() if _read_flag(path, config, key)]
    if "pooling_mode" in config:  # sentence-transformers 5.4 and later
        mode = config["pooling_mode"]
        modes = list(mode) if isinstance(mode, list) else [mode]
        modes = ["last_token" if mode == "lasttoken" else mode for mode in modes]
    old, new = "word_embedding_dimension", "embedding_dimension"
    dim = _read_positive(path, config, new) or _read_positive(path, config, old)
    if not set(config) & {*POOLING_MODES, "pooling_mode"} and dim is not None:
        modes = ["mean"]  # the default in all versions
    if len(modes) != 1 or modes[0] not in POOLING_METHODS:
        raise ExportError(
            f"{path} asks for {' and '.join(map(str, modes)) or 'no'} pooling; this version "
            f"supports {', '.join(POOLING_METHODS)}{override}"
        )
    return str(modes[0]), dim


def _read_prompts(path: Path, document: Mapping[str, Any]) -> SentenceTransformersSettings:
    """Read prompts, similarity function and ``truncate_dim``."""
    prompts = document.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(
        isinstance(text, str | None) for text in prompts.values()
    ):
        raise ExportError(f"{path} has prompts {prompts!r:.200}; they must map names to texts")
    default = document.get("default_prompt_name")
    # sentence-transformers always has these two, if only as empty texts.
    if default is not None and default not in {*prompts, "query", "document"}:
        raise ExportError(
            f"{path} has default_prompt_name {default!r}, which is not among its prompts "
            f"({', '.join(map(repr, prompts)) or 'none'}); add it, or set it to null"
        )
    similarity = document.get("similarity_fn_name") or "cosine"
    if similarity not in SIMILARITIES:
        raise ExportError(
            f"{path} has similarity_fn_name {similarity!r}; supported are {', '.join(SIMILARITIES)}"
        )
    return SentenceTransformersSettings(
        prompts={name: text or "" for name, text in prompts.items()},
        default_prompt_name=default,
        similarity=similarity,
        truncate_dim=_read_positive(path, document, "truncate_dim"),
    )


def _read_settings(
    path: Path, table: Mapping[str, Any], *, remedy: str = ""
) -> dict[str, Any] | None:
    document: dict[str, Any] | None = _read_json(path, dict)
    if document is not None:
        check_keys(path, document, table, remedy=remedy)
    return document


def _read_json(path: Path, kind: type) -> Any:
    """Return the content of a JSON file; None if there is no such file."""
    if not os.path.lexists(path):
        return None
    try:
        return read_json(path, error=ExportError, kind=kind)
    except FileNotFoundError as error:
        raise ExportError(f"{path} is a link to a missing file; download it again") from error


def _read_positive(path: Path, document: Mapping[str, Any], key: str) -> int | None:
    """Return a positive number; None if it is not set, or so large that it means no limit."""
    value = document.get(key)
    if value is None:
        return None
    whole = isinstance(value, int | float) and not isinstance(value, bool)
    if not whole or not math.isfinite(value) or value != int(value) or value < 1:
        raise ExportError(f"{path} has {key} {value!r}; it must be a whole number above 0")
    return int(value) if value < _NO_LIMIT else None


def _read_flag(path: Path, document: Mapping[str, Any], key: str) -> bool:
    value = document.get(key)
    if value is not None and not isinstance(value, bool):
        raise ExportError(f"{path} has {key} {value!r}; it must be true or false")
    return bool(value)
