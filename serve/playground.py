"""``GET /``: the playground for a browser, a few facts in JSON for everyone else."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response

from serve.responses import json_response
from serve.roster import Roster
from serve.sealed import sealed

PAGE = Path(__file__).with_name("playground.html")


def wants_html(accept: str) -> bool:
    """Whether an Accept header names ``text/html``, as those of browsers do. ``*/*`` alone does not."""
    for item in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in item.split(";"))
        if kind == "text/html":
            return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return False


@lru_cache(maxsize=1)
def page() -> str:
    """The page."""
    return PAGE.read_text(encoding="utf-8")


def add_route(app: FastAPI, roster: Roster, feedback: bool) -> None:
    """``GET /``; ``feedback`` says whether ``/v1/feedback`` keeps anything."""

    @app.get("/", summary="What this is; for a browser, a page to try it", response_model=None)
    async def about(request: Request) -> Response | dict[str, Any]:
        if wants_html(request.headers.get("accept", "")):
            return sealed(page(), vary="accept")
        engine = roster.stable.engine
        content = {
            "name": "broadsheet",
            "model_version": engine.version,
            "labels": engine.labels,
            "engine": engine.runs,
            "cascade": None if (first := roster.stable.service.cascade) is None else {"confidence": first.threshold},
            "classify": {
                "method": "POST",
                "path": "/v1/classify",
                "body": {"inputs": ["a text"], "top_k": 1},
            },
            "explain": {"method": "POST", "path": "/v1/explain", "body": {"inputs": "a text"}},
            "feedback": feedback,
            "docs": "/docs",
        }
        return json_response(content, {"vary": "accept"})
