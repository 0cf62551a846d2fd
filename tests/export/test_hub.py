"""``bge-export OWNER/NAME`` against a local stand-in of the hub's HTTP interface."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tiny_checkpoint: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve the tiny checkpoint as BAAI/bge-small-en; give the address and a request log."""
    requests: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args) -> None:
            pass

        def respond(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            requests.append(f"{self.command} {self.path}")
            path = self.path.partition("?")[0]
            if path in (f"/api/models/BAAI/bge-small-en/revision/{ref}" for ref in ("main", "v1")):
                siblings = [{"rfilename": file.name} for file in tiny_checkpoint.iterdir()]
                # Kept beside the safetensors by many repositories; 404 if it is asked for.
                siblings += [{"rfilename": name} for name in ("tf_model.h5", "pytorch_model.bin")]
                document = {"id": "BAAI/bge-small-en", "sha": COMMIT, "siblings": siblings}
                self.respond(200, json.dumps(document).encode(), Content_Type="application/json")
            elif path.startswith(f"/BAAI/bge-small-en/resolve/{COMMIT}/"):
                body = (tiny_checkpoint / path.rpartition("/")[2]).read_bytes()
                etag = hashlib.sha256(body).hexdigest()
                self.respond(200, body, ETag=f'"{etag}"', X_Repo_Commit=COMMIT)
            elif "bge-small-en" in path:
                self.respond(404, b"", X_Error_Code="RevisionNotFound")
            else:
                self.respond(404, b"", X_Error_Code="RepoNotFound")

        do_HEAD = do_GET  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    thread.join()
    server.server_close()


def export(address: str, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # The hub's address is read when huggingface_hub is imported: a process of its own.
    environment = {
        "HF_ENDPOINT": address,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PATH": "/usr/bin:/bin",
    }
    return subprocess.run(
        [sys.executable, "-m", "bge_export.cli", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_hub_id_is_fetched_once_and_pinned(hub: tuple[str, list[str]], tmp_path: Path):
    address, requests = hub
    first = export(address, tmp_path, "BAAI/bge-small-en", "--revision", "v1")
    assert first.returncode == 0, first.stderr
    manifest = json.loads((tmp_path / "bge-small-en" / "bge.json").read_text())
    assert manifest["provenance"]["revision"] == COMMIT
    assert manifest["model"]["name"] == "bge-small-en"
    assert manifest["model"]["query_instruction"].startswith("Represent this sentence")
    assert not [line for line in requests if "tf_model" in line or "pytorch_model" in line]

    requests.clear()
    offline = export(
        address, tmp_path, "BAAI/bge-small-en", "--revision", "v1", "--offline", "--force"
    )
    assert offline.returncode == 0, offline.stderr
    assert requests == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["BAAI/nothing"], "the hub has no repository BAAI/nothing"),
        (["BAAI/bge-small-en", "--revision", "v9"], "has no revision 'v9'"),
    ],
)
def test_hub_refusals(
    hub: tuple[str, list[str]], tmp_path: Path, arguments: list[str], message: str
):
    result = export(hub[0], tmp_path, *arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_unreachable_hub(tmp_path: Path):
    result = export("http://127.0.0.1:9", tmp_path, "BAAI/bge-small-en")
    assert result.returncode == 1
    assert "the hub cannot be reached" in result.stderr
    assert "Traceback" not in result.stderr
