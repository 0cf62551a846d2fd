"""The OpenAPI document, from the types that parse requests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from bge_runtime._version import __version__
from bge_runtime.serving.errors import Kind
from bge_runtime.serving.http import Dialect, error_status, error_type
from bge_runtime.serving.routes import RouteSpec

_ERRORS = {
    Kind.INVALID: "The request is wrong.",
    Kind.EMPTY: "There is no input.",
    Kind.UNAUTHORIZED: "An API key is missing or wrong.",
    Kind.NOT_FOUND: "There is no such model.",
    Kind.BODY_TIMEOUT: "The request took too long to arrive.",
    Kind.TOO_LARGE: "The request is larger than a limit of the server.",
    Kind.WRONG_MODEL: "The model has no such output.",
    Kind.OVERLOADED: "The queue is full; Retry-After says when to try again.",
    Kind.BACKEND: "An engine has failed.",
    Kind.UNAVAILABLE: "An engine does not answer, or the server is stopping.",
    Kind.DEADLINE: "The deadline of the request has passed.",
}
"""What a route with a body may answer."""

_ERRORS_WITHOUT_A_BODY = (Kind.INVALID, Kind.UNAUTHORIZED, Kind.UNAVAILABLE)
"""What another route may answer; the first is a header's."""


def describe(routes: Sequence[tuple[str, RouteSpec]]) -> dict[str, Any]:
    """Return the document.

    Args:
        routes: The base path and the description of each route.
    """
    types = [each for _, spec in routes for each in _types(spec)]
    types += [error_type(dialect) for dialect in Dialect]
    found, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    schemas = iter(found)
    errors = dict(zip(Dialect, found[-len(Dialect) :], strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for base, spec in routes:
        body = next(schemas) if spec.body is not None else None
        answer = _any_of([next(schemas) for _ in _types(spec)[body is not None :]])
        error = _any_of(list({id(errors[each]): errors[each] for each in spec.dialects}.values()))
        path = re.sub(r"{(\w+):path}", r"{\1}", base + spec.path)
        paths.setdefault(path, {})[spec.method.lower()] = _operation(
            path, spec, body, answer, error
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "bge-serve",
            "version": __version__,
            "summary": "BGE embedders and rerankers, by the routes of OpenAI, TEI, Cohere, "
            "Ollama, Weaviate and Qdrant.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _types(spec: RouteSpec) -> list[Any]:
    """Return the types of a route: its body's, then its answers'."""
    answers = spec.answer if isinstance(spec.answer, tuple) else (spec.answer,)
    return [each for each in (spec.body, *answers) if each is not None]


def _any_of(schemas: Sequence[Any]) -> Any:
    """Return a schema that allows what one of several allows; None without any."""
    if len(schemas) > 1:
        return {"anyOf": list(schemas)}
    return schemas[0] if schemas else None


def _operation(path: str, spec: RouteSpec, body: Any, answer: Any, error: Any) -> dict[str, Any]:
    content = {} if answer is None else {"content": {"application/json": {"schema": answer}}}
    operation: dict[str, Any] = {
        "summary": spec.summary,
        "operationId": re.sub(r"\W+", "_", f"{spec.method.lower()}{path}").strip("_"),
        "responses": {"200": {"description": "The answer.", **content}},
    }
    names = re.findall(r"{(\w+)}", path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    if body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": body}},
        }
    if not spec.is_open:
        operation["security"] = [{"key": []}, {}]
    operation["responses"] |= {
        status: {
            "description": " ".join(texts),
            "content": {"application/json": {"schema": error}},
        }
        for status, texts in _errors(spec).items()
    }
    return operation


def _errors(spec: RouteSpec) -> dict[str, list[str]]:
    """Return the statuses of the errors that a route may answer, and what each of them means."""
    kinds: Sequence[Kind] = tuple(_ERRORS)
    if spec.is_open:
        kinds = (Kind.INVALID, Kind.UNAVAILABLE)
    elif spec.body is None:
        kinds = _ERRORS_WITHOUT_A_BODY + ((Kind.NOT_FOUND,) if "{" in spec.path else ())
    found: dict[str, list[str]] = {}
    for kind in kinds:
        for status in dict.fromkeys(error_status(dialect, kind) for dialect in spec.dialects):
            found.setdefault(str(status), []).append(_ERRORS[kind])
    return found
