"""``broadsheet evaluate``: score the test split, write ``metrics.json``, the report, and what goes with them."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyarrow.compute as pc
import yaml

from pipeline import cluster, console
from pipeline.config import Config
from pipeline.data.prepared import Head, Prepared
from pipeline.errors import UserError, WorkFailed
from pipeline.evaluate import (
    baseline,
    calibration,
    cascade,
    cascade_folder,
    data_report,
    energy,
    evidence,
    explain,
    golden,
    intervals,
    metrics,
    reference,
    report,
    slices,
    suspects,
)
from pipeline.evaluate.classifier import Classifier
from pipeline.evaluate.predict import predict_split
from pipeline.evaluate.predictions import Predictions
from pipeline.storage import Place
from pipeline.train import checkpoint, model_card

VERSION = 7  # raise it whenever the same checkpoint and data would give other files
MISTAKES = 20
SHOWN = 20  # suspects in the report; all of them are in the csv
SUSPECTS = "suspects.csv"
_IN_REPORT = ("test", "validation", "baseline", "cascade", "split", "intervals", "calibration", "slices", "energy")
TOKENS_COMPARED = 64
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
        UserError: the data has other labels than the checkpoint, or was tokenized with another tokenizer.
    """
    extra = extra or {}
    card = checkpoint.read_card(where)
    if card["labels"] != prepared.labels:
        raise UserError(
            f"{where} knows the labels {', '.join(card['labels'][:8])}; {prepared.place} has "
            f"{', '.join(prepared.labels[:8])}: evaluate with the data it was trained on"
        )
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
    # What serving reads may have been deleted because it was damaged: then it is made again.
    kept = (golden.FILE, reference.FILE, f"{cascade_folder.FOLDER}/{cascade_folder.FILE}")
    beside = [where / name for name in kept] if ours and prepared.rows("validation") else []
    if all(file.exists() for file in (metrics_file, report_file, *beside)):
        known = json.loads(metrics_file.read_text())
        if known.get("fingerprints") == mark and known["calibration"]["temperature"] == card["temperature"]:
            return Evaluated(known, metrics_file, report_file, suspects_file, True)
    split = "test" if prepared.rows("test") else "validation"
    if split != "test":
        console.warn(
            "evaluate",
            "no test rows: the figures are those of the validation split, which chose the checkpoint",
        )
    if not ours:
        _refuse_other_tokens(where, prepared, split)
    began = time.monotonic()
    seed = int(card["config"]["seed"])
    held_out = _scored(where, card, prepared, split, address)
    validation = held_out if split == "validation" else None
    if validation is None and prepared.rows("validation"):
        validation = _scored(where, card, Head.of(prepared, VALIDATION_ROWS), "validation", address)
    temperature, how = float(card["temperature"]), "as the checkpoint says: these are not its own validation rows"
    if ours and validation is not None:
        temperature, how = calibration.chosen_temperature(validation.labels, validation.logits, temperature)
    elif ours:
        how = "not fitted: no validation rows"
    probabilities = calibration.probabilities_of(held_out.logits, temperature)
    test = metrics.summary(held_out.labels, probabilities, prepared.labels)
    parts = slices.judge(probabilities.argmax(1) == held_out.labels, _parts(prepared, held_out))
    suspected, counted = _suspects(prepared, [s for s in (held_out, validation) if s], temperature, seed)
    classifier = Classifier.load(str(where))
    classifier.temperature = temperature
    wrong = mistakes(prepared, split, held_out.ids, held_out.labels, probabilities)
    near = evidence.examine(classifier, where, prepared, wrong, evidence_rows if ours else 0)
    explained = explain.of_sample(classifier, prepared, split, held_out.ids, held_out.labels, probabilities)
    training = card.get("training", {})
    apart = ours and validation is not None and validation is not held_out
    try:
        base = baseline.baseline(card, prepared, split, address, VALIDATION_ROWS if apart else 0)
    except WorkFailed as e:  # nobody asked for it: it must not cost the figures of the model that was
        console.warn("evaluate", f"no linear baseline: {e}")
        base = None
    linear = None if base is None else base.figures
    record, decisive = None, None
    if ours:
        tested, decisive = _both(base, held_out, validation, temperature)
        record = cascade.judge(classifier.version, base, decisive, tested)
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
        "rows": {**prepared.ledger["kept"], "trained_on": model_card.trained_rows(card, prepared)},
        "training": {k: v for k, v in training.items() if k != "history"},
        "fingerprints": mark,
        "checkpoint": str(where),
    }
    known_stages = {"train": float(training["seconds"])} if "seconds" in training else {}
    stages = known_stages | extra.get("stages", {}) | {"evaluate": time.monotonic() - began}
    figures["energy"] = energy.estimate(sum(stages.values()), cluster.connect(address))
    data_facts = data_report.facts(prepared, config.data)
    weak = [w for w in (baseline.warning(linear, test["accuracy"]), slices.warning(parts)) if w]
    page = report.write_html(
        {
            "title": f"{model_card.data_name(card)} · {card['config']['model']['name']}",
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
            "serve_command": f"broadsheet serve {out}",
        }
    )
    Predictions(held_out.ids, held_out.labels, probabilities, prepared.labels, split).save(out)
    suspects_file.write_text(suspects.to_csv(suspected))
    report_file.write_text(page)
    figures["seconds"] = stages
    if record is not None:  # other rows than its own say nothing of how it was made
        _note(where, {**card, "temperature": temperature}, figures, prepared)
        drift = None
        if validation is not None:
            texts = validation.data.table(validation.split, ["text"])["text"].slice(0, golden.ROWS).to_pylist()
            known = validation.logits - validation.logits.max(-1, keepdims=True)
            golden.Golden(texts, validation.labels, known.astype(np.float32)).save(where)
            probabilities = calibration.probabilities_of(validation.logits, temperature)
            _reference(classifier, validation, probabilities).save(where)
            if decisive is not None and record.threshold is not None:
                together, _ = decisive.together(record.temperature, record.threshold)
                drift = _reference(classifier, validation, together)
        cascade_folder.save(where, record, base, card, drift)
    metrics_file.write_text(json.dumps(figures, ensure_ascii=False, indent=1) + "\n")
    return Evaluated(figures, metrics_file, report_file, suspects_file, False)


@dataclass(frozen=True)
class _Scored:
    """Rows of a split with the checkpoint's logits at temperature 1, [rows, classes]."""

    split: str
    data: Prepared
    ids: list[str]
    labels: np.ndarray
    logits: np.ndarray


def _refuse_other_tokens(where: Place, prepared: Prepared, split: str) -> None:
    """Prepared data holds token ids: those of another tokenizer mean other words, and the figures nothing.

    Raises:
        UserError: some rows have other ids than the checkpoint gives their texts (where it cuts them does not count).
    """
    few = Head.of(prepared, TOKENS_COMPARED)
    rows = few.table(split, ["text", "input_ids"]).slice(0, TOKENS_COMPARED)
    ours = Classifier.load(str(where)).encode(rows["text"].to_pylist()).ids
    for text, theirs, ids in zip(rows["text"].to_pylist(), rows["input_ids"].to_pylist(), ours, strict=True):
        shared = min(len(theirs), len(ids)) - 1  # a text that is cut ends with a token of its own
        if list(theirs[:shared]) != [int(i) for i in ids[:shared]]:
            raise UserError(
                f"{prepared.place} was tokenized with another tokenizer than that of {where} (so “{text[:40]}”): the "
                "figures would mean nothing. 'broadsheet predict' classifies files with the checkpoint's own"
            )


def _scored(where: Place, card: dict[str, Any], prepared: Prepared, split: str, address: str | None) -> _Scored:
    ids, labels, probabilities = predict_split(prepared, split, where, address)
    return _Scored(split, prepared, ids, labels, calibration.logits_of(probabilities, float(card["temperature"])))


def _parts(prepared: Prepared, scored: _Scored) -> dict[str, dict[str, np.ndarray]]:
    """The slices of the rows that were scored."""
    lengths = pc.list_value_length(prepared.table(scored.split, ["input_ids"])["input_ids"]).to_numpy()
    twins: set[str] = set()
    if prepared.shards("duplicates"):
        table = prepared.table("duplicates", ["split", "kept_id", "kept_split"])
        aside = pc.and_(pc.equal(table["split"], "train"), pc.equal(table["kept_split"], scored.split))
        twins = set(table.filter(aside)["kept_id"].to_pylist())
    return slices.masks(scored.labels, prepared.labels, lengths, np.array([name in twins for name in scored.ids], bool))


def _suspects(
    prepared: Prepared, scored: list[_Scored], temperature: float, seed: int
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
    base: baseline.Baseline | None, held_out: _Scored, validation: _Scored | None, temperature: float
) -> tuple[cascade.Both | None, cascade.Both | None]:
    """Test and validation rows with what the linear model and the checkpoint say of them, as far as there are any."""

    def of(scored: _Scored | None, logits: np.ndarray | None) -> cascade.Both | None:
        if scored is None or logits is None:
            return None
        network = calibration.probabilities_of(scored.logits, temperature)
        return cascade.Both(scored.labels, logits.astype(np.float64), network)

    if base is None:
        return None, None
    if validation is held_out:
        return None, of(held_out, base.test)
    return of(held_out, base.test), of(validation, base.validation)


def _reference(classifier: Classifier, validation: _Scored, probabilities: np.ndarray) -> reference.Reference:
    """What drift is measured from: the rows take the way of a request, so that nothing but the texts can differ."""
    texts = validation.data.table(validation.split, ["text"])["text"].slice(0, reference.ROWS).to_pylist()
    encoded = classifier.encode(texts)
    return reference.make(
        classifier.labels, probabilities[: len(texts)], encoded.ids, encoded.truncated, classifier.unknown_id
    )


def _note(where: Place, card: dict[str, Any], figures: dict[str, Any], prepared: Prepared) -> None:
    """Leave the temperature and the model card in the checkpoint."""
    (where / checkpoint.CARD).write_text(json.dumps(card, ensure_ascii=False, indent=1) + "\n")
    (where / model_card.FILE).write_text(model_card.model_card(card, figures, prepared.ledger))


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
