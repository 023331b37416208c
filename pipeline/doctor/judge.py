"""Facts of the nodes in, findings out. No Ray, no files, no clock: plain functions over plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.doctor.facts import NodeFacts

GB = 1 << 30
MB = 1 << 20
CLOCK_S = 5.0  # logs, leases and "newest first" disagree beyond this; object stores refuse requests at 15 minutes
BLOCK = 128 * MB  # what Ray Data lets one block grow to: an object store below that holds none
DISK_SHARE = 0.05  # Ray refuses to write objects to a disk that is fuller than 95%


@dataclass(frozen=True)
class Finding:
    """One line of the examination. ``advice`` says what to do where ``good`` is false."""

    subject: str
    good: bool
    fact: str
    advice: str = ""


def judge(nodes: Sequence[NodeFacts], here: NodeFacts, storage: str, read_back: Sequence[str], port: str,
          serving: int | None) -> list[Finding]:  # fmt: skip
    """Everything that can be said of the nodes, one line per subject, and one per node where something is wrong.

    Args:
        nodes: facts of each node that answered.
        here: the versions and the code of the driver; nothing else of it counts.
        storage: where runs live.
        read_back: ids of the nodes whose marker the driver read on the storage.
        port: host and port of the endpoint.
        serving: the port on which Ray Serve listens on the cluster; None where it does not run.
    """
    return [
        *_versions(nodes, here),
        *_token(nodes),
        *_clock(nodes),
        *_network(nodes),
        *_storage(nodes, storage, read_back),
        *_port(nodes, port, serving),
        *_memory(nodes),
        *_disk(nodes),
        *_gpus(nodes),
    ]


def _all(subject: str, wrong: list[Finding], fact: str) -> list[Finding]:
    return wrong or [Finding(subject, True, fact)]


def _every(nodes: Sequence[NodeFacts]) -> str:
    return "1 node" if len(nodes) == 1 else f"all {len(nodes)} nodes"


def _versions(nodes: Sequence[NodeFacts], here: NodeFacts) -> list[Finding]:
    wrong = []
    for n in nodes:
        other = [f"{k} {n.versions.get(k, 'none')} there, {v} here" for k, v in here.versions.items()
                 if n.versions.get(k) != v]  # fmt: skip
        if other:
            advice = "there: pip install -c constraints.txt -e ., with the same Python, then restart Ray"
            wrong.append(Finding("versions", False, f"{n.name}: {'; '.join(other)}", advice))
        elif n.code != here.code:
            fact = f"{n.name}: its copy of the project has other code ({n.code}) than this one ({here.code})"
            advice = "ship the same files to every node: 'ray up' again, or submit with --working-dir ."
            wrong.append(Finding("versions", False, fact, advice))
    known = ", ".join(f"{k} {v}" for k, v in here.versions.items())
    return _all("versions", wrong, f"{known}, code {here.code} on {_every(nodes)}")


def _token(nodes: Sequence[NodeFacts]) -> list[Finding]:
    wrong = []
    for n in nodes:
        if not n.token:
            fact = f"{n.name}: Ray there demands no token: whoever reaches it can run code on it"
            advice = "there: put the head's ~/.ray/auth_token, then export RAY_AUTH_MODE=token before 'ray start'"
            wrong.append(Finding("token", False, fact, advice))
        elif n.token_file:
            fact = f"{n.name}: others on that machine can read {n.token_file}"
            wrong.append(Finding("token", False, fact, f"there: chmod 600 {n.token_file}"))
    return _all("token", wrong, f"demanded by {_every(nodes)}")


def _clock(nodes: Sequence[NodeFacts]) -> list[Finding]:
    wrong = []
    for n in nodes:
        if abs(n.clock_ahead_s) - n.clock_within_s > CLOCK_S:
            side = "ahead of" if n.clock_ahead_s > 0 else "behind"
            fact = f"{n.name}: its clock is {abs(n.clock_ahead_s):.1f} s {side} this one"
            wrong.append(Finding("clock", False, fact, "there: timedatectl set-ntp true (or start chrony)"))
    most = max((abs(n.clock_ahead_s) + n.clock_within_s for n in nodes), default=0.0)
    return _all("clock", wrong, f"{_every(nodes)} within {most:.2f} s of this one")


def _network(nodes: Sequence[NodeFacts]) -> list[Finding]:
    wrong = [
        Finding("network", False, f"{n.name} cannot connect to {peer}: {reason}",
                "open all TCP ports between the nodes (and to nobody else): Ray and DDP pick theirs at random")
        for n in nodes for peer, reason in n.unreachable.items()
    ]  # fmt: skip
    if len(nodes) < 2:
        return wrong
    pairs = len(nodes) * (len(nodes) - 1)
    return _all("network", wrong, f"{pairs} of {pairs} connections between nodes, on ports picked at random")


def _storage(nodes: Sequence[NodeFacts], storage: str, read_back: Sequence[str]) -> list[Finding]:
    wrong = []
    for n in nodes:
        if n.storage_error:
            fact, advice = f"{n.name}: {storage}: {n.storage_error}", "give it the right to write there, or --storage"
        elif not n.saw_marker or n.counted.node not in read_back:
            fact = f"{n.name}: {storage} there is another folder than here: what one writes the other does not see"
            advice = "mount the same storage at that path on every node, or use --storage s3://bucket/folder"
        else:
            continue
        wrong.append(Finding("storage", False, fact, advice))
    return _all("storage", wrong, f"{storage}: written, and read by the others, on {_every(nodes)}")


def _port(nodes: Sequence[NodeFacts], port: str, serving: int | None) -> list[Finding]:
    if serving is not None:
        same = port.endswith(f":{serving}")
        fact = f"Ray Serve runs on this cluster already, on port {serving} (broadsheet serve --status)"
        advice = f"one cluster serves on one port: --port {serving}, or end that one with 'broadsheet serve --stop'"
        return [Finding("port", same, f"{port}: {fact}", "" if same else advice)]
    wrong = [
        Finding("port", False, f"{n.name}: {port}: {n.port_error}",
                "there: end what holds it (ss -ltnp says what), or choose another with --set serve.port=")
        for n in nodes if n.port_error
    ]  # fmt: skip
    return _all("port", wrong, f"{port} is free on {_every(nodes)}")


def _memory(nodes: Sequence[NodeFacts]) -> list[Finding]:
    wrong = []
    for n in nodes:
        store = n.counted.object_store
        if n.shm is not None and store > n.shm:
            fact = f"{n.name}: Ray's object store of {store / MB:,.0f} MB does not fit into /dev/shm "
            fact += f"({n.shm / MB:,.0f} MB): it is a file on disk, and slow"
            wrong.append(Finding("memory", False, fact, _SHM))
        elif store < BLOCK:
            fact = f"{n.name}: Ray's object store has {store / MB:,.0f} MB, one block of data up to {BLOCK / MB:.0f} MB"
            wrong.append(Finding("memory", False, fact, _SHM))
    least = min((n.counted.object_store for n in nodes), default=0.0)
    return _all("memory", wrong, f"object stores of {least / GB:.1f} GB or more, in /dev/shm, on {_every(nodes)}")


_SHM = "there: a larger /dev/shm (docker: --shm-size; Kubernetes: an emptyDir of medium Memory), then restart Ray"


def _disk(nodes: Sequence[NodeFacts]) -> list[Finding]:
    wrong = []
    for n in nodes:
        if n.disk and n.disk_free < DISK_SHARE * n.disk:
            fact = f"{n.name}: {n.disk_free / GB:.1f} of {n.disk / GB:.0f} GB free at {n.disk_folder}"
            fact += f"; Ray writes nothing to a disk that is fuller than {1 - DISK_SHARE:.0%}"
            wrong.append(Finding("disk", False, fact, "there: free some, or 'ray start --temp-dir' on a larger disk"))
    least = min((n.disk_free for n in nodes), default=0)
    return _all("disk", wrong, f"{least / GB:.1f} GB or more free for Ray's own files on {_every(nodes)}")


def _gpus(nodes: Sequence[NodeFacts]) -> list[Finding]:
    wrong = []
    counting = [n for n in nodes if n.counted.gpus]
    for n in counting:
        seen, counted = n.gpus_seen or 0, n.counted.gpus
        if n.gpu_error:
            wrong.append(Finding("gpus", False, f"{n.name}: torch cannot use its GPU: {n.gpu_error}", _DRIVER))
        elif seen < counted:
            fact = f"{n.name}: Ray hands out {counted:g} GPUs, torch sees {seen}"
            wrong.append(Finding("gpus", False, fact, _DRIVER))
    idle = sum(n.gpus_seen or 0 for n in nodes if not n.counted.gpus)
    unused = f"; torch sees {idle} more where Ray hands out none" if idle else ""
    total = sum(n.counted.gpus for n in counting)
    return _all("gpus", wrong, (f"all {total:g} seen by torch" if total else "Ray hands out none") + unused)


_DRIVER = "there: look at nvidia-smi, and whether torch.version.cuda is a version: a CPU build says None"
