"""The export of a decoder: weights stream from file to file, layers are proven one by one."""

from __future__ import annotations

import contextlib
import ctypes
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from tqdm import tqdm

from bge_export.bundle import check_json_files, check_output, commit_directory, staging_directory
from bge_export.checkpoint import (
    Checkpoint,
    SafetensorsReader,
    TensorPlan,
    total_bytes,
    weight_dtype,
    write_external_data,
)
from bge_export.checkpoint.tokenizer import CheckpointTokenizer, check_vocabulary, load_tokenizer
from bge_export.decoder.config import DecoderConfig
from bge_export.decoder.graph import DecoderGraph
from bge_export.decoder.graph_cuda import CudaDecoderGraph
from bge_export.decoder.graph_tensorrt import TensorRtDecoderGraph
from bge_export.decoder.layerwise_gate import run_in_parts
from bge_export.decoder.reference import decoder_reference
from bge_export.decoder.weights import find_weights, plan_weights, stored_weights
from bge_export.encoder import (
    ProgressCallback,
    VariantReport,
    check_space,
    checked_tokens,
    hash_files,
    prove,
    provenance,
    settings_of,
)
from bge_export.passes import EmulateHalfPrecision
from bge_export.targets import DecoderTarget
from bge_runtime.bundle import (
    FILE_NAME,
    PARITY_FILE,
    TOLERANCES,
    Bundle,
    Graph,
    Manifest,
    Model,
    Reference,
    Variant,
    compare,
)
from bge_runtime.engines import unavailable_reason
from bge_runtime.errors import ExportError
from bge_runtime.sources import DECODER_ONLY_ICL
from bge_runtime.system import file_hash

_REFERENCE_TOKENS = 48
"""Most tokens of a parity text. All texts are in memory at once, so that each layer is
read once, and each is computed in full by a processor, whatever will run the model."""

_M_MMAP_THRESHOLD, _LARGE_BLOCK = -3, 1 << 20
"""glibc's malloc.h: blocks of this size are mapped on their own."""

_WHOLE_BYTES = 64 << 20
"""Weights of at most so much are proven in one piece, by the engines that will run them;
larger ones layer by layer, whose parts are built by the same code from the same file."""


_GRAPHS: dict[str, type[DecoderGraph]] = {
    "cuda": CudaDecoderGraph,
    "tensorrt": TensorRtDecoderGraph,
}
"""What builds the graph of a target that computes in the type its matrices are stored in."""


@dataclass(frozen=True)
class _Form:
    """A graph of the bundle, about to be written.

    Attributes:
        config: The decoder.
        target: What it is for.
        data: Path of its weights inside the bundle, which graphs may share.
        plan: What lies there.
    """

    config: DecoderConfig
    target: DecoderTarget
    data: str
    plan: Sequence[TensorPlan]

    def build(
        self, folder: Path, layers: Sequence[int] | None = None, *, embed: bool = True
    ) -> ir.Model:
        """Build it, or a part of it, for the bundle in a folder; see `DecoderGraph.build`."""
        data = folder / self.data
        weights = stored_weights(self.plan, folder=data.parent, location=data.name)
        graph = _GRAPHS.get(self.target.name)
        if graph is not None and self.target.storage is not None:
            return graph(self.config, weights, dtype=self.target.storage).build(layers, embed=embed)
        return DecoderGraph(self.config, weights).build(layers, embed=embed)


def export_decoder(
    checkpoint: Checkpoint,
    output: Path,
    targets: Sequence[DecoderTarget],
    *,
    force: bool = False,
    random_seed: int | None = None,
    step: ProgressCallback = lambda _: None,
) -> list[VariantReport]:
    """Export a decoder's checkpoint, prove it against PyTorch and put it in place.

    As `bge_export.encoder.exporter.export_bundle`, with no more than a layer in memory at a time.

    Args:
        checkpoint: What `inspect_checkpoint` gave, of a decoder's class.
        output: Folder of the bundle.
        targets: Graphs to write, as `select_decoder_targets` gave them.
        force: Replace a bundle that is already there.
        random_seed: Seed, if its weights are random.
        step: Told about each step.

    Returns:
        One row for each variant.

    Raises:
        ExportError: If the checkpoint cannot be exported, the result misses its
            tolerance, or the folder cannot be written.
    """
    output = output.expanduser().resolve()
    check_output(output, force=force)
    _return_memory()
    config = DecoderConfig.from_json(checkpoint.config, source=checkpoint.source)
    reader = SafetensorsReader(checkpoint.folder, checkpoint.weight_files)
    found = find_weights(config, reader, source=checkpoint.source)
    forms = _forms(config, found, targets, own_type=weight_dtype(reader, found))
    plans = {form.data: form.plan for form in forms.values()}
    with staging_directory(output) as draft:
        needed = sum(total_bytes(plan) for plan in plans.values())
        check_space(draft, needed)
        step("loading the tokenizer")
        tokenizer = load_tokenizer(checkpoint.folder, right_padding=False)
        check_vocabulary(tokenizer, config.vocab_size, source=checkpoint.source)
        if checkpoint.model_class == DECODER_ONLY_ICL and tokenizer.clean_up_tokenization_spaces:
            raise ExportError(
                f"the tokenizer of {checkpoint.source} cleans up spaces when it decodes, and "
                f"{DECODER_ONLY_ICL} decodes every query; set clean_up_tokenization_spaces to "
                "false in its tokenizer_config.json if the model was trained so"
            )
        model = _model(checkpoint, config, tokenizer, random=random_seed is not None)
        tokenizer.write(draft, max_length=config.max_length, token_types=False)
        _write_config(draft, checkpoint)
        check_json_files(draft)
        texts, token_ids = checked_tokens(
            draft, tokenizer, max_length=min(_REFERENCE_TOKENS, config.max_length)
        )
        step("writing the weights")
        (draft / "onnx").mkdir()
        with _bytes_bar(needed) as bar:
            for data, plan in plans.items():
                write_external_data(plan, reader, draft / data, advance=bar.update)
        step("building the graphs")
        graphs = {key: _write_graph(form, draft) for key, form in forms.items()}
        step("computing PyTorch's vectors")
        reference = Reference(
            texts=texts,
            token_ids=tuple(token_ids),
            vectors=decoder_reference(checkpoint, config, reader, found, token_ids),
        )
        reference.save(draft / PARITY_FILE)
        step("hashing the files")
        manifest = Manifest(
            model=model,
            graphs=graphs,
            variants=_variants(targets),
            files=hash_files(draft),
            provenance=provenance(checkpoint, random_seed),
        )
        bundle = Bundle(draft, manifest)
        rows = []
        for variant in manifest.variants:
            step(f"checking parity of {variant.name}")
            rows.append(_prove(forms[variant.graph], bundle, variant, reference))
        variants = tuple(
            replace(variant, parity=row.parity)
            for variant, row in zip(manifest.variants, rows, strict=True)
        )
        proven = replace(manifest, variants=variants)
        (draft / FILE_NAME).write_text(proven.to_json(), encoding="utf-8")
        step("putting the bundle in place")
        commit_directory(draft, output, force=force)
    for data in plans:
        file_hash.remember(output / data, manifest.files[data].sha256)
    return rows


def _return_memory() -> None:
    """Have large blocks of memory go back to the system as soon as they are freed.

    glibc keeps them once it has seen some freed, and layers of unlike sizes leave holes:
    480 MB against 340 for a model of 1 GB. Elsewhere there is nothing to set.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


def _forms(
    config: DecoderConfig,
    found: dict[str, str],
    targets: Sequence[DecoderTarget],
    *,
    own_type: ir.DataType,
) -> dict[str, _Form]:
    """Decide which file each target's weights lie in: one for each type that they are stored in."""
    stored: dict[ir.DataType, tuple[str, Sequence[TensorPlan]]] = {}
    forms = {}
    for target in targets:
        storage = target.storage or own_type
        if storage not in stored:
            data = Path(target.file).with_suffix(".onnx_data").as_posix()
            stored[storage] = data, plan_weights(config, found, storage=storage)
        forms[_key(target)] = _Form(config, target, *stored[storage])
    return forms


def _key(target: DecoderTarget) -> str:
    return f"{target.name}-{target.precision}"


def _write_graph(form: _Form, draft: Path) -> Graph:
    model = form.build(draft)
    path = draft / form.target.file
    ir.save(model, path)
    # By its path: the weights of a large model are not read for it.
    onnx.checker.check_model(str(path), full_check=True)
    return Graph(
        file=form.target.file,
        weights=form.data,
        opset=model.opset_imports[""],
        inputs=tuple(str(value.name) for value in model.graph.inputs),
        outputs=tuple(str(value.name) for value in model.graph.outputs),
    )


def _prove(form: _Form, bundle: Bundle, variant: Variant, reference: Reference) -> VariantReport:
    """Do what `bge_export.encoder.exporter.prove` does, for a model of any size.

    A graph for a GPU that is not here is rehearsed on the CPU: that it computes what
    PyTorch does, and that its numbers have room in 16 bits, shows there as well. No parity
    is recorded of it.
    """
    reason = unavailable_reason(variant)
    rehearsed = reason is not None and variant.device != "cpu"
    if not rehearsed and (reason is not None or total_bytes(form.plan) <= _WHOLE_BYTES):
        return prove(bundle, variant, reference)
    start = time.perf_counter()

    def build(layers: Sequence[int], embed: bool) -> ir.Model:
        model = form.build(bundle.path, layers, embed=embed)
        if rehearsed:
            EmulateHalfPrecision()(model)
        return model

    vectors, provider = run_in_parts(
        form.config,
        build,
        (bundle.path / form.data).parent,
        replace(variant, device="cpu", engine="onnxruntime") if rehearsed else variant,
        reference.token_ids,
    )
    parity = compare(vectors, reference.vectors)
    graph = bundle.graph(variant.graph)
    if failures := parity.failures(TOLERANCES[variant.precision]):
        room = "" if np.isfinite(vectors).all() else f" Its numbers outgrow {variant.precision}."
        raise ExportError(
            f"{graph.file} in {variant.precision} on {provider} is too far from PyTorch's "
            f"vectors: {'; '.join(failures)}.{room} Nothing was written; leave this graph out with "
            "--precision, and please report the model"
        )
    return VariantReport(
        graph=graph.file,
        variant=variant.name,
        precision=variant.precision,
        provider=f"nothing: {reason}" if rehearsed else provider,
        size_bytes=sum((bundle.path / name).stat().st_size for name in (graph.file, graph.weights)),
        parity=None if rehearsed else parity,
        seconds=time.perf_counter() - start,
        rehearsal=parity if rehearsed else None,
    )


def _variants(targets: Sequence[DecoderTarget]) -> tuple[Variant, ...]:
    # Of two graphs that run alike the one with the smaller weights is taken.
    smallest_first = sorted(
        targets, key=lambda target: (target.storage or ir.DataType.FLOAT).bitwidth
    )
    chosen = {
        name: (target, engine, precision)
        for target in reversed(smallest_first)
        for name, engine, precision in target.variants
    }
    order = [name for target in targets for name, _, _ in target.variants]
    return tuple(
        Variant(
            name=name,
            graph=_key(chosen[name][0]),
            engine=chosen[name][1],
            device=chosen[name][0].device,
            precision=chosen[name][2],
            parity=None,
        )
        for name in dict.fromkeys(order)
    )


def _model(
    checkpoint: Checkpoint,
    config: DecoderConfig,
    tokenizer: CheckpointTokenizer,
    *,
    random: bool,
) -> Model:
    return Model(
        name=checkpoint.name + ("-random" if random else ""),
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
        sentence_transformers=settings_of(checkpoint, tokenizer, limit=config.max_length),
    )


def _write_config(draft: Path, checkpoint: Checkpoint) -> None:
    text = json.dumps(dict(checkpoint.config), indent=2, ensure_ascii=False) + "\n"
    (draft / "config.json").write_text(text, "utf-8")


@contextlib.contextmanager
def _bytes_bar(total: int) -> Iterator[Any]:
    bar = tqdm(total=total, desc="weights", unit="B", unit_scale=True, disable=None, leave=False)
    with bar:
        yield bar
