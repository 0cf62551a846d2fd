"""``bge-bench report``: tables and plots are those of the JSON, the README's among them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from bge_bench.cli.console import report as write_report
from bge_bench.cli.main import main
from bge_bench.cli.report import BEGIN, END, section
from bge_runtime.bundle.bundle import Bundle


def row(label: str, *, ours: bool, seconds: float, **more) -> dict:
    return {
        "label": label, "ours": ours, "name": "a 1", "precision": "fp32", "in_force": "somewhere",
        "batch_size": 8, "sample_s": [seconds, 2 * seconds], "full_s": [4 * seconds] * 2 * ours,
        "peak_memory_bytes": 100_000_000,
        "parity": {"texts": 4, "min_cosine": 1.0, "mean_cosine": 1.0, "max_error": 0.0,
                   "error_share": 0.0},
    } | more  # fmt: skip


@pytest.fixture
def document() -> dict:
    part = {"texts": 10, "tokens": 1000, "flop": 1e10}
    return {
        "kind": "throughput", "model": "bge-x", "time": "2026-01-02T03:04:05", "texts": ["mixed"],
        "threads": 2, "rounds": 2, "busy_percent_before": 50.0, "left_out": {"peer": "not here"},
        "hardware": {"cpu": "A processor"}, "matrix_rate_flops": {"fp32": 2e10},
        "sample": part, "full": {name: 4 * value for name, value in part.items()},
        "rows": [row("ours", ours=True, seconds=1.0), row("theirs", ours=False, seconds=3.0)],
    }  # fmt: skip


def test_figures_are_those_of_the_document(document: dict, tmp_path: Path):
    text = section(tmp_path / "x.json", document)
    ours, theirs = ([cell.strip() for cell in line.split("|")] for line in text.split("\n")[4:6])
    assert ours[1:6] == ["ours", "10.0", "1,000", "10", "50%"]
    assert theirs[2:5] == ["2.2", "222", "2"]
    assert theirs[-2] == "3.00x"
    assert "Left out: peer, since not here" in text
    assert "Other programs kept 50 %" in text


def test_a_ratio_is_of_the_same_texts(document: dict, tmp_path: Path):
    document["rows"][1]["full_s"] = [6.0, 6.0]
    assert "| 1.50x |" in section(tmp_path / "x.json", document)


def test_a_ratio_falls_back_on_the_sample_that_both_ran(document: dict, tmp_path: Path):
    document["rows"][0]["full_s"] = []  # ours in fp32, beside our other precisions
    document["rows"][1]["full_s"] = [6.0, 6.0]
    assert "| 3.00x |" in section(tmp_path / "x.json", document)


def test_the_fastest_baseline_of_each_precision_is_named(document: dict, tmp_path: Path):
    near, far, wrong = ({"error_share": share} for share in (0.03, 0.2, 0.8))

    def int8(label: str, seconds: float, share: dict, *, ours: bool = False) -> dict:
        parity = document["rows"][0]["parity"] | {"min_cosine": 0.99, **share}
        if ours:
            parity["min_cosine"] = 0.999
        return row(label, ours=ours, seconds=seconds, precision="int8", parity=parity)

    document["rows"] += [
        int8("ours int8", 0.5, near, ours=True),
        int8("slow", 2.0, far),
        int8("fast", 0.6, far),
        int8("wrong", 0.1, wrong),
    ]
    text = section(tmp_path / "x.json", document)
    assert (
        "In fp32 bge-runtime is 3.00 times as fast as the fastest baseline in fp32, theirs" in text
    )
    told = "In int8 bge-runtime is 1.20 times as fast as the fastest baseline in int8, fast; "
    told += "min cosine 0.999000, theirs 0.990000 †; error/distance 3.0%, theirs 20.0%."
    assert told in text
    # It misses the limit of int8, and is shown; another model's vectors are struck out.
    assert "| fast (a 1) |" in text
    assert "† fast misses what int8 is held to: minimum cosine 0.99 is not >= 0.995" in text
    assert "| ~~wrong (a 1)~~ |" in text


def test_page_is_written_and_checked(document: dict, tmp_path: Path):
    file, page = tmp_path / "x.json", tmp_path / "page.md"
    file.write_text(json.dumps(document))
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")

    def report(*options: str):
        return CliRunner().invoke(main, ["report", str(file), "--into", str(page), *options])

    assert report("--check").exit_code == 1
    assert report().exit_code == 0
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "| theirs (a 1) |" in text
    assert report("--check").exit_code == 0


def test_vectors_of_no_numbers_are_null_in_json_and_struck_in_tables(
    document: dict, tiny_bundle: Path, tmp_path: Path
):
    file = tmp_path / "x.json"
    document["rows"][1]["parity"] |= {"min_cosine": math.nan, "error_share": math.inf}
    write_report(file, Bundle.open(tiny_bundle), document, "")

    def refuse(word: str) -> None:
        raise AssertionError(word)

    written = json.loads(file.read_text(), parse_constant=refuse)
    assert written["rows"][1]["parity"]["min_cosine"] is None
    assert "~~theirs (a 1)~~" in section(file, written)


def test_plots_are_drawn(document: dict, tmp_path: Path):
    file = tmp_path / "x.json"
    file.write_text(json.dumps(document))
    result = CliRunner().invoke(main, ["report", str(file), "--plots", str(tmp_path / "plots")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "plots" / "x.png").stat().st_size > 5000
    assert (tmp_path / "plots" / "x.svg").read_text().startswith("<svg ")


@pytest.mark.parametrize("content", ["{", "[]", '{"kind": "other"}'])
def test_what_is_no_document_is_refused(content: str, tmp_path: Path):
    file = tmp_path / "x.json"
    file.write_text(content)
    result = CliRunner().invoke(main, ["report", str(file)])
    assert result.exit_code == 1
    assert str(file) in result.output
