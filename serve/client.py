"""A small client for the endpoint, on the standard library alone."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from pipeline.errors import WorkFailed


def classify(
    url: str,
    texts: str | Sequence[str],
    top_k: int | None = None,
    timeout: float = 30,
    key: str | None = None,
    context: ssl.SSLContext | None = None,
) -> list[list[dict[str, Any]]]:
    """Ask the endpoint at ``url`` (for example ``http://127.0.0.1:8000``) for the labels of texts.

    Args:
        url: of the endpoint.
        texts: one or several.
        top_k: labels per text; None gives all.
        timeout: seconds.
        key: an API key, where the server asks for one.
        context: which certificates to trust; None trusts those that the machine trusts. For a certificate of your own:
            ``ssl.create_default_context(cafile="cert.pem")``.

    Returns:
        One list per text: ``{"label": ..., "score": ...}``, best first.

    Raises:
        WorkFailed: the server refused or cannot be reached; the message is the server's own sentence.
    """
    body: dict[str, Any] = {"inputs": texts if isinstance(texts, str) else list(texts)}
    if top_k is not None:
        body["top_k"] = top_k
    answer = request(f"{url.rstrip('/')}/v1/classify", json.dumps(body).encode(), timeout, key, context)
    if not isinstance(answer, list):
        raise WorkFailed(f"{url} answered, but not as a Broadsheet endpoint does")
    return answer


def request(
    url: str,
    body: bytes | None = None,
    timeout: float = 30,
    key: str | None = None,
    context: ssl.SSLContext | None = None,
) -> Any:
    """GET (or POST, with a body) and read the JSON answer. A redirect is an error: a key goes nowhere else.

    Raises:
        WorkFailed: as for ``classify``.
    """
    headers = {"content-type": "application/json"} if body is not None else {}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    opener = urllib.request.build_opener(_Stay, urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(urllib.request.Request(url, body, headers), timeout=timeout) as response:
            return json.load(response)
    except urllib.error.HTTPError as e:
        with e:
            raise WorkFailed(f"{url} answered {e.code}: {_sentence(e.read(10_000))}") from None
    except (OSError, ValueError) as e:  # URLError is an OSError; a body that is not JSON is a ValueError
        raise WorkFailed(f"{url} did not answer: {getattr(e, 'reason', e)}") from None


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _sentence(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace")[:200].strip() or "no reason given"
