"""Inputs that are not on this machine: S3's protocol through pyarrow, others through fsspec."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bge_runtime.bulk.files import InputError, find_inputs, format_of, open_location
from bge_runtime.bulk.readers import open_reader
from tests.helpers.hub import local_hub

Put = Callable[[str, bytes], None]

TEXTS = [f"text {number}" for number in range(10_000)]


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[str, Put]]:
    """A server of S3's protocol on the loopback, and a bucket."""
    pytest.importorskip("flask")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_REGION", "us-east-1")
        options = f"allow_bucket_creation=true&endpoint_override={host}:{port}&scheme=http"
        location = open_location(f"s3://inputs/?{options}")
        location.filesystem.create_dir("inputs")

        def put(name: str, data: bytes) -> None:
            path = f"inputs/{name}"
            # Without this, pyarrow compresses files whose names end in .gz, once more.
            with location.filesystem.open_output_stream(path, compression=None) as stream:
                stream.write(data)

        yield "s3://inputs", put
    server.stop()


@pytest.fixture(scope="module")
def memory() -> tuple[str, Put]:
    filesystem = fsspec.filesystem("memory")
    return "memory:///inputs", lambda name, data: filesystem.pipe(f"/inputs/{name}", data)


@pytest.fixture(scope="module", params=["s3", "memory"])
def folder(request: pytest.FixtureRequest) -> tuple[str, Put]:
    """A remote folder, and a function that puts files there."""
    uri, put = request.getfixturevalue(request.param)
    file = io.BytesIO()
    pq.write_table(pa.table({"text": TEXTS}), file, row_group_size=3000)
    put("parquet/rows.parquet", file.getvalue())
    put("jsonl/a b%20é.jsonl", "".join(f'{{"text": "{text}"}}\n' for text in TEXTS).encode())
    put("csv/deep/er/rows.csv", "\n".join(["text", *TEXTS]).encode())
    put("csv/_SUCCESS", b"")
    gz = pa.BufferOutputStream()
    with pa.CompressedOutputStream(gz, "gzip") as stream:
        stream.write("".join(f"{text}\n" for text in TEXTS).encode())
    put("text/rows.txt.gz", gz.getvalue().to_pybytes())
    arrow = io.BytesIO()
    table = pa.table({"text": TEXTS})
    with pa.ipc.new_file(arrow, table.schema) as writer:
        writer.write_table(table, max_chunksize=3000)
    put("arrow/rows.arrow", arrow.getvalue())
    return uri, put


@pytest.mark.parametrize("name", ["parquet", "jsonl", "csv", "text", "arrow"])
def test_remote_files_are_read_from_any_row(folder: tuple[str, Put], name: str):
    (found,) = find_inputs(f"{folder[0]}/{name}")
    (file,) = pickle.loads(pickle.dumps([found]))
    assert (file.uri, file.path) == (found.uri, found.path)
    assert file.local is None
    reader = open_reader(format_of([file]))
    read_bytes: list[int] = []
    index = reader.index(file, read_bytes.append)
    assert index.rows == len(TEXTS)
    assert sum(read_bytes) == file.size_bytes
    schema = reader.schema([file], ["text"])
    batches = list(reader.read(file, index, schema, first=4000, count=5000))
    assert [text for batch in batches for text in batch.columns["text"].to_pylist()] == TEXTS[
        4000:9000
    ]


def test_patterns_match_remote_files(folder: tuple[str, Put]):
    uri, _ = folder
    assert [file.uri for file in find_inputs(f"{uri}/*/a*%20*.jsonl")] == [
        f"{uri}/jsonl/a b%20é.jsonl"
    ]
    names = [f"{uri}/csv/**/*.csv", f"{uri}/csv", f"{uri}/csv/deep/er/rows.csv"]
    assert [file.uri for file in find_inputs(names)] == [f"{uri}/csv/deep/er/rows.csv"]


def test_a_remote_file_that_is_not_there_is_an_error(folder: tuple[str, Put]):
    uri, put = folder
    with pytest.raises(InputError, match=f"there is no file or folder {uri}/none"):
        find_inputs(f"{uri}/none")
    with pytest.raises(InputError, match="no file matches"):
        find_inputs(f"{uri}/*.none")
    put("gone/rows.txt", b"a\nb\n")
    (file,) = find_inputs(f"{uri}/gone")
    reader = open_reader("text")
    index = reader.index(file, lambda _: None)
    put("gone/rows.txt", b"a\n")
    with pytest.raises(InputError, match="has changed: it had 4 bytes when it was listed, now 2"):
        list(reader.read(file, index, reader.schema([file]), first=0, count=9))


READ_FROM_HUB = """
import json, sys
from bge_runtime.bulk.files import find_inputs, format_of
from bge_runtime.bulk.readers import open_reader
for name in sys.argv[1:]:
    files = find_inputs(name)
    reader = open_reader(format_of(files))
    index = reader.index(files[0], lambda _: None)
    batches = reader.read(files[0], index, reader.schema(files), first=5000, count=9)
    texts = [text for batch in batches for text in batch.columns["text"].to_pylist()]
    print(json.dumps([[file.uri for file in files], index.rows, texts]))
"""


def test_a_repository_of_the_hub_is_read(tmp_path: Path):
    lines = "".join(f'{{"text": "{text * 200}"}}\n' for text in TEXTS).encode()
    with local_hub() as hub:
        hub.add("acme/corpus", {"data/a.jsonl": lines, "README.md": b"#", "data/_b.jsonl": b""})
        uri = "hf://acme/corpus"
        names = [uri, f"{uri}/data", f"{uri}/*/*.jsonl", f"{uri}/data/a.jsonl"]
        output = subprocess.run(  # another process, since the hub's address is read at import
            [sys.executable, "-c", READ_FROM_HUB, *names],
            env=hub.environment(tmp_path),
            capture_output=True,
            check=True,
            text=True,
            timeout=120,
        ).stdout
    expected = [[f"{uri}/data/a.jsonl"], len(TEXTS), [text * 200 for text in TEXTS[5000:5009]]]
    assert [json.loads(line) for line in output.splitlines()] == [expected] * len(names)


def test_a_server_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(InputError, match=r"cannot list s3://inputs/a.*[Cc]onnect"):
        find_inputs("s3://inputs/a?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1")
