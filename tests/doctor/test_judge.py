"""What is said of which facts: every failing line names the node and what to do there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.doctor.facts import Counted, NodeFacts
from pipeline.doctor.judge import GB, MB, Finding, judge

VERSIONS = {"python": "3.12.4", "broadsheet": "0.1.0", "ray": "2.60.0", "torch": "2.13.0"}


def node(number: int, gpus: float = 0, **other: Any) -> NodeFacts:
    counted = Counted(f"id{number}", f"10.0.0.{number}", 8, gpus, 16 * GB, other.pop("object_store", 2 * GB))
    usual = NodeFacts(counted, f"host{number}", VERSIONS, "c0de", shm=8 * GB, disk=100 * GB, disk_free=50 * GB,
                      disk_folder="/tmp/ray", gpus_seen=int(gpus) or None)  # fmt: skip
    return replace(usual, **other)


def findings(*nodes: NodeFacts, serving: int | None = None, read_back: list[str] | None = None) -> list[Finding]:
    read = [n.counted.node for n in nodes] if read_back is None else read_back
    return judge(nodes, node(1), "/mnt/runs", read, "127.0.0.1:8000", serving)


def failed(*nodes: NodeFacts, **more: Any) -> Finding:
    (one,) = [f for f in findings(*nodes, **more) if not f.good]
    assert one.advice
    return one


def test_like_nodes_pass_with_a_line_per_subject() -> None:
    found = findings(node(1), node(2), node(3))
    assert all(f.good for f in found)
    assert len({f.subject for f in found}) == len(found) == 9
    assert "python 3.12.4, broadsheet 0.1.0, ray 2.60.0, torch 2.13.0, code c0de on all 3 nodes" in found[0].fact
    assert "6 of 6 connections" in next(f.fact for f in found if f.subject == "network")


def test_one_node_has_no_network() -> None:
    assert "network" not in {f.subject for f in findings(node(1))}


@pytest.mark.parametrize(
    ("wrong", "subject", "fact", "advice"),
    [
        ({"versions": {**VERSIONS, "torch": "2.6.0"}}, "versions", "torch 2.6.0 there, 2.13.0 here", "constraints.txt"),
        ({"versions": {k: v for k, v in VERSIONS.items() if k != "ray"}}, "versions", "ray none there", "pip install"),
        ({"code": "0ther"}, "versions", "other code (0ther) than this one (c0de)", "ray up"),
        ({"token": False}, "token", "demands no token", "RAY_AUTH_MODE=token"),
        ({"token_file": "/home/x/.ray/auth_token"}, "token", "others on that machine", "chmod 600 /home/x/.ray"),
        ({"clock_ahead_s": 90.0, "clock_within_s": 0.1}, "clock", "90.0 s ahead of", "set-ntp"),
        ({"clock_ahead_s": -7.0, "clock_within_s": 1.0}, "clock", "7.0 s behind", "set-ntp"),
        ({"unreachable": {"10.0.0.1 (host1)": "timed out"}}, "network", "to 10.0.0.1 (host1): timed out", "TCP ports"),
        ({"storage_error": "Read-only file system"}, "storage", "/mnt/runs: Read-only", "--storage"),
        ({"saw_marker": False}, "storage", "another folder than here", "s3://"),
        ({"port_error": "something listens there already"}, "port", "127.0.0.1:8000: something", "serve.port="),
        ({"shm": 64 * MB}, "memory", "2,048 MB does not fit into /dev/shm (64 MB)", "--shm-size"),
        ({"object_store": 60 * MB}, "memory", "60 MB, one block of data up to 128 MB", "--shm-size"),
        ({"disk_free": 4 * GB}, "disk", "4.0 of 100 GB free at /tmp/ray", "free some"),
        ({"gpus": 2, "gpus_seen": 1}, "gpus", "Ray hands out 2 GPUs, torch sees 1", "nvidia-smi"),
        ({"gpus": 1, "gpus_seen": 0, "gpu_error": "no kernel image"}, "gpus", "no kernel image", "nvidia-smi"),
    ],
)
def test_a_failing_line_names_the_node(wrong: dict[str, Any], subject: str, fact: str, advice: str) -> None:
    found = failed(node(1), node(2, **wrong), node(3))
    assert found.subject == subject
    assert found.fact.startswith("10.0.0.2 (host2)")
    assert fact in found.fact
    assert advice in found.advice


def test_a_marker_that_only_its_writer_sees() -> None:
    assert "another folder" in failed(node(1), node(2), read_back=["id1"]).fact


def test_a_clock_is_not_blamed_for_a_slow_answer() -> None:
    assert all(f.good for f in findings(node(1), node(2, clock_ahead_s=6.0, clock_within_s=2.0)))


def test_serve_may_hold_the_port() -> None:
    found = findings(node(1, port_error="something listens there already"), serving=8000)
    assert all(f.good for f in found)


def test_gpus_that_ray_does_not_hand_out_are_no_fault() -> None:
    found = findings(node(1), node(2, gpus_seen=1), node(3, gpus=2))
    assert all(f.good for f in found)
    assert "all 2 seen by torch; torch sees 1 more" in found[-1].fact


def test_each_bad_node_gets_a_line() -> None:
    found = [f for f in findings(node(1), node(2, token=False), node(3, token=False)) if not f.good]
    assert [f.fact.split()[0] for f in found] == ["10.0.0.2", "10.0.0.3"]
