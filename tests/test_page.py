"""The code on FlagEmbedding's page, run with only import, path and devices changed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from bge_bench.sides import quiet
from tests.conftest import export, write_tiny_m3

PAGE = Path(__file__).parents[2] / "shared" / "notes" / "flagembedding-embedder-readme.md"
RESULTS = ("embeddings_1", "embeddings_2", "similarity", "q_embeddings", "p_embeddings", "scores")


M3_RESULTS = ("dense_similarity", "sparse_similarity", "dense_scores", "sparse_scores")


def code_blocks() -> list[str]:
    """Cut the Python of sections 1 (twice), 2 and 3 out of the page."""
    if not PAGE.is_file():
        return []
    sections = PAGE.read_text(encoding="utf-8").split("\n#### ")
    return [
        code
        for section in sections
        if section.startswith(("1. Auto Model", "2. Normal Model", "3. M3 Model"))
        for code in re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    ]


def run(code: str, *, package: str, model: Path) -> dict[str, object]:
    code = code.replace("from FlagEmbedding import", f"from {package} import")
    names = r"'(BAAI/bge-large-zh-v1\.5|your_model_name_or_path|BAAI/bge-m3)'"
    code = re.sub(names, repr(str(model)), code)
    code = code.replace("devices=['cuda:1']", "devices=['cpu']")
    scope: dict[str, object] = {}
    exec(compile(code, "page", "exec"), scope)
    return {name: scope[name] for name in (*RESULTS, *M3_RESULTS) if name in scope}


*BLOCKS, M3_BLOCK = code_blocks() or [""]
NAMES = ("auto", "auto-model-class", "flag-model") if BLOCKS else ()


@pytest.mark.skipif(not BLOCKS, reason="the page is not beside this checkout")
@pytest.mark.parametrize("code", BLOCKS, ids=NAMES or None)
def test_page_code_gives_what_flag_embedding_gives(
    code: str, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, capsys
):
    # The names matter: FlagAutoModel looks the last part of the path up.
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundles" / "bge-large-zh-v1.5"))
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "bge-large-zh-v1.5"))
    ours = run(code, package="bge_runtime", model=bundle)
    with quiet():
        theirs = run(code, package="FlagEmbedding", model=checkpoint)
    assert set(ours) == set(RESULTS)
    for name in RESULTS:
        assert ours[name].dtype == theirs[name].dtype
        # Theirs rounds weights to fp16 on loading, even for a CPU: use_fp16=True.
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-3, err_msg=name)


@pytest.mark.skipif(not M3_BLOCK, reason="the page is not beside this checkout")
def test_page_code_of_m3_gives_what_flag_embedding_gives(tmp_path: Path, capsys):
    import torch

    checkpoint = write_tiny_m3(tmp_path / "checkpoint")
    head = torch.load(checkpoint / "sparse_linear.pt", weights_only=True)
    head["bias"] += 0.3  # so that the page's short texts share tokens that weigh something
    torch.save(head, checkpoint / "sparse_linear.pt")
    bundle = export(checkpoint, tmp_path / "bundle", targets=(), model_class="encoder-only-m3")
    ours = run(M3_BLOCK, package="bge_runtime", model=bundle)
    assert capsys.readouterr().out.count("sparse similarity:") == 2
    with quiet():
        theirs = run(M3_BLOCK, package="FlagEmbedding", model=checkpoint)
    embeddings = {"embeddings_1", "embeddings_2", "q_embeddings", "p_embeddings"}
    assert set(ours) == set(theirs) == {*M3_RESULTS, *embeddings}
    for name in M3_RESULTS:
        assert np.abs(theirs[name]).min() > 0.01
        # As above; and ours may compute in bf16, which moves a weight by up to 0.01.
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-2, err_msg=name)
