"""Checkpoints of every kind, by their small files, and the places where users have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bge_runtime.sources import HEAD_FILES

COMMIT = "5617a9f61b028005a4858fdac845db406aefb181"
ENGLISH = "Represent this sentence for searching relevant passages: "


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of checkpoint, and what it is.

    Attributes:
        published: Hub id of a published one.
        model_type: What its ``config.json`` says.
        model_class: FlagEmbedding's class for it.
        instruction: What its authors recommend for queries.
        form: How instruction and query are joined.
        heads: M3's head files that it has.
        files: Further small files.
    """

    published: str
    model_type: str
    model_class: str
    instruction: str | None = None
    form: str = "{}{}"
    heads: tuple[str, ...] = ()
    files: tuple[tuple[str, object], ...] = ()

    @property
    def name(self) -> str:
        """Its name without owner."""
        return self.published.partition("/")[2]

    def write(self, folder: Path) -> Path:
        """Write its files, with weights of no tensors."""
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"model_type": self.model_type}))
        (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
        for name in self.heads:
            (folder / name).write_bytes(b"")
        for name, content in self.files:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(content))
        return folder


_MODULES = [
    {"path": path, "type": f"sentence_transformers.models.{path[2:] or 'Transformer'}"}
    for path in ("", "1_Pooling", "2_Normalize")
]

KINDS = {
    "bert": Kind(
        published="BAAI/bge-base-en-v1.5",
        model_type="bert",
        model_class="encoder-only-base",
        instruction=ENGLISH,
    ),
    "m3": Kind(
        published="BAAI/bge-m3",
        model_type="xlm-roberta",
        model_class="encoder-only-m3",
        heads=HEAD_FILES,
    ),
    "decoder": Kind(
        published="BAAI/bge-multilingual-gemma2",
        model_type="gemma2",
        model_class="decoder-only-base",
        form="<instruct>{}\n<query>{}",
        files=(("added_tokens.json", {"<instruct>": 256000, "<query>": 256001}),),
    ),
    "icl": Kind(
        published="BAAI/bge-en-icl",
        model_type="mistral",
        model_class="decoder-only-icl",
        form="<instruct>{}\n<query>{}",
        files=(("tokenizer_config.json", {"additional_special_tokens": ["<response>"]}),),
    ),
    "sentence-transformers": Kind(
        published="BAAI/bge-small-en-v1.5",
        model_type="bert",
        model_class="encoder-only-base",
        instruction=ENGLISH,
        files=(
            ("modules.json", _MODULES),
            ("1_Pooling/config.json", {"pooling_mode_cls_token": True}),
            ("config_sentence_transformers.json", {"prompts": {"query": "query: "}}),
        ),
    ),
}


@dataclass(frozen=True)
class Place:
    """Where a checkpoint lies, and how a user calls it who stands in a folder."""

    folder: Path
    path: str
    standing_in: Path


def _place(root: Path, below: str, *, path: str = "", standing_in: str = ".") -> Place:
    return Place(root / below, path or str(root / below), root / standing_in)


def _snapshot(root: Path, kind: Kind, *, path: str = "") -> Place:
    repository = f"models--{kind.published.replace('/', '--')}"
    return _place(root, f"{repository}/snapshots/{COMMIT}", path=path)


def _linked(root: Path, kind: Kind) -> Place:
    place = _snapshot(root, kind, path=str(root / "current"))
    (root / "current").symlink_to(place.folder, target_is_directory=True)
    return place


PLACES: dict[str, Callable[[Path, Kind], Place]] = {
    "folder": lambda root, kind: _place(root, kind.name),
    "trailing slash": lambda root, kind: _place(root, kind.name, path=f"{root / kind.name}/"),
    "snapshot": _snapshot,
    "link to a snapshot": _linked,
    "checkpoint of a trainer": lambda root, kind: _place(root, f"{kind.name}/checkpoint-1200"),
    "where one stands": lambda root, kind: _place(root, kind.name, path=".", standing_in=kind.name),
    "checkpoint where one stands": lambda root, kind: _place(
        root, f"{kind.name}/checkpoint-9", path="checkpoint-9", standing_in=kind.name
    ),
    "ModelScope's cache": lambda root, kind: _place(
        root, f"hub/{kind.published.replace('.', '___')}"
    ),
}
"""Those that tell the model's name."""
