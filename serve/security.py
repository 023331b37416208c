"""Who may ask, and how often: API keys and the rate limit, in front of every route.

One layer of plain ASGI. Nothing of it is there where neither ``serve.keys`` nor ``serve.rate_limit`` is set.
"""

from __future__ import annotations

import hmac
import ipaddress
import math
from collections.abc import Hashable
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.config import ServeConfig
from pipeline.storage import Place
from serve import haproxy, haproxy_config
from serve.errors import Refused
from serve.keyring import KeyRing
from serve.keys import MAY, find
from serve.playground import wants_html
from serve.rate import RateLimit
from serve.responses import documented, error_response

# Probes; and what tells how to ask, which names no label while there are keys (see ``secure``).
OPEN = ("/health", "/ready", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json")


def secure(app: FastAPI, config: ServeConfig) -> None:
    """Put keys, the rate limit and the scheme of the URL in front of an app, as ``config`` asks for them.

    Raises:
        UserError: the keys cannot be read.
    """
    ring = KeyRing(Place.of(config.keys)) if config.keys else None
    limit = RateLimit(config.rate_limit) if config.rate_limit else None
    if ring is None and limit is None and config.tls_cert is None:
        return
    app.add_middleware(_Guard, ring=ring, limit=limit, https=config.tls_cert is not None)
    if ring is not None:
        app.description = "Classifies texts."  # without the labels: the document is open to all
        _document_keys(app)


def shown_key(scope: Scope) -> bytes | None:
    """The key of a request: ``Authorization: Bearer``, or ``x-api-key``."""
    other = None
    for name, value in scope["headers"]:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return bytes(value[7:].strip())
        if name == b"x-api-key":
            other = bytes(value.strip())
    return other


def client_address(scope: Scope, token: str | None) -> Hashable:
    """Whom a request comes from: HAProxy's word for it if that is our HAProxy, else the other end of the connection.

    Args:
        scope: of ASGI.
        token: what our HAProxy shows (``serve.haproxy.front``).

    Returns:
        The address; of IPv6 the network of 64 bits, which is what one client has at least.
    """
    address = scope["client"][0] if scope.get("client") else ""
    if token is not None:
        for name, value in scope["headers"]:
            if name == haproxy_config.CLIENT_HEADER:
                shown, _, told = value.partition(b" ")
                if hmac.compare_digest(shown, token.encode()):
                    address = told.decode("latin-1")
    if ":" in address:
        try:
            whole = ipaddress.IPv6Address(address)
        except ValueError:
            return address
        return str(whole.ipv4_mapped) if whole.ipv4_mapped else int(whole) >> 64
    return address


def is_open(scope: Scope) -> bool:
    """Whether a request needs no key. The page does not: it says nothing, and asks for a key itself."""
    path = scope["path"]
    if path == "/":
        accept = next((value for name, value in scope["headers"] if name == b"accept"), b"")  # the one the page reads
        return wants_html(accept.decode("latin-1"))
    return path in OPEN


class _Guard:
    def __init__(self, app: ASGIApp, ring: KeyRing | None, limit: RateLimit | None, https: bool) -> None:
        self.app = app
        self.ring = ring
        self.limit = limit
        self.https = https
        front = haproxy.front()
        self._token = front.token if front else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if self.https:  # HAProxy ends TLS: a redirect must not send the client, and its key, to plain HTTP
                scope["scheme"] = "https"
            try:
                if not is_open(scope):
                    await self._admit(scope)
            except Refused as e:
                await error_response(e.error_type, str(e), e.headers)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    async def _admit(self, scope: Scope) -> None:
        client: Hashable
        if self.ring is not None:
            if self.ring.due:
                await self.ring.look()
            secret = shown_key(scope)
            key = None if secret is None else find(self.ring.keys, secret)
            if key is None:
                raise _unauthorized(secret is not None)
            scope[MAY] = key.scope
            client = key.sha256
        elif self.limit is not None:
            client = client_address(scope, self._token)
        if self.limit is not None and (wait := self.limit.take(client)):
            message = f"at most {self.limit.rate:g} requests per second of one client are taken"
            raise Refused("overloaded", message, {"retry-after": str(max(1, math.ceil(wait)))})


def _unauthorized(shown: bool) -> Refused:
    if shown:
        message, challenge = "the server does not know this API key", 'Bearer error="invalid_token"'
    else:
        message, challenge = "an API key is needed: send it as 'Authorization: Bearer KEY'", "Bearer"
    return Refused("unauthorized", message, {"www-authenticate": challenge})


def _document_keys(app: FastAPI) -> None:
    """Keys in the OpenAPI document."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()  # FastAPI keeps it, and gives the same one each time
        if "security" in document:
            return document
        schemes = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        document["components"]["securitySchemes"] = schemes
        document["security"] = [{name: []} for name in schemes]
        refused = documented("unauthorized")[401]
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                if path in OPEN:
                    operation["security"] = []
                else:
                    operation["responses"]["401"] = {"description": refused["description"], "content": content}
        return document

    app.openapi = openapi  # type: ignore[method-assign]
