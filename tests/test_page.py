"""The code on FlagEmbedding's page, run with only import, path and devices changed.

What it shows of other tools keeps to them, and changes a line or two.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from bge_bench.systems.base import quiet
from tests.helpers.bundles import ROOT, export, write_tiny_m3
from tests.helpers.decoders import export_decoder, write_tiny_decoder

PAGE = ROOT.parent / "shared" / "notes" / "flagembedding-embedder-readme.md"
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


# -- Other tools' ways to use BGE: what the page shows, and the lines that change ----------

OPENS = "SentenceTransformer('BAAI/bge-large-zh-v1.5')"

FROM_OPTIMUM = "from optimum.onnxruntime import ORTModelForFeatureExtraction as AutoModel"

CHANGES = {
    "HuggingFace Transformers": {
        "import AutoTokenizer, AutoModel": f"import AutoTokenizer\n{FROM_OPTIMUM}",
        "model.eval()\n": "",
    },
    "Sentence-Transformers": {
        OPENS: f"{OPENS[:-1]}, backend='onnx', model_kwargs={{'file_name': 'model.onnx'}})"
    },
    "Langchain": {
        "from langchain_community.embeddings import HuggingFaceBgeEmbeddings": "from "
        "bge_runtime.integrations.langchain import BgeEmbeddings as HuggingFaceBgeEmbeddings"
    },
}


def other_tools() -> list[tuple[str, str]]:
    """Cut the Python of the page's further sections out, with the section's name."""
    if not PAGE.is_file():
        return []
    sections = PAGE.read_text(encoding="utf-8").split("\n### Using ")
    return [
        (name, code)
        for section in sections
        if (name := section.partition("\n")[0]) in CHANGES
        for code in re.findall(r"```(?:python|shell)\n(.*?)```", section, flags=re.DOTALL)
    ]


def change(code: str, name: str) -> str:
    for old, new in CHANGES[name].items():
        assert code.count(old) == 1
        code = code.replace(old, new)
    return code


@pytest.mark.skipif(not other_tools(), reason="the page is not beside this checkout")
@pytest.mark.parametrize(
    ("name", "code"), other_tools(), ids=[name.split()[-1].lower() for name, _ in other_tools()]
)
def test_page_code_of_other_tools_gives_the_same_after_a_change(
    name: str, code: str, published: Path, tiny_bundle: Path, tiny_mean_bundle: Path, capsys
):
    if name == "Langchain":
        pytest.importorskip("langchain_community", reason="langchain-community is not installed")
    # Where that class is today, and a processor that is here.
    code = code.replace("from langchain.embeddings", "from langchain_community.embeddings")
    code = code.replace("'device': 'cuda'", "'device': 'cpu'")

    def vectors(code: str, model: Path) -> dict[str, np.ndarray]:
        code = re.sub(r"""['"]BAAI/bge-large-(zh|en)-v1\.5['"]""", repr(str(model)), code)
        scope: dict[str, object] = {"queries": ["query_1", "query_2"]}
        with quiet():
            exec(compile(code, "page", "exec"), scope)
            if name == "Langchain":
                scope["p_embeddings"] = scope["model"].embed_documents(["样例文档-1", "样例文档-2"])
                scope["q_embeddings"] = scope["model"].embed_query("query_1")
        names = (*RESULTS, "sentence_embeddings")
        return {name: np.asarray(scope[name]) for name in names if name in scope}

    ours, theirs = vectors(change(code, name), tiny_bundle), vectors(code, published)
    assert set(ours) == set(theirs) != set()
    for result, expected in theirs.items():
        assert ours[result].shape == expected.shape
        np.testing.assert_allclose(ours[result], expected, rtol=0, atol=1e-5, err_msg=result)
    if name != "HuggingFace Transformers":  # whose code pools by itself
        broken = vectors(change(code, name), tiny_mean_bundle)
        assert all(np.abs(broken[result] - theirs[result]).max() > 0.01 for result in theirs)


def test_other_tools_are_all_on_the_page():
    if not PAGE.is_file():
        pytest.skip("the page is not beside this checkout")
    assert [name for name, _ in other_tools()] == [
        "HuggingFace Transformers",
        "Sentence-Transformers",
        "Sentence-Transformers",
        "Langchain",
    ]
