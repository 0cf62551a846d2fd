"""The code on FlagEmbedding's page, run with only import, path and devices changed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from bge_bench.sides import quiet
from tests.conftest import export, write_tiny_m3
from tests.decoders import export_decoder, write_tiny_decoder

PAGE = Path(__file__).parents[2] / "shared" / "notes" / "flagembedding-embedder-readme.md"
RESULTS = ("embeddings_1", "embeddings_2", "similarity", "q_embeddings", "p_embeddings", "scores")


M3_RESULTS = ("dense_similarity", "sparse_similarity", "dense_scores", "sparse_scores")


def code_blocks() -> list[str]:
    """Cut the Python of sections 1 (twice) to 5 out of the page."""
    if not PAGE.is_file():
        return []
    sections = PAGE.read_text(encoding="utf-8").split("\n#### ")
    return [
        code
        for section in sections
        if section.startswith(
            ("1. Auto Model", "2. Normal Model", "3. M3 Model", "4. LLM-based", "5. LLM-based ICL")
        )
        for code in re.findall(r"```python\n(.*?)```", section.split("\n### ")[0], flags=re.DOTALL)
    ]


def run(code: str, *, package: str, model: Path) -> dict[str, object]:
    code = code.replace("from FlagEmbedding import", f"from {package} import")
    names = (
        r"'(BAAI/bge-large-zh-v1\.5|your_model_name_or_path|BAAI/bge-m3|BAAI/bge-en-icl|"
        r"BAAI/bge-multilingual-gemma2)'"
    )
    code = re.sub(names, repr(str(model)), code)
    code = code.replace("devices=['cuda:1']", "devices=['cpu']")
    scope: dict[str, object] = {}
    exec(compile(code, "page", "exec"), scope)
    return {name: scope[name] for name in (*RESULTS, *M3_RESULTS) if name in scope}


*BLOCKS, M3_BLOCK, LLM_BLOCK, ICL_BLOCK = code_blocks() or ["", "", ""]
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


@pytest.mark.skipif(not LLM_BLOCK, reason="the page is not beside this checkout")
@pytest.mark.parametrize(
    ("code", "name", "family"),
    [(LLM_BLOCK, "bge-multilingual-gemma2", "gemma2"), (ICL_BLOCK, "bge-en-icl", "mistral")],
    ids=["llm", "icl"],
)
def test_page_code_of_decoders_gives_what_flag_embedding_gives(
    code: str, name: str, family: str, tmp_path: Path, capsys
):
    from transformers import AutoModel

    checkpoint = write_tiny_decoder(tmp_path / "checkpoints" / name, family)
    bundle = export_decoder(checkpoint, tmp_path / "bundles" / name)
    ours = run(code, package="bge_runtime", model=bundle)
    assert capsys.readouterr().out.count("[[") == 1
    with quiet(), pytest.MonkeyPatch.context() as patch:
        load = AutoModel.from_pretrained
        # Its default attention leaves Gemma 2's softcapping out.
        patch.setattr(
            AutoModel,
            "from_pretrained",
            lambda *args, **options: load(*args, **options, attn_implementation="eager"),
        )
        theirs = run(code, package="FlagEmbedding", model=checkpoint)
    assert set(ours) == set(theirs) == {"q_embeddings", "p_embeddings", "scores"}
    for result, expected in theirs.items():
        assert ours[result].dtype == expected.dtype
        assert ours[result].shape == expected.shape
        # Both compute with weights in 16 bits, theirs in fp16 and ours perhaps in bf16.
        np.testing.assert_allclose(ours[result], expected, atol=2e-2, err_msg=result)
