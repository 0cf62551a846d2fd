"""What a route is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bge_runtime.serving.http import Dialect, Handler
from bge_runtime.serving.models import ServedModel


@dataclass(frozen=True, kw_only=True)
class RouteSpec:
    """A route, for the application and for the OpenAPI document.

    Attributes:
        path: Its path below the model's base path.
        method: Its HTTP method.
        handler: Answers a request.
        summary: What it does, in one sentence.
        body: Type of a request's body; None without one.
        answer: Type of the response's body, or a tuple of types; None if it is not JSON.
        dialect: Form of its errors.
        other_dialects: Further forms of its errors, which its body decides about.
        kind: Kind of model that it is for; of others it says so, and is not documented.
        is_open: Whether it is answered without a key, and while the server is stopping.
    """

    path: str
    method: str
    handler: Handler
    summary: str
    body: Any = None
    answer: Any = None
    dialect: Dialect = Dialect.PLAIN
    other_dialects: tuple[Dialect, ...] = ()
    kind: type[ServedModel] = ServedModel
    is_open: bool = False

    @property
    def dialects(self) -> tuple[Dialect, ...]:
        """All forms of its errors."""
        return (self.dialect, *self.other_dialects)
