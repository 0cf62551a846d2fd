"""What can be wrong with a request, or with the server, as an HTTP status and a kind."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class Kind(Enum):
    """Kinds of errors: a status, the code of OpenAI's form, and the type of TEI's form."""

    INVALID = (400, "invalid_request", "Validation")
    EMPTY = (400, "empty_input", "Empty")
    UNAUTHORIZED = (401, "invalid_api_key", "Unauthorized")
    NOT_FOUND = (404, "not_found", "NotFound")
    METHOD = (405, "method_not_allowed", "Validation")
    BODY_TIMEOUT = (408, "request_timeout", "Validation")
    TOO_LARGE = (413, "request_too_large", "Validation")
    WRONG_MODEL = (424, "unsupported_by_model", "Backend")
    OVERLOADED = (429, "rate_limit_exceeded", "Overloaded")
    BACKEND = (500, "inference_failed", "Backend")
    UNAVAILABLE = (503, "service_unavailable", "Unhealthy")
    DEADLINE = (504, "deadline_exceeded", "Timeout")

    def __init__(self, status: int, code: str, tei_type: str) -> None:
        """Name the parts of the value."""
        self.status, self.code, self.tei_type = status, code, tei_type


class RequestError(Exception):
    """A request that is answered with an error.

    Attributes:
        kind: What kind of error it is.
        param: Field of the request that is wrong; None if it is none.
        headers: Further headers of the response.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Keep the parts; ``message`` says what was asked, what was found and what to do."""
        super().__init__(message)
        self.kind, self.param, self.headers = kind, param, dict(headers or {})
