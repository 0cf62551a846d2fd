"""A folder with the models and files that the pages name."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.helpers.bundles import export, write_tiny_bert
from tests.helpers.decoder_rerankers import export_tiny_reranker
from tests.helpers.decoders import export_decoder, write_tiny_decoder
from tests.helpers.rerankers import reranker_bundle
from tests.helpers.servers import Server, running_server

NOTES = ["A heat pump moves warmth.", "Rye is a grain."]


def _write_small(folder: Path) -> None:
    """Write a BERT of one layer, as wide as bge-small-en-v1.5, under its name."""
    name = folder / "checkpoint" / "bge-small-en-v1.5"
    write_tiny_bert(name, layers=1, hidden_size=384, heads=12)
    export(name, folder / "bundle", targets=("cpu",))


def _write_icl(folder: Path) -> None:
    checkpoint = write_tiny_decoder(folder / "checkpoint" / "bge-en-icl", "mistral")
    export_decoder(checkpoint, folder / "bundle")


@pytest.fixture(scope="session")
def models(
    made_once: Callable[..., Path],
    minilm_bundle: Callable[[str], Path],
    tiny_bundle: Path,
    tiny_m3_bundle: Path,
) -> dict[str, Path]:
    """Bundles by the names that pages give them. All but all-MiniLM-L6-v2 have random weights."""
    gemma = made_once("tiny-asked-gemma", partial(export_tiny_reranker, name="gemma"))
    trained = minilm_bundle("mean")
    return {
        "all-MiniLM-L6-v2": trained,
        "bge-base-en-v1.5": trained,
        "bge-small-en-v1.5": made_once("docs-small", _write_small) / "bundle",
        "bge-base-zh-v1.5": tiny_bundle,
        "my-finetune": tiny_bundle,
        "bge-m3": tiny_m3_bundle,
        "bge-en-icl": made_once("docs-icl", _write_icl) / "bundle",
        "bge-reranker-v2-m3": reranker_bundle("long xlm-roberta"),
        "bge-reranker-base": reranker_bundle("xlm-roberta"),
        "bge-reranker-v2-gemma": gemma / "bundle",
    }


@pytest.fixture(scope="session")
def serve(models: dict[str, Path]) -> Iterator[Callable[[tuple[str, ...]], Server]]:
    """A function that starts a server with a command's words, once for all pages."""
    started: dict[tuple[str, ...], Server] = {}

    def bundle(word: str) -> str:
        path, _, name = word.removeprefix("./").partition("=")
        return f"{models[path]}={name or path}" if path in models else word

    with ExitStack() as stack:

        def server(words: tuple[str, ...]) -> Server:
            words = words[: words.index("--port")] if "--port" in words else words
            if words not in started:
                started[words] = stack.enter_context(running_server(*map(bundle, words)))
            return started[words]

        yield server


@pytest.fixture(scope="module")
def folder(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pages' models and files."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "BAAI").mkdir()
    for name, bundle in models.items():
        (folder / name).symlink_to(bundle)
        (folder / "BAAI" / name).symlink_to(bundle)
    _write_files(folder)
    return folder


def _write_files(folder: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [
        {
            "key": f"a{number}",
            "title": f"Heat pump {number}",
            "text": None if number in (7, 8) else "Heat pumps move warmth. " * (1 + number % 30),
            "lang": "en",
        }
        for number in range(100)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "articles.parquet")
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for name in ("corpus/deep/one.jsonl.gz", "more/part-1.jsonl.gz", "more/part-2.jsonl.gz"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(folder / name, "wt", encoding="utf-8") as file:
            file.write(lines)
    (folder / "questions.csv").write_text("number,text\n1,what is a heat pump?\n2,and rye?\n")
    (folder / "crawl.jsonl").write_text(lines + "no JSON\n", "utf-8")
    for name in ("corpus.txt", "queries.txt", "log.txt"):
        (folder / name).write_text("".join(f"{text}\n" for text in NOTES))
    (folder / "docs.jsonl").write_text("".join(f'{{"body": "{text}"}}\n' for text in NOTES))
    found = {"id": 7, "query": "how do heat pumps work?", "passages": NOTES[::-1]}
    (folder / "found.jsonl").write_text(json.dumps(found) + "\n")


@pytest.fixture
def page_folder(folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder for one page, with links to the models."""
    return Path(shutil.copytree(folder, tmp_path / "page", symlinks=True))
