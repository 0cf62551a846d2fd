"""Check that a checkpoint's weight and tokenizer files are there and complete."""

from __future__ import annotations

from pathlib import Path

from bge_export.checkpoint.safetensors import read_header
from bge_runtime.errors import ExportError
from bge_runtime.sources import ENCODER_ONLY_M3, HEAD_FILES
from bge_runtime.system import check_not_pointer, read_json

_TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "sentencepiece.bpe.model",
    "spiece.model", "spm.model",
)  # fmt: skip
"""Files that a fast tokenizer can be made from; the first one that exists is read."""


def check_heads(folder: Path, source: str) -> tuple[str, ...]:
    """Return the files of M3's heads, checked to be there.

    Raises:
        ExportError: If one is missing.
    """
    missing = [name for name in HEAD_FILES if not (folder / name).is_file()]
    if missing:
        raise ExportError(
            f"{source} is of class {ENCODER_ONLY_M3} and lacks {' and '.join(missing)}, without "
            "which its lexical weights and ColBERT vectors would be random. Add the files, or "
            "open it with FlagModel for its dense vectors alone"
        )
    for name in HEAD_FILES:
        check_not_pointer(folder / name, error=ExportError)
    return HEAD_FILES


def check_tokenizer_files(folder: Path, source: str) -> None:
    """Check a tokenizer's files without loading the tokenizer.

    Raises:
        ExportError: If there are none, or one is damaged.
    """
    there = [name for name in _TOKENIZER_FILES if (folder / name).exists()]
    for name in there[:1] or _TOKENIZER_FILES:
        _check_not_dangling(folder / name)
    settings = folder / "tokenizer_config.json"
    own_code = settings.is_file() and "auto_map" in read_json(settings, error=ExportError)
    if not there and not own_code:
        raise ExportError(
            f"{source} has no tokenizer: none of {', '.join(_TOKENIZER_FILES)} is in {folder}. "
            "Download it whole, or copy the tokenizer's files from the model that it was trained "
            "from"
        )
    for name in (*there[:1], "special_tokens_map.json", "added_tokens.json"):
        check_not_pointer(folder / name, error=ExportError)
        if name.endswith(".json") and (folder / name).is_file():
            read_json(folder / name, error=ExportError)


def check_weights(folder: Path, source: str) -> tuple[str, ...]:
    """Return the weight files, checked to be complete without loading them.

    Raises:
        ExportError: If one is missing or damaged.
    """
    # In the order in which transformers looks for them.
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    pickled, pickled_index = folder / "pytorch_model.bin", folder / "pytorch_model.bin.index.json"
    if single.is_file():
        names = [single.name]
    elif index.is_file() or (pickled_index.is_file() and not pickled.is_file()):
        path = index if index.is_file() else pickled_index
        try:
            names = sorted(set(read_json(path, error=ExportError)["weight_map"].values()))
        except (OSError, KeyError, TypeError, AttributeError) as error:
            raise ExportError(f"cannot read {path}: {type(error).__name__} {error}") from error
    elif pickled.is_file():
        names = [pickled.name]
    else:
        for path in (single, pickled):
            _check_not_dangling(path)
        raise ExportError(
            f"{source} has no weights: neither model.safetensors nor pytorch_model.bin is in "
            f"{folder}. Download it whole"
        )
    for name in names:
        path = folder / name
        _check_not_dangling(path)
        if not path.is_file():
            raise ExportError(f"{path}, which the index names, is missing; download it again")
        check_not_pointer(path, error=ExportError)
        if path.suffix == ".safetensors":
            read_header(path)
    for path in sorted(folder.glob("adapter_model.*")):
        raise ExportError(
            f"{source} holds a LoRA adapter's weights ({path.name}), which would not be in the "
            "graphs. Merge it (peft's merge_and_unload), or delete the file if that was done"
        )
    return tuple(names)


def _check_not_dangling(path: Path) -> None:
    """Check that a file is not a link to a missing file.

    Raises:
        ExportError: If it is.
    """
    if path.is_symlink() and not path.exists():
        raise ExportError(
            f"{path} is a link to {path.readlink()}, which is not there; download it again"
        )
