"""The head of an answer and the first of its body in one write.

uvicorn writes the head when the application says its status, and the body when that comes. A replica that is killed in
between has sent half an answer, which HAProxy cannot ask another one for any more: one in 20,000, with a kill every
five seconds. uvicorn (0.54) has no setting for it, and Ray Serve makes the server, so its class is changed in the
replica's process.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

log = logging.getLogger("ray.serve")

Send = Callable[[Any, Any], Awaitable[None]]


class _Gathered:
    """Stands in for a transport while head and body come together."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        self._parts.append(data)

    def flush(self) -> Any:
        """Write what has come; returns the transport."""
        if self._parts:
            self._transport.write(b"".join(self._parts))
            self._parts.clear()
        return self._transport

    def close(self) -> None:
        self.flush().close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def together(send: Send) -> Send:
    """The method ``send`` of uvicorn's ``RequestResponseCycle``, with the head held back until the body comes."""

    @functools.wraps(send)
    async def send_together(cycle: Any, message: Any) -> None:
        if message["type"] == "http.response.start" and not cycle.response_started:
            cycle.head = message
            return
        head, cycle.head = getattr(cycle, "head", None), None
        if head is None:
            await send(cycle, message)
            return
        gathered = cycle.transport = _Gathered(cycle.transport)
        try:
            await send(cycle, head)
            await send(cycle, message)
        finally:
            cycle.transport = gathered.flush()

    return send_together


def install() -> None:
    """Change uvicorn in this process; without httptools, answers are written as before."""
    try:
        from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
    except ImportError as e:
        log.info("answers are sent in two writes: %s", e)
        return
    if not hasattr(RequestResponseCycle.send, "__wrapped__"):
        RequestResponseCycle.send = together(RequestResponseCycle.send)  # type: ignore[method-assign,assignment]
