"""``docs/coming-from``: blocks run, and give what the lines that they replace gave."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import numpy as np
import pytest

from bge_bench.systems.base import quiet
from bge_runtime import FlagReranker
from tests.helpers.integrations import SAME_VECTOR
from tests.helpers.page import code_blocks, run
from tests.helpers.rerankers import reranker_bundle

REPLACED = ("FlagEmbedding", "LangChain", "sentence-transformers", "transformers", "fastembed")
PACKAGES = {
    "LangChain": "langchain_community",
    "LlamaIndex": "llama_index.core",
    "Chroma": "chromadb",
    "Rerankers in LangChain": "langchain_classic.retrievers",
    "Rerankers in LlamaIndex": "llama_index.core",
}
"""What those sections need that may be missing."""


RERANKERS = ("Rerankers in LangChain", "Rerankers in LlamaIndex")

BLOCKS = code_blocks()


def before(code: str) -> str:
    """Undo the page's changes: put each statement that a ``# was:`` is above of as it was."""
    lines = code.splitlines()
    for statement in reversed(ast.parse(code).body):
        above = statement.lineno - 2
        if above >= 0 and lines[above].startswith("# was: "):
            lines[above : statement.end_lineno] = [lines[above].removeprefix("# was: ")]
    return "\n".join(lines)


def need(section: str) -> None:
    if section in PACKAGES:
        pytest.importorskip(PACKAGES[section], reason=f"{section} is not installed")


def test_every_block_is_run():
    # Those of mteb are with its other tests, on their task.
    others = {"LlamaIndex", "Chroma", "mteb", "Rerankers in mteb", *RERANKERS}
    assert set(BLOCKS) == {*REPLACED, *others}
    changed = {name for name, code in BLOCKS.items() if "# was: " in code}
    assert changed == set(REPLACED)
    for name in REPLACED:
        was = before(BLOCKS[name])
        assert "was:" not in was
        assert "bge_runtime" not in was
        assert "optimum" not in was


@pytest.fixture
def original(published: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a section's block as it was, on the checkpoint."""

    def run_original(section: str) -> dict[str, object]:
        if section != "fastembed":
            return run(before(BLOCKS[section]), published)
        # Of this model it knows files of its own, on the hub. It gets the bundle's.
        from fastembed import TextEmbedding

        folder = Path(shutil.copytree(tiny_bundle, tmp_path / "fastembed"))
        for file in (folder / "onnx").iterdir():
            file.rename(folder / file.name)
        (folder / "model.onnx").rename(folder / "model_optimized.onnx")
        make = TextEmbedding.__init__
        monkeypatch.setattr(
            TextEmbedding,
            "__init__",
            lambda self, name: make(self, name, specific_model_path=str(folder)),
        )
        scope: dict[str, object] = {}
        with quiet():
            exec(compile(before(BLOCKS[section]), "page", "exec"), scope)
        return scope

    return run_original


@pytest.mark.parametrize("section", REPLACED)
def test_vectors_equal_those_of_the_replaced_tool(section: str, tiny_bundle: Path, original):
    need(section)
    ours, theirs = run(BLOCKS[section], tiny_bundle), original(section)
    names = {"queries", "passages"} & set(theirs)
    assert "passages" in names
    for name in names:
        found, expected = np.asarray(ours[name]), np.asarray(theirs[name])
        assert found.shape == expected.shape == (2 if name == "passages" else 1, 48)
        np.testing.assert_allclose(found, expected, rtol=0, atol=SAME_VECTOR)


def test_the_comparison_notices_another_model(tiny_mean_bundle: Path, original):
    ours, theirs = run(BLOCKS["FlagEmbedding"], tiny_mean_bundle), original("FlagEmbedding")
    assert np.abs(np.asarray(ours["passages"]) - np.asarray(theirs["passages"])).max() > 0.01


@pytest.mark.parametrize("section", ["LlamaIndex", "Chroma"])
def test_examples_find_the_passage(
    section: str, minilm_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    need(section)
    monkeypatch.chdir(tmp_path)
    run(BLOCKS[section], minilm_bundle("mean"))
    assert capsys.readouterr().out == "A heat pump moves warmth.\n"


@pytest.mark.parametrize("section", RERANKERS)
def test_examples_sort_what_they_found(section: str, tiny_bundle: Path, made_once, capsys):
    need(section)
    bundle = reranker_bundle("xlm-roberta")
    run(BLOCKS[section], tiny_bundle, reranker=bundle)
    printed = [line.split(" ", 1) for line in capsys.readouterr().out.splitlines()]
    expected = FlagReranker(str(bundle)).rerank(
        "how do heat pumps work?", [text for _, text in printed], normalize=True
    )
    assert [each.index for each in expected] == [0, 1]
    for (score, _), each in zip(printed, expected, strict=True):
        assert float(score) == pytest.approx(each.score, abs=SAME_VECTOR)
