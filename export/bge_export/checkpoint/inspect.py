"""Find a checkpoint, and refuse a wrong one before minutes are spent on it."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bge_export.checkpoint.config_keys import check_config_keys
from bge_export.checkpoint.sentence_transformers import SentenceTransformersFolder, read_folder
from bge_runtime.bundle import (
    ADAPTER_FILE,
    FILE_NAME,
    SentenceTransformersSettings,
    explain_adapter,
    explain_no_model,
)
from bge_runtime.errors import ExportError
from bge_runtime.sources import (
    CHECKPOINT_FILES,
    CHECKPOINT_PICKLES,
    DECODER_CLASSES,
    DECODERS,
    ENCODER_ONLY_BASE,
    ENCODER_ONLY_M3,
    ENCODERS,
    HEAD_FILES,
    SUPPORTED_MODEL_CLASSES,
    ModelSpec,
    find_model,
    hub_id_in,
    identify,
    is_hub_id,
    query_hub,
    translate_hub_errors,
)
from bge_runtime.system import check_not_pointer, local_path, read_json

_HEADS_OF_OTHER_TASKS = {
    "ForSequenceClassification": "a classifier or reranker (cross-encoder)",
    "ForTokenClassification": "a token classifier",
    "ForQuestionAnswering": "a question-answering model",
    "ForMultipleChoice": "a multiple-choice model",
    "ForNextSentencePrediction": "a next-sentence model",
    "ForCausalLM": "a decoder",
    "LMHeadModel": "a decoder",
    "ForConditionalGeneration": "a generator",
}

_TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "sentencepiece.bpe.model",
    "spiece.model", "spm.model",
)  # fmt: skip
"""Any of these makes a fast tokenizer; the first one that is there is read."""

_TYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "BOOL": 1}
"""Types of tensors in a safetensors file whose weights are not quantised, and their sizes."""

_HUB_FILES_LEFT_OUT = ["onnx/*", "openvino/*"]
"""Other people's exports, which many repositories hold."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A folder that can be exported.

    Attributes:
        folder: Where its files are.
        source: What the user called it.
        name: Its name without owner.
        revision: Commit of the hub repository, if it came from the hub.
        config: Its ``config.json``.
        model_class: FlagEmbedding's class for it.
        pooling: One of `bge_runtime.sources.POOLING_METHODS`.
        query_instruction: Instruction its authors recommend for queries.
        query_instruction_format: How instruction and query are joined.
        weight_files: Its weight files, relative to the folder; M3's heads among them.
        sentence_transformers: What its sentence-transformers folder asks for besides.
        published: Whether FlagEmbedding knows it by name.
    """

    folder: Path
    source: str
    name: str
    revision: str | None
    config: Mapping[str, Any]
    model_class: str
    pooling: str
    query_instruction: str | None
    query_instruction_format: str
    weight_files: tuple[str, ...]
    sentence_transformers: SentenceTransformersSettings
    published: bool


def find_checkpoint(
    source: str, *, revision: str | None = None, offline: bool = False
) -> tuple[Path, str | None]:
    """Locate a local folder, or download a repository from the hub.

    Args:
        source: Path of a folder, or a hub id such as ``BAAI/bge-large-en-v1.5``.
        revision: Branch, tag or commit on the hub.
        offline: Use only what the hub's cache holds.

    Returns:
        The folder, and the commit it was resolved to (None for a local folder).

    Raises:
        ExportError: If there is no such folder.
        HubError: If the hub does not give it.
    """
    folder = local_path(source, error=ExportError)
    if folder.exists():
        if revision is not None:
            raise ExportError(f"revision={revision!r} is for hub ids, and {source} is a local path")
        return folder, None
    if not is_hub_id(source):
        facts = find_model(source)
        meant = facts.hub_id if facts and "/" not in source else hub_id_in(source)
        hint = f"; did you mean {meant}?" if meant else ""
        raise ExportError(f"{source} is neither a folder nor a hub id such as OWNER/NAME{hint}")
    # Heavy, and not needed for a local folder.
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    with translate_hub_errors(source, revision, offline="--offline" if offline else None):
        cached = isinstance(try_to_load_from_cache(source, "config.json", revision=revision), str)
        offline = query_hub(source, revision, cached=cached, offline=offline) is None
        snapshot = snapshot_download(
            source,
            revision=revision,
            allow_patterns=list(CHECKPOINT_FILES),
            ignore_patterns=_HUB_FILES_LEFT_OUT,
            local_files_only=offline,
        )
        if not any(Path(snapshot).rglob("*.safetensors")):
            snapshot_download(
                source,
                revision=Path(snapshot).name,
                allow_patterns=list(CHECKPOINT_PICKLES),
                local_files_only=offline,
            )
    return Path(snapshot), Path(snapshot).name


def inspect_checkpoint(
    folder: Path,
    *,
    source: str,
    revision: str | None = None,
    model_class: str | None = None,
    pooling: str | None = None,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Read a checkpoint's small files and check that it can be exported.

    Pooling is what was asked for; else what a sentence-transformers folder says of itself; else
    what is known of a model of this name; else FlagEmbedding's default of the class, where that
    is sure: it was given, or is M3's or a decoder's.

    Args:
        folder: The checkpoint.
        source: What the user called it.
        revision: Commit it was resolved to.
        model_class: FlagEmbedding's class, if the user gave one; else see
            `bge_runtime.sources.identify`.
        pooling: One of `bge_runtime.sources.POOLING_METHODS`, if the user gave one.
        trust_remote_code: Whether code from the checkpoint may run.

    Raises:
        ExportError: If it is a wrong or damaged model, its name means another one, or its pooling
            is unknown.
    """
    said = read_folder(folder, source, pooling=pooling)
    root, folder = folder, said.transformer
    config = _read_config(folder, source)
    said.check_dim(config.get("hidden_size"))
    check_config_keys(config, source=source)
    identity = identify(source, folder, config, class_is_given=model_class is not None)
    facts = identity.spec
    chosen_class = model_class or identity.model_class or ENCODER_ONLY_BASE
    if chosen_class not in SUPPORTED_MODEL_CLASSES:
        raise ExportError(
            f"{source} is a model of class {chosen_class}, and this version exports "
            f"{', '.join(SUPPORTED_MODEL_CLASSES)} only"
        )
    decoder = chosen_class in DECODER_CLASSES
    if decoder:
        _check_decoder(config, source, facts, chosen_class)
        chosen_pooling = _pooling(said, source, facts, default="last_token")
    else:
        _check_architecture(config, source, facts, trust_remote_code=trust_remote_code)
        sure = model_class is not None or chosen_class == ENCODER_ONLY_M3
        default = "cls" if sure and facts is None else None
        chosen_pooling = _pooling(said, source, facts, default=default)
    last = chosen_pooling == "last_token"
    if (decoder and not last) or (last and not decoder and chosen_class != ENCODER_ONLY_M3):
        raise ExportError(
            f"FlagEmbedding pools the last token of decoders, and may of {ENCODER_ONLY_M3}; "
            f"{source} is of class {chosen_class}, and its pooling would be {chosen_pooling}"
        )
    instruction_format = facts.query_instruction_format if facts else "{}{}"
    heads = _check_heads(folder, source) if chosen_class == ENCODER_ONLY_M3 else ()
    return Checkpoint(
        folder=folder,
        # A folder's path is made absolute, so that it means the same from anywhere.
        source=str(root.resolve()) if root == Path(source).expanduser() else source,
        name=identity.name,
        revision=revision,
        config=config,
        model_class=chosen_class,
        pooling=chosen_pooling,
        query_instruction=(facts and facts.query_instruction)
        or _instruction(said.settings.prompts.get("query"), instruction_format),
        query_instruction_format=instruction_format,
        weight_files=(*_check_weights(folder, source), *heads),
        sentence_transformers=said.settings,
        published=facts is not None,
    )


def _read_config(folder: Path, source: str) -> dict[str, Any]:
    if folder.is_file():
        raise ExportError(f"{source} is not a checkpoint: {explain_no_model(folder)}")
    if (folder / FILE_NAME).exists():
        raise ExportError(f"{source} is a bundle already; pass it to the runtime as it is")
    if (folder / ADAPTER_FILE).exists():
        raise ExportError(f"{source} cannot be exported: {explain_adapter(folder)}")
    try:
        config: dict[str, Any] = read_json(folder / "config.json", error=ExportError)
    except FileNotFoundError:
        raise ExportError(f"{source} is not a checkpoint: {explain_no_model(folder)}") from None
    return config


def _other_task(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return kind and architecture of a model for another task; None for an embedder.

    gte-multilingual-base lists its encoder and a head that gives weights to tokens.
    """
    found = None
    for architecture in map(str, config.get("architectures") or ()):
        kinds = [kind for end, kind in _HEADS_OF_OTHER_TASKS.items() if architecture.endswith(end)]
        if not kinds:
            return None
        found = found or (kinds[0], architecture)
    return found


def _check_decoder(
    config: Mapping[str, Any], source: str, facts: ModelSpec | None, model_class: str
) -> None:
    if (other := _other_task(config)) is not None and other[0] != "a decoder":
        raise ExportError(f"{source} is {other[0]} ({other[1]}), not an embedder")
    if config.get("model_type") not in DECODERS:
        raise ExportError(
            f"{source} is of type {config.get('model_type')!r}, and this version exports decoders "
            f"of type {', '.join(DECODERS)} as {model_class}"
        )
    if config.get("auto_map") and facts is None:
        raise ExportError(
            f"{source} brings its own model code (auto_map in its config.json), and a decoder's "
            f"graph is built as transformers' own {config['model_type']}. If that code computes "
            "the same, take auto_map out of a copy's config.json and export that"
        )


def _check_architecture(
    config: Mapping[str, Any], source: str, facts: ModelSpec | None, *, trust_remote_code: bool
) -> None:
    if (other := _other_task(config)) is not None:
        raise ExportError(
            f"{source} is {other[0]} ({other[1]}), not an embedder; this version exports "
            f"encoders of type {', '.join(ENCODERS)}"
        )
    if config.get("is_decoder"):
        raise ExportError(f"{source} is a decoder (is_decoder in its config.json), not an encoder")
    model_type = config.get("model_type")
    own_code = config.get("auto_map") or (facts is not None and facts.trust_remote_code)
    if model_type in ENCODERS and not config.get("auto_map"):
        return
    if not own_code:
        raise ExportError(
            f"{source} is of type {model_type!r}; this version exports encoders of type "
            f"{', '.join(ENCODERS)}"
        )
    if not trust_remote_code:
        raise ExportError(
            f"{source} brings its own model code (type {model_type!r}), which an export runs on "
            "this machine. Read it, and pass trust_remote_code=True if you trust it"
        )


def _pooling(
    folder: SentenceTransformersFolder,
    source: str,
    facts: ModelSpec | None,
    *,
    default: str | None = None,
) -> str:
    if folder.pooling is not None:
        return folder.pooling
    if facts is not None or default is not None:
        return default or facts.pooling  # type: ignore[union-attr]
    raise ExportError(
        f"nothing says how {source} pools: it has no 1_Pooling folder and its name is not a "
        "known model's. Pass pooling_method='cls' (as BGE is trained) or "
        "pooling_method='mean'"
    )


def _instruction(prompt: str | None, form: str) -> str | None:
    """Take the instruction out of the query prompt of a sentence-transformers folder.

    Such a prompt is all that stands before a query, so the instruction in its form. None if there
    is none, or it has another form.
    """
    before, between, _ = form.split("{}")
    if prompt is None or not (prompt.startswith(before) and prompt.endswith(between)):
        return None
    return prompt[len(before) : len(prompt) - len(between)] or None


def _check_heads(folder: Path, source: str) -> tuple[str, ...]:
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
    """Check the files that a tokenizer is made of, as far as that takes no tokenizer.

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


def _check_weights(folder: Path, source: str) -> tuple[str, ...]:
    """Find the weight files and check that they are whole, without loading them."""
    # In transformers' order.
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
            read_safetensors_header(path)
    for path in sorted(folder.glob("adapter_model.*")):
        raise ExportError(
            f"{source} holds a LoRA adapter's weights ({path.name}), which would not be in the "
            "graphs. Merge it (peft's merge_and_unload), or delete the file if that was done"
        )
    return tuple(names)


def _check_not_dangling(path: Path) -> None:
    """Check that a file is not a link to something that is not there.

    Raises:
        ExportError: If it is.
    """
    if path.is_symlink() and not path.exists():
        raise ExportError(
            f"{path} is a link to {path.readlink()}, which is not there; download it again"
        )


def read_safetensors_header(path: Path) -> dict[str, dict[str, Any]]:
    """Read what a safetensors file holds, and check that all of it is there.

    The format: 8 bytes of header length, a JSON header, then the tensors' bytes
    (https://github.com/huggingface/safetensors#format).

    Returns:
        By tensor: ``dtype``, ``shape``, and ``start``, its place in the file.

    Raises:
        ExportError: If the file is damaged or short, or its weights are quantised.
    """
    check_not_pointer(path, error=ExportError)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size - 8:
                raise ValueError(f"header of {length:,} bytes in a file of {size:,}")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors, end = {}, 8 + length
        for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            first, last = tensor["data_offsets"]
            dtype, shape = str(tensor["dtype"]), tuple(tensor["shape"])
            if dtype not in _TYPE_BYTES:
                raise ExportError(
                    f"{name} in {path} is of type {dtype}, which quantised weights have. Export "
                    "the checkpoint that it was made from"
                )
            if 8 + length + first != end or last - first != math.prod(shape) * _TYPE_BYTES[dtype]:
                raise ValueError(f"{name} does not lie where the header says")
            tensors[name] = {"dtype": dtype, "shape": shape, "start": end}
            end += last - first
        if end != size:
            raise ValueError(f"{size:,} bytes where the header calls for {end:,}")
    except (
        OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error
    ) as error:  # fmt: skip
        raise ExportError(f"{path} is damaged ({error}); download it again") from error
    return tensors
