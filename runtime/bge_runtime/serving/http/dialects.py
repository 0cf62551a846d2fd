"""The forms that errors have at the routes of each kind of server."""

from __future__ import annotations

from enum import Enum

import msgspec

from bge_runtime.serving.errors import Kind, RequestError


class Dialect(Enum):
    """Whose routes: OpenAI's, TEI's, Qdrant's, or others that read one string ``error``."""

    OPENAI = "openai"
    TEI = "tei"
    QDRANT = "qdrant"
    PLAIN = "plain"


_OPENAI_TYPES = {
    Kind.UNAUTHORIZED: "authentication_error",
    Kind.OVERLOADED: "rate_limit_error",
    Kind.BACKEND: "server_error",
    Kind.UNAVAILABLE: "server_error",
    Kind.DEADLINE: "timeout_error",
}

_TEI_SEGMENTS = frozenset(
    {"embed", "embed_sparse", "embed_all", "tokenize", "decode", "info", "health", "metrics", ""}
)


def error_body(dialect: Dialect, error: RequestError) -> tuple[int, bytes]:
    """Return the status and the body of an error in a dialect."""
    kind, message = error.kind, str(error)
    if dialect is Dialect.OPENAI:
        body: dict[str, object] = {
            "error": {
                "message": message,
                "type": _OPENAI_TYPES.get(kind, "invalid_request_error"),
                "param": error.param,
                "code": kind.code,
            }
        }
        return kind.status, msgspec.json.encode(body)
    if dialect is Dialect.TEI:
        # TEI has 422 for what it cannot read or does not accept, and 400 for no input at all.
        status = 422 if kind is Kind.INVALID else kind.status
        return status, msgspec.json.encode({"error": message, "error_type": kind.tei_type})
    status = kind.status
    if dialect is Dialect.QDRANT and kind in (Kind.INVALID, Kind.NOT_FOUND, Kind.WRONG_MODEL):
        status = 400  # the only one whose message Qdrant shows to its user
    return status, msgspec.json.encode({"error": message})


def dialect_of_path(path: str) -> Dialect:
    """Return the dialect of a path that may not exist, for its error."""
    path = path.rstrip("/")
    if "/v1/" in f"{path}/" or path.endswith("/embeddings"):
        return Dialect.PLAIN if "/api/" in path else Dialect.OPENAI
    return Dialect.TEI if path.rpartition("/")[2] in _TEI_SEGMENTS else Dialect.PLAIN
