"""Tables of the documents that ``--json`` writes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from bge_bench.reports.rows import (
    MISSED,
    Document,
    Rows,
    failures,
    is_struck,
    parity_cells,
    parity_heading,
    struck,
)
from bge_bench.reports.serving import (
    overload_notes,
    overload_rows,
    serving_notes,
    serving_rows,
)
from bge_bench.reports.text import busy_notes
from bge_runtime.system import format_table


def ratio(mine: Sequence[float], other: Sequence[float]) -> float:
    """Return how many times faster bge-runtime is: the median of the ratios of all rounds."""
    return statistics.median(theirs / ours for ours, theirs in zip(mine, other, strict=True))


def best_of_ours(document: Document, precision: str) -> Document | None:
    """Return bge-runtime's row of a precision, if its vectors are within tolerance."""
    for row in document["rows"]:
        if row["ours"] and row["precision"] == precision:
            return None if is_struck(row) else row
    return None


def fastest_peers(
    document: Document, faster: Callable[[Document, Document], float]
) -> list[tuple[Document, Document, float]]:
    """Return for each precision ours, the fastest baseline in the same one, and how they compare.

    Args:
        document: The document.
        faster: How many times faster the first row is than the second.
    """
    found = []
    for precision in dict.fromkeys(_precisions(document)):
        mine = best_of_ours(document, precision)
        peers = [
            row
            for row in document["rows"]
            if not row["ours"] and row["precision"] == precision and not is_struck(row)
        ]
        if mine is not None and peers:
            times, peer = min(((faster(mine, row), row) for row in peers), key=lambda each: each[0])
            found.append((mine, peer, times))
    return found


def throughput_ratio(mine: Document, row: Document) -> float:
    """Return how many times faster one row is than another, both in full or on the sample."""
    common = "full" if mine["full_s"] and row["full_s"] else "sample"
    return ratio(mine[f"{common}_s"], row[f"{common}_s"])


def query_ratio(point: str, mine: Document, row: Document) -> float:
    """Return how many times faster one row is than another for a kind of call, at p50."""
    theirs, ours = (np.median(np.concatenate(each["ms"][point])) for each in (row, mine))
    return float(theirs / ours)


def _like_with_like(document: Document) -> list[str]:
    """Return a sentence for each precision that both bge-runtime and a baseline compute in."""
    if document["kind"] == "throughput":
        faster, call = throughput_ratio, ""
    elif document["kind"] == "latency":
        point = next(iter(document["points"]))
        faster, call = partial(query_ratio, point), f" ({point}, p50)"
    else:
        return []
    told = []
    for mine, peer, times in fastest_peers(document, faster):
        heading = parity_heading(document)
        cells = ((), ()) if not heading else (parity_cells(mine), parity_cells(peer))
        told.append(
            f"In {mine['precision']} bge-runtime is {times:.2f} times as fast as the fastest "
            f"baseline in {mine['precision']}, {peer['label']}{call}"
            + "".join(
                f"; {name} {a}, theirs {b}" for name, a, b in zip(heading, *cells, strict=True)
            )
            + "."
        )
    return told


def _precisions(document: Document) -> list[str]:
    return [row["precision"] for row in document["rows"] if row["ours"]]


def throughput_rows(document: Document) -> Rows:
    """Return a row for each candidate: rates, share of the machine's rate, parity and ratios."""
    ours = {p: row for p in _precisions(document) if (row := best_of_ours(document, p))}
    unit = document.get("unit", "texts")
    measures = (f"{unit}/s", "tokens/s", "GFLOP/s", "of the machine's", "peak memory", "batches")
    parity = parity_heading(document)
    rows = [["", *measures, "precision", *parity, *(f"ours in {precision}" for precision in ours)]]
    for row in document["rows"]:
        part = "full" if row["full_s"] else "sample"
        seconds = statistics.median(row[f"{part}_s"])
        work = document[part]
        rate = work["flop"] / seconds
        own = document["matrix_rate_flops"].get(row["precision"])
        cells = [
            f"{row['label']} ({row['name']})" if not row["ours"] else row["label"],
            f"{work['texts'] / seconds:.1f}",
            f"{work['tokens'] / seconds:,.0f}",
            f"{rate / 1e9:.0f}",
            f"{rate / own:.0%}" if own else "",
            f"{row['peak_memory_bytes'] / 1e6:,.0f} MB",
            "by tokens" if row["ours"] else str(row["batch_size"]),
            row["precision"],
            *parity_cells(row),
        ]
        void = is_struck(row)
        if void:
            cells = struck(cells)
        for mine in ours.values():
            faster = throughput_ratio(mine, row)
            cells.append("" if row in ours.values() or void else f"{faster:.2f}x")
        rows.append(cells)
    return rows


def latency_rows(document: Document) -> Rows:
    """Return a row for each candidate and kind of call: p50, p95 and p99 over all rounds."""
    # Older documents have no memory.
    memory = "peak_memory_bytes" in document["rows"][0]
    unit = document.get("unit", "texts")
    heading = ["call", "", "p50", "p95", "p99", "calls", *["peak memory"] * memory, "precision"]
    compared = parity_heading(document)
    rows = [[*heading, *compared]]
    for name, point in document["points"].items():
        for row in document["rows"]:
            calls = [ms for one_round in row["ms"][name] for ms in one_round]
            percentiles = (f"{np.percentile(calls, at):.1f} ms" for at in (50, 95, 99))
            what = f"{point['texts']} x {point['tokens']} tokens"
            if unit == "pairs":
                what = f"{point['texts']} pairs of at most {point['tokens']} tokens"
            cells = [what, row["label"], *percentiles, str(len(calls))]
            if memory:
                cells.append(f"{row['peak_memory_bytes'] / 1e6:,.0f} MB")
            cells += [row["precision"], *(parity_cells(row) if compared else ())]
            rows.append(struck(cells) if is_struck(row) else cells)
    return rows


def cold_start_rows(document: Document) -> Rows:
    """Return a row for each candidate: medians over the rounds."""
    rows = [["", "import to first vector", "whole process", "memory then", "precision"]]
    for row in document["rows"]:
        first, whole, peak = (
            statistics.median(row[name])
            for name in ("first_vector_s", "process_s", "peak_memory_bytes")
        )
        figures = (f"{first:.2f} s", f"{whole:.2f} s", f"{peak / 1e6:,.0f} MB")
        rows.append([row["label"], *figures, row["precision"]])
    return rows


def scaling_rows(document: Document) -> Rows:
    """Return a row for each size of the corpus: texts per second of each candidate."""
    rows = [["texts", *(row["label"] for row in document["rows"])]]
    for size in document["sizes"]:
        rates = [int(size) / statistics.median(row["seconds"][size]) for row in document["rows"]]
        rows.append([f"{int(size):,}", *(f"{rate:.0f}/s" for rate in rates)])
    return rows


def memory_rows(document: Document) -> Rows:
    """Return a row for each candidate: memory at the start, after a tenth, half way, at the end."""
    rows = [["", "texts", "before", "after a tenth", "after half", "at the end", "peak"]]
    for row in document["rows"]:
        lines = [(row["label"], row["held_bytes"], row["peak_memory_bytes"])]
        if "gpu_bytes" in row:
            lines.append((f"{row['label']}, on the GPU", row["gpu_bytes"], max(row["gpu_bytes"])))
        for label, held, peak in lines:
            last = len(held) - 1
            marks = (held[0], held[max(1, last // 10)], held[max(1, last // 2)], held[last])
            figures = (f"{value / 1e6:,.0f} MB" for value in (*marks, peak))
            rows.append([label, f"{row['texts']:,}", *figures])
    return rows


ROWS: Mapping[str, Callable[[Document], Rows]] = {
    "throughput": throughput_rows,
    "latency": latency_rows,
    "cold-start": cold_start_rows,
    "scaling": scaling_rows,
    "memory": memory_rows,
    "serve": serving_rows,
    "overload": overload_rows,
}
"""Function that returns the rows of each kind of document, header first."""


_NOTES = {"serve": serving_notes, "overload": overload_notes}
"""Function that returns the notes of a kind of document that has its own."""


def notes(document: Document) -> list[str]:
    """Return notes on what was in force, and on candidates that are struck out or left out."""
    if (own := _NOTES.get(document["kind"])) is not None:
        return own(document)
    rates = ", ".join(
        f"{rate / 1e9:.0f} GFLOP/s in {precision}"
        for precision, rate in document["matrix_rate_flops"].items()
    )
    said = _like_with_like(document)
    said += [f"{row['label']}: {row['name']}, {row['in_force']}" for row in document["rows"]]
    said.append(
        f"{document['threads']} threads each; medians of {document['rounds']} round(s), ratios "
        f"within a round. The machine multiplies matrices at {rates}."
    )
    if document["kind"] == "throughput":
        full, sample = document["full"], document["sample"]
        in_full = [row["label"] for row in document["rows"] if row["full_s"]]
        unit = document.get("unit", "texts")
        work = f"{sample['texts']} {unit} of {sample['tokens']:,} tokens."
        if in_full:
            work = (
                f"{full['texts']} {unit} of {full['tokens']:,} tokens for: {'; '.join(in_full)}. "
                f"{sample['texts']} of them ({sample['tokens']:,} tokens) for the others and our "
                "ratio to them."
            )
        figure = "Errors and ranks are" if unit == "pairs" else "Cosine is"
        said.append(f"{work} {figure} to transformers in fp32, one {unit[:-1]} at a time.")
    said += [
        f"{row['label']} is struck out: {'; '.join(failures(row))}"
        if is_struck(row)
        else f"{MISSED} {row['label']} misses what {row['precision']} is held to: "
        f"{'; '.join(failures(row))}"
        for row in document["rows"]
        if failures(row)
    ]
    said += [f"Left out: {system}, since {why}" for system, why in document["left_out"].items()]
    if "interrupted" in document:
        said.append(document["interrupted"])
    return said + busy_notes(document["busy_percent_before"])


def document_tables(document: Document) -> str:
    """Return a document as text for a terminal."""
    return "\n".join([format_table(ROWS[document["kind"]](document)), "", *notes(document)])


def markdown(rows: Rows) -> str:
    """Return a table in Markdown, the first row as header, columns of numbers to the right."""
    header, *body = rows
    columns = (
        [cell.lstrip("~+-") for cell in column if cell] for column in zip(*body, strict=True)
    )
    numbers = [bool(cells) and all(cell[:1].isdigit() for cell in cells) for cells in columns]
    lines = [header, ["---:" if right else "---" for right in numbers], *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
