"""A local server with the part of the Hub's HTTP API that huggingface_hub uses."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs

LFS_BYTES = 100_000
"""Files of this size and more are uploaded by the protocol for large files."""

TOKEN = "hf_of_the_tests"

FAULTS = (
    "drop", "drop after headers", "hang", "hang after headers", "garbage", "login page",
    "truncated", "redirects", "no JSON",
)  # fmt: skip
"""What networks, proxies and hotels do to answers."""

BARE = {"PATH": "/usr/bin:/bin"} | {
    name: value for name, value in os.environ.items() if name in ("OMP_NUM_THREADS", "PYTHONPATH")
}
"""Environment of a process that inherits a worker's share of threads and the packages under test,
and nothing else."""


class LocalHub:
    """Repositories in memory, and a log of every request.

    Attributes:
        address: Value for ``HF_ENDPOINT``.
        requests: Method and path of each request, in order.
        stall: End of the name of a file of which only half is sent, and then nothing.
        stalled: Set once that has happened.
        fault: Fault of every answer: one of `FAULTS`, or a status.
        only: Substring of method and path of the requests that `fault` applies to.
        over: Set to end the connections that hang.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.refs: dict[str, dict[str, str]] = {}
        self.gated: set[str] = set()
        self.requests: list[str] = []
        self.stall: str | None = None
        self.stalled = threading.Event()
        self.fault: str | int | None = None
        self.only = ""
        self.over = threading.Event()
        self.uploads: dict[str, bytes] = {}
        self.address = ""

    def add(self, repo: str, files: dict[str, bytes], *refs: str) -> str:
        """Commit files to a repository; ``main`` and the named refs point at it."""
        content = repr(
            sorted((name, hashlib.sha256(body).digest()) for name, body in files.items())
        )
        commit = hashlib.sha1(content.encode()).hexdigest()
        self.repos.setdefault(repo, {})[commit] = files
        self.refs.setdefault(repo, {}).update(dict.fromkeys(("main", commit, *refs), commit))
        return commit

    def add_folder(self, repo: str, folder: Path, *refs: str) -> str:
        """Commit all files of a folder."""
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return self.add(
            repo, {str(path.relative_to(folder)): path.read_bytes() for path in paths}, *refs
        )

    def environment(self, home: Path) -> dict[str, str]:
        """Return the environment of a process that uses this hub and its own caches."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "XDG_CACHE_HOME": str(home / "cache"),
            **BARE,
        }


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """Serve an empty hub."""
    hub = LocalHub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        hub.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _list_tree(
    files: dict[str, bytes], folder: str, *, recursive: bool = True
) -> list[dict[str, Any]]:
    """Return the files and folders in a folder of a repository, the Hub's way."""
    listed: list[dict[str, Any]] = []
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    for name in sorted({*files, *folders} - {".", folder}):
        below = PurePosixPath(name)
        if not below.is_relative_to(folder or "."):
            continue
        if not recursive and str(below.parent) != (folder or "."):
            continue
        if name in files:
            listed.append({"type": "file", "path": name, "size": len(files[name]), "oid": "0"})
        else:
            listed.append({"type": "directory", "path": name, "oid": "0"})
    return listed


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that were killed, as some tests do."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def log_message(self, *args: Any) -> None:
        pass

    def fail(self, fault: str | int) -> None:
        """Answer as `LocalHub.fault` says, and end the connection."""
        self.close_connection = True
        if isinstance(fault, int):
            self.respond(fault, Connection="close")
        elif fault == "garbage":
            self.wfile.write(b"\x15\x03\x01\x00\x02\x02\x16")  # an alert of TLS
        elif fault == "redirects":
            self.respond(302, Location=self.path, Connection="close")
        elif fault == "login page":
            self.respond(200, b"<html>Welcome to the hotel</html>", Connection="close")
        elif fault == "no JSON":
            self.respond(200, b'{"id": ', Connection="close")
        elif fault == "hang":
            self.hub.over.wait(60)
        elif fault != "drop":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.flush()
            if fault == "truncated":
                self.wfile.write(b"half")
            if fault == "hang after headers":
                self.hub.over.wait(60)

    def respond(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        stall = self.hub.stall
        if stall is not None and self.path.endswith(stall):
            self.wfile.write(body[: len(body) // 2])
            self.hub.stalled.set()
            time.sleep(60)
            return
        self.wfile.write(body)

    def json(self, document: object, status: int = 200) -> None:
        self.respond(status, json.dumps(document).encode(), Content_Type="application/json")

    def route(self) -> tuple[str, list[str]]:
        self.hub.requests.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0].strip("/")
        return path, path.split("/")

    def do_GET(self) -> None:  # noqa: PLR0911
        path, parts = self.route()
        if self.hub.fault is not None and self.hub.only in f"{self.command} {self.path}":
            return self.fail(self.hub.fault)
        if path == "api/whoami-v2":
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.json({"error": "Invalid credentials"}, 401)
            return self.json({"name": "tester", "type": "user", "orgs": []})
        is_api = parts[:2] == ["api", "models"]
        repo = "/".join(parts[2:4] if is_api else parts[:2])
        if repo not in self.hub.repos:
            return self.respond(404, X_Error_Code="RepoNotFound")
        if repo in self.hub.gated:
            return self.respond(403, X_Error_Code="GatedRepo")
        refs = self.hub.refs[repo]
        ref = parts[5] if is_api and len(parts) > 5 else parts[3] if not is_api else "main"
        if ref not in refs:
            return self.respond(404, X_Error_Code="RevisionNotFound")
        commit = refs[ref]
        files = self.hub.repos[repo][commit]
        if is_api and parts[4:5] == ["tree"]:
            recursive = "recursive=False" not in self.path
            return self.json(_list_tree(files, "/".join(parts[6:]), recursive=recursive))
        if is_api:
            siblings = [{"rfilename": name} for name in files]
            return self.json({"id": repo, "sha": commit, "siblings": siblings})
        name = "/".join(parts[4:])
        if name not in files:
            return self.respond(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        etag = hashlib.sha256(files[name]).hexdigest()
        headers = {"ETag": f'"{etag}"', "X_Repo_Commit": commit}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = map(int, asked.groups())
            return self.respond(206, files[name][first : last + 1], **headers)
        return self.respond(200, files[name], **headers)

    do_HEAD = do_GET  # noqa: N815

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def do_POST(self) -> None:  # noqa: PLR0911
        path, parts = self.route()
        body = self.body()
        if path == "api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'tester'}/{asked['name']}"
            if repo in self.hub.repos:
                return self.json({"error": "exists", "url": f"{self.hub.address}/{repo}"}, 409)
            self.hub.add(repo, {})
            return self.json({"url": f"{self.hub.address}/{repo}"})
        if path == "api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        if "preupload" in parts:
            files = [
                {"path": file["path"], "uploadMode": "lfs" if file["size"] >= LFS_BYTES
                 else "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]  # fmt: skip
            return self.json({"files": files})
        if path.endswith("info/lfs/objects/batch"):
            objects = [
                {"oid": one["oid"], "size": one["size"],
                 "actions": {"upload": {"href": f"{self.hub.address}/put/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]  # fmt: skip
            return self.json({"transfer": "basic", "objects": objects})
        repo = "/".join(parts[2:4])
        if "paths-info" in parts:
            asked = parse_qs(body.decode())["paths"]
            tree = _list_tree(self.hub.repos[repo][self.hub.refs[repo]["main"]], "")
            return self.json([entry for entry in tree if entry["path"] in asked])
        committed = dict(self.hub.repos[repo][self.hub.refs[repo]["main"]])
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                committed[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                committed[value["path"]] = self.hub.uploads[value["oid"]]
            elif entry["key"] == "deletedFile":
                del committed[value["path"]]
        commit = self.hub.add(repo, committed)
        url = f"{self.hub.address}/{repo}/commit/{commit}"
        return self.json({"success": True, "commitUrl": url, "commitOid": commit})

    def do_PUT(self) -> None:
        _, parts = self.route()
        content = self.body()
        assert hashlib.sha256(content).hexdigest() == parts[-1]
        self.hub.uploads[parts[-1]] = content
        self.respond(200)
