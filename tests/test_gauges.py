"""What the page of the stages asks for is exported: our gauges on a node's port, Ray's as its own pages name them."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from pipeline import console, gauges
from serve import grafana
from serve.metrics import Metrics, ModelMetrics

STAGES = Path(next(iter(grafana.__path__))) / "stages.json"


def expressions() -> list[str]:
    tree: dict[str, Any] = json.loads(STAGES.read_text(encoding="utf-8"))
    return [t["expr"] for panel in tree["panels"] for t in panel.get("targets", [])]


def test_the_page_asks_for_what_there_is() -> None:
    metrics = Metrics()
    ModelMetrics(metrics, ["a"], "v", lambda: 0, None)
    served = {family.name for family in metrics.registry.collect()}
    own = Path(str(ray.__file__)).parent / "dashboard/modules/metrics"
    of_ray = "".join(f.read_text() for f in own.rglob("*.py"))
    for expression in expressions():
        bare = re.sub(r'"[^"]*"', '""', expression)
        for name in re.findall(r"\b(?:ray|broadsheet)_(?!train_run_name)\w+", bare):
            known = name in gauges.HELP or name.removesuffix("_total").removesuffix("_bucket") in served
            assert known or (name.startswith("ray_") and re.search(rf"\b{name}\b", of_ray)), expression
        for name, matchers in re.findall(r"\b(broadsheet_run_\w+)\{([^}]*)\}", bare):
            assert set(re.findall(r"(\w+)\s*(?:=~|=)", matchers)) <= set(gauges.KEYS[name]), expression


def test_without_a_ray_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "_gauges", {})
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    gauges.show(gauges.SCORE, 0.5, run="r")
    assert not gauges._gauges


def test_progress_is_shown_every_few_seconds_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, float]] = []
    monkeypatch.setattr(gauges, "_told", {})
    monkeypatch.setattr(gauges, "show", lambda name, value, **_: shown.append((name, value)))
    for done in (1, 2, 3):
        gauges.progress("r", "train", "steps", done, 3)
    assert shown == [(gauges.DONE, 1), (gauges.TOTAL, 3), (gauges.DONE, 3), (gauges.TOTAL, 3)]


def test_they_come_out_at_the_port_of_the_node(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_about", {"run": "新闻"})
    with console.bar("prepare", "rows", 10) as bar:
        bar.update(10)
    gauges.show(gauges.SCORE, float("nan"), run="新闻", stage="train", figure="loss")
    gauges.show(gauges.SCORE, 0.75, run="新闻", stage="train", figure="validation_macro_f1")
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    until = time.monotonic() + 60
    found: dict[str, dict[tuple[str, ...], float]] = {}
    while len(found) < 3 and time.monotonic() < until:
        time.sleep(1)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
            for family in text_string_to_metric_families(answer.read().decode()):
                for sample in family.samples:
                    name = sample.name.removeprefix("ray_")
                    if name in gauges.HELP and sample.labels["run"] == "新闻":  # others' runs may be there, too
                        labels = tuple(sample.labels.get(key, "") for key in gauges.KEYS[name])
                        found.setdefault(name, {})[labels] = sample.value
    assert found == {
        gauges.DONE: {("新闻", "prepare", "rows"): 10.0},
        gauges.TOTAL: {("新闻", "prepare", "rows"): 10.0},
        gauges.SCORE: {("新闻", "train", "validation_macro_f1", ""): 0.75},
    }
