"""The counters of a server, in the format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "sr_requests", "Requests to upscale an image, by the status code of the answer.", ["status"],
            registry=self._registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "sr_request_seconds", "Time from the first byte of a request to the upscaled image, in seconds.",
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120), registry=self._registry,
        )  # fmt: skip
        self.pixels = Counter("sr_output_pixels", "Pixels of upscaled images.", registry=self._registry)
        self.inside = Gauge(
            "sr_requests_inside", "Requests that are read, wait for a replica, are computed or take an image.",
            registry=self._registry,
        )  # fmt: skip
        self.lost = Counter(
            "sr_lost_attempts", "Attempts at a request that ended because the replica was lost.",
            registry=self._registry,
        )  # fmt: skip
        self.replicas = Gauge("sr_replicas", "Replicas that run.", registry=self._registry)

    def text(self) -> bytes:
        """Return all counters in the text format of Prometheus, version 0.0.4."""
        return generate_latest(self._registry)


class Counting:
    """Counts the answers to the requests of one path by status, whichever part of the server gives them.

    Args:
        app: the application.
        path: the path.
        answers: the counter, with the label "status".
    """

    def __init__(self, app: ASGIApp, path: str, answers: Counter) -> None:
        self._app = app
        self._path = path
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def count_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._answers.labels(message["status"]).inc()
            await send(message)

        is_counted = scope["type"] == "http" and scope["path"] == self._path
        await self._app(scope, receive, count_and_send if is_counted else send)
