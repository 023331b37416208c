"""Routes that are answered without FastAPI's frame: matching, dependencies, exit stacks and its handlers of exceptions.

That frame is a seventh of what a small request costs this app. A route that reads its request and writes its
response itself has no use for it; FastAPI keeps it for the OpenAPI document, and for what comes in another shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send


def add(app: FastAPI, path: str, answer: Callable[[Exception], Response | None]) -> None:
    """Answer the POSTs to a path directly. Layers that are added later stand in front.

    Args:
        app: has a route for it, whose endpoint takes the request alone and returns a response.
        path: without parameters.
        answer: the response to an exception; None: it is raised, as the routes of FastAPI raise it.
    """
    (route,) = (r for r in app.routes if isinstance(r, APIRoute) and r.path == path and "POST" in (r.methods or ()))
    app.add_middleware(_Direct, route=route, answer=answer)


class _Direct:
    def __init__(self, app: ASGIApp, route: APIRoute, answer: Callable[[Exception], Response | None]) -> None:
        self.app = app
        self.route = route
        self.answer = answer
        self._path: Any = route.path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != self._path or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        scope["route"] = self.route  # as the router does: requests are counted by route
        try:
            response = await self.route.endpoint(Request(scope, receive, send))
        except Exception as e:
            response = self.answer(e)
            if response is None:
                raise
        await response(scope, receive, send)
