"""Hosts out of network namespaces: each with an address of its own on a bridge, and its own processes, host name, /tmp,
/dev/shm, home and SSH server. Whatever is made here is removed again. See ``real_hosts``."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STAGE = Path("/run/broadsheet-hosts")
BRIDGE = "broadsheet0"
NET = "10.213.77"
LAPTOP = f"{NET}.254"
HOSTS = {f"broadsheet-{i}": f"{NET}.{i}" for i in range(1, 1 + int(os.environ.get("HOSTS_TO_PLAY", "3")))}
SHARED = Path("/mnt/broadsheet")  # what NFS would be; every host sees the same folder there
SSHD_RUN = Path("/run/sshd")  # which sshd wants to be there
MADE = "made-run-sshd"
SSH_WAYS = "ray_ssh_*/*"  # in /tmp, whatever TMPDIR says: where `ray up` keeps its SSH connections
NEEDED = {
    "ip": "iproute2",
    "unshare": "util-linux",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "rsync": "rsync",
}

# Runs in the host's own mount, process and name spaces. What a tmpfs would hide is bound back in.
HOST = """
set -eu
mount --make-rprivate /
hostname "$NAME"
for i in $(seq 0 $((KEPT - 1))); do eval "mkdir -p $STAGE/$NAME/$i; mount --bind \\$KEEP_$i $STAGE/$NAME/$i"; done
mkdir -p "$SHARED"
mount --bind "$STAGE/shared" "$SHARED"
mkdir -p -m 700 "$STAGE/$NAME/home"
mount --bind "$STAGE/$NAME/home" "$HOME"
mount -t tmpfs tmpfs /tmp
chmod 1777 /tmp
mount -t tmpfs -o size=1g tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run/sshd
mount --bind "$STAGE/hosts" /etc/hosts
for i in $(seq 0 $((KEPT - 1))); do eval "mkdir -p \\$KEEP_$i; mount --bind $STAGE/$NAME/$i \\$KEEP_$i"; done
mkdir -p -m 700 "$HOME/.ssh"
cp "$STAGE/key.pub" "$HOME/.ssh/authorized_keys"
test -x "$HOME/venv/bin/python" || "$BASE_PYTHON" -m venv --without-pip "$HOME/venv"
site=$("$HOME/venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')
echo "$SITE" > "$site/of-this-machine.pth"
printf '#!/bin/sh\\nexec "%s" -m pip "$@"\\n' "$HOME/venv/bin/python" > "$HOME/venv/bin/pip"
printf '#!/bin/sh\\nexec "%s" -m ray.scripts.scripts "$@"\\n' "$HOME/venv/bin/python" > "$HOME/venv/bin/ray"
chmod +x "$HOME/venv/bin/pip" "$HOME/venv/bin/ray"
exec env -i PATH="$PATH" "$SSHD" -D -e -f "$STAGE/sshd_config"
"""

SSHD = f"""
HostKey {STAGE}/host_key
PermitRootLogin yes
PasswordAuthentication no
StrictModes no
PidFile none
MaxStartups 100
AcceptEnv OMP_NUM_THREADS
"""


class CannotRun(Exception):
    """This machine cannot play three hosts; the message says why."""


class LeftOvers(CannotRun):
    """Another run is at it, or has left its traces; the message says how to be rid of them."""


def say(what: str) -> None:
    """A line about the test itself."""
    print(f"--- {what}", flush=True)


def sh(*command: str, timeout: float = 60, **more: Any) -> str:
    """Run a command that must succeed, and return what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, **more)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)[:200]}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def which(name: str) -> str | None:
    """A command's path; those for root are looked for where other users have no business."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def check() -> None:
    """Refuse a machine that cannot do this.

    Raises:
        CannotRun: with what is missing; ``LeftOvers`` where it is another run that is in the way.
    """
    if sys.platform != "linux":
        raise CannotRun("network namespaces are Linux's")
    if os.geteuid() != 0:
        raise CannotRun("making hosts needs root: sudo make cluster-test")
    missing = [f"{name} (package {package})" for name, package in NEEDED.items() if which(name) is None]
    if missing:
        raise CannotRun(f"missing: {', '.join(missing)}")
    if STAGE.exists() or Path(f"/sys/class/net/{BRIDGE}").exists():
        raise LeftOvers(
            f"another run uses {STAGE}, or was killed: {sys.executable} tests/real_hosts.py --clean removes its traces"
        )
    try:
        sh("ip", "netns", "add", "broadsheet-try")
        sh("ip", "netns", "exec", "broadsheet-try", "unshare", "-m", "-u", "-p", "-f", "--mount-proc", "true")
    except RuntimeError as e:
        raise CannotRun(f"no namespaces to be had here (a container without the right?): {e}") from e
    finally:
        subprocess.run(["ip", "netns", "del", "broadsheet-try"], capture_output=True)


def cut(name: str, off: bool = True) -> None:
    """Pull the host's network cable, or put it in again."""
    sh("ip", "link", "set", _cable(name), "down" if off else "up")


def power_off(name: str) -> None:
    """The host is gone, at once and without a word to anybody: cable and processes. Its disk stays as it is."""
    cut(name)
    for _ in range(50):
        pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
        if not pids:
            break
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.1)


def power_on(name: str) -> subprocess.Popen[bytes]:
    """Start the host again; it answers SSH, and nobody has started Ray on it."""
    cut(name, off=False)
    process = _start(name)
    _until_ssh(HOSTS[name])
    return process


def _cable(name: str) -> str:
    return f"broadsheet-v{name.rpartition('-')[2]}"


def clean() -> None:
    """Remove everything: processes of the hosts, their networks, the bridge, the folders."""
    there = {p.name for p in Path("/run/netns").glob("broadsheet-*")}  # a killed run may have played more of them
    for name in sorted(there | set(HOSTS)):
        with contextlib.suppress(RuntimeError):  # it may have none yet
            power_off(name)
        subprocess.run(["ip", "link", "del", _cable(name)], capture_output=True)  # else it goes a moment later
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
    subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)
    with contextlib.suppress(OSError):
        SHARED.rmdir()  # only ever a place to mount on: the hosts' mounts ended with them
    if (STAGE / MADE).exists():
        SSHD_RUN.rmdir()
    shutil.rmtree(STAGE, ignore_errors=True)


@contextlib.contextmanager
def hosts() -> Iterator[None]:
    """Hosts that answer SSH."""
    running: list[subprocess.Popen[bytes]] = []
    before = set(Path("/tmp").glob(SSH_WAYS))
    try:
        STAGE.mkdir(mode=0o711)
        for folder in ("shared", "laptop", "logs"):
            (STAGE / folder).mkdir()
        if not SSHD_RUN.exists():
            SSHD_RUN.mkdir()
            (STAGE / MADE).touch()
        for key in ("key", "host_key"):
            sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(STAGE / key))
        names = "".join(f"{address} {name}\n" for name, address in HOSTS.items())
        (STAGE / "hosts").write_text(f"127.0.0.1 localhost\n{names}{LAPTOP} laptop\n")
        (STAGE / "sshd_config").write_text(SSHD)
        sh("ip", "link", "add", BRIDGE, "type", "bridge")
        sh("ip", "addr", "add", f"{LAPTOP}/24", "dev", BRIDGE)
        sh("ip", "link", "set", BRIDGE, "up")
        for name, address in HOSTS.items():
            sh("ip", "netns", "add", name)
            sh("ip", "link", "add", _cable(name), "type", "veth", "peer", "name", "eth0", "netns", name)
            sh("ip", "link", "set", _cable(name), "master", BRIDGE, "up")
            sh("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                sh("ip", "-n", name, "link", "set", device, "up")
            sh("ip", "-n", name, "route", "add", "default", "via", LAPTOP)
            running.append(_start(name))
        for address in HOSTS.values():
            _until_ssh(address)
        yield
    finally:
        say("removing the hosts")
        clean()
        for process in running:
            process.wait(10)
        for new in set(Path("/tmp").glob(SSH_WAYS)) - before:
            shutil.rmtree(new, ignore_errors=True)


def _start(name: str) -> subprocess.Popen[bytes]:
    home = Path(os.path.expanduser("~"))
    site = next(p for p in map(Path, sys.path) if p.name == "site-packages" and (p / "ray").is_dir())
    needed = {Path(p).resolve() for p in (sys.base_prefix, site)}
    kept = sorted(p for p in needed if home in p.parents or Path("/tmp") in p.parents)
    environment = {
        "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "HOME": str(home), "NAME": name, "STAGE": str(STAGE),
        "SHARED": str(SHARED), "BASE_PYTHON": str(Path(sys._base_executable).resolve()), "SITE": str(site.resolve()),
        "SSHD": which("sshd") or "", "KEPT": str(len(kept)), **{f"KEEP_{i}": str(p) for i, p in enumerate(kept)},
    }  # fmt: skip
    with (STAGE / "logs" / name).open("ab") as log:
        return subprocess.Popen(
            ["ip", "netns", "exec", name, "unshare", "-m", "-u", "-p", "-f", "--mount-proc", "bash", "-c", HOST],
            env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def ssh(address: str) -> list[str]:
    """What comes before a command that a host is to run."""
    options = ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ConnectTimeout=3")
    words = [word for option in options for word in ("-o", option)]
    return ["ssh", "-i", str(STAGE / "key"), *words, f"root@{address}"]


def _until_ssh(address: str) -> None:
    until = time.monotonic() + 90
    while subprocess.run([*ssh(address), "hostname"], capture_output=True).returncode:
        if time.monotonic() > until:
            logs = "".join(p.read_text(errors="replace")[-2000:] for p in (STAGE / "logs").iterdir())
            raise RuntimeError(f"{address} does not answer SSH:\n{logs}")
        time.sleep(0.5)
