"""Servers under load: each does the work, and what they did is compared and reported."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from bge_bench.cli.main import main
from bge_bench.cli.serve import _query_format
from bge_bench.datasets.corpus import paragraphs
from bge_bench.errors import BenchError
from bge_bench.reports.tables import document_tables, notes
from bge_bench.systems.servers import Server, ServerSpec, infinity_folder


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(autouse=True)
def _in_short(monkeypatch: pytest.MonkeyPatch):
    for module in ("serving", "overload"):
        monkeypatch.setattr(f"bge_bench.experiments.{module}._WARM_S", 0.1)
    monkeypatch.setattr("bge_bench.experiments.overload._BEFORE_S", 1.0)


@pytest.fixture
def given(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> list[object]:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(paragraphs(24)), "utf-8")
    return [
        "serve", tiny_bundle, "--checkpoint", tiny_checkpoint, "--texts", texts,
        "--queries", texts, "--passages", texts, "--count", 24, "--seconds", 0.3, "--rounds", 1,
        "--clients", 1, "--clients", 3, "--infinity", tmp_path / "none",
        "--json", tmp_path / "serve.json",
    ]  # fmt: skip


def test_all_servers_take_turns(given: list[object], tmp_path: Path):
    output = run(*given, "--load", 50, "--load", 200)
    document = json.loads((tmp_path / "serve.json").read_text())
    assert [row["label"] for row in document["rows"]] == ["bge-serve", "plain"]
    assert "make infinity" in document["left_out"]["infinity"]
    ours, plain = document["rows"]
    assert ours["precision"] == plain["precision"] == document["encode"]["precision"]
    for row in document["rows"]:
        assert row["parity"]["texts"] == 16
        assert row["parity"]["min_cosine"] > 0.998
        assert row["peak_memory_bytes"] > 10_000_000
        for point in (*row["closed"].values(), row["open"]["50"], row["queries_beside_bulk"]):
            assert point["statuses"]["200"] > 0
            assert 0 < point["p50_ms"] <= point["p95_ms"] <= point["p99_ms"] <= point["max_ms"]
            assert point["without_clients_per_s"] > point["texts_per_s"] > 0
        assert row["capacity_per_s"] == max(
            point["texts_per_s"] for point in row["closed"].values()
        )
    assert "3 clients" in output
    assert "a query at a time" in output
    again = run("report", tmp_path / "serve.json", "--plots", tmp_path / "plots")
    assert "| 3 clients | bge-serve |" in again
    assert (tmp_path / "plots" / "serve.svg").exists()

    plain["parity"]["min_cosine"] = 0.5
    assert "~~plain~~" in document_tables(document)
    assert any(note.startswith("plain is struck out") for note in notes(document))


INFINITY = """#!{python}
import sys
sys.path[:0] = {path}
from starlette.routing import Route
import uvicorn
import bge_runtime
from bge_bench.systems.plain_server import create_app
given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
if given["--engine"] == "optimum":
    sys.exit("no such engine")
app = create_app(bge_runtime.FlagModel({bundle!r}, precision="fp32"))
app.routes.append(Route("/embeddings", app.routes[0].endpoint, methods=["POST"]))
uvicorn.run(app, port=int(given["--port"]), log_level="warning")
"""


def test_infinity_takes_part_at_the_engine_that_is_fastest(
    given: list[object], tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("bge_bench.experiments.serving._PROBE_S", 0.5)
    environment = tmp_path / "none"
    (environment / "lib/python3/site-packages/infinity_emb-0.1.dist-info").mkdir(parents=True)
    program = environment / "bin" / "infinity_emb"
    program.parent.mkdir()
    path, bundle = [folder for folder in sys.path if folder], str(tiny_bundle)
    program.write_text(INFINITY.format(python=sys.executable, path=path, bundle=bundle))
    program.chmod(0o755)
    run(
        *given, "--load", 50, "--system", "infinity",
        "--infinity-engine", "optimum", "--infinity-engine", "ctranslate2",
    )  # fmt: skip
    document = json.loads((tmp_path / "serve.json").read_text())
    (row,) = document["rows"]
    assert (row["label"], row["name"]) == ("infinity ctranslate2", "infinity 0.1")
    engines = document["infinity_engines"]
    assert engines["ctranslate2"]["texts_per_s"] > 0
    assert "ended with 1 before it was ready" in engines["optimum"]["failed"]
    assert any("infinity's engine optimum: the server" in note for note in notes(document))


def test_overload_is_reported_in_tenths(given: list[object], tmp_path: Path):
    run(*given, "--overload", 2, "--serve-option", "max-queued-tokens=300")
    document = json.loads((tmp_path / "serve.json").read_text())
    found = document["overload"]
    assert len(found["parts"]) == 10
    assert sum(part["accepted"] for part in found["parts"]) == found["statuses"]["200"]
    assert found["statuses"].keys() <= {"200", "429"}
    assert found["no_retry_after"] == 0
    assert found["after_statuses"]["200"] > 0
    assert found["held_bytes"]
    assert "Server errors (5xx): 0" in document_tables(document)
    run("report", tmp_path / "serve.json", "--plots", tmp_path / "plots")
    assert (tmp_path / "plots" / "serve.png").exists()


def test_a_server_that_does_not_start_is_an_error_with_its_last_words(tmp_path: Path):
    spec = ServerSpec(label="plain", system="plain", model=str(tmp_path), threads=1)
    with pytest.raises(BenchError, match=r"(?s)ended with 1 before it was ready.*no model at"):
        Server(spec)


def test_infinity_reads_the_checkpoint_and_the_graph(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
):
    folder = infinity_folder(tiny_bundle, tiny_checkpoint, tmp_path / "infinity")
    names = {file.name for file in folder.iterdir()}
    assert names >= {"model.onnx", "model.safetensors", "modules.json", "tokenizer.json"}
    assert (folder / "model.safetensors").samefile(tiny_checkpoint / "model.safetensors")
    assert all(file.exists() for file in folder.iterdir())


@pytest.mark.parametrize(
    ("instruction", "template", "expected"),
    [
        (None, "{}{}", "a query"),
        ("Find: ", "{}{}", "Find: a query"),
        ("Find {it}", "<{}> {}", "<Find {it}> a query"),
    ],
)
def test_a_query_gets_the_instruction_of_the_model(
    instruction: str | None, template: str, expected: str
):
    assert _query_format(instruction, template).format("a query") == expected
