"""Routes that are answered without FastAPI's frame: matching, dependencies, exit stacks and its handlers of exceptions.

That frame is a seventh of what a small request costs this app. A route that reads its request and writes its
response itself has no use for it; FastAPI keeps it for the OpenAPI document, and for what comes in another shape.
"""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.answers import EXPECTED, answer


def add(app: FastAPI, path: str, timeout_s: float) -> None:
    """Answer the POSTs to a path directly. Layers that are added later stand in front.

    Args:
        app: has a route for it, whose endpoint takes the request alone and returns a response.
        path: without parameters.
        timeout_s: within which a text should be answered; errors name it.
    """
    (route,) = (r for r in app.routes if isinstance(r, APIRoute) and r.path == path and "POST" in (r.methods or ()))
    app.add_middleware(_Direct, route=route, timeout_s=timeout_s)


class _Direct:
    def __init__(self, app: ASGIApp, route: APIRoute, timeout_s: float) -> None:
        self.app = app
        self.route = route
        self.timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != self.route.path or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        scope["route"] = self.route  # as the router does: requests are counted by route
        try:
            response = await self.route.endpoint(Request(scope, receive, send))
        except EXPECTED as e:  # anything else is FastAPI's to answer
            response = answer(e, self.timeout_s)
        await response(scope, receive, send)
