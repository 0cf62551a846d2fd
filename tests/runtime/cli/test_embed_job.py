"""``bge-embed`` with a folder as output."""

from __future__ import annotations

import gzip
import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from bge_runtime import FlagModel
from bge_runtime.cli import embed
from bge_runtime.cli.embed_job import is_folder

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROWS = [
    {
        "key": f"k{number}",
        "title": f"Title {number}",
        "text": f"Row {number} of heat pumps, 熱泵. " * (1 + number % 5),
        "lang": "en" if number % 2 else "de",
    }
    for number in range(40)
]
TEXTS = [str(row["text"]) for row in ROWS]
CLOSE = 1e-6
"""Batches differ from those of encode, and with them the rounding."""


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(embed.main, [str(argument) for argument in arguments])


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return path


def read(folder: Path) -> pa.Table:
    return pa.concat_tables(map(pq.read_table, sorted(folder.glob("part-*.parquet"))))


def vectors(table: pa.Table) -> np.ndarray:
    return np.array(table["dense"].to_pylist(), np.float32)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*"))}


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path) -> np.ndarray:
    return FlagModel(str(tiny_bundle)).encode(TEXTS)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "in.parquet")
    return tmp_path / "in.parquet"


# -- Input ---------------------------------------------------------------------------------


def test_parquet_with_ids_and_kept_columns(tiny_bundle: Path, source: Path, expected: np.ndarray):
    options = ["--id", "key", "--keep", "lang", "--keep", "title", "--rows-per-shard", "15"]
    result = run(tiny_bundle, source, "-o", "out", *options)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert sorted(contents(Path("out"))) == [f"part-{k:05}-of-00003.parquet" for k in range(3)]
    table = read(Path("out"))
    assert table.column_names == ["id", "lang", "title", "dense"]
    assert table["id"].to_pylist() == [row["key"] for row in ROWS]
    assert table["title"].to_pylist() == [row["title"] for row in ROWS]
    np.testing.assert_allclose(vectors(table), expected, atol=CLOSE)
    metadata = json.loads(table.schema.metadata[b"bge_runtime"])
    assert metadata["pooling"] == "cls"
    lines = result.stderr.splitlines()
    assert lines[0] == "bge-embed: 40 rows: 40 embedded"
    assert lines[1].startswith("bge-embed: 3 shards: 3 written, in 0:00:")
    assert lines[1].endswith(" tokens/s)")
    assert len(lines) == 2


@pytest.mark.parametrize("name", ["in.jsonl.gz", "in.ndjson", "in.csv", "in.txt", "rows"])
def test_other_formats(tiny_bundle: Path, source: Path, name: str, expected: np.ndarray):
    options = []
    if name == "in.csv":
        rows = "".join(f'{row["key"]},"{row["text"]}"\n' for row in ROWS)
        Path(name).write_text(f"key,text\n{rows}", "utf-8")
    elif name == "in.txt":
        Path(name).write_text("\n".join(TEXTS), "utf-8")
    else:
        write_jsonl(Path(name), ROWS)
        options = ["--input-format", "jsonl"] if name == "rows" else []
    result = run(tiny_bundle, name, "-o", "out", *options)
    assert result.exit_code == 0, result.stderr
    table = read(Path("out"))
    assert table["id"].to_pylist() == list(range(40))
    np.testing.assert_allclose(vectors(table), expected, atol=CLOSE)


@pytest.mark.parametrize("inputs", [["data"], ["data/*.jsonl"], ["data/2.jsonl", "data/1.jsonl"]])
def test_folders_patterns_and_several_files_are_sorted_by_name(
    tiny_bundle: Path, source: Path, inputs: list[str], expected: np.ndarray
):
    write_jsonl(Path("data/1.jsonl"), ROWS[:25])
    write_jsonl(Path("data/2.jsonl"), ROWS[25:])
    Path("data/_hidden.jsonl").write_text("no JSON\n")
    if inputs == ["data/*.jsonl"]:
        Path("data/_hidden.jsonl").unlink()
    result = run(tiny_bundle, *inputs, "-o", "out", "--rows-per-shard", "30")
    assert result.exit_code == 0, result.stderr
    np.testing.assert_allclose(vectors(read(Path("out"))), expected, atol=CLOSE)


def test_a_template_and_lines_join_columns(tiny_bundle: Path, source: Path):
    model = FlagModel(str(tiny_bundle))
    columns = ["--text", "title", "--text", "text"]
    assert (
        run(tiny_bundle, source, "-o", "a", *columns, "--template", "{title}: {text}").exit_code
        == 0
    )
    assert run(tiny_bundle, source, "-o", "b", *columns).exit_code == 0
    for folder, joint in (("a", ": "), ("b", "\n")):
        texts = [f"{row['title']}{joint}{row['text']}" for row in ROWS]
        np.testing.assert_allclose(vectors(read(Path(folder))), model.encode(texts), atol=CLOSE)


def test_queries_get_the_instruction(tiny_bundle: Path, source: Path):
    result = run(tiny_bundle, source, "-o", "out", "--query", "--instruction", "find: ")
    assert result.exit_code == 0, result.stderr
    texts = [f"find: {text}" for text in TEXTS]
    found = FlagModel(str(tiny_bundle)).encode(texts)
    np.testing.assert_allclose(vectors(read(Path("out"))), found, atol=CLOSE)


def test_empty_texts_and_bad_rows_are_listed(tiny_bundle: Path, source: Path):
    lines = ['{"text": "a"}', '{"text": null}', '{"text": " "}', "no JSON", '{"text": "b"}']
    Path("in.jsonl").write_text("\n".join(lines))
    stopped = run(tiny_bundle, "in.jsonl", "-o", "out")
    assert stopped.exit_code == 1
    (line,) = stopped.stderr.splitlines()
    assert line.startswith("bge-embed: row 3 (from 0) of ")
    assert "Pass --on-error skip to leave it out" in line
    # The job goes on.
    result = run(tiny_bundle, "in.jsonl", "-o", "out", "--on-error", "skip")
    assert result.exit_code == 0, result.stderr
    first, second, _ = result.stderr.splitlines()
    assert first == "bge-embed: 5 rows: 2 embedded, 2 empty, 1 rejected"
    assert second == f"bge-embed: rows that were left out are listed in {Path.cwd()}/out/_rejects"
    assert read(Path("out"))["id"].to_pylist() == [0, 4]
    rejects = Path("out/_rejects/part-00000-of-00001.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in rejects] == [1, 2, 3]


def test_an_empty_input_makes_an_empty_shard(tiny_bundle: Path, source: Path):
    Path("in.jsonl").write_text("")
    Path("in.txt").write_text("")
    result = run(tiny_bundle, "in.txt", "-o", "out")
    assert result.exit_code == 0, result.stderr
    assert "0 rows: 0 embedded" in result.stderr
    table = read(Path("out"))
    assert len(table) == 0
    assert table.column_names == ["id", "dense"]


# -- Output --------------------------------------------------------------------------------


def test_chunks_are_the_vectors_of_their_parts(tiny_bundle: Path, source: Path):
    options = ["--chunk-tokens", "24", "--overlap", "6", "--id", "key"]
    result = run(tiny_bundle, source, "-o", "out", *options)
    assert result.exit_code == 0, result.stderr
    table = read(Path("out"))
    assert table.column_names == ["id", "chunk", "start", "end", "dense"]
    texts = {row["key"]: str(row["text"]) for row in ROWS}
    places = table.drop_columns(["dense"]).to_pylist()
    parts = [texts[row["id"]][row["start"] : row["end"]] for row in places]
    assert len(parts) > 2 * len(ROWS)
    found = FlagModel(str(tiny_bundle)).encode(parts)
    np.testing.assert_allclose(vectors(table), found, atol=CLOSE)
    assert "cut at the maximum length" not in result.stderr
    for row in places:
        assert (row["chunk"] == 0) == (row["start"] == 0)


def test_npy_and_jsonl(tiny_bundle: Path, source: Path, expected: np.ndarray):
    assert run(tiny_bundle, source, "-o", "a", "--format", "npy", "--id", "key").exit_code == 0
    found = np.load("a/part-00000-of-00001.npy", mmap_mode="r")
    np.testing.assert_allclose(found, expected, atol=CLOSE)
    assert np.load("a/part-00000-of-00001.ids.npy").tolist() == [row["key"] for row in ROWS]
    pytest.importorskip("orjson")
    assert run(tiny_bundle, source, "-o", "b", "--format", "jsonl").exit_code == 0
    lines = Path("b/part-00000-of-00001.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    np.testing.assert_allclose([row["dense"] for row in rows], expected, atol=CLOSE)


def test_all_outputs_of_m3_and_none_of_others(
    tiny_m3_bundle: Path, tiny_bundle: Path, source: Path
):
    result = run(tiny_m3_bundle, source, "-o", "out", "--sparse", "--colbert", "--dtype", "float16")
    assert result.exit_code == 0, result.stderr
    types = {field.name: str(field.type) for field in read(Path("out")).schema}
    assert list(types) == ["id", "dense", "sparse", "colbert"]
    assert "halffloat" in types["dense"]
    assert "halffloat" in types["colbert"]
    assert run(tiny_m3_bundle, source, "-o", "b", "--sparse", "--no-dense").exit_code == 0
    assert read(Path("b")).column_names == ["id", "sparse"]
    result = run(tiny_bundle, source, "-o", "c", "--sparse")
    assert result.exit_code == 1
    assert "--sparse and --colbert are for BGE-M3, and this is tiny" in result.stderr


# -- Runs ----------------------------------------------------------------------------------


def test_processes_share_a_job(tiny_bundle: Path, source: Path):
    options = ["--rows-per-shard", "10"]
    assert run(tiny_bundle, source, "-o", "whole", *options).exit_code == 0
    second = run(tiny_bundle, source, "-o", "out", *options, "--shard", "2/2")
    assert second.exit_code == 0, second.stderr
    assert second.stderr.splitlines()[0] == "bge-embed: 20 rows of this process: 20 embedded"
    assert (
        second.stderr.splitlines()[-1] == "bge-embed: shards of other processes are not there yet"
    )
    assert len(contents(Path("out"))) == 2
    first = run(tiny_bundle, source, "-o", "out", *options, "--shard", "1/2")
    assert "other processes" not in first.stderr
    assert contents(Path("out")) == contents(Path("whole"))


def test_a_second_run_does_what_is_missing(tiny_bundle: Path, source: Path):
    options = ["--rows-per-shard", "10"]
    assert run(tiny_bundle, source, "-o", "out", *options).exit_code == 0
    whole = contents(Path("out"))
    again = run(tiny_bundle, source, "-o", "out", *options)
    assert again.stderr.splitlines() == [
        "bge-embed: 40 rows: 40 embedded",
        "bge-embed: 4 shards: 0 written, 4 already there",
    ]
    Path("out/part-00002-of-00004.parquet").unlink()
    third = run(tiny_bundle, source, "-o", "out", *options, "--threads", "1")
    assert "4 shards: 1 written, 3 already there, in 0:00:" in third.stderr
    assert contents(Path("out")) == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rows-per-shard", "20"], "--rows-per-shard 10, and now --rows-per-shard 20"),
        (["--text", "title"], "--text text, and now --text title"),
        (["--id", "key"], "no --id, and now --id key"),
        (["--keep", "lang"], "no --keep, and now --keep lang"),
        (["--template", "a {text}"], "no --template, and now --template 'a {text}'"),
        (["--format", "npy"], "--format parquet, and now --format npy"),
        (["--chunk-tokens", "9"], "no --chunk-tokens, and now --chunk-tokens 9"),
        (["--max-length", "9"], "--max-length 512, and now --max-length 9"),
        (["--dtype", "float16"], "--dtype float32, and now --dtype float16"),
        (["--query", "--instruction", "x"], "with no --instruction, and now --instruction x"),
        (["--no-normalize"], "no --no-normalize, and now --no-normalize"),
    ],
)
def test_a_mix_is_refused_with_the_difference(
    tiny_bundle: Path, source: Path, made: Path, options: list[str], message: str
):
    result = run(
        tiny_bundle, made / "in.parquet", "-o", made / "out", "--rows-per-shard", "10", *options
    )
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert f"the job in {made / 'out'} was started with " in line
    assert message in line


@pytest.fixture(scope="module")
def made(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job."""
    folder = tmp_path_factory.mktemp("made")
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "in.parquet")
    result = run(tiny_bundle, folder / "in.parquet", "-o", folder / "out", "--rows-per-shard", "10")
    assert result.exit_code == 0, result.stderr
    return folder


def test_another_input_is_refused(tiny_bundle: Path, source: Path):
    assert run(tiny_bundle, source, "-o", "out").exit_code == 0
    pq.write_table(pa.Table.from_pylist(ROWS[:39]), source)
    result = run(tiny_bundle, source, "-o", "out")
    assert result.exit_code == 1
    assert f"{source} has changed since the job in " in result.stderr
    write_jsonl(Path("in.jsonl"), ROWS)
    result = run(tiny_bundle, "in.jsonl", "-o", "out")
    assert "was started with 1 files of parquet" in result.stderr


# -- Refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["in.parquet", "-o", "out", "--field", "body"],
            "--field is for a file as output, and this",
        ),
        (["in.parquet", "-o", "out", "--field", "body"], "Use --text"),
        (["in.parquet", "-o", "out", "--jsonl"], "Use --input-format jsonl"),
        (["in.txt", "-o", "out.npy", "--keep", "a"], "--keep is for a folder as output, and this"),
        (["in.txt", "--text", "body"], "the column is named by --field"),
        (["in.txt", "-o", "out.npy", "--shard", "1/2"], "Name a folder with --output"),
        (["in.parquet"], "in.parquet cannot be embedded to one file or stream: name a folder"),
        (["in.jsonl.gz", "-o", "out.npy"], "in.jsonl.gz cannot be embedded to one file"),
        (["s3://bucket/in.jsonl"], "s3://bucket/in.jsonl is not on this machine"),
        (["in.parquet", "-o", "out.parquet"], "other formats are written to a folder: name one"),
        (["in.parquet", "-o", "s3://bucket/out.npy"], "is a file elsewhere: name a folder"),
        (["in.txt", "in.txt", "-o", "out.npy"], "2 inputs are for a folder as output"),
        (["-o", "out"], "no input is named"),
        (["-", "-o", "out"], "standard input is for a file as output"),
        (["-o", "out.npy", "folder"], "cannot read folder: it is a folder"),
        (["in.parquet", "-o", "in.txt"], "in.txt is a file; name a folder"),
        (["in.parquet", "-o", "out", "--no-dense"], "pass --sparse or --colbert as well"),
        (["in.parquet", "-o", "out", "--instruction", "a"], "pass --query as well"),
        (["in.parquet", "-o", "out", "--overlap", "9"], "--overlap 9 needs --chunk-tokens"),
        (["in.parquet", "-o", "out", "--shard", "3/2"], "--shard 3/2 is not the number"),
        (["in.parquet", "-o", "out", "--text", "body"], "no column 'body'"),
        (["in.parquet", "-o", "out", "--keep", "id"], "Pass --id id instead of --keep id"),
        (["missing.parquet", "-o", "out"], "there is no file or folder"),
        (["in.parquet", "-o", "full"], "holds files of something else"),
        (["in.parquet", "in.txt", "-o", "out"], "with a pattern or with --input-format"),
    ],
)
def test_a_mistake_is_one_line_before_a_model_is_opened(
    source: Path, arguments: list[str], message: str
):
    Path("in.txt").write_text("a\n")
    write_jsonl(Path("in.jsonl.gz"), ROWS)
    Path("folder").mkdir()
    Path("full").mkdir()
    Path("full/mine").write_text("")
    result = run("no such model", *arguments)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("bge-embed: ")
    assert message in line
    assert not Path("out").exists()


def test_a_format_without_its_package_is_one_line(source: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "lance" else name)
    result = run("no such model", source, "-o", "out", "--format", "lance")
    assert result.exit_code == 1
    assert result.stderr == "bge-embed: --format lance needs pylance: pip install pylance\n"


def test_chunks_that_the_model_cannot_read_are_refused(tiny_bundle: Path, source: Path):
    result = run(tiny_bundle, source, "-o", "out", "--chunk-tokens", "9999")
    assert result.exit_code == 1
    assert "bge-embed: --chunk-tokens 9999 is more than the 512 tokens" in result.stderr


def test_without_pyarrow_the_extra_is_named(source: Path, monkeypatch: pytest.MonkeyPatch):
    import bge_runtime

    for name in [name for name in sys.modules if name.startswith("bge_runtime.bulk")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(bge_runtime, "bulk", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = run("no such model", source, "-o", "out")
    assert result.exit_code == 1
    assert "`pip install 'bge-runtime[bulk]'`" in result.stderr


def test_a_file_as_output_does_not_import_pyarrow(tiny_bundle: Path):
    code = (
        "import sys; from bge_runtime.cli.embed import main\n"
        "try: main()\n"
        "finally: assert 'pyarrow' not in sys.modules"
    )
    arguments = [sys.executable, "-c", code, str(tiny_bundle)]
    result = subprocess.run(arguments, input=b"a\n", capture_output=True, check=True)
    assert json.loads(result.stdout)["index"] == 0


def test_what_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("there.parquet").mkdir()
    for output in ("out", "out.d/x", "there.parquet", "s3://bucket/x", "out.lance", "."):
        assert is_folder(output), output
    for output in ("-", "out.npy", "out.jsonl", "out.ndjson", "/dev/stdout", "/dev/null", ""):
        assert not is_folder(output), output


# -- Reports -------------------------------------------------------------------------------


def test_what_a_job_logs_is_printed(
    tiny_bundle: Path, source: Path, monkeypatch: pytest.MonkeyPatch
):
    from bge_runtime.bulk import progress

    monkeypatch.setattr(progress, "_INTERVAL_S", 0.0)
    result = run(tiny_bundle, source, "-o", "a", "--rows-per-shard", "20")
    first, second, *_ = result.stderr.splitlines()
    assert first.startswith("bge-embed: 20 of 40 rows (50 %), ")
    assert first.endswith(" left")
    assert second.startswith("bge-embed: 40 of 40 rows (100 %), ")
    assert "fp32" not in result.stderr
    result = run(tiny_bundle, source, "-o", "b", "--verbose")
    assert result.stderr.startswith("bge-embed: tiny: onnxruntime ")
    assert logging.getLogger("bge_runtime.bulk").handlers == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_complete_shards_and_says_how_to_go_on(
    tiny_bundle: Path, source: Path, number: signal.Signals
):
    rows = [{"text": f"{index} {'heat pumps move warmth ' * 100}"} for index in range(4000)]
    write_jsonl(Path("in.jsonl"), rows)
    arguments = [str(tiny_bundle), "in.jsonl", "-o", "out", "--rows-per-shard", "20"]
    command = [sys.executable, "-m", "bge_runtime.cli.embed", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline_s = time.monotonic() + 60
        while not list(Path().glob("out/part-*")):
            assert time.monotonic() < deadline_s
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    (line,) = said.splitlines()
    done = len(list(Path().glob("out/_manifest/part-*")))
    assert line == (
        f"bge-embed: {done} of 200 shards complete; run the same command again to go on"
    )
    assert 0 < done < 200
