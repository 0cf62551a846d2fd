"""Select the graphs to write from the tables, by ``--target`` and ``--precision``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from bge_export.targets.base import Target
from bge_export.targets.decoder import DECODER_TARGETS, DecoderTarget
from bge_export.targets.encoder import (
    CUDA_UNIFORM,
    ENCODER_TARGETS,
    INT8,
    PORTABLE,
    EncoderTarget,
)
from bge_runtime.errors import ExportError

_Target = TypeVar("_Target", bound="Target")


def select_encoder_targets(
    names: Sequence[str], precisions: Sequence[str], *, scores: bool = False
) -> list[EncoderTarget]:
    """Select the graphs to write of an encoder.

    By default these are the targets that are not written on request only. The portable graph is
    among them unless all are in int8: it holds the weights that the others share, and other tools
    open it.

    Args:
        names: Names of targets; empty for every one of the precisions.
        precisions: Names of precisions; empty for every one of the named targets.
        scores: Whether the model is a reranker, which has no graph for CUDA graphs: these are for
            single texts, and a query has many passages.

    Raises:
        ExportError: If a combination does not exist; the message holds the table.
    """
    table = [target for target in ENCODER_TARGETS if not (scores and target is CUDA_UNIFORM)]
    selected = _select(table, names, precisions)
    partners = [target.written_with for target in selected]
    written = [
        target
        for target in table
        if target in selected or target in partners or target.written_with in selected
    ]
    if all(target is INT8 for target in written):
        return written
    return [*(target for target in written if target is not PORTABLE), PORTABLE]


def select_decoder_targets(names: Sequence[str], precisions: Sequence[str]) -> list[DecoderTarget]:
    """Select the graphs to write of a decoder.

    By default these are the targets that are not written on request only.

    Args:
        names: Names of targets; empty for ``cpu`` in the precisions.
        precisions: Names of precisions; empty for every one of the named targets.

    Raises:
        ExportError: As `select_encoder_targets`.
    """
    return _select(DECODER_TARGETS, names or (("cpu",) if precisions else ()), precisions)


def _select(
    table: Sequence[_Target], names: Sequence[str], precisions: Sequence[str]
) -> list[_Target]:
    known_names = {target.name for target in table}
    if precisions:
        known_names |= {engine for target in table for _, engine, _ in target.variants}
    for asked, known, option in (
        (names, known_names, "target"),
        (precisions, {target.precision for target in table}, "precision"),
    ):
        unknown = sorted(set(asked) - known)
        if unknown:
            raise ExportError(
                f"requested --{option} {', '.join(unknown)}, which this version does not write "
                f"for such a model. It writes:\n{format_target_table(table)}"
            )
    if not names or not precisions:
        return [
            target
            for target in table
            if target.name in names
            or target.precision in precisions
            or not (names or precisions or target.on_request)
        ]
    found = {
        (name, precision): matching
        for name in names
        for precision in precisions
        if (matching := _find_matching(table, name, precision))
    }
    # Each target and each precision must be written at least once, not every pair.
    if not {*names, *precisions} <= {word for pair in found for word in pair}:
        missing = {(name, precision) for name in names for precision in precisions} - {*found}
        pairs = ", ".join(f"{name} in {precision}" for name, precision in sorted(missing))
        raise ExportError(
            f"requested {pairs}, which this version does not write for such a model. It "
            f"writes:\n{format_target_table(table)}"
        )
    return [target for target in table if any(target in matching for matching in found.values())]


def _find_matching(table: Sequence[_Target], name: str, precision: str) -> list[_Target]:
    """Return the targets of a name and a precision.

    If no target of that precision has the name, it may be that of a device or an engine:
    ``--target cpu --precision int8`` selects the target int8, which runs on a CPU.
    """
    written = [target for target in table if target.precision == precision]
    return (
        [target for target in written if target.name == name]
        or [target for target in written if target.device == name]
        or [
            target
            for target in written
            if any((engine, form) == (name, precision) for _, engine, form in target.variants)
        ]
    )


def format_target_table(table: Sequence[Target] = (*ENCODER_TARGETS, *DECODER_TARGETS)) -> str:
    """Return the table of targets as text, one line each."""
    return "\n".join(
        f"  --target {target.name:<9} --precision {target.precision:<5} {target.description}"
        f"{' (on request)' if target.on_request else ''}"
        for target in table
    )
