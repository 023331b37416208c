"""Pages that load nothing from elsewhere: the headers that hold a browser to it."""

from __future__ import annotations

import base64
import hashlib
import re

from fastapi import Response


def sealed(text: str, **more: str) -> Response:
    """The page with headers that let it load nothing, run its own scripts only, and speak to this server only.

    Args:
        text: HTML whose styles and scripts stand in elements without attributes.
        more: headers on top, with ``_`` for ``-``.
    """
    sources = {}
    for tag in ("style", "script"):
        inside = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in inside)
        sources[tag] = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    policy = (
        f"default-src 'none'; script-src {sources['script']}; style-src {sources['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return Response(text, headers=headers | {k.replace("_", "-"): v for k, v in more.items()}, media_type="text/html")
