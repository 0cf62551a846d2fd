"""The export itself: checkpoint in, proven bundle out."""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bge_export.bundle import check_json_files, check_output, commit_directory, staging_directory
from bge_export.checkpoint import Checkpoint, settle, write_folder
from bge_export.checkpoint.tokenizer import (
    CheckpointTokenizer,
    check_token_types,
    check_vocabulary,
    load_tokenizer,
)
from bge_export.encoder.load import (
    load_encoder,
    load_heads,
    max_length,
    padding_position,
    reference_vectors,
    takes_token_types,
)
from bge_export.encoder.trace import PooledEncoder, trace, trace_packed
from bge_export.encoder.write import write_graphs
from bge_export.parity_texts import PARITY_TEXTS, TOKENIZER_TEXTS
from bge_export.passes import DecomposePackedAttention, EmulateHalfPrecision
from bge_export.targets import OPENVINO, PORTABLE, Target, for_model
from bge_runtime.bundle import (
    COLBERT_TOKENS,
    COLBERT_VECS,
    FILE_NAME,
    PARITY_FILE,
    SENTENCE_EMBEDDING,
    TOKEN_WEIGHTS,
    TOKENIZER_FILE,
    TOLERANCES,
    Bundle,
    File,
    Graph,
    Manifest,
    Model,
    Parity,
    Provenance,
    Reference,
    SentenceTransformersSettings,
    Variant,
)
from bge_runtime.encoding import TextTokenizer
from bge_runtime.engines import unavailable_reason
from bge_runtime.errors import ExportError
from bge_runtime.system import file_hash, installed_versions, owners
from bge_runtime.variants import measure_parity

_RECORDED_PACKAGES = (
    "bge-runtime",
    "torch",
    "transformers",
    "onnx",
    "onnxscript",
)


ProgressCallback = Callable[[str], None]
"""Told what comes next, in a few words."""


@dataclass(frozen=True, kw_only=True)
class VariantReport:
    """One line of the table at the end of an export.

    Attributes:
        graph: Path of the graph.
        variant: Name of the variant.
        precision: Arithmetic in force.
        provider: What executed it, as the engine reports; or why nothing could.
        size_bytes: Size of the graph and its weights, which graphs may share.
        parity: Measured against PyTorch; None if this machine cannot run it.
        seconds: Time of its parity run.
        rehearsal: Of a graph for a GPU that is not here, what it comes to on a CPU that
            rounds as a GPU would.
    """

    graph: str
    variant: str
    precision: str
    provider: str
    size_bytes: int
    parity: Parity | None
    seconds: float
    rehearsal: Parity | None = None


def export_bundle(
    checkpoint: Checkpoint,
    output: Path,
    targets: Sequence[Target],
    *,
    force: bool = False,
    trust_remote_code: bool = False,
    random_seed: int | None = None,
    step: ProgressCallback = lambda _: None,
) -> list[VariantReport]:
    """Export a checkpoint, prove it against PyTorch and put it in place.

    Everything is written to a folder beside ``output`` and renamed at the end, so that
    an interrupted export leaves nothing that looks like a bundle.

    Args:
        checkpoint: What `inspect_checkpoint` gave.
        output: Folder of the bundle.
        targets: Graphs to write, as `select_targets` gave them.
        force: Replace a bundle that is already there.
        trust_remote_code: Run code from the checkpoint.
        random_seed: Seed, if its weights are random.
        step: Told about each step.

    Returns:
        One row for each variant.

    Raises:
        ExportError: If the checkpoint cannot be exported, the result misses its
            tolerance, or the folder cannot be written.
    """
    # A link to a bundle stays a link: what it points at is replaced.
    output = output.expanduser().resolve()
    check_output(output, force=force)
    if OPENVINO in targets and importlib.util.find_spec("openvino") is None:
        raise ExportError(
            "the target openvino needs the package openvino, which is not installed. Run "
            "`pip install 'bge-runtime[export]'`, or leave it out with --target cpu"
        )
    with staging_directory(output) as draft:
        files = (checkpoint.folder / name for name in checkpoint.weight_files)
        check_space(draft, sum(path.stat().st_size for path in files))
        step("loading the checkpoint")
        tokenizer = load_tokenizer(checkpoint.folder, trust_remote_code=trust_remote_code)
        encoder = load_encoder(checkpoint, trust_remote_code=trust_remote_code)
        rows = encoder.get_input_embeddings().num_embeddings  # type: ignore[operator]
        check_vocabulary(tokenizer, rows, source=checkpoint.source)
        token_types = takes_token_types(encoder)
        if token_types:
            check_token_types(tokenizer, source=checkpoint.source)
        dim = int(encoder.config.hidden_size)  # type: ignore[union-attr,arg-type]
        heads = load_heads(checkpoint, width=dim)
        wrapped = PooledEncoder(
            encoder,
            pooling=checkpoint.pooling,
            token_types=token_types,
            heads=heads,
        )
        limit = max_length(encoder)
        model = Model(
            # Seeded weights bear another name, so that nobody takes them for the model.
            name=checkpoint.name + ("-random" if random_seed is not None else ""),
            model_class=checkpoint.model_class,
            architecture=str(checkpoint.config["model_type"]),
            dim=dim,
            layers=int(encoder.config.num_hidden_layers),  # type: ignore[union-attr,arg-type]
            vocab_size=int(encoder.config.vocab_size),  # type: ignore[union-attr,arg-type]
            max_length=limit,
            pooling=checkpoint.pooling,
            query_instruction=checkpoint.query_instruction,
            query_instruction_format=checkpoint.query_instruction_format,
            pad_token_id=tokenizer.pad_token_id,
            colbert_dim=heads["colbert"].out_features if heads else None,
            weightless_token_ids=_weightless(tokenizer) if heads else (),
            sentence_transformers=settings_of(checkpoint, tokenizer, limit=limit),
        )
        _write_companions(draft, checkpoint, model, tokenizer, token_types=token_types)
        check_json_files(draft)
        step("tracing the graph")
        traced = trace(wrapped, max_length=limit)
        packed = None
        if any(target.packed for target in targets):
            step("tracing the graph without padding")
            padding = padding_position(encoder)
            packed = trace_packed(wrapped, padding_position=padding, max_length=limit)
        step("computing PyTorch's vectors")
        reference = _make_reference(draft, wrapped, model, tokenizer)
        step("writing the graphs")
        targets = [for_model(target, limit, heads=bool(heads)) for target in targets]
        graphs = write_graphs(traced, packed, draft, targets, token_ids=reference.token_ids)
        del wrapped, encoder, heads, traced, packed
        step("hashing the files")
        manifest = Manifest(
            model=model,
            graphs=graphs,
            variants=tuple(_variants(targets)),
            files=hash_files(draft),
            provenance=provenance(checkpoint, random_seed),
        )
        rows = []
        for variant in manifest.variants:
            step(f"checking parity of {variant.name}")
            rows.append(prove(Bundle(draft, manifest), variant, reference))
        variants = tuple(
            replace(variant, parity=row.parity)
            for variant, row in zip(manifest.variants, rows, strict=True)
        )
        proven = replace(manifest, variants=variants)
        (draft / FILE_NAME).write_text(proven.to_json(), encoding="utf-8")
        step("putting the bundle in place")
        commit_directory(draft, output, force=force)
    # Just hashed: the first opening on this machine need not do it again.
    for weights in {graph.weights for graph in graphs.values()}:
        file_hash.remember(output / weights, manifest.files[weights].sha256)
    return rows


def prove(bundle: Bundle, variant: Variant, reference: Reference) -> VariantReport:
    """Run one variant on the reference's texts and compare with PyTorch.

    Texts of unlike length share a batch, so that padding is part of what is proven.

    Raises:
        ExportError: If the result misses the tolerance of the variant's precision.
    """
    start = time.perf_counter()
    graph = bundle.graph(variant.graph)
    size_bytes = sum((bundle.path / name).stat().st_size for name in (graph.file, graph.weights))
    reason = unavailable_reason(variant)
    rehearsal = None
    if reason is not None and variant.device != "cpu":
        rehearsal = _rehearsed(bundle, variant, reference)
    if reason is not None:
        return VariantReport(
            graph=graph.file,
            variant=variant.name,
            precision=variant.precision,
            provider=f"nothing: {reason}",
            size_bytes=size_bytes,
            parity=None,
            seconds=time.perf_counter() - start,
            rehearsal=rehearsal,
        )
    info, parity = measure_parity(bundle, variant, reference)
    _require(parity, graph, variant, on=info.provider)
    return VariantReport(
        graph=graph.file,
        variant=info.variant,
        precision=info.precision,
        provider=info.provider,
        size_bytes=size_bytes,
        parity=parity,
        seconds=time.perf_counter() - start,
    )


def _require(parity: Parity, graph: Graph, variant: Variant, *, on: str) -> None:
    if failures := parity.failures(TOLERANCES[variant.precision]):
        raise ExportError(
            f"{graph.file} in {variant.precision} on {on} is too far from "
            f"PyTorch's vectors: {'; '.join(failures)}. Nothing was written; leave this graph out "
            "with --target, and please report the model"
        )


def _rehearsed(bundle: Bundle, variant: Variant, reference: Reference) -> Parity:
    """Run a GPU's graph on the CPU, rounding where a GPU would.

    That it computes what PyTorch does, and that its numbers have room in 16 bits, shows there
    as well.
    """
    graph = bundle.graph(variant.graph)
    model = ir.load(bundle.path / graph.file)
    DecomposePackedAttention()(model)
    EmulateHalfPrecision()(model)
    file = str(Path(graph.file).with_name("rehearsal.onnx"))
    ir.save(model, bundle.path / file)
    graphs = {**bundle.manifest.graphs, variant.graph: replace(graph, file=file)}
    try:
        on_cpu = replace(variant, engine="onnxruntime", device="cpu")
        rehearsing = Bundle(bundle.path, replace(bundle.manifest, graphs=graphs))
        info, parity = measure_parity(rehearsing, on_cpu, reference)
    finally:
        (bundle.path / file).unlink()
    _require(parity, graph, variant, on=f"{info.provider}, rounded as on a GPU,")
    return parity


def checked_tokens(
    draft: Path, tokenizer: CheckpointTokenizer, *, max_length: int
) -> tuple[tuple[str, ...], list[NDArray[np.int64]]]:
    """Tokenise the parity texts as the runtime does.

    Returns:
        The texts and the tokens of each. Texts without tokens are left out, and those with
        the tokens of another, which a vocabulary of few scripts makes of many.

    Raises:
        ExportError: If the runtime tokenises the bundle's file otherwise than the checkpoint's
            tokenizer does, or no two texts differ.
    """
    runtime = TextTokenizer(draft / TOKENIZER_FILE)
    given = (*PARITY_TEXTS, *TOKENIZER_TEXTS)
    expected = dict(zip(given, tokenizer.encode(given, max_length=max_length), strict=True))
    texts = [text for text in given if expected[text]]
    found = dict(zip(texts, runtime.encode(texts, max_length=max_length), strict=True))
    for text, ids in found.items():
        if ids.tolist() != expected[text]:
            raise ExportError(
                f"the runtime tokenises {text[:40]!r} otherwise than the checkpoint's tokenizer "
                f"does ({ids.tolist()[:12]} … instead of {expected[text][:12]} …). Nothing was "
                "written; please report this model"
            )
    kept: dict[bytes, str] = {}
    for text in PARITY_TEXTS:
        if text in found:
            kept.setdefault(found[text].tobytes(), text)
    if len(kept) < 2:
        raise ExportError(
            f"the tokenizer makes the same tokens of all {len(PARITY_TEXTS)} texts that would "
            "prove the graphs; it knows none of their scripts"
        )
    return tuple(kept.values()), [found[text] for text in kept.values()]


def _make_reference(
    draft: Path, encoder: PooledEncoder, model: Model, tokenizer: CheckpointTokenizer
) -> Reference:
    texts, token_ids = checked_tokens(draft, tokenizer, max_length=min(model.max_length, 512))
    outputs = reference_vectors(encoder, token_ids)
    reference = Reference(
        texts=texts,
        token_ids=tuple(token_ids),
        vectors=np.stack(outputs[SENTENCE_EMBEDDING]),
    )
    if encoder.heads:
        kept = [rows for rows in outputs[COLBERT_VECS] if len(rows) < COLBERT_TOKENS]
        reference = replace(
            reference,
            token_weights=np.concatenate(outputs[TOKEN_WEIGHTS]),
            colbert_vecs=np.concatenate(kept),
        )
    if not all(np.isfinite(rows).all() for output in outputs.values() for rows in output):
        raise ExportError(f"PyTorch itself gives NaN or infinity for {model.name}")
    reference.save(draft / PARITY_FILE)
    return reference


def _weightless(tokenizer: CheckpointTokenizer) -> tuple[int, ...]:
    """List what FlagEmbedding gives no lexical weight; the mask token is not among it."""
    roles = ("cls_token", "eos_token", "pad_token", "unk_token")
    known = [tokenizer.token_id(role) for role in roles if role in tokenizer.special_tokens]
    return tuple(sorted(known))


def settings_of(
    checkpoint: Checkpoint, tokenizer: CheckpointTokenizer, *, limit: int
) -> SentenceTransformersSettings:
    """Say what sentence-transformers follows of a checkpoint that can read so many tokens.

    Raises:
        ExportError: If FlagEmbedding and sentence-transformers would read texts differently.
    """
    instruction, form = checkpoint.query_instruction, checkpoint.query_instruction_format
    return settle(
        checkpoint.sentence_transformers,
        tokenizer,
        # A prompt is all that stands before a query.
        query_prompt=form.format(instruction, "") if instruction else None,
        positions=int(checkpoint.config.get("max_position_embeddings", limit)),
        limit=limit,
        published=checkpoint.published,
        source=checkpoint.source,
    )


def _write_companions(
    draft: Path,
    checkpoint: Checkpoint,
    model: Model,
    tokenizer: CheckpointTokenizer,
    *,
    token_types: bool,
) -> None:
    """Write what makes the folder readable for other tools, with the same vectors.

    These are sentence-transformers, optimum, TEI, transformers.js and fastembed. Each cuts a text
    where it does with the checkpoint: some ask the tokenizer, some sentence-transformers' file.
    """
    length = min(tokenizer.model_max_length, model.max_length)
    tokenizer.write(draft, max_length=length, token_types=token_types)
    config = {
        **checkpoint.config,
        # Else transformers.js does not fetch the weights beside the graph.
        "transformers.js_config": {
            "use_external_data_format": {Path(PORTABLE.file).name: True},
        },
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (draft / "config.json").write_text(text, "utf-8")
    write_folder(draft, model.sentence_transformers, pooling=model.pooling, dim=model.dim)


def hash_files(draft: Path) -> dict[str, File]:
    """List a folder's files with their sizes and hashes."""
    files = sorted(path for path in draft.rglob("*") if path.is_file())
    return {
        path.relative_to(draft).as_posix(): File(
            size_bytes=path.stat().st_size, sha256=file_hash.file_sha256(path)
        )
        for path in files
    }


def provenance(checkpoint: Checkpoint, random_seed: int | None) -> Provenance:
    """Say where a bundle comes from."""
    return Provenance(
        source=checkpoint.source,
        revision=checkpoint.revision,
        random_seed=random_seed,
        weights_sha256={
            name: file_hash.file_sha256(checkpoint.folder / name)
            for name in checkpoint.weight_files
        },
        versions=installed_versions(_RECORDED_PACKAGES)
        | owners("onnxruntime")
        | owners("openvino"),
    )


def _variants(targets: Sequence[Target]) -> Iterator[Variant]:
    for target in targets:
        for name, engine, precision in target.variants:
            yield Variant(
                name=name,
                graph=target.name,
                engine=engine,
                device=target.device,
                precision=precision,
                parity=None,
            )


def check_space(draft: Path, needed: int) -> None:
    """Check that a bundle of so many bytes fits on the disk.

    Raises:
        ExportError: If it does not.
    """
    free = shutil.disk_usage(draft).free
    if free < needed:
        raise ExportError(
            f"the disk of {draft.parent} has {free / 1e6:,.0f} MB free, and the bundle takes at "
            f"least {needed / 1e6:,.0f} MB; free some, or choose another --output"
        )
