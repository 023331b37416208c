"""HAProxy in front of Ray Serve, on loopback: the adapter to what Ray does with it (alpha in Ray 2.60).

Ray writes a configuration and starts the binary that ``RAY_SERVE_HAPROXY_BINARY_PATH`` names. It binds the
front end to the host asked for, but the statistics page and the metrics port on every interface, and opens
the admin socket to every local user; and it answers 503 for what a replica that dies was at. ``broadsheet-haproxy``
(``main`` below) stands in for the binary: it rewrites those lines, leaves a process behind that looks after it
(``guardian.py``), and becomes HAProxy, under the same process id. Where this command started Ray itself,
``FRONT`` in the environment says more: the address that the front end listens on (replicas stay on loopback), the
certificate, and the token by which replicas know the client's address from our HAProxy. Standard library only at
module level: it runs on every reload.
"""

from __future__ import annotations

import json
import os
import re
import resource
import secrets
import socket
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from serve import guardian, haproxy_processes
from serve.haproxy_processes import BINARY_PATH

if TYPE_CHECKING:
    from pipeline.config import ServeConfig

SCRIPT = "broadsheet-haproxy"
FRONT = "BROADSHEET_FRONT"
PEM = "front.pem"  # in the folder of the configuration, which is private
CLIENT_HEADER = b"x-broadsheet-client"
BUFFER_BYTES = 65_536  # per direction of a connection in use: 64 texts of news fit
REQUEST_S = 30  # for a request to arrive, as far as the buffer holds it
RETRIES = 2
TEXT_TOKENS = 64  # of a text of news: what a batch holds, beside those that wait
CLIENTS = 20_000  # connections, idle ones included
SPARE_FILES = 500

_PORTS = {
    "RAY_SERVE_HAPROXY_STATS_PORT": 8404,
    "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,
}


class Front(NamedTuple):
    """What ``broadsheet-haproxy`` makes of the front end.

    Attributes:
        host: it listens there.
        cert, key: PEM files for HTTPS; None is plain HTTP.
        token: goes to replicas with the client's address.
        most: requests that a replica may have in hand, on the average; beyond that HAProxy refuses more itself. None:
            it does not.
    """

    host: str
    cert: str | None
    key: str | None
    token: str
    most: int | None = None

    def serves(self, config: ServeConfig) -> bool:
        """Whether this is the front end of the serve section."""
        return self == wanted(config)._replace(token=self.token, most=self.most)


def wanted(config: ServeConfig) -> Front:
    """The front end of the serve section, with a token of its own."""
    cert, key = (file and os.path.abspath(os.path.expanduser(file)) for file in (config.tls_cert, config.tls_key))
    # A replica refuses what is beyond its queue, too, but one that has thousands to refuse has no time left for what it
    # has let in: each costs it as much as a third of an answer. So HAProxy must be the first to refuse. It cannot be
    # where the queue follows from a goal, which is measured when HAProxy's configuration has long been laid down.
    most: int | None = config.max_queue + max(1, config.batch_tokens // TEXT_TOKENS)
    if config.follows_from_goal("max_queue"):
        most = None
    return Front(config.host, cert, key, secrets.token_urlsafe(16), most)


def front() -> Front | None:
    """The front end that the environment describes; None where Ray was not started for it, or has no HAProxy."""
    try:
        return Front(**json.loads(os.environ[FRONT]))
    except (KeyError, ValueError, TypeError):
        return None


def active() -> bool:
    """Whether a Ray that this process starts will put HAProxy in front."""
    return os.environ.get("RAY_SERVE_ENABLE_HA_PROXY", "0") == "1"


def environment(config: ServeConfig, script: Path | None = None) -> dict[str, str]:
    """What must be in the environment before ``ray.init`` or ``ray start`` on every node.

    Values that the environment already has win, except for the front end. Empty where HAProxy is not wanted or not
    there (it comes with ``ray[serve]`` on Linux): Ray's own proxy serves then.

    Args:
        config: the serve section.
        script: the stand-in for the binary; None looks next to this Python.
    """
    if not config.haproxy or not haproxy_processes.binary():
        return {}
    script = script or Path(sys.executable).with_name(SCRIPT)
    variables = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # Log to Serve's files only, and not line by line.
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "100",
        # The model has its own thread: one event loop for the rest saves a hop between threads per message.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        # HAProxy hears of a leaving replica within a second; Ray would hold it, and every shutdown, for 30 s.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        # On a busy machine the proxy takes longer than Ray's 5 s to start; Ray would kill it and fail.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        # A replica that refuses a connection is dead, and looks like the least busy one until it is out.
        "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
        # Three of these until Ray starts the actor anew whose HAProxy was killed; a stand-in answers meanwhile.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
    }
    # A second cluster on the same machine must not fail on the first one's ports.
    variables |= {name: str(_free_port(port)) for name, port in _PORTS.items()}
    if script.is_file() and os.access(script, os.X_OK):
        variables[BINARY_PATH] = str(script)
    variables = {name: os.environ.get(name, value) for name, value in variables.items()}
    if os.path.basename(variables.get(BINARY_PATH, "")) == SCRIPT:
        variables[FRONT] = json.dumps(wanted(config)._asdict())
    return variables


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


def main() -> None:
    """Stand in for the HAProxy binary: make the configuration private, then become HAProxy."""
    args = sys.argv[1:]
    if "-f" in args[:-1]:
        path = Path(args[args.index("-f") + 1])
        os.chmod(path.parent, stat.S_IRWXU)
        try:
            text = patient(loopback_admin(path.read_text()))
            if (ours := front()) is not None:
                text = own_front(text, ours, _certificate(ours, path.with_name(PEM)))
            text = within_limits(text, ours and ours.most)
            text = with_servers(text, path.with_name(path.name + ".last"), bool(guardian.others(args)))
        except (OSError, ValueError) as e:
            raise SystemExit(f"{SCRIPT}: {path}: {e}") from None
        fresh = path.with_name(path.name + ".private")
        fresh.write_text(text)
        os.replace(fresh, path)
        # Ray's page for "no replica answers" is a plain-text 500; ours has the status and shape of the API.
        path.with_name("500.http").write_bytes(unavailable())
    binary = haproxy_processes.binary()
    if binary is None:
        raise SystemExit(f"{SCRIPT}: no HAProxy binary; it comes with 'ray[serve]' on Linux")
    command = [binary, *args]
    if "-f" in args[:-1] and "-c" not in args:  # -c only checks the file
        guardian.make_way(args)
        guardian.watch(command)
    os.execv(binary, command)


def _certificate(front: Front, pem: Path) -> Path | None:
    """Certificate and key in one file, as HAProxy wants them. A renewal that is half done leaves the pair in use."""
    if front.cert is None or front.key is None:
        return None
    import ssl

    fresh = pem.with_name(pem.name + ".new")
    fresh.unlink(missing_ok=True)
    try:
        both = "\n".join(Path(file).read_text() for file in (front.cert, front.key))
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as f:
            f.write(both)
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(fresh, password="")
        os.replace(fresh, pem)
    except (OSError, ValueError) as e:  # SSLError is an OSError
        if not pem.exists():
            raise
        print(f"{SCRIPT}: {front.cert}, {front.key}: {e}; the pair before it stays", file=sys.stderr)
    return pem


def _shifted(replacement: str) -> str:
    return replacement.replace(r"\1", r"\g<2>")


def _free_port(port: int) -> int:
    for candidate in (port, 0):
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("", candidate))
            except OSError:
                continue
            return int(s.getsockname()[1])
    return port
