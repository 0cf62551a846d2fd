"""``bge-embed`` as a command."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from bge_runtime import BGEM3FlagModel, FlagModel
from bge_runtime.cli import embed
from bge_runtime.errors import NotFiniteError

TEXTS = ["first text", "", "第三行"]


def run(*arguments: str | Path, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(embed.main, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> FlagModel:
    return FlagModel(str(tiny_bundle))


def test_lines_to_jsonl(tiny_bundle: Path, model: FlagModel):
    result = run(tiny_bundle, stdin="\n".join(TEXTS) + "\n")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["index"] for row in rows] == [0, 1, 2]
    # Nothing is lost on the way through decimal digits.
    assert np.array_equal(
        np.array([row["embedding"] for row in rows], dtype=np.float32), model.encode(TEXTS)
    )


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_file_to_npy(
    tiny_bundle: Path,
    model: FlagModel,
    tmp_path: Path,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(embed, "_CHUNK", chunk)
    (tmp_path / "in.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    result = run(tiny_bundle, tmp_path / "in.txt", "-o", tmp_path / "out.npy")
    assert result.exit_code == 0, result.output
    # Batches differ with the chunk, and with them the rounding.
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), model.encode(TEXTS), atol=1e-6)


def test_jsonl_keeps_other_fields(tiny_bundle: Path, model: FlagModel, tmp_path: Path):
    (tmp_path / "in.jsonl").write_text('{"id": "a", "body": "x"}\n\n{"id": "b", "body": "y"}\n')
    result = run(
        tiny_bundle, tmp_path / "in.jsonl", "--field", "body", "-o", tmp_path / "out.jsonl"
    )
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [sorted(row) for row in rows] == [["embedding", "id"]] * 2
    np.testing.assert_allclose(rows[1]["embedding"], model.encode("y"), atol=1e-6)


@pytest.mark.parametrize("characters", [1, 300, 1 << 18])
def test_colbert_vectors_in_memory_are_limited_by_characters(
    tiny_m3_bundle: Path, tmp_path: Path, characters: int, monkeypatch: pytest.MonkeyPatch
):
    model = BGEM3FlagModel(str(tiny_m3_bundle))
    monkeypatch.setattr(embed, "_COLBERT_CHARACTERS", characters)
    asked: list[list[str]] = []

    def encode_corpus(self: BGEM3FlagModel, texts: list[str], **options: object) -> object:
        asked.append(texts)
        return real(self, texts, **options)

    real = BGEM3FlagModel.encode_corpus
    monkeypatch.setattr(BGEM3FlagModel, "encode_corpus", encode_corpus)
    texts = [f"text {number} " * number for number in range(20)]
    (tmp_path / "in.txt").write_text("\n".join(texts), encoding="utf-8")
    result = run(
        tiny_m3_bundle, tmp_path / "in.txt", "--sparse", "--colbert", "-o", tmp_path / "out.jsonl"
    )
    assert result.exit_code == 0, result.output
    assert [text for chunk in asked for text in chunk] == texts
    # The last one takes it over the limit.
    assert all(sum(map(len, chunk[:-1])) < characters for chunk in asked)
    expected = real(model, texts, return_sparse=True, return_colbert_vecs=True)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for index, row in enumerate(rows):
        assert row["index"] == index
        np.testing.assert_allclose(row["embedding"], expected["dense_vecs"][index], atol=1e-6)
        np.testing.assert_allclose(row["colbert_vecs"], expected["colbert_vecs"][index], atol=1e-5)
        assert row["lexical_weights"] == pytest.approx(expected["lexical_weights"][index], abs=1e-5)


@pytest.mark.parametrize("name", ["lexical_weights", "colbert_vecs"])
def test_a_field_with_the_name_of_a_result_is_not_overwritten(tiny_m3_bundle: Path, name: str):
    result = run(
        tiny_m3_bundle, "--jsonl", "--sparse", "--colbert", stdin=f'{{"text": "a", "{name}": 1}}'
    )
    assert result.exit_code == 1
    assert f"line 1 already has a field '{name}'" in result.stderr
    result = run(tiny_m3_bundle, "--jsonl", stdin=f'{{"text": "a", "{name}": 1}}')
    assert json.loads(result.stdout)[name] == 1


def test_query_uses_the_instruction(tiny_bundle: Path, model: FlagModel):
    result = run(tiny_bundle, "--query", "--instruction", "find: ", stdin="apples\n")
    (row,) = map(json.loads, result.stdout.splitlines())
    np.testing.assert_allclose(row["embedding"], model.encode("find: apples"), atol=1e-6)


def test_options_reach_the_model(tiny_bundle: Path, model: FlagModel):
    result = run(
        tiny_bundle, "--truncate-dim", "5", "--no-normalize", "--max-length", "4", "-v",
        stdin="one two three four five\n",
    )  # fmt: skip
    (row,) = map(json.loads, result.stdout.splitlines())
    assert len(row["embedding"]) == 5
    assert abs(np.linalg.norm(row["embedding"]) - 1) > 0.01
    assert "onnxruntime" in result.stderr


def test_empty_input_gives_no_rows(tiny_bundle: Path, tmp_path: Path):
    assert run(tiny_bundle, stdin="").stdout == ""
    result = run(tiny_bundle, "-o", tmp_path / "out.npy", stdin="")
    assert result.exit_code == 0, result.output
    assert np.load(tmp_path / "out.npy").shape == (0, 48)


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["nowhere.txt"], None, "cannot read nowhere.txt"),
        (["-o", "out.csv"], "x", "neither a .npy nor a .jsonl"),
        (["-o", "/nowhere/out.npy"], "x", "cannot write /nowhere/out.npy"),
        (["--jsonl"], "{", "line 1 is not JSON"),
        (["--jsonl"], '{"a": 1}', "line 1 has no string field 'text'"),
        (["--jsonl"], '{"text": "\\ud800"}', "lone surrogate U+D800"),
        (
            ["--jsonl"],
            '\n\n{"text": "a", "embedding": 1}',
            "line 3 already has a field 'embedding'",
        ),
        (["--jsonl"], '\n\n{"text": "\\ud800"}', "line 3 has the lone surrogate"),
        (["--query"], "x", "pass --instruction TEXT"),
        (["nowhere.txt/x"], None, "cannot read nowhere.txt/x"),
        (["--instruction", "x"], "x", "pass --query as well"),
        (["--device", "cuda:0"], "x", "requested device 'cuda:0'"),
        (["--precision", "int8"], "x", "requested precision 'int8'"),
        ([], b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_one_clear_error(
    tiny_bundle: Path, arguments: list[str], stdin: str | bytes | None, message: str
):
    result = run(tiny_bundle, *arguments, stdin=stdin)
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_failure_keeps_the_old_output(tiny_bundle: Path, tmp_path: Path):
    output = tmp_path / "out.npy"
    output.write_bytes(b"old")
    result = run(tiny_bundle, "--jsonl", "-o", output, stdin='{"text": "a"}\n{')
    assert result.exit_code == 1
    assert output.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [output]


def test_missing_bundle_names_the_command():
    result = run("bge-large-en", stdin="x")
    assert result.exit_code == 1
    assert "bge-export BAAI/bge-large-en --output bge-large-en" in result.stderr


def test_rows_match_lines(tiny_bundle: Path, model: FlagModel, tmp_path: Path):
    # A byte-order mark, Windows' line ends, and a carriage return inside a line.
    (tmp_path / "in.txt").write_bytes("\ufeffone\r\ntwo\rhalves\r\n\n".encode())
    result = run(tiny_bundle, tmp_path / "in.txt", "-o", tmp_path / "out.npy")
    assert result.exit_code == 0, result.output
    expected = model.encode(["one", "two\rhalves", ""])
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-6)


def test_surrogates_in_other_fields_pass_through(tiny_bundle: Path):
    result = run(tiny_bundle, "--jsonl", stdin='{"text": "a", "title": "\\ud800"}')
    assert json.loads(result.stdout)["title"] == "\ud800"


def test_empty_instruction_is_none(tiny_bundle: Path, model: FlagModel):
    result = run(tiny_bundle, "--query", "--instruction", "", stdin="apples\n")
    np.testing.assert_allclose(
        json.loads(result.stdout)["embedding"], model.encode("apples"), atol=1e-6
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in.txt", "in.jsonl", "-o", "out.npy"], "2 inputs are for a folder as output"),
        (["in.txt", "-o", "missing/out.npy"], "there is no folder"),
        (["in.jsonl", "-o", "link.jsonl"], "link.jsonl is the input itself"),
        (["in.txt", "-o", "out.npy", "--on-error", "skip"], "the rows of a .npy would no longer"),
        (["in.txt", "-o", "out.npy", "--sparse"], "need JSONL"),
        (["missing.txt"], "cannot read missing.txt"),
        (["folder"], "cannot read folder"),
        (["in.txt", "--query", "--examples", "missing.json"], "cannot read missing.json"),
    ],
)
def test_files_are_checked_before_a_model_is_opened(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("a\n")
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "link.jsonl").symlink_to("in.jsonl")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())
    result = run("no such model", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the model refuse some texts: one without tokens, one that comes out as NaN."""
    real = FlagModel.encode_corpus

    def encode_corpus(self: FlagModel, texts: list[str], **options: object) -> object:
        for index, text in enumerate(texts):
            if text == "refused":
                raise ValueError(f"text {index} has no tokens")
            if text == "overflows":
                raise NotFiniteError(f"text {index} has NaN")
        return real(self, texts, **options)

    monkeypatch.setattr(FlagModel, "encode_corpus", encode_corpus)


@pytest.mark.usefixtures("refusing")
def test_bad_rows_are_skipped_on_request(tiny_bundle: Path, model: FlagModel):
    lines = [b"one", b"caf\xe9", b"refused", b"two", b"overflows", b"three"]
    result = run(tiny_bundle, "--on-error", "skip", stdin=b"\n".join(lines))
    assert result.exit_code == 0
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["index"] for row in rows] == [0, 3, 5]
    np.testing.assert_allclose(
        [row["embedding"] for row in rows], model.encode(["one", "two", "three"]), atol=1e-6
    )
    assert result.stderr.splitlines() == [
        (
            "bge-embed: skipped: standard input, line 2 is not UTF-8: its byte 4 is 0xE9. Convert "
            "the input, for example with iconv"
        ),
        "bge-embed: skipped: standard input, line 3 cannot be embedded: text 0 has no tokens",
        "bge-embed: skipped: standard input, line 5 cannot be embedded: text 0 has NaN",
        "bge-embed: 3 lines skipped, 3 embedded",
    ]


@pytest.mark.usefixtures("refusing")
@pytest.mark.parametrize("bad", [b"caf\xe9", b"refused"])
def test_rows_before_a_bad_row_are_not_lost(tiny_bundle: Path, bad: bytes):
    result = run(tiny_bundle, stdin=b"one\ntwo\n" + bad + b"\nthree\n")
    assert result.exit_code == 1
    assert [json.loads(line)["index"] for line in result.stdout.splitlines()] == [0, 1]
    assert "standard input, line 3 " in result.stderr


def test_only_bad_rows_are_an_error(tiny_bundle: Path):
    result = run(
        tiny_bundle,
        "--jsonl",
        "--field",
        "body",
        "--on-error",
        "skip",
        stdin='{"text": "a"}\n' * 50,
    )
    assert result.exit_code == 1
    assert (
        result.stderr.splitlines()[-1] == "bge-embed: no line of standard input could be embedded"
    )


COMMAND = [sys.executable, "-m", "bge_runtime.cli.embed"]


def in_shell(arguments: list[str | Path], redirections: str) -> subprocess.CompletedProcess[str]:
    command = f"exec {shlex.join(map(str, [*COMMAND, *arguments]))} {redirections}"
    return subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_loses_no_result(
    tiny_bundle: Path, model: FlagModel, tmp_path: Path, closed
):
    (tmp_path / "in.txt").write_text("a\nb\n")
    done = in_shell([tiny_bundle, tmp_path / "in.txt", "-o", tmp_path / "out.npy"], closed)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), model.encode(["a", "b"]), atol=1e-6)


@pytest.mark.parametrize(
    ("closed", "message"),
    [
        ("<&-", "standard input is closed; name an INPUT file"),
        ("</dev/null >&-", "standard output is closed; name a file with --output"),
    ],
)
def test_a_closed_stream_that_is_needed_is_an_error_of_one_sentence(closed: str, message: str):
    done = in_shell(["no such model"], closed)
    assert (done.returncode, done.stderr.splitlines()) == (1, [f"bge-embed: {message}"])


def test_full_disk(tiny_bundle: Path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, str(tiny_bundle)], input="a\n", stdout=full, stderr=subprocess.PIPE,
            text=True, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "bge-embed: cannot write standard output: No space left on device"
    ]


def test_a_warning_is_one_sentence_with_the_commands_options(tiny_bundle: Path):
    arguments = ["--max-length", "100000", "--truncate-dim", "100"]
    done = subprocess.run(
        [*COMMAND, str(tiny_bundle), *arguments], input="a\nb\n", capture_output=True,
        text=True, check=True, timeout=60,
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == 2
    truncated, cut = sorted(done.stderr.splitlines(), key=lambda line: "max" in line)
    assert truncated.startswith("bge-embed: --truncate-dim 100 is more than the 48 components")
    assert cut.startswith("bge-embed: --max-length 100000 is more than the 512 tokens")


@pytest.mark.timeout(120)  # else it may wait for ever
def test_lines_are_written_as_they_arrive(tiny_bundle: Path):
    command = [*COMMAND, str(tiny_bundle), "--jsonl"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        for name in ("first", "second"):  # as `tail -f` gives them
            process.stdin.write(f'{{"text": "a", "id": "{name}"}}\n'.encode())
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["id"] == name
        process.stdin.write(b"{\n")
        process.stdin.flush()
        # It ends although the input has not ended.
        assert process.wait(timeout=60) == 1
        assert process.stderr.read().startswith(b"bge-embed: standard input, line 3 is not JSON")


@pytest.mark.timeout(120)  # else it may wait for ever
def test_a_reader_that_stops_early_is_not_an_error(tiny_bundle: Path):
    with subprocess.Popen(
        [*COMMAND, str(tiny_bundle)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdin.write(b"a\n")
        process.stdin.flush()
        process.stdout.readline()
        process.stdout.close()  # as `head -1` does
        process.stdin.write(b"b\n")
        process.stdin.flush()
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == b""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_leaves_no_draft(tiny_bundle: Path, tmp_path: Path, name: str):
    # As on a file system where every file has a name, and not below nohup.
    code = (
        "import os, signal; del os.O_TMPFILE\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from bge_runtime.cli.embed import main; main()"
    )
    command = [sys.executable, "-c", code, tiny_bundle, "-o", tmp_path / "out.npy", "-v"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(b"a\n")
        process.stdin.flush()
        assert b"onnxruntime" in process.stderr.readline()
        (draft,) = tmp_path.iterdir()
        assert ".partial-" in draft.name
        process.send_signal(getattr(signal, name))
        assert process.wait(timeout=60) == 128 + getattr(signal, name)
        assert process.stderr.read() == b""
    assert list(tmp_path.iterdir()) == []
