"""The dashboard and the alert rules: what they ask for is there, and the index they compute is the one of the code."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from serve_fakes import FakeEngine

from pipeline.config import ServeConfig
from pipeline.evaluate.reference import make
from serve import grafana
from serve.api import build_api
from serve.stability import ALARM, FLOOR, WARN, noise, psi

ROOM = Path(next(iter(grafana.__path__)))
RULES = ROOM / "alerts.yaml"
PROMTOOL = shutil.which("promtool")


def dashboard() -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((ROOM / "dashboard.json").read_text(encoding="utf-8"))
    return tree


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]


def expressions() -> dict[str, str]:
    """All PromQL, by where it stands."""
    found = {rule.get("record") or rule["alert"]: rule["expr"] for rule in rules()}
    for panel in dashboard()["panels"]:
        found |= {f"{panel['title']} {t['refId']}": t["expr"] for t in panel.get("targets", [])}
    return found


@pytest.fixture(scope="module")
def series() -> dict[str, set[str]]:
    """Every series that an app in process shows, with the names of its labels."""
    engine = FakeEngine()
    encoded = engine.encode([f"x {label}" for label in engine.labels] * 100)
    probabilities = engine.probabilities(engine.logits(encoded.ids))
    reference = make(engine.labels, probabilities, encoded.ids, encoded.truncated, 9)
    with TestClient(build_api(engine, ServeConfig(), None, reference)) as http:
        http.post("/v1/classify", json={"inputs": "sport"})
        families = text_string_to_metric_families(http.get("/metrics").text)
    return {s.name: set(s.labels) for f in families for s in f.samples}


def test_every_name_and_label_is_one_that_the_endpoint_shows(series: dict[str, set[str]]) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    known = set.union(*series.values()) | {"replica", "instance"}  # of the node's port, and of Prometheus
    for where, expression in expressions().items():
        bare = re.sub(r'"[^"]*"', '""', expression)
        names = set(re.findall(r"\bbroadsheet[a-z0-9_:]*", bare))
        if not names:  # of HAProxy's own exporter: test_serve_e2e.py asks it
            assert set(re.findall(r"\bhaproxy\w*", bare)) == {"haproxy_frontend_http_responses_total"}, where
            continue
        assert names <= set(series) | recorded, where
        for name, matchers in re.findall(r"\b(broadsheet[a-z0-9_:]*)\{([^}]*)\}", bare):
            asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
            assert asked <= series.get(name, {"version", "feature", "bin"}), where
        for group in re.findall(r"\b(?:by|on|group_left)\s*\(([^)]*)\)", bare):
            assert {label.strip() for label in group.split(",") if label.strip()} <= known, where
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            name, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
            assert label in series[name]


def test_every_series_but_the_index_of_one_replica_is_in_use(series: dict[str, set[str]]) -> None:
    asked = " ".join(expressions().values())
    unused = {name for name in series if not re.search(rf"\b{name}\b", asked) and not name.endswith("_created")}
    sums = {name for name in unused if name.startswith("broadsheet_phase_seconds_") or name.endswith("_bucket")}
    assert unused - sums == {"broadsheet_drift_psi", "broadsheet_drift_rows"}


@pytest.mark.parametrize(("where", "expression"), expressions().items())
def test_brackets_and_quotes_are_balanced(where: str, expression: str) -> None:
    assert expression.count('"') % 2 == 0
    open_: list[str] = []
    for character in re.sub(r'"[^"]*"', "", expression):
        if character in "([{":
            open_.append(character)
        elif character in ")]}":
            assert open_
            assert open_.pop() + character in ("()", "[]", "{}")
    assert not open_


def test_the_dashboard_can_be_imported() -> None:
    tree = dashboard()
    assert tree["uid"] == "broadsheet"
    assert not {"id", "__inputs"} & set(tree)
    assert [v["type"] for v in tree["templating"]["list"]] == ["datasource", "query", "query"]
    numbers = [panel["id"] for panel in tree["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in tree["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        for one in [panel, *panel.get("targets", [])]:
            assert panel["type"] == "row" or one["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    variables = {f"${v['name']}" for v in tree["templating"]["list"]}
    used = set(re.findall(r"\$\w+", " ".join(expressions().values()))) - {"$__rate_interval"}
    assert used <= variables


def test_the_rules_are_those_of_the_route() -> None:
    text = {name: " ".join(expression.split()) for name, expression in expressions().items()}
    assert text["broadsheet:drift_psi:1h"].count(f", {FLOOR:g})") == 4
    assert text["BroadsheetDrift"] == f"broadsheet:drift_excess:1h >= {WARN:g} < {ALARM:g}"
    assert text["BroadsheetDriftAlarm"] == f"broadsheet:drift_excess:1h >= {ALARM:g}"
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("info", "warning", "critical")
            assert rule["annotations"]["summary"]


@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool, which comes with Prometheus")
def test_prometheus_computes_the_same_index(tmp_path: Path) -> None:
    """Two replicas of one model, and a reference with an empty bin; every minute 10 texts come."""
    known, live = np.array([0.5, 0.3, 0.2, 0.0]), np.array([[4, 1, 0, 0], [1, 1, 2, 1]])
    series = []
    for i, share in enumerate(known):
        labels = f'version="v",feature="label",bin="{i}"'
        for replica in range(2):
            tags = f'{{{labels},replica="{replica}"}}'
            series.append({"series": f"broadsheet_drift_reference{tags}", "values": f"{share}x90"})
            series.append({"series": f"broadsheet_drift_bin_total{tags}", "values": f"0+{live[replica, i]}x90"})
    for replica in range(2):
        tags = f'{{version="v",replica="{replica}"}}'
        series.append({"series": f"broadsheet_drift_reference_rows{tags}", "values": "2000x90"})
        tags = f'{{version="v",feature="label",replica="{replica}"}}'
        series.append({"series": f"broadsheet_drift_rows_needed{tags}", "values": "143x90"})
    rows = live.sum() * 60
    index = psi(known, live.sum(0) / live.sum())
    chance = noise(3, rows, 2_000)
    expected = {"psi": index, "noise": chance, "excess": index - chance, "rows": rows}
    tests = [
        {"expr": f"abs(broadsheet:drift_{name}:1h - {value:.12f}) < bool 1e-9", "eval_time": "80m",
         "exp_samples": [{"labels": '{version="v",feature="label"}', "value": 1}]}
        for name, value in expected.items()
    ]  # fmt: skip
    alerts = [
        {"eval_time": "80m", "alertname": name, "exp_alerts": [
            {"exp_labels": {"severity": "warning", "version": "v", "feature": "label"}, "exp_annotations": {}}
        ] if name == "BroadsheetDriftAlarm" else []}
        for name in ("BroadsheetDriftAlarm", "BroadsheetDrift")
    ]  # fmt: skip
    for rule in (tree := yaml.safe_load(RULES.read_text()))["groups"][0]["rules"]:
        rule.pop("annotations", None)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(tree))
    content = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {"interval": "1m", "input_series": series, "promql_expr_test": tests, "alert_rule_test": alerts},
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(content))
    assert index - chance > ALARM
    for arguments in (["check", "rules", str(RULES)], ["test", "rules", str(tmp_path / "test.yaml")]):
        done = subprocess.run([str(PROMTOOL), *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
