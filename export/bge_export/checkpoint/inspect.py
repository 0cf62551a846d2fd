"""Read a checkpoint's small files and refuse a wrong one before the long work starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bge_export.checkpoint.architecture import check_decoder, check_encoder, check_reranker
from bge_export.checkpoint.config_keys import check_config_keys
from bge_export.checkpoint.files import check_heads, check_weights
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
    BGE_QUESTION,
    DECODER_CLASSES,
    ENCODER_ONLY_BASE,
    ENCODER_ONLY_M3,
    OPENED_BY,
    RERANKER_CLASSES,
    RERANKER_DECODER,
    RERANKER_ENCODER,
    RERANKER_LAYERWISE,
    RERANKER_LIGHTWEIGHT,
    SUPPORTED_MODEL_CLASSES,
    ModelSpec,
    RerankerQuestion,
    identify,
    is_classifier,
)
from bge_runtime.system import read_json


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint folder that can be exported.

    Attributes:
        folder: Folder of its files.
        source: Path or Hub ID that the user passed.
        name: Its name without owner.
        revision: Commit of the Hub repository, if it was downloaded.
        config: Its ``config.json``.
        model_class: FlagEmbedding's class for it.
        pooling: One of `bge_runtime.sources.POOLING_METHODS`.
        query_instruction: Instruction its authors recommend for queries.
        query_instruction_format: How instruction and query are joined.
        weight_files: Its weight files, relative to the folder; M3's heads among them.
        sentence_transformers: Further settings of its sentence-transformers folder.
        published: Whether FlagEmbedding lists it by name.
        question: How it is asked about a pair, if it is a decoder that reranks: as its authors say,
            else as FlagEmbedding does.
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
    question: RerankerQuestion | None = None


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

    Pooling is the user's; else the sentence-transformers folder's; else that of the known model of
    this name; else the class's default in FlagEmbedding, if the class is certain: the user chose
    it, or it is M3's or a decoder's.

    Args:
        folder: The checkpoint.
        source: Path or Hub ID that the user passed.
        revision: Commit that was downloaded.
        model_class: FlagEmbedding's class, if the user chose one; else see
            `bge_runtime.sources.identify`.
        pooling: One of `bge_runtime.sources.POOLING_METHODS`, if the user chose one.
        trust_remote_code: Whether code from the checkpoint may run.

    Raises:
        ExportError: If it is damaged, is no embedder, contradicts its name, or if its pooling is
            unknown.
    """
    own = read_folder(folder, source, pooling=pooling)
    root, folder = folder, own.transformer
    config = _read_config(folder, source)
    own.check_dim(config.get("hidden_size"))
    if own.activation is not None:  # where sentence-transformers finds it without its own files
        config.setdefault("sentence_transformers", {"activation_fn": own.activation})
    check_config_keys(config, source=source)
    identity = identify(source, folder, config, default_class=model_class)
    spec = identity.spec
    kind = RERANKER_ENCODER if is_classifier(config) else ENCODER_ONLY_BASE
    chosen_class = model_class or identity.model_class or kind
    _check_class(chosen_class, identity.model_class or kind, source)
    chosen_pooling = _check_and_choose_pooling(
        own, config, source, spec, chosen_class,
        chosen=pooling, certain=model_class is not None, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    instruction_format = spec.query_instruction_format if spec else "{}{}"
    heads = check_heads(folder, source) if chosen_class == ENCODER_ONLY_M3 else ()
    return Checkpoint(
        folder=folder,
        # An absolute path means the same in every working directory.
        source=str(root.resolve()) if root == Path(source).expanduser() else source,
        name=identity.name,
        revision=revision,
        config=config,
        model_class=chosen_class,
        pooling=chosen_pooling,
        query_instruction=None
        if chosen_class in RERANKER_CLASSES
        else (spec and spec.query_instruction)
        or _extract_instruction(own.settings.prompts.get("query"), instruction_format),
        query_instruction_format=instruction_format,
        weight_files=(*check_weights(folder, source), *heads),
        sentence_transformers=own.settings,
        published=spec is not None,
        question=_choose_question(spec) if chosen_class == RERANKER_DECODER else None,
    )


def _check_and_choose_pooling(
    own: SentenceTransformersFolder,
    config: Mapping[str, Any],
    source: str,
    spec: ModelSpec | None,
    chosen_class: str,
    *,
    chosen: str | None,
    certain: bool,
    trust_remote_code: bool,
) -> str:
    """Check that a model of a class can be exported, and return its pooling.

    Args:
        own: Its sentence-transformers folder.
        config: Its ``config.json``.
        source: What the user called it.
        spec: The published model of its name.
        chosen_class: The class.
        chosen: Pooling that the user chose.
        certain: Whether the user chose the class.
        trust_remote_code: Whether code from the checkpoint may run.

    Raises:
        ExportError: As `inspect_checkpoint`.
    """
    reranker = chosen_class in RERANKER_CLASSES
    if reranker and chosen is not None:
        raise ExportError(
            f"pooling_method={chosen!r} is for embedders, and {source} is a reranker, which "
            "scores pairs from the token that it was trained to. Leave it out"
        )
    decoder = chosen_class in (*DECODER_CLASSES, RERANKER_DECODER)
    if decoder:
        check_decoder(config, source, spec, chosen_class)
        chosen_pooling = _choose_pooling(own, source, spec, default="last_token")
    elif reranker:
        check_reranker(config, source, spec, trust_remote_code=trust_remote_code)
        chosen_pooling = "cls"
    else:
        check_encoder(config, source, spec, trust_remote_code=trust_remote_code)
        certain = certain or chosen_class == ENCODER_ONLY_M3
        default = "cls" if certain and spec is None else None
        chosen_pooling = _choose_pooling(own, source, spec, default=default)
    last = chosen_pooling == "last_token"
    if (decoder and not last) or (last and not decoder and chosen_class != ENCODER_ONLY_M3):
        raise ExportError(
            f"FlagEmbedding pools the last token of decoders, and may of {ENCODER_ONLY_M3}; "
            f"{source} is of class {chosen_class}, and its pooling would be {chosen_pooling}"
        )
    return chosen_pooling


def _check_class(chosen: str, found: str, source: str) -> None:
    """Refuse a class that this version does not export, or that is of the other kind of model.

    Raises:
        ExportError: If it is.
    """
    if chosen in (RERANKER_LAYERWISE, RERANKER_LIGHTWEIGHT):
        raise ExportError(
            f"{source} is a reranker of class {chosen}, which computes a score in the code of its "
            f"checkpoint. This version exports {' and '.join(RERANKER_CLASSES)}, such as "
            "BAAI/bge-reranker-v2-m3 and BAAI/bge-reranker-v2-gemma"
        )
    if chosen not in SUPPORTED_MODEL_CLASSES:
        raise ExportError(
            f"{source} is a model of class {chosen}, and this version exports "
            f"{', '.join(SUPPORTED_MODEL_CLASSES)} only"
        )
    if (chosen in RERANKER_CLASSES) != (found in RERANKER_CLASSES):
        kinds = ("an embedder", "a reranker")
        wanted, is_one = chosen in RERANKER_CLASSES, found in RERANKER_CLASSES
        raise ExportError(
            f"requested {kinds[wanted]} (model_class={chosen!r}), and {source} is {kinds[is_one]} "
            f"of class {found}. Open it with {OPENED_BY.get(found, 'FlagEmbedding')}, or leave "
            "model_class out"
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


def _choose_pooling(
    folder: SentenceTransformersFolder,
    source: str,
    spec: ModelSpec | None,
    *,
    default: str | None = None,
) -> str:
    if folder.pooling is not None:
        return folder.pooling
    if spec is not None or default is not None:
        return default or spec.pooling  # type: ignore[union-attr]
    raise ExportError(
        f"nothing says how {source} pools: it has no 1_Pooling folder and its name is not a "
        "known model's. Pass pooling_method='cls' (as BGE is trained) or "
        "pooling_method='mean'"
    )


def _choose_question(spec: ModelSpec | None) -> RerankerQuestion:
    return spec.question if spec is not None and spec.question is not None else BGE_QUESTION


def _extract_instruction(prompt: str | None, form: str) -> str | None:
    """Return the instruction in a query prompt of a sentence-transformers folder.

    Such a prompt is everything that precedes a query: the formatted instruction. None if there is
    no prompt, or it has another format.
    """
    before, between, _ = form.split("{}")
    if prompt is None or not (prompt.startswith(before) and prompt.endswith(between)):
        return None
    return prompt[len(before) : len(prompt) - len(between)] or None
