"""A new data version: the rows of a run, what people said of them, and new rows from feedback, as Parquet files.

``<run>/version`` holds ``train``, ``validation`` and ``test``, which ``prepare`` reads as files of the three splits, so
that no row moves from one to another; ``feedback.csv`` with what became of each row of feedback, ``changes.csv`` with
the training rows that changed, and last of all ``version.json``: without it there is no version. It is made once per
run: what is said later is for the next one.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import spreadsheet
from pipeline.config import Config
from pipeline.data import corrections, dedup
from pipeline.data.prepared import Prepared
from pipeline.data.shards import read_parquet, write_parquet
from pipeline.errors import UserError, WorkFailed
from pipeline.retrain import feedback, merge
from pipeline.retrain.base import FILE, ORIGIN, VERSION, Run, read_version
from pipeline.storage import Place
from pipeline.train import batches

Suspects = Literal["ignore", "drop"]

SURE = 0.9  # least probability of another label at which --suspects drop leaves a row out
MOST = 0.05  # of a class' training rows
FEEDBACK = "feedback.parquet"  # named so that it comes before train-*: of nearly equal texts the first one is kept
FEEDBACK_COLUMNS = ("id", "text", "label", "received", "predicted", "note", "outcome")
CHANGES_COLUMNS = ("id", "text", "label", "new_label", "why")
TOLD = "feedback.csv"
CLEANING = ("min_chars", "max_chars", "extra_rules")  # of feedback, as of training rows
SHOWN = 500  # characters of a text in the csv files


@dataclass(frozen=True)
class Version:
    """A data version.

    Attributes:
        place: its folder.
        ledger: ``training_rows``, ``changed`` (why -> rows), ``feedback_rows``, ``outcomes`` (what -> rows).
        reused: whether it was there already.
        warnings: sentences, of one that was made just now.
    """

    place: Place
    ledger: dict[str, Any]
    reused: bool
    warnings: list[str]

    @property
    def learns(self) -> int:
        """In how many rows it differs from the run it comes from, those that were only left out not counted."""
        changed = self.ledger["changed"]
        left_out = changed.get(merge.LEFT_OUT, 0)
        return int(sum(changed.values()) - left_out + self.ledger["outcomes"].get(merge.NEW, 0))

    def config(self, config: Config) -> Config:
        """The configuration that trains on it. Its sample (``train.max_rows``) is drawn already."""
        folders = {f"data.{split}": (str(self.place / split),) for split in ("train", "validation", "test")}
        plain = {"data.dataset": "files", "data.format": "auto", "data.columns": (), "data.encoding": "utf-8"}
        none = {"data.fill_from": "", "data.corrections": "", "train.max_rows": None}
        return config.updated({**folders, **plain, **none})


def make(
    base: Run, config: Config, run: Place, folder: Place | None, suspects: Suspects, corrections_file: str = ""
) -> Version:
    """Make the version of a run, or find it made.

    Args:
        base: the run that it starts from.
        config: of the new run; its cleaning rules and ``train.max_rows`` count.
        run: the new run's folder.
        folder: where feedback lies, if there is some.
        suspects: what becomes of suspected wrong labels.
        corrections_file: corrections by the base's row ids, '' for none.

    Returns:
        The version; where it learns nothing, only what became of the feedback is left on the disk.

    Raises:
        UserError: feedback or corrections cannot be read or make no sense, or the run was begun with others.
    """
    place = run / VERSION
    given = config.data.model_copy(update={"corrections": corrections_file})
    made_of = {
        "base": str(base.place),
        "training": base.fingerprint,
        "feedback": "" if folder is None else str(folder),
        "suspects": suspects,
        "corrections": corrections.content(given),
        "max_rows": config.train.max_rows,
        "seed": config.seed if config.train.max_rows is not None else None,
        **{key: config.model_dump(mode="json")["data"][key] for key in CLEANING},
        "port": config.serve.port,  # for the same command to find the endpoint again; another one is no other data
    }
    files = feedback.files_of(folder) if folder is not None else []
    found = read_version(run)
    if found is not None:
        _check_same(found["made_of"], made_of, run)
        later = len({f.name for f in files} - set(found["files"]))
        came = f"{later:,} file{'s' if later > 1 else ''} of feedback came later"
        told = [f"{came}: train on what is new under another --name"] if later else []
        return Version(place, found["ledger"], True, told)
    changes = corrections.load(given)
    said_table = feedback.read(files) if files else None
    labels = base.prepared.labels
    texts: list[str] = []
    said: list[merge.Said] = []
    earlier = set((read_version(base.place) or {}).get("files", ()))
    if said_table is not None:
        texts, said = feedback.cleaned(said_table, config)
        names = (name.rsplit(":", 1)[0] for name in said_table["id"].to_pylist())
        said = [replace(one, earlier=name in earlier) for one, name in zip(said, names, strict=True)]
    by_id: dict[str, tuple[str, str | None]] = {}
    if changes is not None:
        corrections.check_labels(changes, dict.fromkeys(labels, 1))
        columns = (changes.labels.to_pylist(), changes.expected.to_pylist())
        by_id = dict(zip(changes.ids.to_pylist(), zip(*columns, strict=True), strict=True))
    doubted = _doubted(base) if suspects == "drop" else []
    job = merge.Merge(said, labels, by_id, set(doubted))
    place.delete()
    try:
        version = _write(base, config, place, job, said_table, texts)
    except UserError:
        _undo(place)
        raise
    version.warnings.extend(_warnings(job, version.ledger))
    if not version.learns:
        _undo(place)
        return version
    known = sorted(earlier | {f.name for f in files})
    content = {"root": base.root, "made_of": made_of, "files": known, "ledger": version.ledger}
    (place / FILE).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    return version


def _undo(place: Place) -> None:
    """Take back the rows; what became of each row of feedback stays, if that is known."""
    for split in ("train", "validation", "test"):
        (place / split).delete()
    for folder in (place, place.parent):
        if folder.is_vacant():
            folder.delete()


def _check_same(before: dict[str, Any], now: dict[str, Any], run: Place) -> None:
    flags = {
        "base": "--from-feedback", "training": "--from-feedback", "feedback": "serve.feedback",
        "suspects": "--suspects", "corrections": "data.corrections", "max_rows": "train.max_rows", "seed": "seed",
        **{key: f"data.{key}" for key in CLEANING},
    }  # fmt: skip
    for key, flag in flags.items():
        if key in before and before[key] != now[key]:
            said = f"{before.get(key)} before, {now[key]} now" if key != "training" else "that run was trained again"
            raise UserError(f"{run} was begun with another {flag} ({said}): choose another --name")


def _doubted(base: Run) -> list[str]:
    """The suspects of the base's training rows that are left out.

    Raises:
        UserError: the base was not looked through.
    """
    file = base.place / "report" / "suspects.csv"
    if not file.is_file():
        raise UserError(f"--suspects drop: no such file: {file}; make it with 'broadsheet evaluate {base.place}'")
    rows = list(csv.DictReader(io.StringIO(file.read_text().removeprefix(spreadsheet.MARK), newline="")))
    classes = base.prepared.profile["classes"]["train"]
    return merge.suspects_to_drop(rows, classes, SURE, MOST)


def _rows(prepared: Prepared, split: str) -> Iterator[pa.Table]:
    """The rows of a split as they were read, shard by shard: ``id``, ``text``, ``label`` (names)."""
    names = pa.array(prepared.labels, pa.string())
    for shard in prepared.shards(split):
        table = read_parquet(shard).select(["id", "text", "label", "augmentation"])
        table = table.filter(pc.is_null(table["augmentation"])).drop_columns(["augmentation"]).combine_chunks()
        if table.num_rows:
            yield table.set_column(2, "label", names.take(table["label"].combine_chunks()))


def _write(
    base: Run, config: Config, place: Place, job: merge.Merge, said_table: pa.Table | None, texts: list[str]
) -> Version:
    changes: list[dict[str, str]] = []
    for split in ("validation", "test"):
        if not base.prepared.rows(split):
            raise UserError(f"{base.place} has no {split} rows, so what is trained again cannot be compared with it")
        for i, table in enumerate(_rows(base.prepared, split)):
            columns = table.to_pydict()
            job.held_out(columns["id"], [dedup.text_key(t) for t in columns["text"]], columns["label"])
            ids = [base.origins.get(name, name) for name in columns["id"]]
            _put(place / split / f"{split}-{i:05d}.parquet", config, columns["text"], columns["label"], ids)
    sampled = _sampled(base.prepared, config)
    kept: Counter[str] = Counter()
    start = 0
    for i, table in enumerate(_rows(base.prepared, "train")):
        columns = table.to_pydict()
        keys = [dedup.text_key(t) for t in columns["text"]]
        mask = None if sampled is None else sampled[start : start + len(keys)].tolist()
        start += len(keys)
        changed = {c.row: c for c in job.train(columns["id"], keys, columns["label"], mask)}
        out: dict[str, list[str]] = {"text": [], "label": [], "id": []}
        for row, name in enumerate(columns["id"]):
            change, text, label = changed.get(row), columns["text"][row], columns["label"][row]
            if change is not None and change.why != merge.LEFT_OUT:
                new = {"id": name, "text": text[:SHOWN], "label": label, "new_label": change.label, "why": change.why}
                changes.append(new)
            label = label if change is None else change.label
            if label:
                kept[label] += 1
                for key, value in (("text", text), ("label", label), ("id", name)):
                    out[key].append(value)
        if out["id"]:
            _put(place / "train" / f"train-{i:05d}.parquet", config, out["text"], out["label"], out["id"])
    outcomes, new_rows = job.finish()
    if new_rows:
        assert said_table is not None
        new_rows = sorted(new_rows, key=lambda i: -job.said[i].when)  # of nearly equal texts the latest counts, too
        ids = [said_table["id"][i].as_py() for i in new_rows]
        new_labels = [job.said[i].label for i in new_rows]
        kept.update(new_labels)
        _put(place / "train" / FEEDBACK, config, [texts[i] for i in new_rows], new_labels, ids)
    told = _told(said_table, outcomes)
    (place / TOLD).write_text(spreadsheet.to_csv(FEEDBACK_COLUMNS, told, ("text", "predicted", "note")))
    (place / "changes.csv").write_text(spreadsheet.to_csv(CHANGES_COLUMNS, changes, ("text",)))
    if lost := [label for label in base.prepared.labels if not kept[label]]:
        raise UserError(
            f"no training row of '{lost[0]}' would be left: mend the feedback or the corrections first; {place / TOLD} "
            "says what became of each row"
        )
    counts = Counter(outcomes)
    ledger: dict[str, Any] = {
        "training_rows": job.read,
        "changed": dict(sorted(job.rows.items())),
        "kept": sum(kept.values()) - counts[merge.NEW],
        "feedback_rows": len(outcomes),
        "outcomes": dict(sorted(counts.items())),
    }
    gone = sum(job.rows[why] for why in (merge.DROPPED, merge.SUSPECT, merge.LEFT_OUT))
    if ledger["training_rows"] != ledger["kept"] + gone:
        raise WorkFailed(f"the version does not add up: {ledger}. This is a bug in Broadsheet")
    return Version(place, ledger, False, [])


def _sampled(prepared: Prepared, config: Config) -> np.ndarray | None:
    """Which training rows ``train.max_rows`` takes: those that the base was trained on, if it took as many of the same.

    Drawn here, because a draw among all rows would leave feedback out.
    """
    if config.train.max_rows is None:
        return None
    table = prepared.table("train", ["label", "augmentation"])
    labels = table.filter(pc.is_null(table["augmentation"]))["label"].to_numpy().astype(np.int64)
    mask = np.zeros(len(labels), bool)
    mask[batches.sample(labels, config.train.max_rows, config.seed)] = True
    return mask


def _put(file: Place, config: Config, texts: list[str], labels: list[str], ids: list[str]) -> None:
    """Write rows under the column names of the configuration; a text of several columns lies in the first."""
    columns = {name: pa.array([None] * len(texts), pa.string()) for name in config.data.text}
    columns[config.data.text[0]] = pa.array(texts, pa.string())
    columns |= {config.data.label: pa.array(labels, pa.string()), ORIGIN: pa.array(ids, pa.string())}
    write_parquet(pa.table(columns), file)


def _told(table: pa.Table | None, outcomes: list[str]) -> list[dict[str, Any]]:
    if table is None:
        return []
    rows = table.to_pylist()
    return [
        row | {"text": (row["text"] or "")[:SHOWN], "outcome": outcome}
        for row, outcome in zip(rows, outcomes, strict=True)
    ]


def _warnings(job: merge.Merge, ledger: dict[str, Any]) -> list[str]:
    said = []
    if n := ledger["outcomes"].get(merge.DISPUTES, 0):
        said.append(
            f"{n:,} rows of feedback dispute the label of a validation or test row, which stays as it is, or nothing "
            "could be compared: if they are right, correct the data of the first run"
        )
    if ids := job.corrections_held_out:
        said.append(
            f"{corrections.named(ids)} left alone: validation and test rows stay as they are (data.corrections)"
        )
    if ids := job.corrections_unmet:
        said.append(f"{corrections.named(ids)}: no such row (data.corrections)")
    if ids := job.corrections_stale:
        said.append(f"{corrections.named(ids)} left alone: the label is not the one that was judged (data.corrections)")
    return said
