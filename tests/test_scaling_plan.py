"""The plan for a billion texts: every table is recomputed, from results and its own columns."""

from __future__ import annotations

import ast
import json
import math
import operator
import re
import statistics
from typing import Any

import pytest

from bge_bench.experiments.roofline import needed_flop
from bge_runtime.sources import MODELS
from tests.helpers.bundles import ROOT

DOCS = ROOT / "docs" / "guides" / "bulk"
PAGE = "".join(
    (DOCS / name).read_text("utf-8") for name in ("billion-texts.md", "billion-texts-limits.md")
)

ROWS = 10**9
TOKENS = ROWS * 128
ROUNDED = 0.01
"""Figures have three digits, and are computed from others that have."""

Row = dict[str, str]


def table(section: str) -> list[Row]:
    """Return the rows of a section's table, by the names of its columns."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    names, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert rows
    assert all(len(row) == len(names) for row in rows)
    return [dict(zip(names, row, strict=True)) for row in rows]


def number(cell: str) -> float:
    return float(cell.replace(",", "").removesuffix("%"))


def product(formula: str) -> float:
    """Return the value of a formula of numbers."""
    operators: dict[type, Any] = {
        ast.Mult: operator.mul, ast.Add: operator.add, ast.Div: operator.truediv,
    }  # fmt: skip

    def value(node: Any) -> float:
        if isinstance(node, ast.BinOp):
            return operators[type(node.op)](value(node.left), value(node.right))
        assert isinstance(node, ast.Constant)
        return node.value

    return value(ast.parse(formula, mode="eval").body)


def same(cell: str, value: float) -> bool:
    return number(cell) == pytest.approx(value, rel=ROUNDED)


def test_numbers_are_read_as_written():
    assert number("1,234.5") == 1234.5
    assert number("14.9 %") == 14.9
    assert product("90 * (4 + 4)") == 720
    assert not same("1.00", 1.02)


# The operations of a token


def flop(model: str, length: int, *, all_outputs: bool = False) -> float:
    """Return the MFLOP of a token in texts of one length."""
    shape = MODELS[model].shape
    config = {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
    }
    heads = 2 * (shape.hidden_size**2 + shape.hidden_size) if all_outputs else 0
    pooling = "mean" if all_outputs else "cls"  # the heads need the last layer of every token
    return (needed_flop(config, pooling, [length]) / length + heads) / 1e6


NAMES = {"bge-small": "bge-small-en-v1.5", "bge-m3": "bge-m3", "bge-large": "bge-large-en-v1.5"}


# The measured figures


def result(cell: str) -> Any:
    (link,) = re.findall(r"\]\(([^)]+\.json)\)", cell)
    return json.loads((DOCS / link).read_text("utf-8"))


def of_throughput(document: Any, precision: str) -> tuple[float, float, float]:
    """Return tokens/s, MFLOP a token and tokens a text of what ``bge-bench throughput`` wrote."""
    rows = [row for row in document["rows"] if row["ours"] and row["precision"] == precision]
    row = next(row for row in rows if "one batch" not in row["label"])
    work = document["full"] if row["full_s"] else document["sample"]
    seconds = statistics.median(row["full_s"] or row["sample_s"])
    tokens = work["tokens"]
    return tokens / seconds, work["flop"] / tokens / 1e6, tokens / work["texts"]


def measured(row: Row) -> tuple[float, float]:
    """Return tokens/s and MFLOP a token as measured, from the committed result."""
    document = result(row["measured on"])
    if document.get("kind") == "throughput":
        rate, of_token, length = of_throughput(document, row["precision"])
        assert f"{length:.0f} tokens a text" in row["measured on"]
        return rate, of_token
    if row["machine"] == "2 cores":  # all outputs of bge-m3
        texts, seconds = document["texts"]["count"], document["ours"]["median"]["corpus_s"]
        assert f"{texts} texts of 512 tokens" in row["measured on"]
        assert document["outputs"] == "all"
        assert document["ours"]["precision"] == row["precision"]
        assert document["texts"]["words"] >= texts * 512  # a word has a token or more
        return texts * 512 / seconds, flop("bge-m3", 512, all_outputs=True)
    rates = document["encode, million tokens a second (tokens of a batch, texts)"]["32768, 2000"]
    return statistics.median(rates) * 1e6, flop("bge-large-en-v1.5", 512)


SPEED = {(row["model"], row["machine"], row["precision"]): row for row in table("Speed")}


@pytest.mark.parametrize("key", [key for key in SPEED if key != ("bge-small", "H200", "fp16")])
def test_speeds_are_those_of_the_committed_results(key: tuple[str, str, str]):
    row = SPEED[key]
    rate, of_token = measured(row)
    short = flop(NAMES[row["model"]], 128, all_outputs=row["model"] == "bge-m3")
    assert same(row["measured, tokens/s"], rate)
    assert same(row["MFLOP a token there"], of_token)
    assert same(row["MFLOP a token of 128"], short)
    assert same(row["tokens/s of 128"], rate * of_token / short)


def test_a_figure_of_another_model_is_called_derived():
    for (model, *_), row in SPEED.items():
        name = re.search(r"\[(\w+-[\w]+)", row["measured on"])
        own = name is not None and name[1] == model and "zh" not in row["measured on"]
        assert row["measured on"].startswith("derived") != own, row


def test_tokenizing_limits_small_models_on_a_gpu():
    row = SPEED["bge-small", "H200", "fp16"]
    rates = result(row["measured on"])["tokenising_million_tokens_a_second"]
    tokenized = rates["4,096 of XQuAD's paragraphs"] * 1e6
    assert number(row["measured, tokens/s"]) == pytest.approx(tokenized)
    assert same(row["tokens/s of 128"], tokenized)
    large = SPEED["bge-large", "H200", "fp16"]
    ratio = number(large["MFLOP a token there"]) / flop(NAMES["bge-small"], 128)
    computed = number(large["measured, tokens/s"]) * ratio
    millions, processors = re.search(
        r"would make (\d+) million tokens a second of bge-small. It would need (\d+)\s+processors",
        PAGE,
    ).groups()
    assert int(millions) == round(computed / 1e6)
    assert int(processors) == round(16 * computed / tokenized)


def test_the_figure_with_colbert_vectors_is_that_of_its_result():
    words, link = re.search(r"\[([\d,]+) words a second\]\(([^)]+)\)", PAGE).groups()
    document = json.loads((DOCS / link).read_text("utf-8"))
    rate = document["texts"]["words"] / document["ours"]["median"]["corpus_s"]
    assert same(words, rate)


# What follows


def test_cost_follows_from_speed():
    rows = table("Time and money")
    assert [(row["model"], row["machine"], row["precision"]) for row in rows] == list(SPEED)
    for row in rows:
        speed = SPEED[row["model"], row["machine"], row["precision"]]
        hours = TOKENS / number(row["tokens/s"]) / 3600
        assert row["tokens/s"] == speed["tokens/s of 128"]
        assert same(row["machine-hours"], hours), row
        assert same(row["machines for a week"], hours / (7 * 24)), row
        assert same(row["cost"], hours * number(row["price of an hour"])), row


def test_a_gpu_pays_off_at_the_ratio_of_speeds():
    ratios = re.search(r"ratio of their speeds: (\d+) for\s+bge-large.*?(\d+) for bge-small", PAGE)
    machines = (("2 cores", "bf16"), ("H200", "fp16"))
    for model, ratio in zip(("bge-large", "bge-small"), ratios.groups(), strict=True):
        cpu, gpu = (number(SPEED[model, *machine]["tokens/s of 128"]) for machine in machines)
        assert same(ratio, gpu / cpu)


def test_storage_is_bytes_times_rows():
    for row in table("Storage"):
        assert number(row["of a row"]) == product(row["bytes"])
        assert same(row["of a billion, TB"], product(row["bytes"]) * ROWS / 1e12)


STORED = {number(row["of a row"]) for row in table("Storage")}


def known_bytes(cell: str) -> bool:
    """Return whether an output's bytes are those of columns of the table of storage."""
    sums = {*STORED, 4096 + 720, 4096 + 720 + 260096}
    return number(cell) in sums


def test_shards_follow_from_their_size():
    for row in table("Shards"):
        assert known_bytes(row["bytes a row"])
        size = number(row["rows a shard"])
        shards = math.ceil(ROWS / size)
        assert number(row["shards"]) == shards
        assert same(row["MB a shard"], number(row["bytes a row"]) * size / 1e6)
        assert same(row["records, MB"], shards * 300 / 1e6)
        assert number(row["lists"]) == math.ceil(shards / 1000)
        assert same(row["reading the records, s"], shards * 4 * 0.03 / 16)


def test_default_sizes_of_shards_are_those_of_the_package():
    from bge_runtime.bulk.options import default_rows_per_shard

    text = re.search(r"A shard holds ([\d,]+) rows, or ([\d,]+) with ColBERT", PAGE)
    plain, colbert = (number(cell) for cell in text.groups())
    assert default_rows_per_shard(colbert=False) == plain
    assert default_rows_per_shard(colbert=True) == colbert


SHARD_SIZES = {row["rows a shard"] for row in table("Shards")}


def test_network_follows_from_speed():
    for row in table("Network"):
        assert known_bytes(row["bytes a row"])
        rate = number(row["tokens/s"])
        model, cores = re.match(r"(bge-\w+) on (?:an )?(H200|\d+ cores)", row["machine"]).groups()
        machines = 32 if cores == "64 cores" else 1
        speed = [
            number(found["tokens/s of 128"])
            for (name, machine, precision), found in SPEED.items()
            if name == model and machine == ("2 cores" if machines > 1 else cores)
            and precision in ("bf16", "fp16")
        ]  # fmt: skip
        assert rate == pytest.approx(machines * speed[0], rel=ROUNDED)
        rows, size = rate / 128, number(row["bytes a row"])
        assert row["rows a shard"] in SHARD_SIZES
        shard_bytes = size * number(row["rows a shard"])
        assert same(row["rows/s"], rows)
        assert same(row["in, MB/s"], rows * 768 / 1e6)
        assert same(row["out, MB/s"], rows * size / 1e6)
        requests = 12 + math.ceil(shard_bytes / 1e7)
        assert same(row["requests/s"], rows / number(row["rows a shard"]) * requests)


def test_failures_follow_from_the_time_between_them():
    assert same("50,700", 16384 * 54 * 24 / 419)
    for row in table("Failures"):
        half = number(row["rows a shard"]) / 2 / number(row["rows/s"])
        mtbf = number(row["MTBF, h"])
        assert same(row["half a shard, s"], half), row
        assert same(row["failures"], number(row["machine-hours"]) / mtbf), row
        lost = (half + number(row["restart, s"])) / (mtbf * 3600)
        assert same(row["time lost"], 100 * lost), row


def test_downloads_follow_from_sizes():
    parameters = {"bge-small": 33.4e6, "bge-m3": 568e6, "bge-large": 335e6}
    for row in table("Time to start"):
        assert same(row["weights, GB"], parameters[row["model"]] * 4 / 1e9)
        assert same(row["download, s"], number(row["weights, GB"]) * 10)


def test_starts_are_those_of_committed_results():
    (start,) = (row for row in table("Time to start") if row["model"] == "bge-m3")
    processor, gpu = re.findall(r"(\d\.\d) on", start["import to first vector, s"])
    for seconds, name in (
        (processor, "2026-11-30-bge-m3-bf16-all-outputs-512-tokens.json"),
        (gpu, "2026-11-26-h200-bge-m3-fp16-all-outputs.json"),
    ):
        document = json.loads((ROOT / "benchmarks" / "results" / name).read_text("utf-8"))
        assert float(seconds) == round(document["ours"]["median"]["first_vector_s"], 1)


def test_memory_of_an_index_follows_from_its_vectors():
    for row in table("Into a vector database"):
        size = product(row["bytes"]) * ROWS / 1e12
        assert same(row["of a billion, TB"], size)
        assert same(row["in memory with the index, TB"], size * 1.5)
        assert number(row["machines of 512 GB"]) == math.ceil(round(size * 1.5 / 0.512, 3))


def test_hours_of_an_import_follow_from_its_rate():
    for row in table("Import"):
        hours = ROWS / number(row["rows/s of a processor"]) / 3600
        assert same(row["processor-hours for a billion"], hours)
