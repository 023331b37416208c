"""Rows of which a part was labelled wrongly, the feedback that says so, and runs of a linear model on them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
from preparing import write_csv

from pipeline import stages
from pipeline.config import Config, load
from pipeline.data.prepared import Prepared
from pipeline.evaluate.predictions import Predictions
from pipeline.storage import Place
from serve import feedback

# Each label has texts of two kinds; those of the second kind were mistaken for the other label's.
WORDS = {
    ("money", 0): ["bank", "market", "shares", "profit", "price", "trade", "oil", "stock", "fund", "growth"],
    ("money", 1): ["coin", "wallet", "miner", "token", "ledger", "chain", "hash", "block", "node", "swap"],
    ("sport", 0): ["match", "goal", "team", "coach", "season", "league", "player", "cup", "score", "win"],
    ("sport", 1): ["chess", "gambit", "rook", "bishop", "elo", "blitz", "pawn", "castle", "mate", "queen"],
}
OTHER = {"money": "sport", "sport": "money"}
START = datetime(2026, 1, 1, tzinfo=timezone.utc)


def texts(rows: int, seed: int) -> list[tuple[str, str, int]]:
    """Texts with their right labels and kinds, all in turn."""
    generator = random.Random(seed)
    kinds = list(WORDS)
    found = []
    for i in range(rows):
        label, kind = kinds[i % 4]
        words = [*generator.choices(WORDS[label, kind], k=9), f"{generator.getrandbits(24):x}"]
        found.append((" ".join(words), label, kind))
    return found


def mistaken(rows: Sequence[tuple[str, str, int]]) -> list[tuple[str, str]]:
    """The rows as they were labelled: the second kind wrongly."""
    return [(text, OTHER[label] if kind else label) for text, label, kind in rows]


def config(folder: Path, name: str, *sets: str) -> Config:
    """A linear model of 240 rows; validation is drawn from them, the 160 test rows are labelled right."""
    train = write_csv(folder / "rows.csv", mistaken(texts(240, 1)))
    test = write_csv(folder / "test.csv", [(text, label) for text, label, _ in texts(160, 2)])
    flags = {"storage": str(folder / "runs"), "name": name, "data.train": (train,), "data.test": (test,)}
    return load(None, ["model.name=linear", "data.profile_rows=0", *sets], flags)


def say(folder: Path, items: Sequence[tuple[str, str]], minutes: int = 0) -> None:
    """Feedback as the endpoint keeps it, received so many minutes after ``START``."""
    when = START + timedelta(minutes=minutes)
    feedback.write(Place.of(folder), [{"text": text, "label": label, "received": when} for text, label in items])


def corrected(count: int, new: int) -> list[tuple[str, str]]:
    """Right labels for so many training rows of the second kind, and as many new texts of it as asked for."""
    known = [(text, label) for text, label, kind in texts(240, 1) if kind]
    fresh = [(text, label) for text, label, kind in texts(8 * new, 3) if kind]
    return known[:count] + fresh[:new]


def trained(settings: Config) -> Path:
    """A run of that configuration, not evaluated; no Ray is started."""
    stages.train(settings, True, None)
    return Path(settings.storage) / settings.name


def examined(run: Path, wrong: int) -> None:
    """What evaluation leaves of a run's test rows, as if it had classified so many wrongly."""
    card = json.loads((run / "checkpoint" / "broadsheet.json").read_text())
    prepared = Prepared.open(card["prepared"])
    table = prepared.table("test", ["id", "label"])
    labels = table["label"].to_numpy().astype(np.int64)
    scores = np.full((len(labels), 2), 0.1)
    scores[np.arange(len(labels)), np.where(np.arange(len(labels)) < wrong, 1 - labels, labels)] = 0.9
    Predictions(table["id"].to_pylist(), labels, scores, prepared.labels, "test").save(Place.of(run))
    marks = {"training": card["training"]["fingerprint"], "data": prepared.fingerprint}
    (run / "metrics.json").write_text(json.dumps({"fingerprints": marks}))


def rows(prepared: Prepared, split: str) -> dict[str, str]:
    """Labels by text, of a split."""
    table = prepared.table(split, ["text", "label"])
    return {t: prepared.labels[i] for t, i in zip(*table.to_pydict().values(), strict=True)}
