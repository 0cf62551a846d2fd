"""``bge-runtime doctor --verify``: check the files of a bundle and measure all its variants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bge_runtime.bundle import Bundle, PairReference, Parity, Reference, ScoreParity, Variant
from bge_runtime.cli.doctor_report import choice_table
from bge_runtime.cli.shell_options import replace_arguments
from bge_runtime.encoding import PairTokenizer, PromptTokenizer, TextTokenizer
from bge_runtime.engines import unavailable_reason
from bge_runtime.errors import BgeError, BundleError
from bge_runtime.sources import find_bundle
from bge_runtime.system import format_table, installed_versions
from bge_runtime.variants import measure_parity


@dataclass(frozen=True, kw_only=True)
class VariantResult:
    """The parity of one variant on this machine.

    Attributes:
        variant: The variant.
        in_force: Provider and version that ran it; or why it was not run.
        parity: Its parity here; None if it was not run.
        failures: Limits that it misses, or the error that it raised.
    """

    variant: Variant
    in_force: str
    parity: Parity | ScoreParity | None
    failures: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """``"pass"``, ``"FAIL"``, or ``"not here"`` if this machine cannot run it."""
        if self.failures:
            return "FAIL"
        return "not here" if self.parity is None else "pass"


def verify_model(model: str) -> bool:
    """Check a bundle, print the results, and return whether it is complete and correct.

    Args:
        model: Its folder or Hub ID. A checkpoint counts if the cache has a bundle of it.
    """
    try:
        bundle = Bundle.at(find_bundle(model, export=False))
        click.echo(f"\n{bundle.path}")
        size = sum(file.size_bytes for file in bundle.manifest.files.values())
        click.echo(f"hashing {len(bundle.manifest.files)} files, {size / 1e6:,.0f} MB …", err=True)
        bundle.check_files(hash_weights=True)
        click.echo("all files are unchanged since the export")
        reference = bundle.reference()
        _check_tokens(bundle, reference)
        click.echo("all texts get the same tokens as at the export\n")
        count = len(bundle.manifest.variants)
        measuring = _measure_variants(bundle, reference)
        results = list(tqdm(measuring, total=count, desc="measuring", unit="variant", disable=None))
    except BgeError as error:
        click.echo(f"FAIL: {replace_arguments(str(error))}")
        return False
    _print_results(results)
    return any(result.verdict == "pass" for result in results) and not any(
        result.failures for result in results
    )


def _measure_variants(
    bundle: Bundle, reference: Reference | PairReference
) -> Iterator[VariantResult]:
    for variant in bundle.manifest.variants:
        reason = unavailable_reason(variant.requirement)
        if reason is not None:
            yield VariantResult(variant=variant, in_force=reason, parity=None, failures=())
            continue
        try:
            info, parity = measure_parity(bundle, variant, reference)
        except BgeError as error:
            yield VariantResult(
                variant=variant, in_force="failed", parity=None, failures=(str(error),)
            )
            continue
        yield VariantResult(
            variant=variant,
            in_force=f"{info.provider} {info.version}",
            parity=parity,
            failures=tuple(parity.failures(variant.precision)),
        )


def _check_tokens(bundle: Bundle, reference: Reference | PairReference) -> None:
    """Check that the tokenizer gives the tokens that transformers gave at the export.

    Raises:
        BundleError: If it does not.
    """
    texts, tokens = _tokenize(bundle, reference)
    for text, ours, theirs in zip(texts, tokens, reference.token_ids, strict=True):
        if ours.tolist() != theirs.tolist():
            version = installed_versions(["tokenizers"])["tokenizers"]
            raise BundleError(
                f"tokenizers {version} gives other tokens for {text[:40]!r} than transformers did "
                "when the bundle was exported. Install another version of tokenizers"
            )


def _tokenize(
    bundle: Bundle, reference: Reference | PairReference
) -> tuple[Sequence[str], list[NDArray[np.int64]]]:
    """Return the texts or pairs of a reference as text, and their tokens."""
    tokenizer = TextTokenizer(bundle.tokenizer_file)
    if isinstance(reference, Reference):
        longest = max(len(ids) for ids in reference.token_ids)
        return reference.texts, tokenizer.encode(reference.texts, max_length=longest)
    prompt, graphs = bundle.manifest.model.prompt, bundle.manifest.graphs.values()
    token_types = any("token_type_ids" in graph.inputs for graph in graphs)
    encoder = (
        PairTokenizer(tokenizer, token_types=token_types)
        if prompt is None
        else PromptTokenizer(tokenizer, prompt)
    )
    tokens = encoder.encode(
        reference.queries,
        reference.passages,
        max_length=reference.max_length,
        query_max_length=reference.max_length * 3 // 4,
    )
    pairs = zip(reference.queries, reference.passages, strict=True)
    return [f"{query} / {passage}" for query, passage in pairs], tokens


def _print_results(results: Sequence[VariantResult]) -> None:
    scores = any(
        isinstance(result.variant.parity or result.parity, ScoreParity) for result in results
    )
    columns = ScoreParity.COLUMNS if scores else Parity.COLUMNS
    rows: list[tuple[str, ...]] = [
        ("variant", "in force", f"{columns[0]} at export", "here", columns[-1], "verdict")
    ]
    rows += [_row(result) for result in results]
    click.echo(format_table(rows))
    for result in results:
        for failure in result.failures:
            click.echo(f"FAIL: {result.variant.name}: {failure}")
    passed = [result.variant for result in results if result.verdict == "pass"]
    click.echo("\n" + choice_table([variant.requirement for variant in passed]))
    reasons = dict.fromkeys(result.in_force for result in results if result.verdict == "not here")
    if not passed and reasons:
        click.echo(
            f"FAIL: this machine can run none of its variants: {'; '.join(reasons)}. Install what "
            "is missing, or export it again with --target cpu"
        )


def _row(result: VariantResult) -> tuple[str, ...]:
    exported = result.variant.parity
    return (
        result.variant.name,
        result.in_force,
        "not measured" if exported is None else exported.cells()[0],
        "" if result.parity is None else result.parity.cells()[0],
        "" if result.parity is None else result.parity.cells()[-1],
        result.verdict,
    )
