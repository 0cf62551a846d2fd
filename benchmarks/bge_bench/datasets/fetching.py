"""Fetch published texts, make sure that they are those, and lay them out in a data folder."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from bge_bench.datasets.catalogue import CORPUS, QRELS, QUERIES, Dataset, problems
from bge_bench.errors import BenchError
from bge_runtime.system import file_hash

_CHUNK_BYTES = 1 << 16
_TIMEOUT_S = 30.0
_ARRIVING = ".arriving"
"""Folder of incomplete downloads in a data folder."""


def fetch(dataset: Dataset, folder: Path) -> bool:
    """Download a dataset into a data folder, unless it is there.

    A download continues where an earlier one stopped, and its hash is verified. Files of the data
    folder are written atomically.

    Args:
        dataset: The dataset.
        folder: The data folder, which is created.

    Returns:
        Whether the dataset was downloaded.

    Raises:
        BenchError: If the download fails, or is not the published file.
    """
    try:
        arriving = folder / _ARRIVING
        arriving.mkdir(parents=True, exist_ok=True)
        with FileLock(arriving / "lock"):
            if not problems(dataset, folder):
                return False
            download = arriving / dataset.sha256
            _download(dataset, download)
            made = _convert(dataset, download.read_bytes())
            for name, content in made.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                draft = path.with_name(f".{path.name}")
                draft.write_bytes(content)
                draft.replace(path)
            download.unlink()
    except OSError as error:
        raise BenchError(f"cannot write {dataset.name} into {folder}: {error}") from error
    return True


def _download(dataset: Dataset, file: Path) -> None:
    """Download to a file, continuing an earlier attempt."""
    try:
        _receive(dataset, file)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is also the response
        raise BenchError(
            f"cannot fetch {dataset.url}: {error}. What has arrived is kept, and goes on from "
            "there when this is run again. Without a network, copy the texts from a machine that "
            "has one, and name their folder with --from"
        ) from error
    size = file.stat().st_size
    if size < dataset.size_bytes:
        raise BenchError(
            f"{dataset.url} ended after {size} of {dataset.size_bytes} bytes. Run this again: it "
            "goes on from there"
        )
    found = file_hash.file_sha256(file)
    if found != dataset.sha256:
        file.unlink()
        raise BenchError(
            f"{dataset.url} is not what was published: its sha256 is {found}, and "
            f"{dataset.sha256} is right. Nothing was kept. Run this again; if it stays so, see "
            "whether something on the way, such as a proxy, answers in its place"
        )


def _receive(dataset: Dataset, file: Path) -> None:
    begun = file.stat().st_size if file.exists() else 0
    if begun >= dataset.size_bytes:
        return
    # A range of a compressed response would not be a range of the file.
    headers = {"Accept-Encoding": "identity", "User-Agent": "bge-bench"}
    if begun:
        headers["Range"] = f"bytes={begun}-"
    request = urllib.request.Request(dataset.url, headers=headers)  # noqa: S310  # a URL of ours
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
        if answer.status != http.client.PARTIAL_CONTENT:
            begun = 0
        with (
            file.open("ab" if begun else "wb") as kept,
            tqdm(
                total=dataset.size_bytes,
                initial=begun,
                desc=dataset.name,
                unit="B",
                unit_scale=True,
                disable=None,
                leave=False,
            ) as bar,
        ):
            while chunk := answer.read(_CHUNK_BYTES):
                kept.write(chunk)
                bar.update(len(chunk))


def _convert(dataset: Dataset, raw: bytes) -> dict[str, bytes]:
    """Return the files of a data folder, whose hashes are verified."""
    if dataset.kind == "sts":
        made = {dataset.path: raw}
    else:
        files = beir_from_squad(json.loads(raw), id_prefix=dataset.id_prefix)
        made = {f"{dataset.path}/{name}": content for name, content in files.items()}
    for name, content in made.items():
        found, expected = sha256(content).hexdigest(), dataset.files[name]
        if found != expected:
            raise BenchError(
                f"{dataset.url} has the right sha256, and yet {name}, which is made of it, has "
                f"{found[:12]}… where {expected[:12]}… is right: the conversion is at fault. "
                "Please report it"
            )
    return made


def beir_from_squad(squad: Mapping[str, Any], *, id_prefix: str) -> dict[str, bytes]:
    """Return a retrieval task made from questions on paragraphs.

    Args:
        squad: A document in SQuAD's format.
        id_prefix: Prefix of the paragraphs' ids, which SQuAD lacks.

    Returns:
        Content of ``corpus.jsonl``, ``queries.jsonl`` and ``qrels.tsv``.
    """
    paragraphs = [paragraph for article in squad["data"] for paragraph in article["paragraphs"]]
    corpus, queries, qrels = [], [], ["query-id\tcorpus-id\tscore"]
    for number, paragraph in enumerate(paragraphs):
        name = f"{id_prefix}-p{number}"
        corpus.append({"_id": name, "title": "", "text": paragraph["context"]})
        for question in paragraph["qas"]:
            queries.append({"_id": question["id"], "text": question["question"]})
            qrels.append(f"{question['id']}\t{name}\t1")
    return {CORPUS: _json_lines(corpus), QUERIES: _json_lines(queries), QRELS: _encode(qrels)}


def _json_lines(rows: Iterable[Mapping[str, str]]) -> bytes:
    return _encode(json.dumps(row, ensure_ascii=False) for row in rows)


def _encode(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("utf-8")
