"""What becomes of the configuration that Ray writes for HAProxy (Ray 2.60): text in, text out.

Standard library only: it runs on every reload.
"""

from __future__ import annotations

import re
import resource
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serve.haproxy import Front

CLIENT_HEADER = b"x-broadsheet-client"
BUFFER_BYTES = 65_536  # per direction of a connection in use: 64 texts of news fit
REQUEST_S = 30  # for a request to arrive, as far as the buffer holds it
RETRIES = 2
CLIENTS = 20_000  # connections, idle ones included
SPARE_FILES = 500
IDLE_FIRST = 16  # replicas that are looked at one by one; a load that keeps so many busy is no lone client's


def loopback_admin(config_text: str) -> str:
    """Ray's HAProxy configuration with statistics and metrics on loopback and a private admin socket.

    Raises:
        ValueError: a line that must be rewritten is not there; Ray's template has changed.
    """
    rules = {
        "global": (r"(stats socket \S+ mode) \d+ ", r"\1 600 "),
        "frontend prometheus": (r"bind \*?:(\d+)$", r"bind 127.0.0.1:\1"),
        "listen stats": (r"bind \*?:(\d+)$", r"bind 127.0.0.1:\1"),
    }
    section = ""
    lines = config_text.split("\n")
    for i, line in enumerate(lines):
        if line and not line[0].isspace() and not line.startswith("#"):
            section = line.strip()
        elif section in rules:
            pattern, replacement = rules[section]
            lines[i], count = re.subn(rf"^(\s*){pattern}", rf"\g<1>{_shifted(replacement)}", line)
            if count:
                del rules[section]
    if rules:
        raise ValueError(f"Ray's HAProxy configuration has changed: nothing to rewrite in {sorted(rules)}")
    return "\n".join(lines)


def patient(config_text: str) -> str:
    """The configuration with which the loss of a replica costs no request, and a slow client no replica.

    A request is held until it is whole, up to ``BUFFER_BYTES``; if a replica dies before it has answered, another one
    is asked. Only what is kept once must not be sent twice: ``/v1/feedback``.

    Raises:
        ValueError: a line that must be rewritten is not there; Ray's template has changed.
    """
    late = '{"error":"the request did not arrive in time","error_type":"timeout"}'
    gone = unavailable().partition(b"\r\n\r\n")[2].decode()
    front = (
        # Ray's own proxy, which stands in where no replica is up, speaks in plain text.
        "http-response return status 503 content-type application/json hdr retry-after 1 "
        f"string '{gone}' if {{ status 500:599 }} !{{ res.hdr(content-type) -m beg application/json }}",
        "option http-buffer-request",
        f"timeout http-request {REQUEST_S}s",
        f"http-error status 408 content-type application/json string '{late}'",
        "http-request disable-l7-retry if { path /v1/feedback }",
    )
    rules = {
        r"^(\s+)tune\.bufsize \d+$": rf"\1tune.bufsize {BUFFER_BYTES}",
        # Few, as a text that kills replicas, were there one, goes through as many; enough for two that die together.
        r"^(\s+)retry-on conn-failure$": rf"\1retry-on conn-failure empty-response\n\1retries {RETRIES}",
        r"(?<=^frontend http_frontend\n)(\s+)(bind \S+:\d+.*)$": "\n".join(rf"\1{line}" for line in (r"\2", *front)),
    }
    for pattern, replacement in rules.items():
        config_text, count = re.subn(pattern, replacement, config_text, count=1, flags=re.MULTILINE)
        if not count:
            raise ValueError(f"Ray's HAProxy configuration has changed: nothing to rewrite for {pattern!r}")
    return config_text


def own_front(config_text: str, front: Front, pem: Path | None) -> str:
    """The configuration with the front end on ``front.host``, and with the client's address for the replicas.

    Args:
        config_text: Ray's.
        front: what is wanted.
        pem: certificate and key in one file, for HTTPS.

    Raises:
        ValueError: the line of the front end is not there; Ray's template has changed.
    """
    host = {"0.0.0.0": "*"}.get(front.host, front.host)
    host = f"[{host}]" if ":" in host else host
    tls = f" ssl crt {pem} alpn h2,http/1.1" if pem else ""
    told = f'http-request set-header {CLIENT_HEADER.decode()} "{front.token} %[src]"'
    lines = rf"\1bind {host}:\2{tls}\n\1{told}"
    text, count = re.subn(
        r"(?<=^frontend http_frontend\n)(\s+)bind \S+:(\d+)$", lines, config_text, count=1, flags=re.MULTILINE
    )
    if not count:
        raise ValueError("Ray's HAProxy configuration has changed: no 'bind' at the head of its front end")
    return text


def within_limits(config_text: str, most: int | None) -> str:
    """The configuration that refuses what is too much, with 429 as the API does, and has room for more clients.

    Ray's allows 4,096 connections, of which those that idle between two requests are a part: 4,096 clients that came
    once keep all others out for a minute and a half.

    Args:
        config_text: Ray's.
        most: of ``Front``.

    Raises:
        ValueError: the line of the limit is not there; Ray's template has changed.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Each client takes two sockets and half a pipe.
    room = CLIENTS if hard == resource.RLIM_INFINITY else min(CLIENTS, (hard - SPARE_FILES) * 2 // 5)
    found = re.search(r"^(\s+maxconn )(\d+)$", config_text, re.MULTILINE)
    front_end = re.search(r"^frontend http_frontend\n(\s+)bind \S+:\d+.*\n", config_text, re.MULTILINE)
    if found is None or front_end is None:
        raise ValueError("Ray's HAProxy configuration has changed: no 'maxconn', or no 'bind' in its front end")
    clients = max(room, int(found[2]))
    lines = [f"http-after-response set-header connection close if {{ fe_conn gt {clients // 2} }}"]
    backend = re.search(r"^backend (?!default_backend$)(\S+)$", config_text, re.MULTILINE)
    if most is not None and backend is not None:
        full = '{"error":"the queues of all replicas are full; try again","error_type":"overloaded"}'
        lines += [
            f"http-request set-var(txn.replicas) nbsrv({backend[1]})",
            "http-request return status 429 content-type application/json hdr retry-after 1 "
            f"string '{full}' if METH_POST {{ var(txn.replicas) -m int ge 1 }} "
            f"{{ be_conn({backend[1]}),div(txn.replicas) gt {most} }}",
        ]
    added = "".join(f"{front_end[1]}{line}\n" for line in lines)
    text = config_text[: front_end.end()] + added + config_text[front_end.end() :]
    return text.replace(found[0], f"{found[1]}{clients}", 1)


def idle_first(config_text: str) -> str:
    """The configuration that asks the first replica of this machine that is idle, and the least busy one of all where
    none is.

    Ray's takes turns among idle ones, so a lone client wakes another process with each request, which finds weights
    and code gone from the caches: 1.4 times the time of the model, on two cores. Not those of other machines: each has
    a HAProxy of its own, which counts its own connections only, and all would find the same one idle.
    """

    def preferred(backend: re.Match[str]) -> str:
        name, body = backend.groups()
        local = r"^\s+server (\S+) (?:127\.0\.0\.1|\[::1\]|::1):\d+ check\b(?!.*\bbackup\b)"  # as Ray writes it
        servers = re.findall(local, body, re.MULTILINE)
        if len(servers) < 2:
            return backend[0]
        rules = (f"    use-server {s} if {{ srv_conn({name}/{s}) eq 0 }}\n" for s in servers[:IDLE_FIRST])
        return f"backend {name}\n{''.join(rules)}{body}"

    return re.sub(r"^backend (\S+)\n((?:\s+.*\n|\n)*)", preferred, config_text, flags=re.MULTILINE)


def with_servers(config_text: str, last: Path, takes_over: bool) -> str:
    """The configuration, or the last one that had replicas in it, where this one has none yet and takes the place of
    one that has: Ray's actor, started anew, hears of them a moment later, and then loads its configuration again.

    Args:
        config_text: as it will be served.
        last: where the last one with replicas is kept.
        takes_over: whether another process serves the front end now.
    """
    if re.search(r"^\s+server \S+ \S+:\d+ check\b", config_text, re.MULTILINE):
        last.write_text(config_text)
    elif takes_over and last.exists():
        return last.read_text()
    return config_text


def unavailable() -> bytes:
    """The whole HTTP response while no replica can be reached."""
    body = b'{"error":"no replica can be reached; try again","error_type":"unavailable"}'
    head = ("503 Service Unavailable", "Content-Type: application/json", "Retry-After: 1")
    return "\r\n".join(("HTTP/1.1 " + head[0], *head[1:], f"Content-Length: {len(body)}", "", "")).encode() + body


def _shifted(replacement: str) -> str:
    return replacement.replace(r"\1", r"\g<2>")
