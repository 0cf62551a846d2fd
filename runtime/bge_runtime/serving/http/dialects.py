"""The forms that errors have at the routes of each kind of server."""

from __future__ import annotations

from enum import Enum

import msgspec

from bge_runtime.serving.errors import Kind, RequestError


class Dialect(Enum):
    """Whose routes: OpenAI's, TEI's, Cohere's, Qdrant's, or others that read a string ``error``."""

    OPENAI = "openai"
    TEI = "tei"
    COHERE = "cohere"
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
    {
        "embed",
        "embed_sparse",
        "embed_all",
        "tokenize",
        "decode",
        "info",
        "health",
        "metrics",
        "rerank",
        "",
    }
)


class OpenAIReason(msgspec.Struct):
    """What is wrong, as OpenAI says it."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(msgspec.Struct):
    """An error at OpenAI's routes."""

    error: OpenAIReason


class TEIError(msgspec.Struct):
    """An error at TEI's routes."""

    error: str
    error_type: str


class CohereError(msgspec.Struct):
    """An error at Cohere's routes."""

    message: str


class PlainError(msgspec.Struct):
    """An error at the other routes."""

    error: str


def error_type(dialect: Dialect) -> type[msgspec.Struct]:
    """Return the type of the errors of a dialect."""
    types: dict[Dialect, type[msgspec.Struct]] = {
        Dialect.OPENAI: OpenAIError,
        Dialect.TEI: TEIError,
        Dialect.COHERE: CohereError,
    }
    return types.get(dialect, PlainError)


def error_status(dialect: Dialect, kind: Kind) -> int:
    """Return the status that an error has in a dialect."""
    if dialect is Dialect.TEI:
        # TEI has 422 for what it cannot read or does not accept, 400 for no input at all, and 424
        # for what an engine fails.
        return {Kind.INVALID: 422, Kind.BACKEND: 424}.get(kind, kind.status)
    if dialect is Dialect.QDRANT and kind in (Kind.INVALID, Kind.NOT_FOUND, Kind.WRONG_MODEL):
        return 400  # the only one whose message Qdrant shows to its user
    return kind.status


def error_body(dialect: Dialect, error: RequestError) -> tuple[int, bytes]:
    """Return the status and the body of an error in a dialect."""
    kind, message = error.kind, str(error)
    body: msgspec.Struct
    if dialect is Dialect.OPENAI:
        type_ = _OPENAI_TYPES.get(kind, "invalid_request_error")
        body = OpenAIError(OpenAIReason(message, type_, error.param, kind.code))
    elif dialect is Dialect.TEI:
        body = TEIError(message, kind.tei_type)
    elif dialect is Dialect.COHERE:
        body = CohereError(message)
    else:
        body = PlainError(message)
    return error_status(dialect, kind), msgspec.json.encode(body)


def dialect_of_path(path: str) -> Dialect:
    """Return the dialect of a path that may not exist, for its error."""
    path = path.rstrip("/")
    if path.endswith(("/v1/rerank", "/v2/rerank")):
        return Dialect.COHERE
    if "/v1/" in f"{path}/" or path.endswith("/embeddings"):
        return Dialect.PLAIN if "/api/" in path else Dialect.OPENAI
    return Dialect.TEI if path.rpartition("/")[2] in _TEI_SEGMENTS else Dialect.PLAIN
