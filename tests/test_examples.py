"""The examples run as users run them, and find what ``bge-bench retrieval`` finds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bge_bench.datasets.catalogue import CORPUS, QRELS, QUERIES
from bge_bench.datasets.corpus import paragraphs
from bge_bench.datasets.data import load_retrieval
from bge_bench.experiments.tasks import open_task
from bge_bench.systems.base import OURS, SystemSpec, open_system
from bge_runtime.sources import ENCODER_ONLY_M3
from tests.helpers.bundles import ROOT, SHARED, WITH_PYTORCH

EXAMPLES = ROOT / "examples"
NEEDS = {"qdrant": "qdrant_client", "milvus": "milvus_lite", "lancedb": "lancedb"}
PASSAGES = 60

pytestmark = pytest.mark.skipif(not WITH_PYTORCH, reason="the example's model is exported")


def run_example(name: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", EXAMPLES / name, *map(str, arguments)],
        check=False, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def write_texts(folder: Path) -> None:
    """Write a small task in BEIR's form: of XQuAD, or of made-up paragraphs where it is absent."""
    if (xquad := SHARED / "text" / "xquad" / "en").is_dir():
        corpus, queries, qrels = load_retrieval(xquad)
        passages = dict(list(corpus.items())[:PASSAGES])
        asked = {
            name: text for name, text in queries.items() if passages.keys() & qrels[name].keys()
        }
        answers = {name: next(iter(qrels[name])) for name in asked}
    else:
        passages = {f"p{number}": text for number, text in enumerate(paragraphs(PASSAGES))}
        words = {name: text.split() for name, text in passages.items()}
        asked = {f"q-{name}": " ".join(found[-12:]) for name, found in words.items()}
        answers = {name: name.removeprefix("q-") for name in asked}
    folder.mkdir(parents=True)
    for name, texts in ((CORPUS, passages), (QUERIES, asked)):
        rows = (json.dumps({"_id": key, "text": text}) for key, text in texts.items())
        (folder / name).write_text("".join(f"{row}\n" for row in rows), "utf-8")
    grades = "".join(f"{query}\t{passage}\t1\n" for query, passage in answers.items())
    (folder / QRELS).write_text(grades, "utf-8")


@pytest.fixture(scope="module")
def prepared(made_once: Callable[..., Path]) -> Path:
    """A folder with a model, its vectors and their texts, made by the first example."""

    def make(folder: Path) -> None:
        texts = folder.with_name(f"{folder.name}-texts")
        write_texts(texts)
        printed = run_example("prepare.py", folder, "--beir", texts)
        assert "$ bge-embed" in printed

    return made_once("examples", make)


@pytest.fixture(scope="module")
def expected(prepared: Path) -> str:
    """nDCG@10 as ``bge-bench retrieval`` has it."""
    spec = SystemSpec(
        system=OURS, model=str(prepared / "model"), pooling="mean", max_length=512,
        batch_size=256, model_class=ENCODER_ONLY_M3,
    )  # fmt: skip
    task = open_task(str(prepared / "beir"), prepared)
    return f"{task.measure(open_system(spec), str)['nDCG@10'].mean():.5f}"


@pytest.fixture(scope="module")
def scores(prepared: Path) -> Callable[[str], dict[str, str]]:
    found: dict[str, dict[str, str]] = {}

    def scores_of(database: str) -> dict[str, str]:
        pytest.importorskip(NEEDS[database])
        if database not in found:
            folders = (prepared / name for name in ("model", "vectors", "beir"))
            printed = run_example(f"search_{database}.py", *folders)
            assert f"{PASSAGES} passages" in printed
            found[database] = dict(re.findall(r"^(\w.*?) +(\d\.\d{5})$", printed, re.MULTILINE))
        return found[database]

    return scores_of


@pytest.mark.parametrize("database", NEEDS)
def test_the_dense_score_is_that_of_bge_bench(scores, expected: str, database: str):
    assert scores(database)["dense"] == expected


@pytest.mark.parametrize("database", NEEDS)
def test_sparse_and_hybrid_search_find_answers(scores, database: str):
    found = scores(database)
    assert float(found["sparse"]) > 0.7
    assert float(found["hybrid"]) > 0.7


def test_databases_agree_on_exact_searches(scores):
    assert scores("milvus")["sparse"] == scores("qdrant")["sparse"]
    assert scores("lancedb")["sparse"] == scores("qdrant")["sparse"]


def test_qdrant_reranks_with_colbert(scores):
    assert float(scores("qdrant")["hybrid, reranked by ColBERT"]) > 0.7


def test_what_is_prepared_is_kept(prepared: Path):
    written = (prepared / "model" / "bge.json").stat().st_mtime_ns
    shards = {
        path.name: path.stat().st_mtime_ns for path in (prepared / "vectors").glob("*.parquet")
    }
    assert shards
    run_example("prepare.py", prepared)
    assert (prepared / "model" / "bge.json").stat().st_mtime_ns == written
    again = {
        path.name: path.stat().st_mtime_ns for path in (prepared / "vectors").glob("*.parquet")
    }
    assert again == shards


@pytest.mark.parametrize("database", NEEDS)
def test_an_example_is_short_and_part_of_make_examples(database: str):
    assert len((EXAMPLES / f"search_{database}.py").read_text("utf-8").splitlines()) <= 120
    target = (ROOT / "Makefile").read_text("utf-8").partition("\nexamples:")[2]
    assert database in target.partition("\n\n")[0]


def test_every_example_is_tested():
    names = {path.stem.removeprefix("search_") for path in EXAMPLES.glob("search_*.py")}
    assert names - {"folder"} == set(NEEDS)  # tests/test_small_examples.py has that one
