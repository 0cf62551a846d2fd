"""Metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    Metric,
    ProcessCollector,
)

from bge_runtime._version import __version__

_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0,
)  # fmt: skip
_TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class _Registry(CollectorRegistry):
    """A registry without the times at which series were created, which would double them.

    prometheus-client can leave them out for all registries of a process only.
    """

    def collect(self) -> Iterable[Metric]:
        for metric in super().collect():
            metric.samples = [each for each in metric.samples if not each.name.endswith("_created")]
            yield metric


class Metrics:
    """All metrics of a server, in a registry of their own."""

    def __init__(self) -> None:
        """Create them."""
        registry = self.registry = _Registry()
        ProcessCollector(registry=registry)  # memory, processor time, open files
        Info("bge_build", "The server.", registry=registry).info({"version": __version__})
        by_model, by_route = ["model"], ["model", "route"]

        def seconds(name: str, text: str, labels: list[str]) -> Histogram:
            return Histogram(
                f"bge_{name}_seconds", text, labels, registry=registry, buckets=_SECONDS
            )

        def counter(name: str, text: str, labels: list[str]) -> Counter:
            return Counter(f"bge_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, labels: list[str]) -> Gauge:
            return Gauge(f"bge_{name}", text, labels, registry=registry)

        self.requests = counter("requests", "Requests answered.", [*by_route, "status"])
        self.request_seconds = seconds(
            "request_duration", "From a request's arrival to its response.", by_route
        )
        self.tokenization_seconds = seconds(
            "tokenization_duration", "Tokenizing the texts of a request.", by_model
        )
        self.queue_seconds = seconds(
            "queue_duration", "From a request's tokens to its first batch.", by_model
        )
        self.inference_seconds = seconds(
            "inference_duration", "From a request's first batch to its last result.", by_model
        )
        self.batch_seconds = seconds("batch_duration", "Computing a batch.", by_model)
        self.batch_tokens = Histogram(
            "bge_batch_tokens", "Tokens of a batch.", by_model, registry=registry, buckets=_TOKENS
        )
        self.batch_texts = Histogram(
            "bge_batch_texts", "Texts of a batch.", by_model, registry=registry, buckets=_TEXTS
        )
        self.texts = counter("texts", "Texts computed.", by_model)
        self.tokens = counter("tokens", "Tokens computed.", by_model)
        self.truncated = counter("truncated_inputs", "Texts that were truncated.", by_model)
        self.rejected = counter("rejected_requests", "Requests refused: queue full.", by_model)
        self.cancelled = counter("cancelled_requests", "Requests whose client left.", by_model)
        self.late = counter("late_requests", "Requests past their deadline.", by_model)
        self.failed_requests = counter(
            "failed_requests", "Requests that an engine failed.", by_model
        )
        self.queued_tokens = gauge("queued_tokens", "Tokens that wait.", ["lane"])
        self.running_batches = gauge("running_batches", "Batches in progress.", [])
        self.healthy = gauge("healthy", "Whether the engines answer.", by_model)
        self._of_requests: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def of_request(self, model: str, route: str, status: int) -> tuple[Counter, Histogram]:
        """Return the count and the duration of requests with these labels.

        Finding them by their labels takes as long as changing them, so they are kept.
        """
        key = model, route, status
        found = self._of_requests.get(key)
        if found is None:
            found = (
                self.requests.labels(model, route, status),
                self.request_seconds.labels(model, route),
            )
            self._of_requests[key] = found
        return found
