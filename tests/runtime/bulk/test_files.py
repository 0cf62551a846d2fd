"""Which files a job's inputs stand for, and how they are opened."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from bge_runtime.bulk import files
from bge_runtime.bulk.files import (
    InputError,
    find_inputs,
    format_of,
    open_file,
    open_location,
    reading,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in [
        "a/one.jsonl",
        "a/two.jsonl.gz",
        "a/b/three.ndjson",
        "a/_SUCCESS",
        "a/.four.jsonl",
        "a/_temporary/five.jsonl",
        "a/README.md",
        "c/part-00000",
        "c/six.csv",
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def found(folder: Path, *names: str, **options: str) -> list[str]:
    files = find_inputs([folder / name for name in names], **options)
    return [file.uri.removeprefix(f"{folder}/") for file in files]


A = ["a/b/three.ndjson", "a/one.jsonl", "a/two.jsonl.gz"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a"], A),
        (["a/one.jsonl", "a", "a/*.jsonl"], A),
        (["a/*.jsonl"], ["a/one.jsonl"]),
        (["a/.*.jsonl"], ["a/.four.jsonl"]),
        (["a/.four.jsonl"], ["a/.four.jsonl"]),
        (["*/*.jsonl*"], ["a/one.jsonl", "a/two.jsonl.gz"]),
        (["a/**/*.ndjson"], ["a/b/three.ndjson"]),
        (["**/*.jsonl"], ["a/one.jsonl"]),
        (["a/[bz]"], ["a/b/three.ndjson"]),
    ],
)
def test_names_stand_for_files_sorted_and_once(folder: Path, names: list[str], expected: list[str]):
    assert found(folder, *names) == expected


def test_a_format_chooses_the_files_of_a_folder(folder: Path):
    assert found(folder, "c", input_format="csv") == ["c/part-00000", "c/six.csv"]
    assert found(folder, "a/README.md", input_format="text") == ["a/README.md"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/none.jsonl"], "there is no file or folder"),
        (["a/*.parquet"], "no file matches"),
        (["."], "several formats (1 csv, 3 jsonl)"),
        (["a/README.md"], "does not follow from its name"),
        ([], "no input was named"),
    ],
)
def test_names_that_stand_for_nothing_are_an_error(folder: Path, names: list[str], message: str):
    with pytest.raises(InputError) as error:
        found(folder, *names)
    assert message in str(error.value)


def test_a_file_name_with_brackets_is_found_as_it_is(tmp_path: Path):
    (tmp_path / "a[1].txt").write_text("x")
    assert found(tmp_path, "a[1].txt") == ["a[1].txt"]


def test_a_name_that_is_not_utf_8_is_an_error(tmp_path: Path):
    name = bytes(tmp_path) + b"/\xff.txt"
    open(name, "wb").close()
    for each in (tmp_path, Path(name.decode(errors="surrogateescape"))):
        with pytest.raises(InputError, match="not UTF-8"):
            find_inputs(each)


def test_another_process_finds_the_same_file(folder: Path):
    (file,) = find_inputs(folder / "a/one.jsonl")
    assert pickle.loads(pickle.dumps(file)) == file
    assert file.local == folder / "a/one.jsonl"
    assert file.size_bytes == len("a/one.jsonl")
    assert file.modified_ns == file.local.stat().st_mtime_ns
    assert format_of([file]) == "jsonl"


def test_a_file_that_changed_or_vanished_is_an_error(folder: Path):
    (file,) = find_inputs(folder / "a/one.jsonl")
    Path(file.path).write_text("longer than before")
    with pytest.raises(InputError, match="has changed: it had 11 bytes when it was listed, now 18"):
        open_file(file)
    Path(file.path).unlink()
    with pytest.raises(InputError, match="is gone"):
        open_file(file)


def test_a_uri_of_a_local_file_is_its_path(tmp_path: Path):
    path = tmp_path / "a b%.txt"
    location = open_location(path.as_uri())
    assert (location.uri, location.local) == (str(path), path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing://a/b", "cannot open nothing://"),
        ("s3://key:secret@bucket/a", "s3://...@bucket has a password in it"),
        ("sftp://me:secret@host/a", "sftp://...@host has a password in it"),
        ("abfss://c:secret@account/a", "abfss://...@account has a password in it"),
    ],
)
def test_a_uri_that_cannot_be_used_is_an_error(name: str, message: str):
    with pytest.raises(InputError, match=message):
        open_location(name)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied"), "permission denied"),
        (OSError(5, "Input/output error"), "[Errno 5] Input/output error. If it is damaged"),
        (pa.ArrowInvalid("Corrupt snappy data\nmore"), "Corrupt snappy data. If it is damaged"),
    ],
)
def test_what_goes_wrong_while_reading_names_the_file(folder: Path, error: Exception, message: str):
    (file,) = find_inputs(folder / "a/one.jsonl")
    with pytest.raises(InputError) as caught, reading(file):
        raise error
    assert str(caught.value).startswith(f"cannot read {file.uri}: {message}")


def test_only_what_clients_of_remote_files_raise_is_an_error_of_the_input(folder: Path):
    (file,) = find_inputs(folder / "a/one.jsonl")
    with pytest.raises(KeyError), reading(file):
        raise KeyError("a mistake in our code")
    with pytest.raises(InputError, match="KeyError"), reading(replace(file, local=None)):
        raise KeyError("a client's own error")


def test_a_folder_that_may_not_be_listed_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "_walk", refuse)
    with pytest.raises(InputError, match=f"cannot list {folder}/a: permission denied"):
        find_inputs(folder / "a")


def test_what_is_neither_a_file_nor_a_folder_is_an_error():
    with pytest.raises(InputError, match="is neither a file nor a folder"):
        find_inputs("/dev/null")


def test_unknown_formats_are_an_error(folder: Path):
    with pytest.raises(InputError, match="input format 'xml' is none of parquet, arrow, jsonl"):
        find_inputs(folder / "a", input_format="xml")
    with pytest.raises(InputError, match=r"the folder .* has no file of format parquet"):
        find_inputs(folder / "a", input_format="parquet")
