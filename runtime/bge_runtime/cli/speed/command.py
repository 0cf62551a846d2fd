"""``bge-runtime doctor --speed``: measure every variant that this machine runs, side by side."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import click
from tqdm import tqdm

from bge_runtime.bundle import Bundle, Parity, Requirement, ScoreParity
from bge_runtime.cli.shell_options import replace_arguments
from bge_runtime.cli.speed.process import InForce, VariantProcess
from bge_runtime.cli.speed.texts import TEXTS
from bge_runtime.errors import BgeError
from bge_runtime.sources import RERANKER_CLASSES, find_bundle
from bge_runtime.system import available_memory, format_table
from bge_runtime.variants import JudgedVariant, judge_variants

_MEASURING_S = 5.0
"""Time to measure all variants together, after opening them."""

_FIRST_TEXTS = 4
"""Texts that tell how many of them there is time for."""

_ROUNDS = (3, 25)
"""Fewest and most rounds. In each, every variant computes the same texts, so that what else the
machine does slows all of them."""

_QUERIES = 8
"""Calls with one query in a round."""

_FASTER = 1.05
"""How many times as fast a variant must be to be called faster, in three quarters of the rounds."""

_STEADY = 1.5
"""How many times as fast the fastest quarter of rounds may be as the slowest one."""

_NONE_HERE = "this machine runs none of its variants"
_NONE = "no variant that this machine runs passes the parity check"

_MEMORY_FACTOR = 3
"""Free memory that a variant needs to be opened beside the others, in sizes of its weights."""


@dataclass(kw_only=True)
class _Measured:
    """A variant in its process, and what was measured."""

    judged: JudgedVariant
    process: VariantProcess
    rates: list[float] = field(default_factory=list)
    query_ms: list[float] = field(default_factory=list)
    in_force: InForce | None = None

    @property
    def name(self) -> str:
        return self.judged.variant.name

    @property
    def rate(self) -> float:
        """Texts or pairs in a second."""
        return statistics.median(self.rates)

    @property
    def spread(self) -> float:
        """How many times as fast the fastest quarter of rounds was as the slowest one."""
        ordered = sorted(self.rates)
        return ordered[-1 - len(ordered) // 4] / ordered[len(ordered) // 4]

    def is_faster(self, other: _Measured) -> bool:
        """Whether it was faster than another one, by more than chance explains."""
        ratios = sorted(ours / theirs for ours, theirs in zip(self.rates, other.rates, strict=True))
        return ratios[len(ratios) // 4] > _FASTER


def show_speed(model: str) -> bool:
    """Measure a bundle's variants on each device, and print them; return whether any was measured.

    Args:
        model: Its folder or Hub ID. A checkpoint counts if the cache has a bundle of it.
    """
    try:
        bundle = Bundle.at(find_bundle(model, export=False))
        bundle.check_files()
        click.echo(f"\n{bundle.path}")
        kinds = dict.fromkeys(variant.device for variant in bundle.manifest.variants)
        shown = [_show_device(bundle, kind if kind == "cpu" else f"{kind}:0") for kind in kinds]
    except BgeError as error:
        click.echo(f"FAIL: {replace_arguments(str(error))}")
        return False
    if not any(shown):
        click.echo(f"FAIL: {_NONE_HERE}")
    return any(shown)


def _show_device(bundle: Bundle, device: str) -> bool:
    """Measure and print the variants for a device, and return whether there was any."""
    judging = judge_variants(bundle, device=device)
    judged = list(tqdm(judging, desc="parity", unit="variant", disable=None, leave=False))
    chosen = next((each for each in judged if each.objection is None), None)
    with ExitStack() as stack:
        measured, left_out = _open(bundle, judged, device, stack)
        if measured:
            _measure(measured)
    click.echo()
    if measured:
        unit = "pairs" if bundle.manifest.model.model_class in RERANKER_CLASSES else "texts"
        click.echo(format_table(list(_rows(measured, chosen, device, unit))))
    for name, reason in left_out:
        click.echo(f"{name} is not measured: {reason}")
    for note in _notes(measured):
        click.echo(f"note: {note}")
    for line in _conclusions(measured, chosen, device):
        click.echo(line)
    return bool(measured)


def _open(
    bundle: Bundle, judged: Sequence[JudgedVariant], device: str, stack: ExitStack
) -> tuple[list[_Measured], list[tuple[str, str]]]:
    """Open the variants that can be opened, and return why the others are left out, by name."""
    measured: list[_Measured] = []
    left_out: list[tuple[str, str]] = []
    first: dict[Requirement, str] = {}
    for each in tqdm(judged, desc="opening", unit="variant", disable=None, leave=False):
        variant = each.variant
        earlier = first.setdefault(variant.requirement, variant.name)
        reason = each.objection if each.parity is None else _no_room(bundle, each)
        if reason is None and earlier != variant.name:
            reason = f"{earlier} has the same engine and precision, and is opened in its place"
        if reason is None:
            process = stack.enter_context(VariantProcess(bundle, variant, device=device))
            try:
                process.corpus_s(_FIRST_TEXTS)
            except BgeError as error:
                reason = str(error)
            else:
                measured.append(_Measured(judged=each, process=process))
        if reason is not None:
            left_out.append((variant.name, reason))
    return measured, left_out


def _no_room(bundle: Bundle, judged: JudgedVariant) -> str | None:
    weights = bundle.manifest.files[bundle.graph(judged.variant.graph).weights].size_bytes
    available, needed = available_memory(), _MEMORY_FACTOR * weights
    if available is None or available >= needed:
        return None
    return (
        f"it needs {needed / 1e6:,.0f} MB beside the others, and {available / 1e6:,.0f} MB of "
        "memory are free"
    )


def _measure(measured: Sequence[_Measured]) -> None:
    """Fill in what is measured, in rounds of all variants."""
    round_s = sum(each.process.corpus_s(_FIRST_TEXTS) for each in measured)
    fewest, most = _ROUNDS
    count = int(_FIRST_TEXTS * _MEASURING_S / fewest / round_s)
    count = max(_FIRST_TEXTS, min(count, TEXTS))
    # Once, so that the shapes of batches are known.
    round_s = sum(
        each.process.corpus_s(count) + sum(each.process.query_ms(_QUERIES)) / 1e3
        for each in measured
    )
    rounds = max(fewest, min(int(_MEASURING_S / round_s), most))
    for _ in tqdm(range(rounds), desc="measuring", unit="round", disable=None, leave=False):
        for each in measured:
            each.rates.append(count / each.process.corpus_s(count))
            each.query_ms += each.process.query_ms(_QUERIES)
    for each in measured:
        each.in_force = each.process.in_force()


def _rows(
    measured: Sequence[_Measured], chosen: JudgedVariant | None, device: str, unit: str
) -> Iterator[tuple[str, ...]]:
    scores = any(isinstance(each.judged.parity, ScoreParity) for each in measured)
    parity = (ScoreParity if scores else Parity).COLUMNS
    alone = "one query, ms" if unit == "texts" else "one pair, ms"
    yield (f"on {device}", "engine", f"{unit}/s", alone, "peak MB", parity[0], "precision='auto'")
    for each in measured:
        assert each.in_force is not None
        assert each.judged.parity is not None
        peak = each.in_force.peak_bytes
        yield (
            each.name,
            each.in_force.engine,
            _figure(each.rate),
            f"{statistics.median(each.query_ms):.2f}",
            "unknown" if peak is None else f"{peak / 1e6:.0f}",
            each.judged.parity.cells()[0],
            _opinion(each.judged, chosen),
        )


def _notes(measured: Sequence[_Measured]) -> list[str]:
    """Return what the models have warned of, and whether the machine was busy."""
    told = [note for each in measured if each.in_force for note in each.in_force.warnings]
    spread = max((each.spread for each in measured), default=1.0)
    if spread > _STEADY:
        told.append(
            f"some rounds were {spread:.1f} times as fast as others. Something else keeps this "
            "machine busy: measure again when it is idle"
        )
    return list(dict.fromkeys(told))


def _opinion(judged: JudgedVariant, chosen: JudgedVariant | None) -> str:
    if judged is chosen:
        return "chosen"
    if judged.objection is not None:
        return judged.objection
    return "proven, listed later"


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _conclusions(
    measured: Sequence[_Measured], chosen: JudgedVariant | None, device: str
) -> Iterator[str]:
    """Say whether ``precision="auto"`` chooses the fastest variant, and what would be faster."""
    if chosen is None:
        yield f"On {device}, precision='auto' is an error: {_NONE if measured else _NONE_HERE}."
        return
    taken = next((each for each in measured if each.judged is chosen), None)
    if taken is None:
        yield f"On {device}, precision='auto' chooses {chosen.variant.name}, which is not measured."
        return
    best = max(
        (each for each in measured if each.judged.objection is None), key=lambda each: each.rate
    )
    if best.is_faster(taken):
        yield (
            f"On {device}, precision='auto' chooses {taken.name}, but {best.name}, which is proven "
            f"as well, is {best.rate / taken.rate:.2f} times as fast here. To run that, "
            f"{_pass(best)}."
        )
    else:
        best = taken
        yield f"On {device}, precision='auto' chooses {taken.name}, the fastest that it may choose."
    on_request = [each for each in measured if each.judged.on_request]
    faster = max(on_request, key=lambda each: each.rate, default=best)
    if faster.is_faster(best):
        yield (
            f"On request, {faster.name} is {faster.rate / best.rate:.2f} times as fast as "
            f"{best.name}: {_pass(faster)}."
        )


def _pass(each: _Measured) -> str:
    variant = each.judged.variant
    return f"pass engine={variant.engine!r} and precision={variant.precision!r}"
