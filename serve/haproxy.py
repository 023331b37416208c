"""HAProxy in front of Ray Serve, on loopback: the adapter to what Ray does with it (alpha in Ray 2.60).

Ray writes a configuration and starts the binary that ``RAY_SERVE_HAPROXY_BINARY_PATH`` names. It binds the
front end to the host asked for, but the statistics page and the metrics port on every interface, and opens
the admin socket to every local user; and it answers 503 for what a replica that dies was at. ``broadsheet-haproxy``
(``main`` below) stands in for the binary: it rewrites those lines (``haproxy_config.py``), leaves a process behind that
looks after it (``guardian.py``), and becomes HAProxy, under the same process id. Where this command started Ray itself,
``FRONT`` in the environment says more: the address that the front end listens on (replicas stay on loopback), the
certificate, and the token by which replicas know the client's address from our HAProxy. Standard library only at
module level: it runs on every reload.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import socket
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from serve import guardian, haproxy_processes
from serve.haproxy_config import (
    idle_first,
    loopback_admin,
    own_front,
    patient,
    unavailable,
    with_servers,
    within_limits,
)
from serve.haproxy_processes import BINARY_PATH

if TYPE_CHECKING:
    from pipeline.config import ServeConfig

SCRIPT = "broadsheet-haproxy"
NO_BINARY = f"{SCRIPT}: no HAProxy binary; it comes with 'ray[serve]' on Linux"
FRONT = "BROADSHEET_FRONT"
PEM = "front.pem"  # in the folder of the configuration, which is private
TEXT_TOKENS = 64  # of a text of news: what a batch holds, beside those that wait

_PORTS = {
    "RAY_SERVE_HAPROXY_STATS_PORT": 8404,
    "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,
}


# Ray Serve's, for every node that it runs on.
SETTINGS = {
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
    # Ray looks ten times a second whether replicas should come or go, and asks for their counts as often: a third
    # of what an idle endpoint costs.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
    # HAProxy would write a line a request, which a process in Python reads; it has its own counts for Prometheus.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
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
    variables = _everywhere(script)
    # A second cluster on the same machine must not fail on the first one's ports.
    variables |= {name: str(_free_port(port)) for name, port in _PORTS.items()}
    variables = {name: os.environ.get(name, value) for name, value in variables.items()}
    if os.path.basename(variables.get(BINARY_PATH, "")) == SCRIPT:
        variables[FRONT] = json.dumps(wanted(config)._asdict())
    return variables


def _everywhere(script: Path) -> dict[str, str]:
    variables = SETTINGS | {"RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1))}
    if script.is_file() and os.access(script, os.X_OK):
        variables[BINARY_PATH] = str(script)
    return variables


def exports(script: Path) -> str:
    """The environment of a node of a cluster as a line for its shell, to be read before ``ray start``. Values that the
    environment already has win.

    Raises:
        SystemExit: there is no HAProxy.
    """
    if not haproxy_processes.binary():
        raise SystemExit(NO_BINARY)
    variables = {name: os.environ.get(name, value) for name, value in _everywhere(script).items()}
    return "export " + " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())


def main() -> None:
    """Stand in for the HAProxy binary: make the configuration private, then become HAProxy. With ``--environment``, say
    what must be exported before ``ray start``."""
    args = sys.argv[1:]
    if args == ["--environment"]:
        print(exports(Path(sys.argv[0]).absolute()))
        return
    if "-f" in args[:-1]:
        path = Path(args[args.index("-f") + 1])
        os.chmod(path.parent, stat.S_IRWXU)
        try:
            text = patient(loopback_admin(path.read_text()))
            if (ours := front()) is not None:
                text = own_front(text, ours, _certificate(ours, path.with_name(PEM)))
            text = idle_first(within_limits(text, ours and ours.most))
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
        raise SystemExit(NO_BINARY)
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
