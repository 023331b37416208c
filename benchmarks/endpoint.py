"""``broadsheet serve`` in a process of its own, for benchmarks that load it."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from measure import descendants
from safetensors.numpy import load_file, save_file

BINARY = str(Path(sys.executable).with_name("broadsheet"))
PORT = 8128
URL = f"http://127.0.0.1:{PORT}"
REPLICA = b"ray::ServeReplica:broadsheet"


class Endpoint:
    """``broadsheet serve``, running."""

    def __init__(self, found: str, log: Path, sets: list[str]) -> None:
        self.found, self.log = found, log
        self.command = [BINARY, "serve", found, "--port", str(PORT)]
        for pair in sets:
            self.command += ["--set", pair]

    def pids(self, name: bytes) -> list[int]:
        """Its processes whose command line begins so, or whose program is called so."""
        found = []
        for pid in descendants(self.process.pid):
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
                if line.startswith(name) or line.split(b"\0")[0].endswith(b"/" + name):
                    found.append(pid)
        return found

    def update(self, checkpoint: str) -> None:
        """``--update``: it loads the checkpoint beside the old model, and swaps."""
        command = [BINARY, "serve", "--port", str(PORT), "--update", checkpoint]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"--update ended with {done.returncode}: {done.stderr}")


@contextlib.contextmanager
def serving(endpoint: Endpoint) -> Iterator[Endpoint]:
    """The endpoint, up; it is stopped at the end."""
    with endpoint.log.open("w") as out:
        endpoint.process = subprocess.Popen(endpoint.command, stdout=out, stderr=out, start_new_session=True)
    try:
        until = time.monotonic() + 600
        while True:
            if "listening on" in endpoint.log.read_text():  # all replicas are up
                break
            if endpoint.process.poll() is not None or time.monotonic() > until:
                sys.exit(f"{' '.join(endpoint.command)} did not come up:\n{endpoint.log.read_text()[-2000:]}")
            time.sleep(0.5)
        yield endpoint
    finally:
        endpoint.process.send_signal(signal.SIGINT)
        try:
            endpoint.process.wait(90)
        except subprocess.TimeoutExpired:
            endpoint.process.kill()


def twin(checkpoint: Path, folder: Path) -> str:
    """A copy of a checkpoint that answers alike and is another version: one weight differs by a millionth."""
    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    last = weights[sorted(weights)[-1]]
    last.reshape(-1)[0] += 1e-6
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return str(folder)
