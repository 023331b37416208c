"""``GET /metrics``: what one replica did, in Prometheus' text format, from a registry of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.drift import Collector, Drift
from serve.keys import need_admin
from serve.responses import documented

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Metrics:
    """The counters of one replica. Every method may be called from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"namespace": "broadsheet", "registry": self.registry}
        model = ["version"]
        self._requests = Counter("requests", "Requests answered.", ["path", "status"], **own)
        self.outcomes = Counter(
            "model_requests", "Requests that a model was asked to answer.", [*model, "outcome"], **own
        )
        self.texts = Counter("texts", "Texts classified.", model, **own)
        self.truncated = Counter("truncated_texts", "Texts that were longer than the model reads.", model, **own)
        self.labels = Counter(
            "predicted_labels", "Texts by the label of highest probability.", [*model, "label"], **own
        )
        self.cascade = Counter("cascade_texts", "Texts of a cascade, by who answered.", [*model, "by"], **own)
        self.phases = Histogram(
            "phase_seconds", "Seconds of a request to classify, by phase.", [*model, "phase"], buckets=SECONDS, **own
        )
        self.batch_texts = Histogram("batch_texts", "Texts of one forward pass.", model, buckets=TEXTS, **own)
        self.batch_tokens = Histogram(
            "batch_tokens", "Tokens of one forward pass, padding included.", model, buckets=TOKENS, **own
        )
        self._shadowed = Counter(
            "shadow_texts", "Texts that the candidate classified, too, by whether it agrees.", [*model, "agrees"], **own
        )
        self._feedback = Counter("feedback_rows", "Corrections written by /v1/feedback.", **own)
        self.queue = Gauge("queue_texts", "Texts that wait for the model.", model, **own)
        self.drift = Collector()
        self.registry.register(self.drift)
        self._info = Gauge(
            "model_info", "The models that are loaded, and as what; always 1.", [*model, "release"], **own
        )

    def request(self, path: str, status: int) -> None:
        """Count a request. ``path`` is a route, not what the client wrote: each value is a series for ever."""
        self._requests.labels(path, str(status)).inc()

    def lineup(self, parts: dict[str, str]) -> None:
        """Say which models are loaded: version by release (stable, candidate, previous)."""
        self._info.clear()
        for part, version in parts.items():
            self._info.labels(version, part).set(1)

    def shadowed(self, version: str, texts: int, agreed: int) -> None:
        """Count texts that a shadowing model classified, too."""
        self._shadowed.labels(version, "yes").inc(agreed)
        self._shadowed.labels(version, "no").inc(texts - agreed)

    def feedback(self, rows: int) -> None:
        """Count rows that were written."""
        self._feedback.inc(rows)


class ModelMetrics:
    """The counters of one model. Every method may be called from any thread.

    Args:
        replica: where they are kept.
        labels: the model's; one series each.
        version: of the model.
        waiting: texts in the queue, asked at each scrape.
        drift: of the model; None: it is not measured.
    """

    def __init__(
        self,
        replica: Metrics,
        labels: Sequence[str],
        version: str,
        waiting: Callable[[], int],
        drift: Drift | None = None,
    ) -> None:
        self._replica, self._version = replica, version
        self._texts, self._truncated = replica.texts.labels(version), replica.truncated.labels(version)
        self._labels = [replica.labels.labels(version, label) for label in labels]
        self._phases = {phase: replica.phases.labels(version, phase) for phase in ("queue", "tokenize", "inference")}
        self._batch_texts = replica.batch_texts.labels(version)
        self._batch_tokens = replica.batch_tokens.labels(version)
        replica.queue.labels(version).set_function(waiting)
        replica.drift.show(version, drift)

    def close(self) -> None:
        """Ask no longer for queue and drift: that holds on to the model."""
        self._replica.queue.remove(self._version)
        self._replica.drift.show(self._version, None)

    def outcome(self, outcome: str) -> None:
        """Count a request that the model was asked to answer: ``ok``, ``failed`` or ``overloaded``."""
        self._replica.outcomes.labels(self._version, outcome).inc()

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

    def cascaded(self, by_linear: int, by_network: int) -> None:
        """Count the texts of one request that the linear model of a cascade answered, and those that it left."""
        self._replica.cascade.labels(self._version, "linear").inc(by_linear)
        self._replica.cascade.labels(self._version, "network").inc(by_network)

    def batch(self, texts: int, tokens: int) -> None:
        """Count a forward pass; ``tokens`` with padding."""
        self._batch_texts.observe(texts)
        self._batch_tokens.observe(tokens)


def add_route(app: FastAPI, metrics: Metrics) -> None:
    """``GET /metrics``, and a count of every request."""
    app.add_middleware(_Counted, metrics=metrics)

    @app.get(
        "/metrics",
        summary="Prometheus metrics of this replica",
        response_class=Response,
        responses=documented("forbidden"),
    )
    async def scrape(request: Request) -> Response:
        need_admin(request)
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(metrics.registry), headers={"content-type": content_type})


HUNG_UP = 499  # nginx's number for a client that did not wait: nobody's failure, so no 5xx that wakes somebody


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
        started = False

        async def counted(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
            await send(message)

        try:
            await self.app(scope, receive, counted)
        except asyncio.CancelledError:
            if not started:
                status = HUNG_UP
            raise
        finally:
            self.metrics.request(getattr(scope.get("route"), "path", "other"), status)
