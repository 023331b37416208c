"""``broadsheet evaluate``: score the test split, write ``metrics.json`` and ``report/index.html``."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
import yaml

from pipeline import console
from pipeline.config import Config
from pipeline.data.prepared import Prepared
from pipeline.errors import UserError
from pipeline.evaluate import data_report, metrics, report
from pipeline.evaluate.predict import predict_split
from pipeline.storage import Place
from pipeline.train import checkpoint

MISTAKES = 20


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation wrote."""

    metrics: dict[str, Any]
    metrics_file: Place
    report_file: Place
    reused: bool


def evaluate(
    where: Place,
    prepared: Prepared,
    out: Place,
    address: str | None = None,
    extra: dict[str, Any] | None = None,
) -> Evaluated:
    """Evaluate a checkpoint on the test split of prepared data, or find it done.

    Args:
        where: the checkpoint.
        prepared: the data; its labels must be the checkpoint's.
        out: the folder that gets ``metrics.json`` and ``report/index.html``.
        address: the Ray cluster.
        extra: for the report: ``data_line``, ``stages``.
    """
    extra = extra or {}
    card = checkpoint.read_card(where)
    if card["labels"] != prepared.labels:
        raise UserError(
            f"{where} knows the labels {', '.join(card['labels'][:8])}; {prepared.place} has "
            f"{', '.join(prepared.labels[:8])}: evaluate with the data it was trained on"
        )
    mark = {"training": card.get("training", {}).get("fingerprint"), "data": prepared.fingerprint}
    metrics_file, report_file = out / "metrics.json", out / "report" / "index.html"
    if metrics_file.exists() and report_file.exists():
        known = json.loads(metrics_file.read_text())
        if known.get("fingerprints") == mark:
            return Evaluated(known, metrics_file, report_file, True)
    split = "test" if prepared.rows("test") else "validation"
    if split != "test":
        console.warn(
            "evaluate",
            "no test rows: the figures are those of the validation split, which chose the checkpoint",
        )
    began = time.monotonic()
    ids, labels, probabilities = predict_split(prepared, split, where, address)
    test = metrics.summary(labels, probabilities, prepared.labels)
    seconds = time.monotonic() - began
    training = card.get("training", {})
    figures = {
        "test": test,
        "validation": card["metrics"]["validation"],
        "dataset": card["config"]["data"]["dataset"],
        "split": split,
        "rows": {**prepared.ledger["kept"], "trained_on": trained_rows(card, prepared)},
        "training": {k: v for k, v in training.items() if k != "history"},
        "fingerprints": mark,
        "checkpoint": str(where),
    }
    stages = {**extra.get("stages", {}), "evaluate": seconds}
    limits = Config.model_validate(card["config"]).data
    page = report.write_html(
        {
            "title": f"{card['config']['data']['dataset']} · {card['config']['model']['name']}",
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "version": card["versions"]["broadsheet"],
            "test": test,
            "validation": figures["validation"],
            "history": training.get("history"),
            "loss_curve": [[h["step"], h["loss"]] for h in training.get("history", [])],
            **data_report.facts(prepared, limits),
            "trained_on": figures["rows"]["trained_on"],
            "data_line": extra.get("data_line"),
            "mistakes": mistakes(prepared, split, ids, labels, probabilities),
            "stages": stages,
            "config": yaml.safe_dump(card["config"], sort_keys=False, allow_unicode=True),
            "environment": card["versions"],
            "checkpoint": str(where),
            "serve_command": f"broadsheet serve {out}",
        }
    )
    report_file.write_text(page)
    figures["seconds"] = stages
    metrics_file.write_text(json.dumps(figures, ensure_ascii=False, indent=1) + "\n")
    return Evaluated(figures, metrics_file, report_file, False)


def trained_rows(card: dict[str, Any], prepared: Prepared) -> int:
    """Rows the checkpoint was trained on: the train split or the configured sample of it."""
    limit = card["config"]["train"]["max_rows"]
    rows = prepared.rows("train")
    return rows if limit is None else min(rows, limit)


def mistakes(
    prepared: Prepared, split: str, ids: list[str], labels: np.ndarray, probabilities: np.ndarray
) -> list[dict[str, Any]]:
    """The wrong predictions with the highest confidence: the model's blind spots, or wrong labels."""
    predicted = probabilities.argmax(-1)
    confidence = probabilities.max(-1)
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]
    texts = prepared.table(split, ["text"])["text"]
    return [
        {
            "id": ids[i],
            "text": texts[int(i)].as_py()[:400],
            "truth": prepared.labels[int(labels[i])],
            "predicted": prepared.labels[int(predicted[i])],
            "confidence": float(confidence[i]),
        }
        for i in wrong
    ]
