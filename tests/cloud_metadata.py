"""The metadata services of AWS and Google Cloud, as far as they tell of a spot instance's end."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Cloud:
    """What the service answers.

    Attributes:
        name: 'aws' or 'google'.
        url: where.
        seconds: until the end, once there is a notice.
    """

    def __init__(self, name: str) -> None:
        self.name, self.url = name, ""
        self.seconds: int | None = None

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """Status and body, by what both clouds document."""
        if self.name == "aws":
            if (method, path) == ("PUT", "/latest/api/token"):
                return (200, "a-token") if headers.get("x-aws-ec2-metadata-token-ttl-seconds") else (400, "")
            if headers.get("x-aws-ec2-metadata-token") != "a-token":
                return 401, "Unauthorized"
            if path == "/latest/meta-data/spot/instance-action" and self.seconds is not None:
                end = datetime.now(timezone.utc) + timedelta(seconds=self.seconds)
                return 200, json.dumps({"action": "terminate", "time": end.strftime("%Y-%m-%dT%H:%M:%SZ")})
            return 404, "Not Found"
        if path != "/computeMetadata/v1/instance/preempted":
            return 404, "Not Found"
        if headers.get("metadata-flavor") != "Google":
            return 403, "Missing Metadata-Flavor:Google header."
        return 200, "FALSE" if self.seconds is None else "TRUE"


@contextmanager
def served(name: str, host: str = "127.0.0.1") -> Iterator[Cloud]:
    """A metadata service at an address of this machine."""
    cloud = Cloud(name)

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            status, body = cloud.answer(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_PUT = _do  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((host, 0), Handler)
    cloud.url = f"http://{host}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield cloud
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
