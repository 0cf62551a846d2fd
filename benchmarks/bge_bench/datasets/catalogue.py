"""The published datasets that retrieval is measured on.

They are not part of this project, which has another licence. `bge_bench.datasets.fetching`
downloads them from their authors, pinned to a commit and a hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from bge_bench.errors import BenchError
from bge_runtime.system import cache_folder, file_hash

CORPUS = "corpus.jsonl"
QUERIES = "queries.jsonl"
QRELS = "qrels.tsv"
"""Files of a retrieval task in BEIR's format."""

Kind = Literal["retrieval", "sts"]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A published dataset.

    Attributes:
        name: Name on the command line.
        kind: ``"retrieval"`` for questions and passages that answer them; ``"sts"`` for pairs of
            sentences with a similarity given by people.
        path: Path in a data folder: a folder for retrieval, a file for sts.
        url: The published file, pinned to a commit.
        size_bytes: Size of that file.
        sha256: Hash of that file.
        files: Path in a data folder and sha256 of each file that is converted from it.
        id_prefix: Prefix of the passages' ids, which the published files lack.
        licence: Licence of the dataset.
    """

    name: str
    kind: Kind
    path: str
    url: str
    size_bytes: int
    sha256: str
    files: Mapping[str, str]
    id_prefix: str = ""
    licence: str = "CC BY-SA 4.0"


def _xquad(language: str, size: int, sha256: str, corpus: str, queries: str) -> Dataset:
    folder = f"xquad/{language}"
    commit = "7d30520c717524000f0d9d2f9c10a069acd9d285"
    return Dataset(
        name=f"xquad-{language}",
        kind="retrieval",
        path=folder,
        url=f"https://raw.githubusercontent.com/google-deepmind/xquad/{commit}/xquad.{language}.json",
        size_bytes=size,
        sha256=sha256,
        files={
            f"{folder}/{CORPUS}": corpus,
            f"{folder}/{QUERIES}": queries,
            # The same in every language: the questions are translations of each other.
            f"{folder}/{QRELS}": "eb75e94e2effba5e006190ba5418a92035c217505a1384a3deecad41a866431c",
        },
        id_prefix="x",
    )


def _stsb(language: str, size: int, sha256: str) -> Dataset:
    file = f"stsb-{language}-test.csv"
    commit = "30de0dec4ee199b7f42351d3f1a0b19592955385"
    return Dataset(
        name=f"stsb-{language}",
        kind="sts",
        path=f"stsb/{file}",
        url=f"https://raw.githubusercontent.com/PhilipMay/stsb-multi-mt/{commit}/data/{file}",
        size_bytes=size,
        sha256=sha256,
        files={f"stsb/{file}": sha256},
        licence="scores CC BY-SA 4.0, sentences by their sources: see its LICENSE",
    )


# Size and sha256 of the published files are those that Hugging Face `datasets` recorded
# (dataset_infos.json of xquad, cmrc2018, stsb_multi_mt) and that other projects recorded for these
# commits. Japanese STS-B is in neither, so its hash is that of a copy of this commit. The hashes of
# the converted files were computed from copies from another source, so they verify the conversion.
_ALL = (
    _xquad(
        "en",
        609383,
        "e4c57d1c9143aaa1c5d265ba5987a65f4e69528d2a98f29d6e75019b10344f29",
        corpus="ed6c7938c134b01bb4f9e07b45b5b2867bdd853e0ff89848e4a2a4d48dcc02c4",
        queries="317af9f572f3cdaf0ea78c65ba6836b0c4fc08926a49d297fcb8145e4d73c0ec",
    ),
    _xquad(
        "zh",
        808652,
        "691d0b3359bc6b8faa8de931dfdfe21d50a65861ae348e32a0d1a0190b0c8835",
        corpus="679b69d9ec0e07ca60050d5363d3b0a0117156d6349807d9d401629da661af4f",
        queries="1ba8901d2eb6c3874b757ac96d79332a9bb73e0517c6a037b67e7021a9052ba5",
    ),
    _xquad(
        "ar",
        1582988,
        "abdabd7afed5c635d99cca0f3f0d0c9d9ed0bc77451e963c2e4e0638c29e486d",
        corpus="4836fc969a55997d87c9a206e5cdc14b6f074b8e80aa1b864614e0615304a652",
        queries="a461749cbe8054b26472520495b1c281c637b046b95267900e8058044aa3a84d",
    ),
    _xquad(
        "de",
        669810,
        "990b5d746746ed65ed4702ea5f35f99ffa4e2f1c390c07d003642acd937916f9",
        corpus="0b3586c0ca25eb05d6136a320c4f564197f00418705fe823f447a7e413c4b732",
        queries="203b07cb81f000a5069824bb9fdc993117f8209b1acc4bbb8c679c800547293d",
    ),
    _xquad(
        "hi",
        1680538,
        "df2cce3532b37e9beb8979704b5c9a4bf874358f105395a298b89427b43b9d24",
        corpus="dcc2663a06c1397e0623868c14240c94925e7d61e6eee4f55aaca5f668113d85",
        queries="5bb815e2c641f427893ec3e44c8320a8f68a06886ebf251d1fd2756866224547",
    ),
    _xquad(
        "ru",
        1896368,
        "208d5b1aa154c52b1b5c5eda16281e455e8fd198cdb9af3f469f0d6037d973bf",
        corpus="67aa756e973d7a0e362603ffbe6bdfc466a3cb46872eb0b8d44dc824f5b80faf",
        queries="f1fb9e166106e3e0282625682b0c2f957b13112fd6c52eb22958a219c4b8fd34",
    ),
    Dataset(
        name="cmrc2018-zh",
        kind="retrieval",
        path="cmrc2018-zh",
        url="https://raw.githubusercontent.com/ymcui/cmrc2018/"
        "c0eb1b6ba219847457e6af3180da722bbeb656af/squad-style-data/cmrc2018_dev.json",
        size_bytes=3299139,
        sha256="e9ff74231f05c230c6fa88b84441ee334d97234cbb610991cd94b82db00c7f1f",
        files={
            f"cmrc2018-zh/{name}": sha256
            for name, sha256 in {
                CORPUS: "ebf29b2cbe6b446b21f94362b6d382fb3fddbe6a9344f6f55ac580b1bcae2347",
                QUERIES: "48de73e78f479b10a3aaa10e32cf8139a32e876d9d5ecf0e268e808a13c5fa1b",
                QRELS: "4ed96821c17d00dfc4dfe5e418b2266738305493003858666e75093b77e5ef73",
            }.items()
        },
        id_prefix="cmrc",
    ),
    _stsb("en", 158891, "11523b625219e94e9ca05d2816b5f02cac1614c5894fe657376fa0806378d053"),
    _stsb("zh", 148541, "a583195cb30b9d99ae5fe1d03cd3e544c4c2a1c48d27713fb0686c7bae9fbb19"),
    _stsb("de", 188602, "a92ce1015b201a342784ab7e34e024ceb0a0eeb479231fbadd05f756afb817fd"),
    _stsb("ja", 210014, "5ab39526aa6fb3c275f46310d807956dd5c0721fcd0a2687545287bba739b589"),
)

DATASETS: Mapping[str, Dataset] = MappingProxyType({dataset.name: dataset for dataset in _ALL})
"""All datasets by name."""


def data_folder() -> Path:
    """Return the default data folder: ``data`` in bge-runtime's cache."""
    return cache_folder() / "data"


def problems(dataset: Dataset, folder: Path) -> list[str]:
    """Return what is missing or wrong in a data folder; an empty list if nothing is."""
    found = []
    for name, expected in dataset.files.items():
        try:
            sha256 = file_hash.file_sha256(folder / name)
        except OSError as error:
            found.append(f"{name}: {error.strerror}")
            continue
        if sha256 != expected:
            found.append(f"{name}: its sha256 is {sha256[:12]}…, not {expected[:12]}…")
    return found


def check(dataset: Dataset, folder: Path) -> None:
    """Raise an error unless a data folder holds a dataset with the right content.

    Raises:
        BenchError: If files are missing or wrong.
    """
    if found := problems(dataset, folder):
        raise BenchError(
            f"{dataset.name} is not in {folder} as it was published ({'; '.join(found)}). Fetch "
            f"it with `bge-bench data --task {dataset.name}`, or name the folder that holds it"
        )
