"""The OpenAPI document, from the types that parse requests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from bge_runtime._version import __version__
from bge_runtime.serving.routes import RouteSpec

_ERRORS = {
    "400": "The request is wrong (422 at TEI's routes).",
    "401": "An API key is missing or wrong.",
    "413": "The request is larger than a limit of the server.",
    "429": "The queue is full; Retry-After says when to try again.",
    "503": "An engine does not answer, or the server is stopping.",
    "504": "The deadline of the request has passed.",
}


def describe(routes: Sequence[tuple[str, RouteSpec]]) -> dict[str, Any]:
    """Return the document.

    Args:
        routes: The base path and the description of each route.
    """
    types = [each for _, spec in routes for each in (spec.body, spec.answer) if each is not None]
    found, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    schemas = iter(found)
    paths: dict[str, dict[str, Any]] = {}
    for base, spec in routes:
        body = next(schemas) if spec.body is not None else None
        answer = next(schemas) if spec.answer is not None else None
        path = re.sub(r"{(\w+):path}", r"{\1}", base + spec.path)
        paths.setdefault(path, {})[spec.method.lower()] = _operation(path, spec, body, answer)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "bge-serve",
            "version": __version__,
            "summary": "BGE embeddings, by the routes of OpenAI, TEI, Ollama, Weaviate and Qdrant.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(path: str, spec: RouteSpec, body: Any, answer: Any) -> dict[str, Any]:
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
            status: {"description": text} for status, text in _ERRORS.items()
        }
    return operation
