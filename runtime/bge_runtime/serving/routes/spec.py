"""What a route is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bge_runtime.serving.http import Dialect, Handler
from bge_runtime.serving.model import ServedModel

Resolve = Callable[[str | None], ServedModel]
"""Returns the model that a request names, or raises an error."""


@dataclass(frozen=True, kw_only=True)
class RouteSpec:
    """A route, for the application and for the OpenAPI document.

    Attributes:
        path: Its path below the model's base path.
        method: Its HTTP method.
        handler: Answers a request.
        summary: What it does, in one sentence.
        body: Type of a request's body; None without one.
        answer: Type of the response's body; None if it is not JSON.
        dialect: Form of its errors.
        is_open: Whether it is answered without a key, and while the server is stopping.
    """

    path: str
    method: str
    handler: Handler
    summary: str
    body: Any = None
    answer: Any = None
    dialect: Dialect = Dialect.PLAIN
    is_open: bool = False
