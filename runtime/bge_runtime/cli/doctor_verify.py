"""``bge-runtime doctor --verify``: check the files of a bundle and measure all its variants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click
from tqdm import tqdm

from bge_runtime.bundle import TOLERANCES, Bundle, Parity, Reference, Variant
from bge_runtime.cli.doctor_report import choice_table
from bge_runtime.cli.shell_options import replace_arguments
from bge_runtime.encoding import TextTokenizer
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
    parity: Parity | None
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


def _measure_variants(bundle: Bundle, reference: Reference) -> Iterator[VariantResult]:
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
            failures=tuple(parity.failures(TOLERANCES[variant.precision])),
        )


def _check_tokens(bundle: Bundle, reference: Reference) -> None:
    """Check that the tokenizer gives the tokens that transformers gave at the export.

    Raises:
        BundleError: If it does not.
    """
    longest = max(len(ids) for ids in reference.token_ids)
    tokens = TextTokenizer(bundle.tokenizer_file).encode(reference.texts, max_length=longest)
    for text, ours, theirs in zip(reference.texts, tokens, reference.token_ids, strict=True):
        if ours.tolist() != theirs.tolist():
            version = installed_versions(["tokenizers"])["tokenizers"]
            raise BundleError(
                f"tokenizers {version} gives other tokens for {text[:40]!r} than transformers did "
                "when the bundle was exported. Install another version of tokenizers"
            )


def _print_results(results: Sequence[VariantResult]) -> None:
    rows: list[tuple[str, ...]] = [
        ("variant", "in force", "cosine at export", "here", "error/distance", "verdict")
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
        "not measured" if exported is None else f"{exported.min_cosine:.7f}",
        "" if result.parity is None else f"{result.parity.min_cosine:.7f}",
        "" if result.parity is None else f"{result.parity.error_share:.2e}",
        result.verdict,
    )
