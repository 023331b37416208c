"""Head and body in one write, by uvicorn's own classes. These tests are meant to fail when uvicorn changes them."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from serve import one_write

httptools_impl = pytest.importorskip("uvicorn.protocols.http.httptools_impl")

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}


class Transport:
    def __init__(self) -> None:
        self.did: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        self.did.append(data)

    def close(self) -> None:
        self.did.append("closed")

    def is_closing(self) -> bool:
        return "closed" in self.did


class Cycle(httptools_impl.RequestResponseCycle):  # type: ignore[misc]
    send = one_write.together(httptools_impl.RequestResponseCycle.send)


def answered(*messages: Any, keep_alive: bool = True, fails: bool = False) -> list[bytes | str]:
    """What uvicorn did with the transport for an application that sends these messages."""
    transport = Transport()
    quiet = logging.getLogger("quiet")
    quiet.disabled = True

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)
        if fails:
            raise RuntimeError("a route failed")

    async def run() -> None:
        cycle = Cycle(
            scope={"type": "http", "method": "POST"}, transport=transport, flow=httptools_impl.FlowControl(transport),
            logger=quiet, access_logger=quiet, access_log=False, default_headers=[], message_event=asyncio.Event(),
            expect_100_continue=False, keep_alive=keep_alive, on_response=lambda: transport.did.append("answered"),
        )  # fmt: skip
        await cycle.run_asgi(app)
        assert cycle.transport is transport

    asyncio.run(run())
    return transport.did


def test_an_answer_is_one_write() -> None:
    did = answered(START, {"type": "http.response.body", "body": b"ok"})
    assert did == ["answered", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"]


def test_it_is_written_before_the_connection_is_closed() -> None:
    *_, written, closed, _ = answered(START, {"type": "http.response.body", "body": b"ok"}, keep_alive=False)
    assert isinstance(written, bytes)
    assert written.endswith(b"connection: close\r\n\r\nok")
    assert closed == "closed"


def test_a_body_in_parts_goes_out_as_it_comes() -> None:
    parts = [{"type": "http.response.body", "body": b, "more_body": more} for b, more in ((b"o", True), (b"k", False))]
    first, *rest = answered(START, *parts)
    assert isinstance(first, bytes)
    assert first.endswith(b"\r\n\r\no")
    assert [part for part in rest if part != "answered"] == [b"k"]


def test_what_fails_before_the_body_is_a_500_and_no_half_answer() -> None:
    written = b"".join(part for part in answered(START, fails=True) if isinstance(part, bytes))
    assert written.startswith(b"HTTP/1.1 500 ")
    assert b"200 OK" not in written


def test_it_is_installed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = httptools_impl.RequestResponseCycle.send
    monkeypatch.setattr(httptools_impl.RequestResponseCycle, "send", plain)
    one_write.install()
    changed = httptools_impl.RequestResponseCycle.send
    assert changed.__wrapped__ is getattr(plain, "__wrapped__", plain)
    one_write.install()
    assert httptools_impl.RequestResponseCycle.send is changed
