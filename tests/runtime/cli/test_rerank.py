"""``bge-rerank`` as a command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from bge_runtime import FlagLLMReranker, FlagReranker
from bge_runtime.cli import embed
from bge_runtime.cli.rerank import command as rerank
from bge_runtime.errors import NotFiniteError
from tests.helpers.decoder_rerankers import asked_by_flag_embedding
from tests.helpers.guides import blocks, commands
from tests.helpers.rerankers import reranker_bundle
from tests.helpers.runtime import SAME_VALUE

QUERY = "how do heat pumps work?"
PASSAGES = ["A heat pump moves warmth.", "Rye is a grain.", "", "热泵", "Rye is a grain."]


def run(*arguments: str | Path, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(rerank.main, [str(argument) for argument in arguments], input=stdin)


def jsonl(*rows: object) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def rows_of(result: Result) -> list[dict[str, object]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def tiny_reranker_bundle(made_once) -> Path:
    return reranker_bundle("xlm-roberta")


@pytest.fixture(scope="module")
def model(tiny_reranker_bundle: Path) -> FlagReranker:
    return FlagReranker(str(tiny_reranker_bundle), precision="auto")


def score(model: FlagReranker, query: str, passages: list[str], **options) -> list[float]:
    return model.compute_score([(query, passage) for passage in passages], **options)


def assert_scores(found: object, expected: list[float]) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=SAME_VALUE)


ROW = {"query": QUERY, "passages": PASSAGES}
PAIR = {"query": QUERY, "passage": PASSAGES[0]}


def test_scores_are_the_models_in_the_order_of_the_passages(
    tiny_reranker_bundle: Path, model: FlagReranker
):
    other = {"query": "rye", "passages": PASSAGES[:2]}
    first, second = rows_of(run(tiny_reranker_bundle, stdin=jsonl(ROW, other)))
    assert set(first) == set(second) == {"scores"}
    expected = score(model, QUERY, PASSAGES)
    assert np.ptp(expected) > 0.1  # so that an order can be wrong
    assert_scores(first["scores"], expected)
    assert_scores(second["scores"], score(model, "rye", PASSAGES[:2]))


def test_a_line_with_one_passage_has_one_score(tiny_reranker_bundle: Path, model: FlagReranker):
    for arguments in ([], ["--top-k", "3"]):
        (row,) = rows_of(run(tiny_reranker_bundle, *arguments, stdin=jsonl(PAIR)))
        assert_scores([row.pop("score")], score(model, QUERY, PASSAGES[:1]))
        assert row == {}


def test_other_fields_are_kept(tiny_reranker_bundle: Path):
    kept = {"id": 7, "source": {"file": "ß"}, "score": None}
    (row,) = rows_of(run(tiny_reranker_bundle, stdin=jsonl({**ROW, **kept})))
    assert {**kept, "scores": row["scores"]} == row


@pytest.mark.parametrize("top_k", [1, 3, 100])
def test_a_ranking_is_the_models(tiny_reranker_bundle: Path, model: FlagReranker, top_k: int):
    (row,) = rows_of(run(tiny_reranker_bundle, "--top-k", str(top_k), stdin=jsonl(ROW)))
    expected = model.rerank(QUERY, PASSAGES, top_k)
    assert [each["index"] for each in row["ranking"]] == [each.index for each in expected]
    assert_scores([each["score"] for each in row["ranking"]], [each.score for each in expected])
    assert set(row) == {"ranking"}
    # Equal texts stay in the order of the input.
    if top_k == 100:
        places = [each["index"] for each in row["ranking"]]
        assert places.index(1) < places.index(4)


def test_options_reach_the_model(tiny_reranker_bundle: Path, model: FlagReranker):
    long = ["heat " * 100 + "pump", "rye " * 100 + "pump"]
    data = jsonl({"query": QUERY * 5, "passages": long})
    cases = [
        (["--normalize"], {"normalize": True}),
        (["--max-length", "40"], {"max_length": 40}),
        (["--query-max-length", "3"], {"query_max_length": 3}),
    ]
    seen = [score(model, QUERY * 5, long)]
    for arguments, options in cases:
        (row,) = rows_of(run(tiny_reranker_bundle, *arguments, stdin=data))
        assert_scores(row["scores"], score(model, QUERY * 5, long, **options))
        assert all(np.abs(np.subtract(row["scores"], other)).max() > 1e-3 for other in seen)
        seen.append(row["scores"])
    for option, query, passages in (
        ("--query-instruction", f"Find: {QUERY}", PASSAGES),
        ("--passage-instruction", QUERY, [f"Find: {passage}" for passage in PASSAGES]),
    ):
        (row,) = rows_of(run(tiny_reranker_bundle, option, "Find: ", stdin=jsonl(ROW)))
        assert_scores(row["scores"], score(model, query, passages))
    result = run(tiny_reranker_bundle, "--precision", "fp32", "-v", stdin=jsonl(PAIR))
    assert "fp32" in result.stderr


def test_a_decoder_is_asked_with_its_own_prompt_or_another(made_once):
    bundle = asked_by_flag_embedding() / "bundle"
    for arguments, options in (
        ([], {}),
        (["--query-instruction", "Find: "], {"query_instruction_for_rerank": "Find: "}),
        (["--query-instruction", ""], {"query_instruction_for_rerank": ""}),
        (["--passage-instruction", "Text: "], {"passage_instruction_for_rerank": "Text: "}),
    ):
        model = FlagLLMReranker(str(bundle), precision="fp32", **options)
        first, second = rows_of(
            run(
                bundle, "--precision", "fp32", *arguments, stdin=jsonl(ROW, {**ROW, "query": "rye"})
            )
        )
        assert_scores(first["scores"], score(model, QUERY, PASSAGES))
        assert_scores(second["scores"], score(model, "rye", PASSAGES))


def test_nothing_is_lost_on_the_way_through_decimal_digits(
    tiny_reranker_bundle: Path, model: FlagReranker
):
    (row,) = rows_of(run(tiny_reranker_bundle, stdin=jsonl(ROW)))
    expected = score(model, QUERY, PASSAGES)
    assert np.array_equal(np.float32(row["scores"]), np.float32(expected))
    (row,) = rows_of(run(tiny_reranker_bundle, "--normalize", stdin=jsonl(ROW)))
    assert row["scores"] == score(model, QUERY, PASSAGES, normalize=True)


@pytest.mark.parametrize("chunk", [1, 4, 8192])
def test_lines_are_scored_together_in_their_order(
    tiny_reranker_bundle: Path,
    model: FlagReranker,
    tmp_path: Path,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(rerank, "_CHUNK", chunk)
    asked: list[int] = []
    real = FlagReranker.compute_score

    def compute_score(self: FlagReranker, pairs: list[tuple[str, str]], **options: object):
        asked.append(len(pairs))
        return real(self, pairs, **options)

    monkeypatch.setattr(FlagReranker, "compute_score", compute_score)
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    rows = [{"query": f"q{n}", "passages": PASSAGES[: n % 4], "n": n} for n in range(20)]
    for file, own in zip(files, (rows[:12], rows[12:]), strict=True):
        file.write_text(jsonl(*own).replace("\n", "\n\n"), "utf-8")
    result = run(tiny_reranker_bundle, *files, "-o", tmp_path / "out.jsonl")
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["n"] for row in found] == list(range(20))
    pairs = [(row["query"], passage) for row in rows for passage in row["passages"]]
    assert sum(asked) == len(pairs)
    # A line is never divided, and a line without passages counts as one.
    assert max(asked) < chunk + 3
    assert len(asked) == 2 or chunk < 100  # one for each file
    assert_scores([value for row in found for value in row["scores"]], real(model, pairs))


def test_empty_input_and_no_passages_are_valid(tiny_reranker_bundle: Path, tmp_path: Path):
    result = run(tiny_reranker_bundle, "-o", tmp_path / "out.jsonl", stdin="")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out.jsonl").read_bytes() == b""
    nothing = jsonl({"query": QUERY, "passages": []})
    assert rows_of(run(tiny_reranker_bundle, stdin=nothing)) == [{"scores": []}]
    result = run(tiny_reranker_bundle, "--top-k", "3", stdin=nothing)
    assert rows_of(result) == [{"ranking": []}]


BAD = [
    ("{", "line 1 is not JSON"),
    ("[1]", "line 1 has no string field 'query'"),
    ('{"query": 1, "passages": []}', "line 1 has no string field 'query'"),
    ('\n\n{"query": "a"}', "line 3 has neither of the fields 'passages'"),
    ('{"query": "a", "passage": "b", "passages": []}', "line 1 has both of the fields 'passages'"),
    ('{"query": "a", "passages": "b"}', "line 1 has a field 'passages' that is no list"),
    ('{"query": "a", "passages": ["b", null]}', "line 1 has no string in its field 'passages[1]'"),
    ('{"query": "a", "passage": ["b"]}', "line 1 has no string in its field 'passage'"),
    ('{"query": "\\ud800", "passages": []}', "lone surrogate U+D800 in its field 'query'"),
    ('{"query": "a", "passages": ["\\ud800"]}', "U+D800 in its field 'passages[0]'"),
    ('{"query": "a", "passages": [], "scores": 1}', "line 1 already has a field 'scores'"),
    ('{"query": "a", "passage": "b", "score": 1}', "line 1 already has a field 'score'"),
    (b'{"query": "caf\xe9"}', "line 1 is not UTF-8"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=[message for _, message in BAD])
def test_a_bad_line_is_named(tiny_reranker_bundle: Path, line: str | bytes, message: str):
    result = run(tiny_reranker_bundle, stdin=line)
    assert result.exit_code == 1
    assert result.stderr.startswith("bge-rerank: standard input, line ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jsonl"], "cannot read nowhere.jsonl"),
        (["-o", "out.npy"], "--output out.npy is no .jsonl file"),
        (["-o", "nowhere/out.jsonl"], "there is no folder"),
        (["in.jsonl", "other.jsonl", "-o", "other.jsonl"], "other.jsonl is the input itself"),
    ],
)
def test_files_are_checked_before_a_model_is_opened(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("in.jsonl", "other.jsonl"):
        Path(name).write_text(jsonl(PAIR))
    result = run("no such model", *arguments, stdin="")
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_model_of_the_other_kind_is_refused_with_the_right_command(
    tiny_bundle: Path, tiny_reranker_bundle: Path
):
    result = run(tiny_bundle, stdin=jsonl(PAIR))
    assert result.exit_code == 1
    assert "Run bge-embed with it" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    result = CliRunner().invoke(embed.main, [str(tiny_reranker_bundle)], input="a\n")
    assert result.exit_code == 1
    assert "Run bge-rerank with it" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_options_that_the_model_does_not_have_are_one_sentence(tiny_reranker_bundle: Path):
    for arguments, message in (
        (["--device", "cuda:0"], "requested device 'cuda:0'"),
        (["--precision", "int8"], "requested precision 'int8'"),
        (["--engine", "made-up"], "made-up"),
        (["--max-length", "3", "--on-error", "skip"], "bge-rerank: --max-length 3 leaves no room"),
    ):
        result = run(tiny_reranker_bundle, *arguments, stdin=jsonl(PAIR))
        assert result.exit_code == 1
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_bad_lines_are_skipped_on_request(
    tiny_reranker_bundle: Path,
    model: FlagReranker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    real = FlagReranker.compute_score

    def compute_score(self: FlagReranker, pairs: list[tuple[str, str]], **options: object):
        if any(passage == "overflows" for _, passage in pairs):
            raise NotFiniteError("the score of sentence_pairs[0] is NaN")
        return real(self, pairs, **options)

    monkeypatch.setattr(FlagReranker, "compute_score", compute_score)
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    files[0].write_text(jsonl({**ROW, "n": 0}, {"query": "a"}, {**PAIR, "n": 1}))
    files[1].write_text(jsonl({"query": "a", "passage": "overflows"}, {**PAIR, "n": 2}))
    result = run(tiny_reranker_bundle, *files, "--on-error", "skip")
    assert [row["n"] for row in rows_of(result)] == [0, 1, 2]
    first, second, last = result.stderr.splitlines()
    assert first.startswith(f"bge-rerank: skipped: {files[0]}, line 2 has neither of the fields")
    assert second == (
        f"bge-rerank: skipped: {files[1]}, line 1 cannot be scored: "
        "the score of sentence_pairs[0] is NaN"
    )
    assert last == "bge-rerank: 2 lines skipped, 3 scored"
    result = run(tiny_reranker_bundle, "--on-error", "skip", stdin='{"text": "a"}\n' * 3)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "bge-rerank: no line of standard input could be scored"
    )


@pytest.mark.timeout(120)  # else it may wait for ever
def test_lines_are_written_as_they_arrive_until_the_reader_stops(tiny_reranker_bundle: Path):
    command = [sys.executable, "-m", "bge_runtime.cli.rerank.command", str(tiny_reranker_bundle)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        for name in ("first", "second"):
            process.stdin.write(jsonl({**PAIR, "id": name}).encode())
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["id"] == name
        process.stdout.close()  # as `head -2` does
        process.stdin.write(jsonl(PAIR).encode())
        process.stdin.flush()
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == b""


def test_the_examples_of_the_page_run(
    tiny_reranker_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data, script, results = (
        block for block in blocks("guides/command-line.md") if block.section == "Rerankers"
    )
    monkeypatch.chdir(tmp_path)
    Path("found.jsonl").write_text(data.text, "utf-8")
    printed = []
    for words in commands(script.text, "bge-rerank"):
        model = str(tiny_reranker_bundle)
        result = run(*[model if word == "bge-reranker-v2-m3" else word for word in words[1:]])
        assert result.exit_code == 0, result.output
        printed += (result.stdout or Path("best.jsonl").read_text()).splitlines()
    for line, shown in zip(printed, results.text.splitlines(), strict=True):
        assert shape(json.loads(line)) == shape(json.loads(shown))


def shape(value: object) -> object:
    """Return what a result looks like, without its numbers."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    return [shape(each) for each in value] if isinstance(value, list) else type(value)
