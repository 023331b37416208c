"""``GET /``: the playground for a browser, a few facts in JSON for everyone else."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response

from serve.responses import json_response
from serve.roster import Roster

PAGE = Path(__file__).with_name("playground.html")


def wants_html(accept: str) -> bool:
    """Whether an Accept header names ``text/html``, as those of browsers do. ``*/*`` alone does not."""
    for item in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in item.split(";"))
        if kind == "text/html":
            return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return False


@lru_cache(maxsize=1)
def page() -> tuple[bytes, dict[str, str]]:
    """The page, and headers that let it load nothing, run its own script only, and speak to this server only."""
    text = PAGE.read_text(encoding="utf-8")
    sources = {}
    for tag in ("style", "script"):
        inside = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in inside)
        sources[tag] = " ".join(f"'sha256-{digest}'" for digest in digests)
    policy = (
        f"default-src 'none'; script-src {sources['script']}; style-src {sources['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode(), {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
        "vary": "accept",
    }


def add_route(app: FastAPI, roster: Roster, feedback: bool) -> None:
    """``GET /``; ``feedback`` says whether ``/v1/feedback`` keeps anything."""

    @app.get("/", summary="What this is; for a browser, a page to try it", response_model=None)
    async def about(request: Request) -> Response | dict[str, Any]:
        if wants_html(request.headers.get("accept", "")):
            body, headers = page()
            return Response(body, headers=headers, media_type="text/html")
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
