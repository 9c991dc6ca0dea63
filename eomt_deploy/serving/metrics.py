"""Prometheus metrics of the server."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from eomt_deploy.serving.work import Answer

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Upper bounds of the histograms of times."""
BATCHES = (1, 2, 4, 8, 16, 32)
BYTES = tuple(10.0**n for n in range(3, 9))


class Metrics:
    """Counters and histograms in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "eomt_requests", "Requests by protocol and status.",
            ("protocol", "route", "status"), registry=registry,
        )  # fmt: skip
        self._latency = Histogram(
            "eomt_request_seconds", "Time from the first byte of a request to its answer.",
            ("protocol", "route"), buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._stages = Histogram(
            "eomt_stage_seconds", "Time of each stage of an image.",
            ("model", "stage"), buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._batches = Histogram(
            "eomt_batch_images", "Number of images that the network processed together.",
            ("model",), buckets=BATCHES, registry=registry,
        )  # fmt: skip
        self._results = Histogram(
            "eomt_result_bytes", "Size of a result.", ("model",), buckets=BYTES, registry=registry
        )
        self._restarts = Counter(
            "eomt_worker_restarts", "Worker processes that died and were started again.",
            ("model",), registry=registry,
        )  # fmt: skip
        self._queue = Gauge(
            "eomt_queue_requests", "Requests that wait for a worker.", ("model",), registry=registry
        )

    def watch_queue(self, model: str, length: Callable[[], int]) -> None:
        """Report the length of a queue."""
        self._queue.labels(model).set_function(length)

    def answered(self, model: str, answer: Answer) -> None:
        """Count the result of an image."""
        for stage, seconds in answer.seconds.items():
            self._stages.labels(model, stage).observe(seconds)
        self._batches.labels(model).observe(answer.batch)
        self._results.labels(model).observe(len(answer.body))

    def restarted(self, model: str) -> None:
        """Count the restart of a worker."""
        self._restarts.labels(model).inc()

    def request(self, protocol: str, route: str, status: str, seconds: float) -> None:
        """Count a request; ``route`` is a pattern, so that clients cannot create new labels."""
        self._requests.labels(protocol, route, status).inc()
        self._latency.labels(protocol, route).observe(seconds)

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self._registry)
