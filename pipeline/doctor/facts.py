"""What one node says of itself. Runs on the node, knows no Ray beyond its version, and judges nothing."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from shutil import disk_usage

from pipeline.errors import UserError, WorkFailed, first_line
from pipeline.storage import Place
from pipeline.train import checkpoint

ROOT = Path(__file__).resolve().parents[2]
OWN = ("broadsheet.py", "pipeline", "serve", "tune")
CONNECT_S = 5.0
GPU_S = 120.0  # a first import of torch from a slow disk


@dataclass(frozen=True)
class Counted:
    """What Ray says of a node: its id and address, and what it hands out there (bytes where sizes are meant)."""

    node: str
    address: str
    cpus: float
    gpus: float
    memory: float
    object_store: float


@dataclass(frozen=True)
class NodeFacts:
    """What was found on a node.

    Attributes:
        counted: what Ray hands out there.
        host: its own name.
        versions: of Python and of the packages that the work depends on.
        code: digest of the project's own files.
        clock_ahead_s: seconds that its clock is ahead of the driver's, negative where it is behind.
        clock_within_s: how far that may be off, in seconds.
        shm: bytes of /dev/shm; None where there is none.
        disk_folder: where Ray keeps its logs and what does not fit into memory.
        disk: bytes of that disk.
        disk_free: bytes free on it.
        gpus_seen: GPUs that torch sees; None if nobody asked, since there is no sign of any.
        gpu_error: what torch said instead.
        token: whether this node demands the token.
        token_file: the token's file where others than its owner may read it; else None.
        storage_error: what went wrong with reading and writing there; None: nothing.
        saw_marker: whether it read the marker that the driver had written.
        port_error: why the endpoint's port cannot be had; None: it can.
        unreachable: nodes that it could not connect to, with the reason.
    """

    counted: Counted
    host: str
    versions: Mapping[str, str]
    code: str
    clock_ahead_s: float = 0.0
    clock_within_s: float = 0.0
    shm: int | None = None
    disk_folder: str = ""
    disk: int = 0
    disk_free: int = 0
    gpus_seen: int | None = None
    gpu_error: str | None = None
    token: bool = True
    token_file: str | None = None
    storage_error: str | None = None
    saw_marker: bool = True
    port_error: str | None = None
    unreachable: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For a person: the address that Ray uses, and the host's own name."""
        return f"{self.counted.address} ({self.host})"


def collect(counted: Counted, session: str, storage: str, host: str, port: int) -> NodeFacts:
    """All facts that the node can find out alone.

    Args:
        counted: what Ray hands out here.
        session: folder of Ray's session.
        storage: where the driver has left ``marker("driver")``.
        host: the endpoint's address.
        port: and its port.
    """
    folder = Path(session)
    while not folder.exists():
        folder = folder.parent
    disk = disk_usage(folder)
    seen, gpu_error = _gpus(counted.gpus)
    saw, storage_error = _storage(storage, counted.node)
    return NodeFacts(
        counted=counted,
        host=socket.gethostname(),
        versions=checkpoint.versions(),
        code=code_digest(),
        shm=disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None,
        disk_folder=str(folder),
        disk=disk.total,
        disk_free=disk.free,
        gpus_seen=seen,
        gpu_error=gpu_error,
        token=_demands_token(),
        token_file=_open_token(),
        storage_error=storage_error,
        saw_marker=saw,
        port_error=port_error(host, port),
    )


def code_digest(root: Path = ROOT) -> str:
    """A digest of the project's own Python files: an edited copy has the same version, and other code."""
    total = hashlib.blake2b(digest_size=6)
    for name in OWN:
        for file in sorted((root / name).rglob("*.py")) if (root / name).is_dir() else [root / name]:
            total.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes() + b"\0")
    return total.hexdigest()


def marker(storage: str, who: str) -> Place:
    """The file that a node (or 'driver') leaves in the folder of one examination."""
    return Place.of(storage) / f"{who}.txt"


def port_error(host: str, port: int) -> str | None:
    """Why the endpoint could not listen there; None if it could."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(address)
    except OSError as e:
        return "something listens there already" if e.errno == errno.EADDRINUSE else e.strerror or str(e)
    return None


def unreachable(peers: Mapping[str, tuple[str, int]]) -> dict[str, str]:
    """Those listeners, by name, that do not answer from here, and why."""
    failed = {}
    for name, address in peers.items():
        try:
            socket.create_connection(address, timeout=CONNECT_S).close()
        except OSError as e:
            failed[name] = e.strerror or str(e) or type(e).__name__
    return failed


def _storage(storage: str, who: str) -> tuple[bool, str | None]:
    """Whether the driver's marker can be read here, and what went wrong with that or with writing one."""
    try:
        theirs = marker(storage, "driver")
        saw = theirs.exists() and theirs.read_text() == "driver"
        mine = marker(storage, who)
        mine.write_text(who)
        return saw, None if mine.read_text() == who else "what was written reads back otherwise"
    except (OSError, UserError, WorkFailed) as e:
        return False, first_line(e)


def _gpus(counted: float) -> tuple[int | None, str | None]:
    """How many GPUs torch sees, in a process that Ray has not given none to."""
    if not counted and not Path("/dev/nvidiactl").exists() and not Path("/dev/kfd").exists():
        return None, None
    hidden = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
    known = {k: v for k, v in os.environ.items() if k not in hidden or v}
    ask = "import torch; torch.cuda.is_available() and torch.zeros(1, device='cuda'); print(torch.cuda.device_count())"
    try:
        done = subprocess.run([sys.executable, "-c", ask], env=known, capture_output=True, text=True, timeout=GPU_S)
    except subprocess.TimeoutExpired:
        return 0, f"it did not answer within {GPU_S:g} s"
    if done.returncode:
        return 0, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return int(done.stdout.split()[-1]), None


def _demands_token() -> bool:
    from ray._private.authentication.authentication_utils import is_token_auth_enabled  # watched by a test

    return is_token_auth_enabled()


def _open_token() -> str | None:
    """The file of Ray's token, if others may read it."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return None
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    with suppress(OSError):
        way = all(folder.stat().st_mode & stat.S_IXOTH for folder in file.parents)
        return str(file) if way and file.stat().st_mode & stat.S_IROTH else None
    return None
