"""Options of the server, apart from which models it serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_LENGTH = 8192
"""Default maximum tokens of a text, for models that can read more."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How to serve.

    Attributes:
        api_keys: Keys of which a request must have one; empty for no keys.
        cors_origins: Origins of web pages that may call the server; ``"*"`` for all.
        max_inputs: Maximum texts of a request.
        max_request_tokens: Maximum tokens of a request.
        max_body_bytes: Maximum bytes of a request's body.
        max_queued_tokens: Maximum tokens that wait in each lane; None for what the engines
            compute in `QUERY_QUEUE_S` and `BULK_QUEUE_S`.
        request_timeout_s: Seconds after which a request fails, unless it says otherwise.
        body_timeout_s: Seconds in which a request's body must arrive.
        engine_timeout_s: Seconds after which a batch counts as stalled.
        drain_timeout_s: Seconds for which requests are answered after the server was told to stop.
        slice_s: Seconds that a slice of bulk work may take, and a query may wait for.
        allow_token_ids: Accept token ids in place of texts at OpenAI's routes.
        parallel_batches: On a CPU, compute several batches in parallel, for which OpenVINO needs a
            second copy of the weights.
        page: Serve the page for people.
        otlp_endpoint: URL that receives traces by OpenTelemetry's protocol; None for no traces.
    """

    api_keys: Sequence[str] = ()
    cors_origins: Sequence[str] = ()
    max_inputs: int = 2048
    max_request_tokens: int = 1 << 20
    max_body_bytes: int = 32_000_000
    max_queued_tokens: int | None = None
    request_timeout_s: float = 300.0
    body_timeout_s: float = 30.0
    engine_timeout_s: float = 120.0
    drain_timeout_s: float = 30.0
    slice_s: float = 0.05
    allow_token_ids: bool = False
    parallel_batches: bool = True
    page: bool = True
    otlp_endpoint: str | None = None


QUERY_QUEUE_S = 2.0
"""Seconds of work that may wait in the lane for queries."""

BULK_QUEUE_S = 60.0
"""Seconds of work that may wait in the lane for bulk work."""

MIN_QUEUED_TOKENS = 16_384
"""Tokens that may always wait in a lane, however slow the engines are."""
