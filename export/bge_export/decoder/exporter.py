"""Export a decoder: config, weights, graphs, layer by layer check, finish.

At most one layer is in memory at a time.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bge_export.bundle import (
    DEFAULT_OPTIONS,
    NO_PROGRESS,
    BundleContents,
    ExportOptions,
    Progress,
    VariantReport,
    check_json_files,
    check_space,
    complete_settings,
    count_last_steps,
    finish_bundle,
    resolve_output,
    staging_directory,
    tokenize_parity_texts,
)
from bge_export.checkpoint import Checkpoint, SafetensorsReader, find_common_dtype
from bge_export.checkpoint.tokenizer import CheckpointTokenizer, check_vocabulary, load_tokenizer
from bge_export.decoder.answers import find_answers, make_prompt, tokenize_prompts
from bge_export.decoder.config import DecoderConfig
from bge_export.decoder.external_data import count_bytes, write_external_data
from bge_export.decoder.layerwise_gate import check_layerwise
from bge_export.decoder.planned_graph import describe_variants, plan_graphs
from bge_export.decoder.reference import compute_vectors
from bge_export.decoder.weights import find_weights
from bge_export.targets import DecoderTarget
from bge_runtime.bundle import PARITY_FILE, Bundle, Model, PairReference, Reference, Variant
from bge_runtime.errors import ExportError
from bge_runtime.sources import DECODER_ONLY_ICL

_REFERENCE_TOKENS = 48
"""Most tokens of a parity text. All texts are in memory at once, so that each layer is read once,
and each is computed in full by the CPU, whatever will run the model."""

_STEPS = 4
"""Steps of an export before `finish_bundle`."""


def export_decoder(
    checkpoint: Checkpoint,
    output: Path,
    targets: Sequence[DecoderTarget],
    options: ExportOptions = DEFAULT_OPTIONS,
    progress: Progress = NO_PROGRESS,
) -> list[VariantReport]:
    """Export a decoder's checkpoint to a bundle that is checked against PyTorch.

    As `bge_export.encoder.export_encoder`, with at most one layer in memory at a time.

    Args:
        checkpoint: From `inspect_checkpoint`, of a decoder's class.
        output: Folder of the bundle.
        targets: Graphs to write, from `select_decoder_targets`.
        options: Further options.
        progress: Told of each step.

    Returns:
        One report for each variant.

    Raises:
        ExportError: If the checkpoint cannot be exported, the result is outside its tolerance, or
            the folder cannot be written.
    """
    output, step = resolve_output(output, force=options.force), progress.step
    config = DecoderConfig.from_json(checkpoint.config, source=checkpoint.source)
    reader = SafetensorsReader(checkpoint.folder, checkpoint.weight_files)
    found = find_weights(config, reader, source=checkpoint.source)
    variants = describe_variants(targets)
    progress.add_steps(_STEPS + count_last_steps(variants))
    step("loading the tokenizer")
    tokenizer = _load_tokenizer(checkpoint, config)
    model = _describe_model(checkpoint, config, tokenizer, options)
    answers = find_answers(checkpoint, config, reader, found, tokenizer)
    own_type = find_common_dtype(reader, found)
    planned = plan_graphs(config, found, targets, own_type=own_type, answers=answers)
    plans = {graph.data: graph.plan for graph in planned.values()}
    with staging_directory(output) as draft:
        needed = sum(count_bytes(plan) for plan in plans.values())
        check_space(draft, needed)
        _write_companions(draft, checkpoint, model, tokenizer)
        token_ids, refer = _tokenize(draft, tokenizer, model)
        step("writing the weights")
        (draft / "onnx").mkdir()
        with _show_bytes(needed) as bar:
            for data, plan in plans.items():
                write_external_data(plan, reader, draft / data, advance=bar.update)
        step("building the graphs")
        graphs = {name: graph.write(draft) for name, graph in planned.items()}
        step("computing PyTorch's vectors")
        vectors = compute_vectors(checkpoint, config, reader, found, token_ids)
        reference = refer(vectors if answers is None else answers.score(vectors, reader))
        reference.save(draft / PARITY_FILE)

        def check(bundle: Bundle, variant: Variant) -> VariantReport:
            return check_layerwise(planned[variant.graph], bundle, variant, reference)

        contents = BundleContents(model=model, graphs=graphs, variants=variants)
        return finish_bundle(draft, output, checkpoint, contents, check, options, progress)


def _load_tokenizer(checkpoint: Checkpoint, config: DecoderConfig) -> CheckpointTokenizer:
    tokenizer = load_tokenizer(checkpoint.folder, right_padding=False)
    check_vocabulary(tokenizer, config.vocab_size, source=checkpoint.source)
    if checkpoint.model_class == DECODER_ONLY_ICL and tokenizer.clean_up_tokenization_spaces:
        raise ExportError(
            f"the tokenizer of {checkpoint.source} cleans up spaces when it decodes, and "
            f"{DECODER_ONLY_ICL} decodes every query; set clean_up_tokenization_spaces to "
            "false in its tokenizer_config.json if the model was trained so"
        )
    return tokenizer


def _describe_model(
    checkpoint: Checkpoint,
    config: DecoderConfig,
    tokenizer: CheckpointTokenizer,
    options: ExportOptions,
) -> Model:
    return Model(
        # Another name, so that nobody takes random weights for the model.
        name=checkpoint.name + ("-random" if options.random_seed is not None else ""),
        model_class=checkpoint.model_class,
        architecture=config.family,
        dim=config.hidden_size,
        layers=config.layers,
        vocab_size=config.vocab_size,
        max_length=config.max_length,
        pooling=checkpoint.pooling,
        query_instruction=checkpoint.query_instruction,
        query_instruction_format=checkpoint.query_instruction_format,
        pad_token_id=tokenizer.pad_token_id,
        prompt=None if checkpoint.question is None else make_prompt(checkpoint.question, tokenizer),
        sentence_transformers=complete_settings(
            checkpoint, tokenizer, max_length=config.max_length
        ),
    )


def _tokenize(
    draft: Path, tokenizer: CheckpointTokenizer, model: Model
) -> tuple[list[NDArray[np.int64]], Callable[[NDArray[np.float32]], Reference | PairReference]]:
    """Tokenize what the gate compares on: texts, or pairs for a reranker.

    Returns:
        The tokens, and what makes a reference of PyTorch's outputs for them.
    """
    length = min(_REFERENCE_TOKENS, model.max_length)
    texts, token_ids = tokenize_parity_texts(draft, tokenizer, max_length=length)
    if model.prompt is not None:
        return tokenize_prompts(draft, tokenizer, model.prompt, max_length=model.max_length)
    return token_ids, lambda vectors: Reference(
        texts=texts, token_ids=tuple(token_ids), vectors=vectors
    )


def _write_companions(
    draft: Path, checkpoint: Checkpoint, model: Model, tokenizer: CheckpointTokenizer
) -> None:
    """Write the files beside the graphs: tokenizer and configuration."""
    tokenizer.write(draft, max_length=model.max_length, token_types=False)
    text = json.dumps(dict(checkpoint.config), indent=2, ensure_ascii=False) + "\n"
    (draft / "config.json").write_text(text, "utf-8")
    check_json_files(draft)


@contextlib.contextmanager
def _show_bytes(total: int) -> Iterator[Any]:
    bar = tqdm(total=total, desc="weights", unit="B", unit_scale=True, disable=None, leave=False)
    with bar:
        yield bar
