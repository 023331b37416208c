"""``GET /metrics``: what one replica did, in Prometheus' text format, from a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.keys import need_admin

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Metrics:
    """The counters of one replica. Every method may be called from any thread.

    Args:
        labels: the model's; one series each.
        version: of the model.
        waiting: texts in the queue, asked at each scrape.
    """

    def __init__(self, labels: Sequence[str], version: str, waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"namespace": "broadsheet", "registry": self.registry}
        self._requests = Counter("requests", "Requests answered.", ["path", "status"], **own)
        self._texts = Counter("texts", "Texts classified.", **own)
        self._truncated = Counter("truncated_texts", "Texts that were longer than the model reads.", **own)
        found = Counter("predicted_labels", "Texts by the label of highest probability.", ["label"], **own)
        self._labels = [found.labels(label) for label in labels]
        phases = Histogram(
            "phase_seconds", "Seconds of a request to classify, by phase.", ["phase"], buckets=SECONDS, **own
        )
        self._phases = {phase: phases.labels(phase) for phase in ("queue", "tokenize", "inference")}
        self._batch_texts = Histogram("batch_texts", "Texts of one forward pass.", buckets=TEXTS, **own)
        self._batch_tokens = Histogram(
            "batch_tokens", "Tokens of one forward pass, padding included.", buckets=TOKENS, **own
        )
        self._feedback = Counter("feedback_rows", "Corrections written by /v1/feedback.", **own)
        Gauge("queue_texts", "Texts that wait for the model.", **own).set_function(waiting)
        Gauge("model_info", "The model that answers; always 1.", ["version"], **own).labels(version).set(1)

    def request(self, path: str, status: int) -> None:
        """Count a request. ``path`` is a route, not what the client wrote: each value is a series for ever."""
        self._requests.labels(path, str(status)).inc()

    def classified(self, probabilities: np.ndarray, truncated: int, phases: dict[str, float]) -> None:
        """Count the texts of one request.

        Args:
            probabilities: [texts, labels].
            truncated: how many of the texts were cut.
            phases: seconds of queue, tokenize and inference.
        """
        self._texts.inc(len(probabilities))
        self._truncated.inc(truncated)
        counts = np.bincount(probabilities.argmax(1))
        for label in np.flatnonzero(counts).tolist():
            self._labels[label].inc(int(counts[label]))
        for phase, seconds in phases.items():
            self._phases[phase].observe(seconds)

    def batch(self, texts: int, tokens: int) -> None:
        """Count a forward pass; ``tokens`` with padding."""
        self._batch_texts.observe(texts)
        self._batch_tokens.observe(tokens)

    def feedback(self, rows: int) -> None:
        """Count rows that were written."""
        self._feedback.inc(rows)


def add_route(app: FastAPI, metrics: Metrics) -> None:
    """``GET /metrics``, and a count of every request."""
    app.add_middleware(_Counted, metrics=metrics)

    @app.get("/metrics", summary="Prometheus metrics of this replica", response_class=Response)
    async def scrape(request: Request) -> Response:
        need_admin(request)
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(metrics.registry), headers={"content-type": content_type})


class _Counted:
    """Plain ASGI: Starlette's own base class for middleware costs each request a task."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 500  # of an exception that nobody turns into an answer before it has passed here

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, counted)
        finally:
            self.metrics.request(getattr(scope.get("route"), "path", "other"), status)
