"""Random requests, valid and not, made from an OpenAPI document."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TEXTS = (
    "", " ", "a", "a short text", "words " * 30, "long " * 700, "\x00", "\ud7ff\ue000\uffff",
    "\U0001f600" * 20, "é́́́" * 30, "中文字" * 50, "\r\n\t\u2028", "a" * 5000, "[CLS] [SEP] <s> </s>",
    "../../etc/passwd", "'; DROP TABLE texts; --", "{{7*7}}", "%s%n", "NaN", "true", "0",
)  # fmt: skip

NUMBERS = (0, 1, -1, 2, 7, 48, 49, 2**31, 2**63, -(2**63), 2**64, 10**30, 0.5, 1e308, -0.0)

ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    {"a": {}},
    "",
    "x",
    3.5,
    -1,
    [1, "a"],
    [[1], 2],
)

RAW = (
    b"", b" ", b"null", b"[]", b"{}", b"{", b"[[[", b"\xff\xfe", b"\xef\xbb\xbf{}", b'{"a":1}}',
    b"NaN", b"[NaN]", b'{"inputs": NaN}', b'{"input": Infinity}', b'{"input": -Infinity}',
    b'{"inputs": "\\ud800"}', b'{"input": "\\udc00\\ud800"}', b'{"text": "\xc3\x28"}',
    b'{"inputs": "\xed\xa0\x80"}', b'{"inputs": "a\nb"}', b"{'inputs': 'a'}", b'{"inputs": "a",}',
    b'{"inputs": 1e999}', b'{"ids": [1e999]}', b'{"ids": [99999999999999999999999]}',
    b"[" * 100_000, b'{"a":' * 100_000, b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"options": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    b'{"inputs": [' + b'"a",' * 5000 + b'"a"]}', b'{"input": [' + b'"a",' * 5000 + b'"a"]}',
    b'{"inputs": "a", "inputs": "b"}', b"\x1f\x8b\x08\x00rubbish", b"inputs=a&b=c", b"\x00" * 1000,
    '{"inputs": "é"}'.encode("latin-1"), '{"inputs": "a"}'.encode("utf-16"),
    '{"inputs": "a"}'.encode("utf-32"), b'"' + b"a" * 200_000, b"-" * 100, b'{"dimensions": -0}',
    b'{"query": "a", "documents": NaN}', b'{"query": "a", "texts": ["b"], "top_n": 1e999}',
    b'{"query": "\\ud800", "texts": ["b"]}', b'{"query": "a", "documents": [{"text": {"a": 1}}]}',
    b'{"query": "a", "documents": [' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"]}",
    b'{"query": "a", "texts": [' + b'"b",' * 5000 + b'"b"]}', b'{"query": ["a"], "texts": ["b"]}',
    b'{"query": "a", "documents": [{"text": 1e999}], "rank_fields": ["text"]}',
)  # fmt: skip

HEADERS: tuple[dict[str, str], ...] = (
    {"content-type": "text/plain"}, {"content-type": "application/json; charset=utf-16"},
    {"content-encoding": "gzip"}, {"accept": "image/png"}, {"x-request-timeout-ms": "-5"},
    {"x-request-timeout-ms": "abc"},
    {"x-request-timeout-ms": "0"}, {"x-request-timeout-ms": "9" * 50},
    {"x-request-id": "a" * 5000}, {"x-request-id": "{}[]\"'"}, {"authorization": "Basic x"},
    {"authorization": "Bearer"}, {"cookie": "a=" + "b" * 2000}, {"origin": "https://example.org"},
    {"range": "bytes=0-1"}, {"if-none-match": "*"}, {"te": "trailers"},
    {"traceparent": "00-zz-zz-01"}, {"x-forwarded-for": "999.1.1.1"}, {},
)  # fmt: skip


SHORT_TIMES = ("0.001", "1", "5")
"""Milliseconds within which a request may not be answered."""


@dataclass
class HostileRequest:
    """A request.

    Attributes:
        method: Its method.
        path: Its path.
        operation: What the document says of it; None if it is of no route.
        content: Its body.
        headers: Its headers.
    """

    method: str
    path: str
    operation: Mapping[str, Any] | None
    content: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)


class HostileRequests:
    """Makes requests for all routes of a document; the same for the same seed."""

    def __init__(self, document: Mapping[str, Any], seed: int) -> None:
        """Read the routes."""
        self._random = random.Random(seed)
        self._schemas = document["components"]["schemas"]
        self._operations = [
            (method.upper(), path, operation)
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        ]
        # Most requests to what reads a body.
        self._weights = [5 if "requestBody" in each else 1 for *_, each in self._operations]

    def make(self) -> HostileRequest:
        """Return the next request."""
        chance = self._random
        ((method, path, operation),) = chance.choices(self._operations, self._weights)
        for each in operation.get("parameters", []):
            name = chance.choice(["tiny", "a/b", "%00", "..", "é", "x" * 500, "%ff"])
            path = path.replace("{" + each["name"] + "}", name)
        request = HostileRequest(method, path, operation)
        if "requestBody" in operation:
            (content,) = operation["requestBody"]["content"].values()
            request.content = self._body(content["schema"])
            request.headers["content-type"] = "application/json"
        if chance.random() < 0.2:
            request.headers |= chance.choice(HEADERS)
        if chance.random() < 0.05:
            request.headers["x-request-timeout-ms"] = chance.choice(SHORT_TIMES)
        if chance.random() < 0.05:
            request.method, request.operation = chance.choice(["PUT", "DELETE", "PATCH"]), None
        elif chance.random() < 0.03:
            request.path, request.operation = (
                request.path + chance.choice(["x", "x/y", "%00"]),
                None,
            )
        elif chance.random() < 0.03 and "parameters" not in operation and path != "/":
            request.path += "/"
        return request

    def _body(self, schema: Mapping[str, Any]) -> bytes:
        chance = self._random
        if chance.random() < 0.25:
            return chance.choice(RAW)
        value = self.value(schema, odd=chance.choice([0.0, 0.0, 0.05, 0.3]))
        data = json.dumps(value, ensure_ascii=chance.random() < 0.5).encode()
        damage = chance.random()
        if damage < 0.1:
            return data[: chance.randrange(len(data) + 1)]
        if damage < 0.2:
            place = chance.randrange(len(data) + 1)
            return data[:place] + chance.randbytes(chance.randrange(1, 5)) + data[place + 1 :]
        return data

    def value(self, schema: Mapping[str, Any], *, odd: float = 0.0, depth: int = 0) -> Any:
        """Return a value of a schema.

        Args:
            schema: The schema.
            odd: Share of the values in it that are of no schema.
            depth: How deep it is in the body.
        """
        chance = self._random
        if chance.random() < odd:
            return chance.choice([*ODD, *NUMBERS, *TEXTS])
        if "$ref" in schema:
            schema = self._schemas[schema["$ref"].rpartition("/")[2]]
        if "anyOf" in schema:
            return self.value(chance.choice(schema["anyOf"]), odd=odd, depth=depth)
        if "enum" in schema:
            return chance.choice(schema["enum"])
        return self._of_type(schema, odd, depth)

    def _of_type(self, schema: Mapping[str, Any], odd: float, depth: int) -> Any:
        chance, kind = self._random, schema.get("type")
        if kind == "object":
            return self._object(schema, odd, depth)
        if kind == "array":
            most = 3 if depth > 1 else chance.choice([0, 1, 3, 3, 12])
            items = schema.get("items", {})
            return [
                self.value(items, odd=odd, depth=depth + 1) for _ in range(chance.randint(0, most))
            ]
        choices: dict[Any, Sequence[Any]] = {
            "string": TEXTS,
            "integer": [each for each in NUMBERS if isinstance(each, int)],
            "number": NUMBERS,
            "boolean": (True, False),
            "null": (None,),
        }
        return chance.choice(choices.get(kind, ODD))

    def _object(self, schema: Mapping[str, Any], odd: float, depth: int) -> dict[str, Any]:
        chance = self._random
        required = schema.get("required", [])
        found = {
            name: self.value(each, odd=odd, depth=depth + 1)
            for name, each in schema.get("properties", {}).items()
            if name in required or chance.random() < 0.4
        }
        if chance.random() < 0.1:
            found["unknown"] = chance.choice(ODD)
        if "model" in found and chance.random() < 0.8:
            del found["model"]  # few names are served
        return found
