"""Logs of the server, as text or as JSON. They hold no texts of requests."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from datetime import UTC, datetime
from typing import Any

from bge_runtime.serving.context import RequestContext

access = logging.getLogger("bge_runtime.serving.requests")

_FIELDS = "bge_fields"
"""Attribute of a record that holds the fields of a request."""


def log_request(context: RequestContext) -> None:
    """Log a request that was answered."""
    if not access.isEnabledFor(logging.INFO):
        return
    fields: dict[str, Any] = {
        "request_id": context.request_id,
        "route": context.route,
        "status": context.status,
        "model": context.model,
        "texts": context.texts,
        "tokens": context.tokens,
        "truncated": context.truncated,
        "total_ms": round(1000 * context.elapsed_s, 2),
        "tokenize_ms": round(1000 * context.tokenize_s, 2),
        "queue_ms": round(1000 * context.queue_s, 2),
        "inference_ms": round(1000 * context.compute_s, 2),
    }
    if context.error is not None:
        fields["error"] = context.error.code
    access.info("request", extra={_FIELDS: fields})


class _Formatter(logging.Formatter):
    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, _FIELDS, {})
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        if self._as_json:
            entry = {"time": moment, "level": record.levelname.lower(), "message": message}
            return json.dumps(entry | fields, ensure_ascii=False)
        shown = " ".join(f"{name}={value}" for name, value in fields.items() if value != "")
        return f"{moment} {record.levelname.lower():7} {message} {shown}".rstrip()


def set_up_logging(*, level: str, as_json: bool) -> None:
    """Log to standard error.

    Args:
        level: Name of the lowest level, such as ``"info"``.
        as_json: Write a JSON object for each line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(as_json=as_json))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("bge_runtime").setLevel(level.upper())
    warnings.showwarning = _log_warning


def _log_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Log a warning without the line of code that it comes from."""
    logging.getLogger("bge_runtime.serving").warning("%s", message)
