"""``broadsheet evaluate``: score the test split, write ``metrics.json``, the report, and what goes with them."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyarrow.compute as pc
import yaml

from pipeline import cluster, console
from pipeline.config import Config
from pipeline.data.prepared import Head, Prepared
from pipeline.data.split import SMALLEST_SPLIT_CLASS
from pipeline.errors import UserError, WorkFailed
from pipeline.evaluate import (
    baseline,
    calibration,
    cascade,
    companions,
    data_report,
    energy,
    evidence,
    explain,
    golden,
    intervals,
    metrics,
    predictions,
    report,
    slices,
    suspects,
)
from pipeline.evaluate.classifier import Classifier
from pipeline.evaluate.scored import Scored, learnt, learnt_warning, score
from pipeline.storage import Place
from pipeline.train import checkpoint, model_card

VERSION = 8  # raise it whenever the same checkpoint and data would give other files
MISTAKES = 20
SHOWN = 20  # suspects in the report; all of them are in the csv
SUSPECTS = "suspects.csv"
_IN_REPORT = ("test", "validation", "baseline", "cascade", "split", "intervals", "calibration", "slices", "energy")
VALIDATION_ROWS = 2_000  # or a shard more: enough for one temperature, and it costs as much as so many test rows


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation wrote."""

    metrics: dict[str, Any]
    metrics_file: Place
    report_file: Place
    suspects_file: Place
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
        out: the folder that gets ``metrics.json``, ``predictions.parquet``, ``report/index.html`` and
            ``report/suspects.csv``. The checkpoint gets its temperature, its model card, golden rows, what drift is
            measured from, and a cascade, if the data is its own.
        address: the Ray cluster.
        extra: for the report: ``data_line``, ``stages``; and ``evidence_rows`` of the configuration.

    Raises:
        UserError: the data has other labels than the checkpoint, or no rows to score.
    """
    extra = extra or {}
    card = checkpoint.read_card(where)
    if card["labels"] != prepared.labels:
        raise UserError(f"{_other_labels(where, card['labels'], prepared)}: evaluate with the data it was trained on")
    config = Config.model_validate(card["config"])
    evidence_rows = int(extra.get("evidence_rows", config.evaluate.evidence_rows))
    mark = {"training": card.get("training", {}).get("fingerprint"), "data": prepared.fingerprint}
    mark |= {"version": VERSION, "evidence_rows": evidence_rows}
    metrics_file, report_file, suspects_file = (
        out / "metrics.json",
        out / "report" / "index.html",
        out / "report" / SUSPECTS,
    )
    ours = card.get("data_fingerprint") == prepared.fingerprint
    # Whatever was deleted, because it was damaged for one, is made again.
    made = [metrics_file, report_file, suspects_file, out / predictions.FILE]
    made += companions.files(where, prepared) if ours else []
    if all(file.exists() for file in made):
        known = json.loads(metrics_file.read_text())
        same = known.get("fingerprints") == mark and known["calibration"]["temperature"] == card["temperature"]
        if same and (known["evidence"] is None or (where / evidence.FILE).exists()):
            return Evaluated(known, metrics_file, report_file, suspects_file, True)
    refuse_without_rows(prepared)
    split = "test" if prepared.rows("test") else "validation"
    if split != "test":
        role = "which chose the checkpoint and its temperature" if ours else "since there are no others"
        console.warn("evaluate", f"no test rows: the figures are those of the validation split, {role}")
    unsure = None
    if not ours:
        found = learnt(card, prepared, split)
        unsure = learnt_warning(found, prepared.rows(split), split)
        if unsure:
            console.warn("evaluate", unsure)
    began = time.monotonic()
    seed = int(card["config"]["seed"])
    held_out = score(where, card, prepared, split, address, not ours)
    validation = held_out if split == "validation" else None
    if validation is None and prepared.rows("validation"):
        validation = score(where, card, Head.of(prepared, VALIDATION_ROWS), "validation", address, not ours)
    temperature, how = float(card["temperature"]), "as the checkpoint says: these are not its own validation rows"
    if ours and validation is not None:
        temperature, how = calibration.chosen_temperature(validation.labels, validation.logits, temperature)
    elif ours:
        how = "not fitted: no validation rows"
    probabilities = calibration.probabilities_of(held_out.logits, temperature)
    test = metrics.summary(held_out.labels, probabilities, prepared.labels)
    parts = slices.judge(probabilities.argmax(1) == held_out.labels, _parts(prepared, held_out, ours))
    suspected, counted = _suspects(prepared, [s for s in (held_out, validation) if s], temperature, seed)
    classifier = Classifier.load(str(where))
    classifier.temperature = temperature
    wrong = mistakes(prepared, split, held_out.ids, held_out.labels, probabilities)
    near = evidence.examine(classifier, where, prepared, wrong, evidence_rows) if ours else None
    explained = explain.of_sample(classifier, prepared, split, held_out.ids, held_out.labels, probabilities)
    training = card.get("training", {})
    apart = ours and validation is not None and validation is not held_out
    try:
        # Fitted on other rows than the checkpoint was, it would tell nothing of what the checkpoint is worth.
        base = baseline.baseline(card, prepared, split, address, VALIDATION_ROWS if apart else 0) if ours else None
    except WorkFailed as e:  # nobody asked for it: it must not cost the figures of the model that was
        console.warn("evaluate", f"no linear baseline: {e}")
        base = None
    linear = None if base is None else base.figures
    record, decisive = None, None
    if ours:
        tested, decisive = _both(base, held_out, validation, temperature)
        checked: list[int] = []
        if validation is not None:
            checked = companions.golden_rows(validation, seed)[: golden.CHECKED].tolist()
        record = cascade.judge(classifier.version, base, decisive, tested, checked)
    figures = {
        "test": test,
        "validation": card["metrics"]["validation"],
        "intervals": intervals.of_confusion(test["confusion"], prepared.labels, seed),
        "baseline": linear,
        "cascade": None if record is None else record.figures(),
        "calibration": calibration.report(held_out.labels, held_out.logits, 1.0, temperature, how),
        "slices": parts,
        "suspects": counted,
        "evidence": near,
        "dataset": card["config"]["data"]["dataset"],
        "split": split,
        "rows": {**prepared.ledger["kept"], "trained_on": model_card.trained_rows(card, prepared) if ours else None},
        "training": {k: v for k, v in training.items() if k != "history"},
        "fingerprints": mark,
        "checkpoint": str(where),
    }
    known_stages = {"train": float(training["seconds"])} if "seconds" in training else {}
    stages = known_stages | extra.get("stages", {}) | {"evaluate": time.monotonic() - began}
    figures["energy"] = energy.estimate(stages, {"train": training.get("cluster")}, cluster.connect(address))
    data_facts = data_report.facts(prepared, config.data)
    weak = [w for w in (unsure, baseline.warning(linear, test["accuracy"]), slices.warning(parts)) if w]
    about = model_card.data_name(card) if ours else f"{model_card.data_name(card)} on {prepared.place}"
    page = report.write_html(
        {
            "title": f"{about} · {card['config']['model']['name']}",
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "version": card["versions"]["broadsheet"],
            **{k: figures[k] for k in _IN_REPORT},
            "history": training.get("history"),
            "loss_curve": [[h["step"], h["loss"]] for h in training.get("history", [])],
            **data_facts,
            "warnings": weak + data_facts["warnings"],
            "trained_on": figures["rows"]["trained_on"],
            "data_line": extra.get("data_line"),
            "mistakes": wrong,
            "evidence": near,
            "suspects": {"counted": counted, "rows": suspected[:SHOWN], "file": SUSPECTS},
            "explained": explained,
            "stages": stages,
            "config": yaml.safe_dump(card["config"], sort_keys=False, allow_unicode=True),
            "environment": {**card["versions"], "seed": seed},
            "checkpoint": str(where),
            "serve_command": f"broadsheet serve {shlex.quote(str(where))}",
        }
    )
    said = predictions.Predictions(held_out.ids, held_out.labels, probabilities, prepared.labels, split)
    replace(said, training=mark["training"], data=mark["data"]).save(out)
    suspects_file.write_text(suspects.to_csv(suspected))
    report_file.write_text(page)
    figures["seconds"] = stages
    if record is not None:  # other rows than its own say nothing of how it was made
        companions.leave(classifier, where, prepared, figures, validation, (record, base, decisive), seed)
    metrics_file.write_text(json.dumps(figures, ensure_ascii=False, indent=1) + "\n")
    return Evaluated(figures, metrics_file, report_file, suspects_file, False)


def refuse_without_rows(prepared: Prepared) -> None:
    """Figures need rows that were held out.

    Raises:
        UserError: there are none.
    """
    if not prepared.rows("test") and not prepared.rows("validation"):
        raise UserError(
            f"{prepared.place} has no rows to evaluate on: of a class with under {SMALLEST_SPLIT_CLASS} different "
            "texts none are held out. Add rows, or name files of your own with --validation and --test"
        )


def _other_labels(where: Place, ours: list[str], prepared: Prepared) -> str:
    theirs = prepared.labels
    if len(ours) != len(theirs):
        counts = f"{len(ours):,} labels, {prepared.place} has {len(theirs):,}"
        odd = sorted(set(ours) ^ set(theirs))
        return f"{where} knows {counts}" + (f" ('{odd[0]}' is not among both)" if odd else "")
    i = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    return f"label {i} of {where} is '{ours[i]}', that of {prepared.place} is '{theirs[i]}'"


def _parts(prepared: Prepared, scored: Scored, ours: bool) -> dict[str, dict[str, np.ndarray]]:
    """The slices of the rows that were scored."""
    lengths = pc.list_value_length(prepared.table(scored.split, ["input_ids"])["input_ids"]).to_numpy()
    twins: set[str] = set()
    if ours and prepared.shards("duplicates"):
        table = prepared.table("duplicates", ["split", "kept_id", "kept_split"])
        aside = pc.and_(pc.equal(table["split"], "train"), pc.equal(table["kept_split"], scored.split))
        twins = set(table.filter(aside)["kept_id"].to_pylist())
    return slices.masks(scored.labels, prepared.labels, lengths, np.array([name in twins for name in scored.ids], bool))


def _suspects(
    prepared: Prepared, scored: list[Scored], temperature: float, seed: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Suspected labels, the most suspect first, and how many of how many rows in each split.

    Held-out rows are judged by the checkpoint, which has not learnt from them; training rows by a linear model in
    cross-validation.
    """
    rows, counted = [], {}
    for one in {s.split: s for s in scored}.values():
        probabilities = calibration.probabilities_of(one.logits, temperature)
        found = suspects.find(one.labels, probabilities)
        texts = one.data.table(one.split, ["text"])["text"]
        rows += suspects.listed(one.split, one.ids, texts, one.labels, probabilities, found, prepared.labels)
        counted[one.split] = suspects.facts(found, len(one.ids))
    console.say("evaluate", "looking for wrong labels among the training rows")
    of_train, counted["train"] = suspects.of_train(prepared, seed)
    rows += of_train
    return sorted(rows, key=lambda row: row["margin"]), counted


def _both(
    base: baseline.Baseline | None, held_out: Scored, validation: Scored | None, temperature: float
) -> tuple[cascade.Both | None, cascade.Both | None]:
    """Test and validation rows with what the linear model and the checkpoint say of them, as far as there are any."""

    def of(scored: Scored | None, logits: np.ndarray | None) -> cascade.Both | None:
        if scored is None or logits is None:
            return None
        network = calibration.probabilities_of(scored.logits, temperature)
        return cascade.Both(scored.labels, logits.astype(np.float64), network)

    if base is None:
        return None, None
    if validation is held_out:
        return None, of(held_out, base.test)
    return of(held_out, base.test), of(validation, base.validation)


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
            "text": texts[int(i)].as_py(),
            "truth": prepared.labels[int(labels[i])],
            "predicted": prepared.labels[int(predicted[i])],
            "confidence": float(confidence[i]),
        }
        for i in wrong
    ]
