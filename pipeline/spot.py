"""Tell Ray of a spot instance that its cloud is about to take away: ``python -m pipeline.spot`` on such a node.

AWS gives two minutes' notice and Google Cloud half a minute, on an address that only the instance itself can ask. Ray
does not ask. Told of it, Ray places nothing more on the node, Ray Train hands the notice to its workers, which make a
checkpoint at once (``train.worker``), and Serve starts replicas elsewhere before those of the node go.

Where Kubernetes runs the nodes, its own drain does all this.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from pipeline.errors import UserError, WorkFailed, first_line

METADATA = "http://169.254.169.254"  # the link-local address of both clouds
EVERY_SECONDS = 2.0
PATIENCE_SECONDS = 60.0  # for a metadata service to answer at all
ANSWER_SECONDS = 5.0
RAY_SECONDS = 20.0  # for Ray to take the notice
GOOGLE_SECONDS = 30  # between its notice and the end

HICCUPS = (OSError, ValueError, KeyError, TypeError, http.client.HTTPException)

Ask = Callable[[str], "int | None"]


def aws(metadata: str) -> int | None:
    """Seconds until the instance is taken away, by the instance metadata service (version 2); None: nothing planned.

    Raises:
        OSError: no such service.
        ValueError: something else answers there.
    """
    token = _get(f"{metadata}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    if token is None:
        raise ValueError("no token to be had")
    planned = _get(f"{metadata}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    if planned is None:
        return None
    when = datetime.strptime(json.loads(planned)["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    return max(0, int((when - datetime.now(timezone.utc)).total_seconds()))


def google(metadata: str) -> int | None:
    """As ``aws``, by Google Cloud's metadata server."""
    said = _get(f"{metadata}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    if said not in ("TRUE", "FALSE"):
        raise ValueError(f"neither TRUE nor FALSE: {(said or 'nothing')[:40]!r}")
    return GOOGLE_SECONDS if said == "TRUE" else None


def _get(url: str, headers: dict[str, str], method: str = "GET") -> str | None:
    """What a URL answers; None where there is nothing (404)."""
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        # Never through a proxy: the address means this instance.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=ANSWER_SECONDS) as answer:
            return str(answer.read(10_000).decode("utf-8").strip())
    except urllib.error.HTTPError as e:
        if e.code == 404:
            return None
        raise


def cloud(metadata: str) -> tuple[str, Ask]:
    """Which cloud's metadata service answers.

    Raises:
        UserError: none does.
    """
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        found: list[str] = []
        for name, ask in (("AWS", aws), ("Google Cloud", google)):
            try:
                ask(metadata)
                return name, ask
            except HICCUPS as e:
                found.append(f"{name}: {first_line(e)}")
        if time.monotonic() > until:
            raise UserError(f"{metadata} is no metadata service of a cloud that tells of the end of spot instances "
                            f"({'; '.join(found)}): nothing to watch here")  # fmt: skip
        time.sleep(EVERY_SECONDS)


def drain(seconds: int, address: str | None, node: str | None) -> None:
    """Have Ray empty a node.

    Args:
        seconds: until it is gone.
        address: of the cluster; None: that of the Ray that runs here.
        node: its id; None for the one here.

    Raises:
        WorkFailed: Ray did not take it.
    """
    ray = Path(sys.executable).with_name("ray")
    command = [str(ray), "drain-node", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot instance"]
    command += [f"--deadline-remaining-seconds={seconds}"]
    command += [f"--address={address}"] if address else []
    command += [f"--node-id={node}"] if node else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RAY_SECONDS)
    except subprocess.TimeoutExpired:
        raise WorkFailed(f"Ray took no notice within {RAY_SECONDS:g} s") from None
    except OSError as e:
        raise WorkFailed(f"{ray}: {e.strerror}") from e
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise WorkFailed(f"Ray took no notice: {lines[-1] if lines else 'exit code ' + str(done.returncode)}")


def watch(metadata: str, address: str | None = None, node: str | None = None) -> None:
    """Wait for the notice, and pass it on until Ray has it.

    Raises:
        UserError: this is no cloud that gives notice.
    """
    name, ask = cloud(metadata)
    print(f"spot: watching for {name}'s notice", flush=True)
    unsaid = True
    while True:
        try:
            seconds = ask(metadata)
        except HICCUPS:  # the next look is seconds away
            seconds = None
        if seconds is not None:
            if unsaid:
                print(f"spot: {name} takes this node away in {seconds} s", flush=True)
                unsaid = False
            try:
                drain(seconds, address, node)
            except WorkFailed as e:
                print(f"spot: {e}; trying again", flush=True)
            else:
                print("spot: Ray knows, and empties the node", flush=True)
                return
        time.sleep(EVERY_SECONDS)


def main(arguments: list[str] | None = None) -> int:
    """Watch until the notice has been passed on; 2 where there is nothing to watch."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.spot", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--metadata", default=METADATA, help="where the cloud answers")
    parser.add_argument("--address", help="of the Ray cluster; else that of the Ray that runs here")
    parser.add_argument("--node-id", help="of the node; else the one here")
    given = parser.parse_args(arguments)
    try:
        watch(given.metadata.rstrip("/"), given.address, given.node_id)
    except UserError as e:
        print(f"spot: {e}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
