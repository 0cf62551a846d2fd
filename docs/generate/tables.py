"""The tables of the pages of benchmarks, each from the raw files that its page names.

A page holds ``<!-- table: KIND FILE... -->``; `TABLES` has a function for each kind, which gets
the files by their names. Ratios are those of `bge-bench report`.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from bge_bench.reports.plots import name_of, panels_of
from bge_bench.reports.rows import Rows, failures, is_struck, struck
from bge_bench.reports.tables import (
    ROWS,
    best_of_ours,
    fastest_peers,
    markdown,
    query_ratio,
    throughput_ratio,
)
from docs.generate.conditions import condition, model_of
from docs.generate.sources import read


def _with_conditions(rows: Rows, *names: str) -> str:
    """Return a table in Markdown, and under it how each of its files was measured."""
    unit = re.compile(r"(?<=\d) (?=(?:[kMG]B|m?s|times|%†?)$)")
    unbroken = [[unit.sub("\N{NO-BREAK SPACE}", cell) for cell in row] for row in rows]
    table = markdown(unbroken)
    if len(names) == 1:
        return f"{table}\n\n{condition(names[0], read(names[0]))}"
    lines = [f"- {condition(name, read(name), briefly=True)}" for name in names]
    return "\n".join([table, "", *lines])


def throughput(name: str) -> str:
    """Return rates, memory and errors of every system on the same texts."""
    document = read(name)
    unit = document.get("unit", "texts")
    part = "full" if all(row["full_s"] for row in document["rows"]) else "sample"
    work = document[part]
    rows = [["", "precision", "batches", f"{unit}/s", "of the machine's rate", "peak memory",
             "error", "bge-runtime is faster"]]  # fmt: skip
    order = [precision for precision, _ in panels_of(document)]
    for row in sorted(document["rows"], key=lambda row: order.index(row["precision"])):
        seconds = statistics.median(row[f"{part}_s"])
        rate = document["matrix_rate_flops"].get(row["precision"])
        mine = best_of_ours(document, row["precision"])
        cells = [
            _titled(row),
            row["precision"],
            "by tokens" if row["ours"] else str(row["batch_size"]),
            f"{work['texts'] / seconds:.3g}",
            f"{work['flop'] / seconds / rate:.0%}" if rate else "",
            _memory(row["peak_memory_bytes"]),
            error(row),
        ]
        if is_struck(row):
            cells = struck(cells)
        faster = ""
        if mine is not None and row is not mine and not is_struck(row):
            faster = f"{throughput_ratio(mine, row):.2f} times"
        rows.append([*cells, faster])
    what = (
        f"Rates are of the same {work['texts']:,} {unit} ({work['tokens']:,} tokens) for all, from "
        f"{', '.join(document['texts'])}."
    )
    if part == "sample" and any(row["full_s"] for row in document["rows"]):
        what += f" Ratios are of all {document['full']['texts']:,} where both systems ran them."
    return f"{_with_conditions(rows, name)}\n\n{what}"


def fastest(*names: str) -> str:
    """Return how bge-runtime compares with the fastest baseline in the same precision."""
    rows = [["model, texts", "processor", "precision", "bge-runtime, texts/s", "fastest other",
             "its texts/s", "bge-runtime is faster", "than FlagEmbedding",
             "error: bge-runtime, other"]]  # fmt: skip
    for name in names:
        document = read(name)
        flag = next((row for row in document["rows"] if row["label"] == "flagembedding"), None)
        for mine, peer, times in fastest_peers(document, throughput_ratio):
            full = bool(mine["full_s"] and peer["full_s"])
            rates = [_rate(document, row, full=full) for row in (mine, peer)]
            rows.append([
                f"{_short(document)}, {', '.join(document['texts'])}", _processor(document),
                mine["precision"], f"{rates[0]:.3g}", name_of(peer), f"{rates[1]:.3g}",
                f"{times:.2f} times",
                f"{throughput_ratio(mine, flag):.2f} times" if flag else "",
                f"{error(mine)}, {error(peer)}",
            ])  # fmt: skip
    return _with_conditions(rows, *names)


def _rate(document: Any, row: Any, *, full: bool) -> float:
    part = "full" if full else "sample"
    return float(document[part]["texts"] / statistics.median(row[f"{part}_s"]))


def error(row: Any) -> str:
    """Return the largest error of a system's outputs, marked if it misses its tolerance."""
    missed = "†" if failures(row) and not is_struck(row) else ""
    if "error_share" in row["parity"] and "rank_correlation" not in row["parity"]:
        return _percent(row["parity"]["error_share"]) + missed
    return f"{row['parity']['max_error']:.1e}{missed}"


def _titled(row: Any) -> str:
    name, comma, engine = name_of(row).partition(",")
    version = re.search(r" \d[\d.]*", row["name"])
    title = f"{name}{version[0] if version else ''}{comma}{engine}"
    return "**bge-runtime**" if row["ours"] else title


def _processor(document: Any) -> str:
    able = document["hardware"]["vector_extensions"]
    return "AVX512-BF16" if "avx512_bf16" in able else "AVX2"


def _percent(share: float) -> str:
    """Return a share in percent, those of fp32 with its first digit."""
    return f"{100 * share:.1f} %" if share >= 0.0005 else f"{100 * share:.1g} %"


def _short(document: Any) -> str:
    return model_of(document).partition("'")[0]


def _memory(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


def latency(name: str) -> str:
    """Return the median of each system for each length, single texts only."""
    document = read(name)
    points = {key: point for key, point in document["points"].items()
              if point["texts"] == 1 and key != "query"}  # fmt: skip
    header = ["", "precision", *(f"{point['tokens']} tokens" for point in points.values())]
    rows = [header]
    for row in document["rows"]:
        medians = [float(np.median(np.concatenate(row["ms"][key]))) for key in points]
        label = (
            row["label"].replace("bge-runtime", "**bge-runtime**") if row["ours"] else name_of(row)
        )
        rows.append([label.removesuffix(f" {row['precision']}"), row["precision"],
                     *(_ms(ms) for ms in medians)])  # fmt: skip
    faster = partial(query_ratio, next(iter(document["points"])))
    told = [
        f"A query in {mine['precision']} takes bge-runtime {1 / times:.2f} times as long as the "
        f"fastest other, {name_of(peer)}."
        for mine, peer, times in fastest_peers(document, faster)
    ]
    return f"{_with_conditions(rows, name)}\n\n{' '.join(told)}".strip()


def of_report(name: str) -> str:
    """Return a table as `bge-bench report` prints it."""
    document = read(name)
    return _with_conditions(ROWS[document["kind"]](document), name)


def started(name: str) -> str:
    """Return what a new process takes until its first vector, of bge-runtime and two others."""
    shown = ("flagembedding", "sentence-transformers-openvino")
    rows = [["", "precision", "memory", "import to first vector"]]
    rows += [
        [_titled(row | {"name": ""}), row["precision"],
         _memory(statistics.median(row["peak_memory_bytes"])),
         f"{statistics.median(row['first_vector_s']):.2f} s"]
        for row in read(name)["rows"] if row["ours"] or row["label"] in shown
    ]  # fmt: skip
    return _with_conditions(rows, name)


def serve(name: str) -> str:
    """Return what servers do under load, a column for each."""
    document = read(name)
    servers = document["rows"]
    rows = [["", *(f"{name_of(row)}, {row['precision']}" for row in servers)]]
    for clients in document["clients"]:
        title = f"{clients} client{'s' if clients > 1 else ''}"
        points = [row["closed"][str(clients)] for row in servers]
        rows.append([f"{title}, texts/s", *(f"{point['texts_per_s']:.0f}" for point in points)])
        rows.append([f"{title}, p99", *(_ms(point["p99_ms"]) for point in points)])
    kinds = (
        ("query", "one query at a time, p50", "p50_ms"),
        ("queries_alone", "queries at 80 % of what the server can do, p99", "p99_ms"),
        ("queries_beside_bulk", "the same beside a bulk job that never ends, p99", "p99_ms"),
    )
    for key, title, figure in kinds:
        rows.append([title, *(_ms(row[key][figure]) for row in servers)])
    rows.append(["peak memory", *(_memory(row["peak_memory_bytes"]) for row in servers)])
    return _with_conditions(rows, name)


def _ms(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g} ms" if value < 1000 else f"{value:,.0f} ms"


def overload(name: str) -> str:
    """Return what became of the requests of an overloaded server."""
    found = read(name)["overload"]
    counts, parts = found["statuses"], found["parts"]
    errors = sum(count for status, count in counts.items() if status.startswith("5"))
    rows = [
        ["", ""],
        ["requests offered", f"{found['offered_per_s']:.0f}/s for {found['seconds']:.0f} s"],
        ["answered", f"{counts['200']:,}"],
        ["refused with 429", f"{counts.get('429', 0):,}"],
        ["429 without Retry-After", str(found["no_retry_after"])],
        ["server errors (5xx)", str(errors)],
        ["p99 of answers, first and last tenth",
         f"{_ms(parts[0]['p99_ms'])}, {_ms(parts[-1]['p99_ms'])}"],
        ["memory after the first second and at the end",
         f"{_memory(found['held_bytes'][0])}, {_memory(found['held_bytes'][-1])}"],
    ]  # fmt: skip
    return _with_conditions(rows, name)


def speed(*names: str) -> str:
    """Return what `bge-bench speed` measured of bge-runtime and baselines."""
    rows = [["model, texts", "", "precision", "all texts", "one query", "import to first vector",
             "peak memory", "error"]]  # fmt: skip
    for name in names:
        document = read(name)
        for system in (document["ours"], *document["baselines"]):
            median, ours = system["median"], system is document["ours"]
            rows.append([
                f"{_short(document)}, {document['texts']['count']}" if ours else "",
                f"**{system['name']}**" if ours else system["name"], system["precision"],
                f"{median['corpus_s']:.3g} s", f"{median['query_p50_ms']:.3g} ms",
                f"{median['first_vector_s']:.3g} s", _memory(system["peak_memory_bytes"]),
                _percent(system["parity"]["error_share"]),
            ])  # fmt: skip
    return _with_conditions(rows, *names)


def pairs(*names: str) -> str:
    """Return pairs of ways to compute the same, and how many times faster the first one is."""
    rows = [["", "", "seconds", "against", "seconds", "times faster"]]
    for name in names:
        for pair in read(name)["pairs"]:
            mine, other = (statistics.median(pair[side]) for side in ("mine", "other"))
            rows.append([pair["what"], pair["names"][0], f"{mine:.3g}", pair["names"][1],
                         f"{other:.3g}", f"{pair['times_faster']:.1f}"])  # fmt: skip
    return _with_conditions(rows, *names)


def retrieval(*names: str) -> str:
    """Return scores of public tasks by PyTorch, and how far others are from them."""
    rows = [["model", "task", "score", "PyTorch, fp32", "", "difference", "min cosine", "error"]]
    for name in names:
        document = read(name)
        for side in document["sides"]:
            who = side["precision"] if side.get("ours", True) else side["asked"][0]
            for task, scores in side["scores"].items():
                score, found = next(iter(scores.items()))
                parity = side.get("parity", {}).get(task)
                rows.append([
                    model_of(document), task, score, f"{found['reference']:.4f}", who,
                    f"{found['difference']:+.4f}",
                    f"{parity['min_cosine']:.4f}" if parity else "",
                    _percent(parity["error_share"]) if parity else "",
                ])  # fmt: skip
    return _with_conditions(rows, *names)


def bulk(name: str) -> str:
    """Return rate and memory of a job over files, beside `encode` in memory."""
    document = read(name)
    rows = [["", "texts/s", "peak memory"]]
    for side, label in (
        ("job", "`bge-embed`, Parquet to Parquet"),
        ("encode", "`encode`, in memory"),
    ):
        peak = max(found[side]["peak_memory_bytes"] for found in document["rounds"])
        rows.append([label, f"{document[f'{side}_texts_per_s']:,.0f}", _memory(peak)])
    first = document["rounds"][0]["job"]["peak_memory_bytes"]
    told = (
        f"{document['rows']:,} rows; the job had a peak of {_memory(first)} after the first tenth. "
        f"A run with nothing left to do takes {document['nothing_to_do_s']:.2f} s."
    )
    return f"{_with_conditions(rows, name)}\n\n{told}"


def colbert(name: str) -> str:
    """Return what a job with ColBERT vectors takes, by its size."""
    rows = [["rows", "tokens", "shards", "bytes of shards", "peak memory", "bytes a row: dense",
             "sparse", "ColBERT"]]  # fmt: skip
    for run in read(name)["runs"]:
        size = run["bytes_per_row_by_column"]
        rows.append([
            f"{run['rows']:,}", f"{run['tokens']:,}", str(run["shards"]),
            f"{run['bytes_of_shards'] / 1e9:.1f} GB", f"{run['peak_memory_mb']:,} MB",
            *(f"{size[key]:,.0f}" for key in ("dense", "sparse", "colbert")),
        ])  # fmt: skip
    found = read(name)
    about = f"The model: {found['bundle']}. While it ran, {found['busy']}."
    return f"{_with_conditions(rows, name)}\n\n{about}"


def export(name: str) -> str:
    """Return what an export of a large model took."""
    found = read(name)
    rows = [["variant", "size", "min cosine", "error", "time of the parity gate"]]
    rows += [
        [row["variant"], f"{row['megabytes'] / 1000:.1f} GB", f"{row['min_cosine']:.5f}",
         _percent(row["error_share"]), f"{row['seconds']:.0f} s"]
        for row in found["table"]
    ]  # fmt: skip
    return (
        f"{_with_conditions(rows, name)}\n\nThe process had a peak of "
        f"{found['maximum_resident_set_kbytes'] * 1024 / 1e9:.1f} GB and took "
        f"{found['elapsed_s'] / 60:.0f} minutes. Note: {found['other_programs']}."
    )


def ray(name: str) -> str:
    """Return rates of one and two actors."""
    rows = [["precision", "one actor, texts/s", "two actors, texts/s", "ratio"]]
    rows += [
        [row["precision"], f"{row['one_actor_texts_per_s']:.1f}",
         f"{row['two_actors_texts_per_s']:.1f}", f"{row['ratio']:.2f}"]
        for row in read(name)["rows"]
    ]  # fmt: skip
    return f"{_with_conditions(rows, name)}\n\n{read(name)['note']}"


def parity(name: str) -> str:
    """Return how near `bge-bench parity` found outputs to PyTorch's."""
    rows = [["call", "texts", "min cosine", "error"]]
    for row in read(name)["rows"]:
        found = row["parity"]
        cosine = f"{found['min_cosine']:.7f}"
        rows.append([row["call"], str(found["texts"]), cosine, _percent(found["error_share"])])
    return _with_conditions(rows, name)


def gpu_encode(branches: str, bias: str) -> str:
    """Return rates on a GPU: `encode`, the engine alone, PyTorch, other libraries."""
    found, newer = read(branches), read(bias)
    engine = newer[
        "million_tokens_a_second, two batches under way, medians of four rounds in turns"
    ]
    encode = newer["encode, million tokens a second (tokens of a batch, texts)"]["32768, 2000"]
    tokenize = found["tokenising_million_tokens_a_second"]
    rows = [
        ["texts of 512 tokens, fp16", "million tokens/s"],
        ["`FlagModel.encode`, texts to vectors", f"{statistics.median(encode):.2f}"],
        ["the engine alone, two batches of 64",
         f"{engine['64x512 one']['matrix of queries gives their bias']:.2f}"],
        ["PyTorch's forward pass alone, batches of 64 (another card, at a higher clock)",
         f"{found['pytorch_million_tokens_a_second']['64 x 512, fp16, SDPA']:.2f}"],
        ["tokenizing alone, 16 processors", f"{tokenize['4,096 texts of 520 words']:.1f}"],
    ]  # fmt: skip
    tokens = 2048 * 512
    for label, seconds in found["baselines"]["seconds"].items():
        title = f"{name_of({'label': label})}, texts to vectors, at its best batch size"
        rows.append([title, f"{tokens / min(seconds.values()) / 1e6:.2f}"])
    notes = f"{condition(branches, found)} {condition(bias, newer)}"
    return f"{markdown(rows)}\n\nbge-large's shape with random weights. {notes}"


TABLES: Mapping[str, Callable[..., str]] = {
    "throughput": throughput,
    "fastest": fastest,
    "latency": latency,
    "report": of_report,
    "started": started,
    "serve": serve,
    "overload": overload,
    "speed": speed,
    "pairs": pairs,
    "retrieval": retrieval,
    "bulk": bulk,
    "colbert": colbert,
    "export": export,
    "ray": ray,
    "parity": parity,
    "gpu-encode": gpu_encode,
}
