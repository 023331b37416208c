"""How doctor asks a node for its time: a node that is lost meanwhile is one that does not answer. No cluster."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.doctor import nodes


def asked(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> nodes._Asked:
    """Probes by node; each answers with what it is given, or raises it."""
    import ray

    def get(reference: Any, timeout: float) -> Any:
        assert 0 < timeout <= nodes.ANSWER_S
        answer = answers[reference]
        if isinstance(answer, Exception):
            raise answer
        return answer()

    monkeypatch.setattr(ray, "get", get)
    probes = {n: SimpleNamespace(time=SimpleNamespace(remote=lambda n=n: n)) for n in answers}
    return nodes._Asked(dict(probes), {n: {"NodeManagerAddress": f"ip-{n}"} for n in answers})


def test_a_clock_that_is_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead, within = nodes._clock(asked(monkeypatch, a=lambda: time.time() + 100), "a")
    assert abs(ahead - 100) <= within + 0.001


def test_a_node_that_is_lost_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import GetTimeoutError, RayActorError

    them = asked(monkeypatch, a=RayActorError(), b=GetTimeoutError("late"), c=time.time)
    for node in ("a", "b", "c"):
        nodes._clock(them, node)
    assert set(them.probes) == {"c"}
    assert set(them.silent) == {"ip-a", "ip-b"}
    assert them.silent["ip-b"] == f"no answer within {nodes.ANSWER_S:g} s"
