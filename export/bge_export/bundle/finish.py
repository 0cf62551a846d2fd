"""The last steps of every export: hashes, parity gate, manifest, and the rename into place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bge_export.bundle.gate import VariantReport
from bge_export.bundle.options import ExportOptions
from bge_export.bundle.progress import Progress
from bge_export.bundle.staging import commit_directory
from bge_export.checkpoint import Checkpoint
from bge_runtime.bundle import (
    FILE_NAME,
    Bundle,
    File,
    Graph,
    Manifest,
    Model,
    Provenance,
    Variant,
)
from bge_runtime.system import file_hash, installed_versions, owners

_RECORDED_PACKAGES = ("bge-runtime", "torch", "transformers", "onnx", "onnxscript")


@dataclass(frozen=True, kw_only=True)
class BundleContents:
    """What an exporter has written to the staging directory.

    Attributes:
        model: The model.
        graphs: Its graphs, by name.
        variants: Ways to run them, without parity.
    """

    model: Model
    graphs: Mapping[str, Graph]
    variants: Sequence[Variant]


def count_last_steps(variants: Sequence[Variant]) -> int:
    """Return how many steps `finish_bundle` takes for a bundle with these variants."""
    return 2 + len(variants)


def finish_bundle(
    draft: Path,
    output: Path,
    checkpoint: Checkpoint,
    contents: BundleContents,
    check: Callable[[Bundle, Variant], VariantReport],
    options: ExportOptions,
    progress: Progress,
) -> list[VariantReport]:
    """Check the written variants, write ``bge.json`` and rename the bundle into place.

    Args:
        draft: The staging directory.
        output: Folder of the bundle.
        checkpoint: The checkpoint that was exported.
        contents: What was written.
        check: The parity gate for one variant.
        options: The options of the export.
        progress: Told of each step, of which there are `count_last_steps`.

    Returns:
        One report for each variant.

    Raises:
        ExportError: If a variant fails its check, or something else is at ``output`` by now.
        OSError: If a file cannot be read or written.
    """
    progress.step("hashing the files")
    # Before the gate: the key of TensorRT's engines, which it builds on a GPU, has these hashes.
    manifest = Manifest(
        model=contents.model,
        graphs=dict(contents.graphs),
        variants=tuple(contents.variants),
        files=_hash_files(draft),
        provenance=_describe_provenance(checkpoint, options.random_seed),
    )
    reports = []
    for variant in manifest.variants:
        progress.step(f"checking parity of {variant.name}")
        reports.append(check(Bundle(draft, manifest), variant))
    checked = tuple(
        replace(variant, parity=report.parity)
        for variant, report in zip(manifest.variants, reports, strict=True)
    )
    document = replace(manifest, variants=checked).to_json()
    (draft / FILE_NAME).write_text(document, encoding="utf-8")
    progress.step("putting the bundle in place")
    commit_directory(draft, output, force=options.force)
    # The first opening on this machine need not hash them again.
    for weights in {graph.weights for graph in contents.graphs.values()}:
        file_hash.remember(output / weights, manifest.files[weights].sha256)
    return reports


def _hash_files(draft: Path) -> dict[str, File]:
    files = sorted(path for path in draft.rglob("*") if path.is_file())
    return {
        path.relative_to(draft).as_posix(): File(
            size_bytes=path.stat().st_size, sha256=file_hash.file_sha256(path)
        )
        for path in files
    }


def _describe_provenance(checkpoint: Checkpoint, random_seed: int | None) -> Provenance:
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
