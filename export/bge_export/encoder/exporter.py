"""Export an encoder or a reranker: load, wrap, trace, lower to each target's graph, check."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_export.bundle import (
    DEFAULT_OPTIONS,
    NO_PROGRESS,
    BundleContents,
    ExportOptions,
    Progress,
    VariantReport,
    check_json_files,
    check_space,
    check_variant,
    complete_settings,
    count_last_steps,
    finish_bundle,
    resolve_output,
    staging_directory,
    tokenize_parity_pairs,
    tokenize_parity_texts,
    write_folder,
)
from bge_export.checkpoint import Checkpoint
from bge_export.checkpoint.tokenizer import (
    CheckpointTokenizer,
    check_pairs,
    check_token_types,
    check_vocabulary,
    load_tokenizer,
)
from bge_export.encoder.emulation import emulate_on_cpu
from bge_export.encoder.int8 import calibration_tokens
from bge_export.encoder.load import (
    find_padding_position,
    find_scorer,
    has_token_types,
    load_encoder,
    load_heads,
    load_reranker,
    max_length,
)
from bge_export.encoder.pooling import PooledEncoder
from bge_export.encoder.reference import compute_pair_reference, compute_reference
from bge_export.encoder.trace import trace, trace_packed
from bge_export.encoder.write import write_graphs
from bge_export.targets import INT8, PORTABLE, EncoderTarget, for_model
from bge_runtime.bundle import (
    PARITY_FILE,
    TOKENIZER_FILE,
    Bundle,
    Model,
    PairReference,
    Reference,
    Variant,
)
from bge_runtime.encoding import TextTokenizer
from bge_runtime.errors import ExportError
from bge_runtime.sources import RERANKER_ENCODER

_REFERENCE_TOKENS = 512
"""Most tokens of a parity text or pair."""

_STEPS = 4
"""Steps of an export before `finish_bundle`, without the trace of packed texts."""


def export_encoder(
    checkpoint: Checkpoint,
    output: Path,
    targets: Sequence[EncoderTarget],
    options: ExportOptions = DEFAULT_OPTIONS,
    progress: Progress = NO_PROGRESS,
) -> list[VariantReport]:
    """Export an encoder's checkpoint to a bundle that is checked against PyTorch.

    Everything is written to a folder beside ``output``, which is renamed at the end. An interrupted
    export leaves nothing that looks like a bundle.

    Args:
        checkpoint: From `inspect_checkpoint`.
        output: Folder of the bundle.
        targets: Graphs to write, from `select_encoder_targets`.
        options: Further options.
        progress: Told of each step.

    Returns:
        One report for each variant.

    Raises:
        ExportError: If the checkpoint cannot be exported, the result is outside its tolerance, or
            the folder cannot be written.
    """
    output, step = resolve_output(output, force=options.force), progress.step
    _check_packages(targets)
    with staging_directory(output) as draft:
        weights = (checkpoint.folder / name for name in checkpoint.weight_files)
        check_space(draft, sum(path.stat().st_size for path in weights))
        step("loading the checkpoint")
        trusted = options.trust_remote_code
        tokenizer = load_tokenizer(checkpoint.folder, trust_remote_code=trusted)
        load = load_reranker if _is_reranker(checkpoint) else load_encoder
        loaded = load(checkpoint, trust_remote_code=trusted)
        wrapped = _wrap(checkpoint, loaded, tokenizer)
        model = _describe_model(checkpoint, wrapped, tokenizer, options)
        targets = [_fit_target(target, wrapped, model) for target in targets]
        variants = tuple(_describe_variants(targets))
        needs_packed = any(target.packed for target in targets)
        progress.add_steps(_STEPS + needs_packed + count_last_steps(variants))
        _write_companions(
            draft, checkpoint, model, tokenizer, targets, token_types=wrapped.token_types
        )
        step("tracing the graph")
        traced = trace(wrapped, max_length=model.max_length)
        packed = None
        if needs_packed:
            step("tracing the graph without padding")
            position = find_padding_position(wrapped.encoder)
            packed = trace_packed(wrapped, padding_position=position, max_length=model.max_length)
        step("computing PyTorch's outputs")
        reference = _compute_reference(draft, tokenizer, loaded, wrapped, model)
        reference.save(draft / PARITY_FILE)
        step("writing the graphs")
        graphs = write_graphs(
            traced,
            packed,
            draft,
            targets,
            token_ids=reference.token_ids,
            calibration=_calibration_tokens(draft, reference, targets, model),
            progress=progress,
        )
        del loaded, wrapped, traced, packed

        def check(bundle: Bundle, variant: Variant) -> VariantReport:
            return check_variant(bundle, variant, reference, emulate_on_cpu)

        contents = BundleContents(model=model, graphs=graphs, variants=variants)
        return finish_bundle(draft, output, checkpoint, contents, check, options, progress)


def _check_packages(targets: Sequence[EncoderTarget]) -> None:
    """Check that the packages that write the targets are installed."""
    needing = [
        target.name for target in targets if target.format == "openvino" or target.openvino_file
    ]
    if needing and importlib.util.find_spec("openvino") is None:
        raise ExportError(
            f"{' and '.join(needing)} cannot be written, since the package openvino is not "
            "installed. Run `pip install 'bge-runtime[export]'`, or leave it out with --target cpu"
        )


def _is_reranker(checkpoint: Checkpoint) -> bool:
    return checkpoint.model_class == RERANKER_ENCODER


def _fit_target(target: EncoderTarget, wrapped: PooledEncoder, model: Model) -> EncoderTarget:
    heads, scores = bool(wrapped.heads), wrapped.scorer is not None
    return for_model(target, model.max_length, heads=heads, scores=scores)


def _compute_reference(
    draft: Path, tokenizer: CheckpointTokenizer, loaded: Any, wrapped: PooledEncoder, model: Model
) -> Reference | PairReference:
    length = min(model.max_length, _REFERENCE_TOKENS)
    if wrapped.scorer is None:
        texts, token_ids = tokenize_parity_texts(draft, tokenizer, max_length=length)
        return compute_reference(wrapped, texts, token_ids, name=model.name)
    pairs, token_ids = tokenize_parity_pairs(
        draft, tokenizer, max_length=length, token_types=wrapped.token_types
    )
    return compute_pair_reference(loaded, pairs, token_ids, max_length=length, name=model.name)


def _calibration_tokens(
    draft: Path,
    reference: Reference | PairReference,
    targets: Sequence[EncoderTarget],
    model: Model,
) -> Sequence[NDArray[np.int64]]:
    """Return the tokens from which scales in int8 are chosen: of a reranker the parity pairs."""
    if all(target.quantization_block is None for target in targets):
        return ()
    if isinstance(reference, PairReference):
        return reference.token_ids
    length = min(model.max_length, _REFERENCE_TOKENS)
    return calibration_tokens(TextTokenizer(draft / TOKENIZER_FILE), max_length=length)


def _wrap(checkpoint: Checkpoint, loaded: Any, tokenizer: CheckpointTokenizer) -> PooledEncoder:
    """Add pooling and heads to an encoder, and check that its tokenizer fits."""
    rows = loaded.get_input_embeddings().num_embeddings
    check_vocabulary(tokenizer, rows, source=checkpoint.source)
    if _is_reranker(checkpoint):
        encoder, scorer = find_scorer(loaded, source=checkpoint.source)
        # A model that is not given types reads zeros.
        types = has_token_types(encoder) and tokenizer.gives_token_types
        check_pairs(tokenizer, token_types=types, source=checkpoint.source)
        return PooledEncoder(encoder, pooling=checkpoint.pooling, token_types=types, scorer=scorer)
    encoder, token_types = loaded, has_token_types(loaded)
    if token_types:
        check_token_types(tokenizer, source=checkpoint.source)
    return PooledEncoder(
        encoder,
        pooling=checkpoint.pooling,
        token_types=token_types,
        heads=load_heads(checkpoint, width=int(encoder.config.hidden_size)),
    )


def _describe_model(
    checkpoint: Checkpoint,
    wrapped: PooledEncoder,
    tokenizer: CheckpointTokenizer,
    options: ExportOptions,
) -> Model:
    config: Any = wrapped.encoder.config
    length = max_length(wrapped.encoder)
    heads: Any = wrapped.heads
    return Model(
        # Another name, so that nobody takes random weights for the model.
        name=checkpoint.name + ("-random" if options.random_seed is not None else ""),
        model_class=checkpoint.model_class,
        architecture=str(checkpoint.config["model_type"]),
        dim=int(config.hidden_size),
        layers=int(config.num_hidden_layers),
        vocab_size=int(config.vocab_size),
        max_length=length,
        pooling=checkpoint.pooling,
        query_instruction=checkpoint.query_instruction,
        query_instruction_format=checkpoint.query_instruction_format,
        pad_token_id=tokenizer.pad_token_id,
        colbert_dim=heads["colbert"].out_features if heads else None,
        weightless_token_ids=_find_weightless_tokens(tokenizer) if heads else (),
        sentence_transformers=complete_settings(checkpoint, tokenizer, max_length=length),
    )


def _find_weightless_tokens(tokenizer: CheckpointTokenizer) -> tuple[int, ...]:
    """Return the tokens without a lexical weight in FlagEmbedding; not the mask token."""
    roles = ("cls_token", "eos_token", "pad_token", "unk_token")
    known = [tokenizer.token_id(role) for role in roles if role in tokenizer.special_tokens]
    return tuple(sorted(known))


def _write_companions(
    draft: Path,
    checkpoint: Checkpoint,
    model: Model,
    tokenizer: CheckpointTokenizer,
    targets: Sequence[EncoderTarget],
    *,
    token_types: bool,
) -> None:
    """Write the files with which other tools read the bundle and give the same vectors.

    These tools are sentence-transformers, optimum, TEI, transformers.js and fastembed. Each
    truncates texts as with the checkpoint: some read the tokenizer's length, some that of
    sentence-transformers.
    """
    length = min(tokenizer.model_max_length, model.max_length)
    if _is_reranker(checkpoint):  # sentence-transformers asks its own files first
        length = model.sentence_transformers.max_seq_length or length
    tokenizer.write(draft, max_length=length, token_types=token_types)
    portable = [target.file for target in targets if target.name in (PORTABLE.name, INT8.name)]
    config = {
        **checkpoint.config,
        # Without it transformers.js does not download the weights beside the graph.
        "transformers.js_config": {
            "use_external_data_format": {Path(file).name: True for file in portable},
        },
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (draft / "config.json").write_text(text, "utf-8")
    if not _is_reranker(checkpoint):
        write_folder(draft, model.sentence_transformers, pooling=model.pooling, dim=model.dim)
    check_json_files(draft)


def _describe_variants(targets: Sequence[EncoderTarget]) -> Iterator[Variant]:
    for target in targets:
        for name, engine, precision in target.variants:
            yield Variant(
                name=name,
                graph=target.graph_for(engine),
                engine=engine,
                device=target.device,
                precision=precision,
                parity=None,
            )
