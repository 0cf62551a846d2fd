"""What a job writes are the vectors of encode, with columns and metadata that say what they are."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from bge_bench.datasets.corpus import paragraphs
from bge_runtime import BGEM3FlagModel, FlagAutoModel, FlagModel
from bge_runtime.bulk import embed_dataset
from bge_runtime.bulk.vectors import encoder
from bge_runtime.errors import BgeError

TEXTS = [f"{number} {text}" for number, text in enumerate(paragraphs(60))]
FP32 = {"precision": "fp32"}
CLOSE = 2e-6
"""Of unit vectors in fp32: batches of other shapes round differently in the last bits."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    table = pa.table(
        {"key": [f"k{row}" for row in range(len(TEXTS))], "text": TEXTS, "n": range(len(TEXTS))}
    )
    pq.write_table(table, tmp_path / "input.parquet", row_group_size=17)
    return tmp_path / "input.parquet"


@pytest.fixture
def embed(source: Path, tmp_path: Path) -> Callable[..., pa.Table]:
    """Return a function that runs a job and returns what it wrote."""

    def run(model: Any, **options: Any) -> pa.Table:
        output = tmp_path / "output"
        summary = embed_dataset(
            model, source, output, **{"rows_per_shard": 25, "show_progress": False, **options}
        )
        assert summary.complete
        return pyarrow.dataset.dataset(output).to_table()

    return run


def vectors(table: pa.Table, name: str = "dense") -> np.ndarray:
    return np.stack(table[name].to_numpy())


def test_dense_vectors_are_those_of_encode(tiny_bundle: Path, embed: Callable[..., pa.Table]):
    table = embed(tiny_bundle, model_options=FP32, id="key", keep=("n",))

    expected = FlagModel(str(tiny_bundle), **FP32).encode(TEXTS)
    assert table.column_names == ["id", "n", "dense"]
    assert table["id"].to_pylist() == [f"k{row}" for row in range(len(TEXTS))]
    assert table["n"].to_pylist() == list(range(len(TEXTS)))
    kind = table.schema.field("dense").type
    assert (kind.value_type, kind.list_size) == (pa.float32(), 48)
    np.testing.assert_allclose(vectors(table), expected, atol=CLOSE)


def test_all_three_outputs_of_m3_are_those_of_encode(
    tiny_m3_bundle: Path, embed: Callable[..., pa.Table]
):
    heads = {"return_sparse": True, "return_colbert_vecs": True}
    table = embed(tiny_m3_bundle, model_options=FP32, colbert_dtype="float32", **heads)

    found = BGEM3FlagModel(str(tiny_m3_bundle), **FP32).encode(TEXTS, **heads)
    np.testing.assert_allclose(vectors(table), found["dense_vecs"], atol=CLOSE)
    for row, weights in zip(table["sparse"].to_pylist(), found["lexical_weights"], strict=True):
        assert row["indices"] == sorted(map(int, weights))
        expected = [weights[str(token)] for token in row["indices"]]
        np.testing.assert_allclose(row["values"], expected, atol=CLOSE)
    for row, tokens in zip(table["colbert"].to_pylist(), found["colbert_vecs"], strict=True):
        np.testing.assert_allclose(np.array(row), tokens, atol=CLOSE)


def test_only_what_is_asked_for_is_written(tiny_m3_bundle: Path, embed: Callable[..., pa.Table]):
    table = embed(tiny_m3_bundle, return_dense=False, return_colbert_vecs=True)

    kind = table.schema.field("colbert").type
    assert table.column_names == ["id", "colbert"]
    assert (kind.value_type.value_type, kind.value_type.list_size) == (pa.float16(), 48)


@pytest.mark.parametrize(
    ("options", "model_options"),
    [
        ({"dtype": "float16"}, {}),
        ({"max_length": 16}, {}),
        ({}, {"normalize_embeddings": False}),
        ({}, {"truncate_dim": 20}),
        ({"batch_size": 3}, {"threads": 1}),
    ],
)
def test_options_are_those_of_encode(
    options: dict[str, Any],
    model_options: dict[str, Any],
    tiny_bundle: Path,
    embed: Callable[..., pa.Table],
):
    table = embed(tiny_bundle, model_options={**FP32, **model_options}, **options)

    model = FlagModel(str(tiny_bundle), **FP32, **model_options)
    expected = model.encode(TEXTS, max_length=options.get("max_length"))
    half = options.get("dtype") == "float16"
    assert vectors(table).dtype == ("float16" if half else "float32")
    np.testing.assert_allclose(
        vectors(table), expected, atol=5e-4 if half else CLOSE * max(1, np.abs(expected).max())
    )


@pytest.mark.parametrize("instruction", ["Find the page: ", ""])
def test_queries_get_the_instruction(
    instruction: str, tiny_bundle: Path, embed: Callable[..., pa.Table]
):
    table = embed(tiny_bundle, query=True, instruction=instruction, model_options=FP32)

    model = FlagModel(str(tiny_bundle), query_instruction_for_retrieval=instruction or None, **FP32)
    np.testing.assert_allclose(vectors(table), model.encode_queries(TEXTS), atol=CLOSE)


def test_chunks_are_embedded_as_texts_of_their_own(
    tiny_bundle: Path, embed: Callable[..., pa.Table]
):
    table = embed(tiny_bundle, chunk_tokens=40, overlap=8, model_options=FP32)

    rows = table.select(["id", "chunk", "start", "end"]).to_pylist()
    slices = [TEXTS[row["id"]][row["start"] : row["end"]] for row in rows]
    expected = FlagModel(str(tiny_bundle), **FP32).encode(slices, max_length=40)
    assert {row["id"] for row in rows} == set(range(len(TEXTS)))
    assert len(rows) > 2 * len(TEXTS)
    np.testing.assert_allclose(vectors(table), expected, atol=CLOSE)


@pytest.mark.parametrize("query", [False, True])
def test_chunks_leave_room_for_an_instruction(
    query: bool, tiny_bundle: Path, source: Path, tmp_path: Path
):
    said = {"passage_instruction_for_retrieval": "Some words that say what a page is: "}
    summary = embed_dataset(
        tiny_bundle,
        source,
        tmp_path / "output",
        query=query,
        instruction="Find the page that a reader of this question wants to see: "
        if query
        else None,
        chunk_tokens=40,
        model_options={} if query else said,
        show_progress=False,
    )
    assert summary.embedded > 3 * len(TEXTS)
    assert summary.truncated == 0


def test_a_longer_length_than_the_model_reads_is_its_own(
    tiny_bundle: Path, embed: Callable[..., pa.Table], tmp_path: Path
):
    with pytest.warns(UserWarning, match="longer texts are cut at 512"):
        embed(tiny_bundle, max_length=100_000)
    embed(tiny_bundle, max_length=512)

    schema = pq.read_schema(tmp_path / "output" / "part-00000-of-00003.parquet")
    assert json.loads(schema.metadata[b"bge_runtime"])["max_length"] == 512


def test_names_of_columns_in_a_template_may_have_dots(tiny_bundle: Path, tmp_path: Path):
    pq.write_table(pa.table({"a.b": ["one", None], "c": ["two", "six"]}), tmp_path / "in.parquet")
    arguments = {"text": ["c", "a.b"], "template": "{a.b}, {c}", "show_progress": False}
    embed_dataset(tiny_bundle, tmp_path / "in.parquet", tmp_path / "out", **arguments)
    found = pyarrow.dataset.dataset(tmp_path / "out").to_table()
    expected = FlagModel(str(tiny_bundle)).encode(["one, two", ", six"])
    np.testing.assert_allclose(vectors(found), expected, atol=CLOSE)


def test_fields_of_json_are_kept_whatever_they_hold_later(tiny_bundle: Path, tmp_path: Path):
    rows: list[dict[str, Any]] = [{"text": "a", "meta": {"n": 1}, "score": 0.5}] * 1200
    rows += [{"text": "b", "meta": {"n": "x", "m": [None]}, "score": 1}, {"text": "c", "meta": 5}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = {"keep": ["score", "meta"], "show_progress": False}
    assert embed_dataset(tiny_bundle, tmp_path / "in.jsonl", tmp_path / "out", **arguments).complete
    table = pyarrow.dataset.dataset(tmp_path / "out").to_table()
    assert table.column_names == ["id", "score", "meta", "dense"]
    assert table["score"].to_pylist() == [0.5] * 1200 + [1.0, None]
    assert [json.loads(text) for text in table["meta"].to_pylist()] == [row["meta"] for row in rows]
    assert table.schema.field("meta").metadata is None


def test_a_later_fraction_among_integers_says_what_to_do(tiny_bundle: Path, tmp_path: Path):
    rows = [{"text": "a", "score": 1}] * 1200 + [{"text": "b", "score": 0.5}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = partial(
        embed_dataset, tiny_bundle, tmp_path / "in.jsonl", tmp_path / "out", show_progress=False
    )
    with pytest.raises(BgeError, match=r"row 1200 .*has a fraction in its field 'score'.* as 1\.0"):
        run(keep="score")
    assert run(keep="score", on_error="skip").rejected == 1


def test_an_opened_model_is_used_as_it_is(tiny_bundle: Path, embed: Callable[..., pa.Table]):
    model = FlagModel(str(tiny_bundle), query_instruction_for_retrieval="Q: ", **FP32)

    np.testing.assert_allclose(
        vectors(embed(model, query=True)), model.encode_queries(TEXTS), atol=CLOSE
    )


def test_the_schema_says_what_the_vectors_are(
    tiny_bundle: Path, embed: Callable[..., pa.Table], tmp_path: Path
):
    embed(tiny_bundle, query=True, instruction="Q: ", model_options=FP32)

    schema = pq.read_schema(tmp_path / "output" / "part-00001-of-00003.parquet")
    document = json.loads(schema.metadata[b"bge_runtime"])
    info = FlagAutoModel.from_finetuned(str(tiny_bundle), **FP32).engine.info
    assert document["precision"] == "fp32"
    assert document["variant"] == info.variant
    assert document["pooling"] == "cls"
    assert document["instruction"] == "Q: "
    assert document["max_length"] == 512
    assert document["normalized"] is True
    assert len(document["bundle"]) == 64


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"return_sparse": True}, "are for BGE-M3"),
        ({"return_dense": False}, "nothing is asked for"),
        ({"overlap": 3}, "needs chunk_tokens"),
        ({"chunk_tokens": 100_000}, "chunk_tokens"),
        ({"chunk_tokens": 64, "max_length": 64}, "pass one of them"),
        ({"max_length": 0}, "max_length"),
        ({"max_length": 1}, "no room for the 2 special tokens"),
        ({"dtype": "int8"}, "dtype must be one of 'float32', 'float16', but is 'int8'"),
        ({"output_format": "xml"}, "output_format must be one of"),
        ({"on_error": "ignore"}, "on_error must be one of"),
        ({"rows_per_shard": 0}, "rows_per_shard"),
        ({"shard": "3/2"}, "shard='3/2'"),
        ({"engine": "spark"}, "engine must be 'local' or 'ray'"),
        ({"text": ()}, "text is empty"),
        ({"overlap": -1, "chunk_tokens": 8}, "overlap"),
        ({"keep": "id"}, "Pass id='id' instead of keep='id'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    options: dict[str, Any], problem: str, tiny_bundle: Path, embed: Callable[..., pa.Table]
):
    with pytest.raises(ValueError, match=problem):
        embed(tiny_bundle, **options)


def test_an_unknown_argument_is_named(tiny_bundle: Path, embed: Callable[..., pa.Table]):
    with pytest.raises(TypeError, match=r"embed_dataset\(\) has no argument 'colour'"):
        embed(tiny_bundle, colour="red")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"text": None}, "text must be the name of a column, or a list of names, but is None"),
        ({"text": ["text", 5]}, r"text must be .* but is \['text', 5\]"),
        ({"keep": None}, "keep must be the name of a column, or a list of names, but is None"),
        ({"id": ["n"]}, r"id must be the name of one column or None, but is \['n'\]"),
        ({"template": 5}, "template must be a string or None, but is 5"),
        ({"return_dense": "no"}, "return_dense must be True or False, but is 'no'"),
        ({"query": None}, "query must be True or False, but is None"),
    ],
)
def test_a_wrong_type_says_which_one_is_expected(
    options: dict[str, Any], problem: str, tiny_bundle: Path, embed: Callable[..., pa.Table]
):
    with pytest.raises(TypeError, match=problem):
        embed(tiny_bundle, **options)


def test_columns_kept_twice_are_written_once_in_the_order_asked(
    tiny_bundle: Path, embed: Callable[..., pa.Table]
):
    table = embed(tiny_bundle, keep=["n", "text", "n", "key"])
    assert table.column_names == ["id", "n", "text", "key", "dense"]


def test_options_of_opening_are_refused_for_an_opened_model(
    tiny_bundle: Path, embed: Callable[..., pa.Table]
):
    with pytest.raises(ValueError, match="set them on the opened one"):
        embed(FlagModel(str(tiny_bundle)), model_options=FP32)


def test_a_vector_too_large_for_float16_is_rejected_alone(
    tiny_bundle: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compute = encoder.compute_batch
    (number,) = [row for row, text in enumerate(TEXTS) if text.startswith("7 ")]
    token = FlagModel(str(tiny_bundle)).tokenizer.encode([TEXTS[number]], max_length=512)[0]

    def enlarge(engine: Any, batch: Any, *, call: Any) -> None:
        def on_batch(found: Any, outputs: list[np.ndarray]) -> None:
            for row, ids in enumerate(found.input_ids):
                if np.array_equal(ids[: len(token)], token):
                    outputs[0][row, 5] = 1e6
            call.on_batch(found, outputs)

        compute(engine, batch, call=call._replace(on_batch=on_batch))

    monkeypatch.setattr(encoder, "compute_batch", enlarge)
    summary = embed_dataset(
        tiny_bundle, source, tmp_path / "output", dtype="float16", on_error="skip",
        model_options={"normalize_embeddings": False}, show_progress=False,
    )  # fmt: skip

    (path,) = (tmp_path / "output" / "_rejects").iterdir()
    reject = json.loads(path.read_text())
    assert (summary.embedded, summary.rejected) == (len(TEXTS) - 1, 1)
    assert reject["row"] == number
    assert reject["reason"].startswith("has a vector with a component of 1e+06, which is too large")
