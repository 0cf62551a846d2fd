"""Load a tokenizer from a checkpoint's own files, or with transformers where it has none."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from bge_export.checkpoint.tokenizer.added_tokens import add_listed_tokens
from bge_export.checkpoint.tokenizer.checks import check_tokenizer
from bge_export.checkpoint.tokenizer.classes import CLASS_OF_TYPE, CLASSES, TokenizerClass
from bge_export.checkpoint.tokenizer.from_transformers import (
    compare_with_transformers,
    convert_tokenizer,
    find_special_tokens,
    load_with_transformers,
)
from bge_export.checkpoint.tokenizer.tokenizer import (
    NO_MAX_LENGTH,
    SETTINGS_FILE,
    CheckpointTokenizer,
    read_optional,
)
from bge_export.library_output import shorten
from bge_runtime.bundle import TOKENIZER_FILE
from bge_runtime.errors import ExportError
from bge_runtime.system import check_not_pointer

logger = logging.getLogger("bge_export.checkpoint.tokenizer")

_UNKNOWN_SETTINGS = ("split_special_tokens", "from_slow", "fix_mistral_regex")
"""Settings of transformers 4.57 that may change token ids and are not supported here."""


def load_tokenizer(
    folder: Path, *, trust_remote_code: bool = False, right_padding: bool = True
) -> CheckpointTokenizer:
    """Load a checkpoint's tokenizer.

    With a ``tokenizer.json``, token ids are those of that file, with the changes that its settings
    make explicitly. A warning is logged if the installed transformers makes other ids. Without that
    file, or with custom code that is trusted, token ids are those of transformers.

    Args:
        folder: The checkpoint.
        trust_remote_code: Run code from the checkpoint.
        right_padding: Refuse a tokenizer that pads on the left. For a decoder the side makes no
            difference: its last token is found on either side.

    Raises:
        ExportError: If there is no tokenizer, or the runtime cannot use it.
    """
    settings = read_optional(folder / SETTINGS_FILE)
    own_code = _has_own_code(folder, settings)
    if not (folder / TOKENIZER_FILE).is_file() or (own_code and trust_remote_code):
        theirs = load_with_transformers(folder, trust_remote_code=trust_remote_code)
        tokenizer = convert_tokenizer(theirs)
    else:
        if own_code:
            logger.warning(
                "the tokenizer of %s has custom code (auto_map in its %s), which was not run; "
                "the bundle's token ids are those of its %s",
                folder, SETTINGS_FILE, TOKENIZER_FILE,
            )  # fmt: skip
        tokenizer = _load_from_files(folder, settings)
    check_tokenizer(tokenizer, folder, right_padding=right_padding)
    return tokenizer


def _load_from_files(folder: Path, settings: Mapping[str, Any]) -> CheckpointTokenizer:
    path = folder / TOKENIZER_FILE
    check_not_pointer(path, error=ExportError)
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise ExportError(f"cannot load the tokenizer {path}: {shorten(error)}") from error
    name = _find_class_name(folder, settings)
    theirs: PreTrainedTokenizerFast | ExportError
    try:
        theirs = load_with_transformers(folder)
    except ExportError as error:
        theirs = error
    known = CLASSES.get(name)
    unknown = [key for key in _UNKNOWN_SETTINGS if settings.get(key)]
    if known is None:
        unknown.append(f"the class {name}")
    if unknown and isinstance(theirs, ExportError):
        raise theirs
    kind = known or TokenizerClass(
        special_tokens=find_special_tokens(theirs)[0],
        gives_token_types="token_type_ids" in theirs.model_input_names,  # type: ignore[union-attr]
        padding_side=theirs.padding_side,  # type: ignore[union-attr]
    )
    cuts, pads = backend.truncation or {}, backend.padding or {}
    backend.no_truncation()
    backend.no_padding()
    try:
        names, additional = add_listed_tokens(
            backend, folder, settings, kind, pads.get("pad_token")
        )
        for change in kind.changes:
            change(backend, settings, names, folder)
    except (AttributeError, TypeError, ValueError) as error:
        raise ExportError(
            f"{folder / SETTINGS_FILE} has invalid settings: {shorten(error)}"
        ) from error
    compare_with_transformers(backend, theirs, folder, unknown=unknown)
    inputs = settings.get("model_input_names")
    return CheckpointTokenizer(
        backend_tokenizer=backend,
        special_tokens=names,
        additional_special_tokens=additional,
        padding_side=settings.get("padding_side", pads.get("direction", kind.padding_side)),
        truncation_side=settings.get("truncation_side", cuts.get("direction", "right")),
        model_max_length=_read_max_length(settings),
        clean_up_tokenization_spaces=bool(settings.get("clean_up_tokenization_spaces")),
        gives_token_types="token_type_ids" in inputs if inputs else kind.gives_token_types,
    )


def _find_class_name(folder: Path, settings: Mapping[str, Any]) -> str:
    name = settings.get("tokenizer_class")
    if name is None:
        config = read_optional(folder / "config.json")
        model_type = config.get("model_type")
        name = config.get("tokenizer_class") or CLASS_OF_TYPE.get(str(model_type), "")
    return str(name).removesuffix("Fast")


def _has_own_code(folder: Path, settings: Mapping[str, Any]) -> bool:
    named = settings if settings.keys() & {"auto_map", "tokenizer_class"} else None
    code = (read_optional(folder / "config.json") if named is None else named).get("auto_map")
    return bool(code.get("AutoTokenizer") if isinstance(code, dict) else code)


def _read_max_length(settings: Mapping[str, Any]) -> int:
    value = settings.get("model_max_length", settings.get("max_len"))
    known = isinstance(value, int | float) and 0 < value < NO_MAX_LENGTH
    return int(value) if known else NO_MAX_LENGTH
