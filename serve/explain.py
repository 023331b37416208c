"""``POST /v1/explain``: which words a prediction hangs on, and the training rows nearest to the text.

Each word is left out in turn (``pipeline.evaluate.explain``), so one text becomes many. They go through the queue like
any others, but one batch's worth at a time: whoever wants a text classified meanwhile waits for a batch, not for a
whole explanation.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import FastAPI, Request, Response

from pipeline.config import ServeConfig
from pipeline.evaluate import evidence
from pipeline.evaluate import explain as occlusion
from serve import schema
from serve.errors import Refused
from serve.requests import receive
from serve.responses import (
    RELEASE_HEADER,
    documented_body,
    documented_choice,
    documented_result,
    json_response,
    result_headers,
)
from serve.service import Result, Service
from serve.worker import NotReady

if TYPE_CHECKING:
    from serve.roster import Roster

WORDS = 100  # left out in turn; a longer text is cut into groups of words
ENCODED = 8  # variants that are tokenized before others may tokenize theirs
AT_ONCE = 4  # explanations a replica works on; each has at most one batch's worth of texts in the queue
STATE_TOKENS = 2_048


class Gone(Exception):
    """The client hung up; the rest of the work is not worth doing."""


class Explainer:
    """Explanations by a running service.

    Args:
        service: the model.
        index: training rows; None gives no nearest ones.
    """

    def __init__(self, service: Service, index: evidence.Evidence | None) -> None:
        self._service = service
        self._index = index
        self._running = 0

    async def explain(
        self, text: str, gone: Callable[[], Awaitable[bool]]
    ) -> tuple[occlusion.Explained, list[dict[str, Any]], Result]:
        """The explanation, nearest training rows, and where the time went.

        Args:
            text: raw.
            gone: whether nobody waits for the answer any more; asked between batches.

        Raises:
            Refused: as many are made already as may be.
            Gone: nobody waits for the answer.
            QueueFull, DeadlinePassed, ModelFailed, NotReady: as ``Service.classify``.
        """
        if self._running >= AT_ONCE:
            message = f"{AT_ONCE} texts are being explained, and no more are at once"
            raise Refused("overloaded", message, {"retry-after": "1"})
        self._running += 1
        try:
            return await self._explain(text, gone)
        finally:
            self._running -= 1

    async def _explain(
        self, text: str, gone: Callable[[], Awaitable[bool]]
    ) -> tuple[occlusion.Explained, list[dict[str, Any]], Result]:
        service, batcher = self._service, self._service.batcher
        if not service.ready:
            raise NotReady("the model is not ready")
        start = time.monotonic()
        deadline = start + batcher.timeout_s
        with batcher.room(1):  # a full queue refuses before there is any work
            asked, truncated = await service.in_tokenizer(lambda: self._asked(text), deadline)
            parts = [
                # A few at a time: other requests need the tokenizer, too.
                await service.in_tokenizer(
                    functools.partial(service.engine.encode, asked.texts[i : i + ENCODED]), deadline
                )
                for i in range(0, len(asked.texts), ENCODED)
            ]
        ids = [row for part in parts for row in part.ids]
        tokenize_s = time.monotonic() - start
        queue_s = inference_s = 0.0
        rows: list[np.ndarray] = []
        lengths = [len(row) for row in ids]
        for part in chunks(lengths, batcher.batch_tokens, max(1, batcher.max_queue // AT_ONCE)):
            if rows and await gone():
                raise Gone
            answer = await batcher.submit(ids[part], deadline=deadline)
            rows.append(answer.rows)
            queue_s += answer.queue_s
            inference_s += answer.inference_s
        probabilities = service.probabilities(np.concatenate(rows))
        index = self._index
        near: list[dict[str, Any]] = []
        if index is not None:
            near = await batcher.call(lambda: self._nearest(index, ids[0]), deadline)
        done = occlusion.effects(asked, probabilities, service.engine.labels)
        return done, near, Result(probabilities[:1], int(truncated), tokenize_s, queue_s, inference_s)

    def _asked(self, text: str) -> tuple[occlusion.Variants, bool]:
        engine = self._service.engine
        first = engine.encode([text])
        asked = occlusion.variants(first.cleaned[0], engine.words(first.cleaned[0]), WORDS)
        return asked, first.truncated[0]

    def _nearest(self, index: evidence.Evidence, ids: np.ndarray) -> list[dict[str, Any]]:
        """In the model's thread: the states are caught by a hook, which another pass must not meet."""
        engine = self._service.engine
        done = engine.with_states([ids], STATE_TOKENS)
        return [] if done is None else evidence.shown(index, engine.labels, done[1], evidence.NEAREST)[0]


def chunks(lengths: Sequence[int], batch_tokens: int, most: int) -> Iterator[slice]:
    """Neighbours that fit one batch of ``batch_tokens``, padding included, and are at most ``most``."""
    start = longest = 0
    for i, length in enumerate(lengths):
        longest = max(longest, length)
        if i > start and (longest * (i + 1 - start) > batch_tokens or i - start == most):
            yield slice(start, i)
            start, longest = i, length
    if lengths:
        yield slice(start, len(lengths))


def add_route(app: FastAPI, roster: Roster, config: ServeConfig) -> None:
    """``POST /v1/explain``."""

    @app.post(
        "/v1/explain",
        summary="Which words a prediction hangs on, and the nearest training rows",
        response_model=schema.Explanation,
        responses=documented_result(),
        openapi_extra=documented_body(
            schema.ExplainRequest.model_json_schema(),
            f"One text of at most {config.max_text_chars} characters. Up to {WORDS} words are left out in turn, of a "
            f"longer text groups of words. A replica works on {AT_ONCE} explanations at once.",
        )
        | documented_choice(),
    )
    async def explained(request: Request) -> Response:
        text = await receive(
            request, config, lambda body: schema.parse_explain(body, max_text_chars=config.max_text_chars)
        )
        with roster.hold(roster.asked(request.headers.get(RELEASE_HEADER)) or roster.stable) as model:
            done, near, result = await model.explainer.explain(text, request.is_disconnected)
        content = {
            "label": done.label,
            "probability": done.probability,
            "text": done.text,
            "words": [word._asdict() for word in done.words],
            "nearest": near,
        }
        return json_response(content, result_headers(result, model.engine.version))
