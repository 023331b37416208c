"""A load from ``wrk`` (a package of every Linux): many clients for little processor time.

Each client asks again when it was answered, at once or after a pause; with a pause, many clients keep to a rate however
the server fares, unless it keeps most of them waiting.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SCRIPT = """
local bodies = {}
for line in io.lines(os.getenv("BODIES")) do bodies[#bodies + 1] = line end
local at = 0
request = function()
  at = at % #bodies + 1
  return wrk.format("POST", wrk.path, {["content-type"] = "application/json"}, bodies[at])
end
if os.getenv("PAUSE_MS") then
  local most = 2 * tonumber(os.getenv("PAUSE_MS"))
  delay = function() return math.random(0, most) end
  -- Globals, so that the state in which ``done`` runs can ask for them.
  ok, refused, others, bare = 0, 0, 0, 0
  response = function(status, headers)
    if status == 200 then ok = ok + 1
    elseif status ~= 429 then others = others + 1
    else
      refused = refused + 1
      if not (headers["Retry-After"] or headers["retry-after"]) then bare = bare + 1 end
    end
  end
end
local thread
setup = function(one) thread = one end
done = function(summary, latency, requests)
  local e = summary.errors
  local sockets = e.connect + e.read + e.write + e.timeout
  io.write(string.format('\\nRESULT {"requests": %d, "seconds": %f, "failed": %d, "p50_ms": %f, "p99_ms": %f',
    summary.requests, summary.duration / 1e6, sockets + e.status, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3))
  if os.getenv("PAUSE_MS") then
    io.write(string.format(', "ok": %d, "refused": %d, "refused_without_retry_after": %d, "other_status": %d, ' ..
      '"connect": %d, "read": %d, "write": %d, "timeout": %d', thread:get("ok"), thread:get("refused"),
      thread:get("bare"), thread:get("others"), e.connect, e.read, e.write, e.timeout))
  end
  io.write('}\\n')
end
"""


class Wrk:
    """Loads an address with the same texts again and again.

    Args:
        url: that classifies.
        requests: the content of each request's ``inputs``, taken in turn.
    """

    def __init__(self, url: str, requests: Iterable[Any]) -> None:
        if shutil.which("wrk") is None:
            sys.exit("install wrk first, for example with 'apt install wrk'")
        self.url = url
        self._folder = tempfile.TemporaryDirectory(prefix="wrk-")
        self._bodies, self._script = (Path(self._folder.name) / name for name in ("bodies.jsonl", "post.lua"))
        self._bodies.write_text("".join(json.dumps({"inputs": one}) + "\n" for one in requests))
        self._script.write_text(SCRIPT)

    def run(self, clients: int, seconds: float, pause_ms: int | None = None) -> dict[str, Any]:
        """See ``running``."""
        return asyncio.run(self.running(clients, seconds, pause_ms))

    async def running(self, clients: int, seconds: float, pause_ms: int | None = None) -> dict[str, Any]:
        """What wrk saw.

        Args:
            clients: connections.
            seconds: how long.
            pause_ms: that each client takes between answer and question, on the average (0 to twice as long); answers
                are then counted by status, too. None: no pause.
        """
        command = [
            "-t1",
            f"-c{clients}",
            f"-d{max(1, round(seconds))}s",
            "--timeout",
            "60s",
            "-s",
            str(self._script),
            self.url,
        ]
        environment = {**os.environ, "BODIES": str(self._bodies)}
        if pause_ms is not None:
            environment["PAUSE_MS"] = str(pause_ms)
        process = await asyncio.create_subprocess_exec(
            "wrk", *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=environment
        )
        said = (await process.communicate())[0].decode()
        line = next((ln for ln in said.splitlines() if ln.startswith("RESULT ")), None)
        if line is None:
            sys.exit(f"wrk failed:\n{said}")
        found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
        return {**found, "per_s": round(found["requests"] / found["seconds"], 2)}
