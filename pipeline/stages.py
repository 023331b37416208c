"""The verbs of the pipeline as a person meets them: resolve, do the work, print what was written and what is next."""

from __future__ import annotations

import json
import shlex
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from pipeline import alone, console
from pipeline import config as configuration
from pipeline.config import Config
from pipeline.data import gates, named
from pipeline.data import prepare as preparation
from pipeline.data.prepared import Prepared
from pipeline.errors import UserError
from pipeline.model import source
from pipeline.model.source import ModelSource
from pipeline.storage import Place

BUSY = ("the run", "give this one another --name")  # for a command that would write to a run while another one does


@dataclass
class Job:
    """A job on its way through the stages.

    Attributes:
        config: resolved; saved as ``config.yaml`` in the run's folder.
        model: what training starts from.
        data_line: which data is used and why.
        seconds: per stage done so far.
        prepared, checkpoint: set by the stages that make them.
    """

    config: Config
    model: ModelSource
    data_line: str
    seconds: dict[str, float] = field(default_factory=dict)
    prepared: Prepared | None = None
    checkpoint: Place | None = None

    @property
    def run(self) -> Place:
        """The run's folder."""
        return Place.of(self.config.storage) / self.config.name


def begin(config: Config, short: bool) -> Job:
    """Resolve the data set and the model, and say which were chosen."""
    given = config
    config, line = named.resolve(config)
    console.say("data", line)
    if short:
        changes = named.short_job(given, config.data.dataset)
        if changes:
            config = config.updated(changes)
            words = ", ".join(f"{k}={v}" for k, v in changes.items())
            console.say("data", f"short job ({words}); --full takes all rows and epochs")
    if recipe := source.recipe(given):
        config = config.updated(recipe)
    run = Place.of(config.storage) / config.name
    if config.data.corrections and str(Place.of(config.data.corrections)).startswith(f"{run}/"):
        raise UserError(
            f"data.corrections: copy {config.data.corrections} out of {run} first: evaluating this run writes over it"
        )
    preparation.plan(config)  # a wrong file is told before a model is fetched
    model = source.resolve(config.model.name)
    return Job(config, model, line)


def run(config: Config, full: bool, address: str | None) -> Job:
    """Prepare, train and evaluate."""
    from pipeline.train import teacher

    job = begin(config, not full)
    job.config = teacher.check(job.config, job.model.kind)
    with alone.refusing(job.run, *BUSY):
        make_prepared(job, address)
        learn(job, address)
    return job


def learn(job: Job, address: str | None) -> None:
    """Train on what is prepared, and evaluate."""
    from pipeline.evaluate import evaluate as evaluation

    assert job.prepared is not None
    evaluation.refuse_without_rows(job.prepared)  # before the training is paid for
    _train(job, address)
    _evaluate(job, address)


def prepare(config: Config, address: str | None) -> None:
    """``broadsheet prepare``."""
    job = begin(config, False)
    make_prepared(job, address)
    if config.data.profile_rows:
        from pipeline.evaluate import data_report

        assert job.prepared is not None
        name = job.config.data.dataset if job.config.data.dataset != "files" else config.name
        page = data_report.write(job.prepared, job.config.data, name, job.data_line, job.run / "data")
        console.say("prepare", f"what is in it -> {page}")
    console.say("next", f"broadsheet train{flags(config)}")


def train(config: Config, full: bool, address: str | None) -> None:
    """``broadsheet train``."""
    from pipeline.train import teacher

    job = begin(config, not full)
    job.config = teacher.check(job.config, job.model.kind)
    with alone.refusing(job.run, *BUSY):
        make_prepared(job, address)
        _train(job, address)
    console.say("next", f"broadsheet evaluate {job.run}")


def evaluate(config: Config, where: str | None, prepared: str | None, out: str | None, address: str | None) -> None:
    """``broadsheet evaluate``: of a run, or of any checkpoint on any prepared data."""
    from pipeline.train import checkpoint

    run = where or str(Place.of(config.storage) / config.name)
    found = checkpoint.find(run)
    card = checkpoint.read_card(found)
    data = Prepared.open(prepared or card["prepared"])
    own = found.parent if found.name in ("checkpoint", "best") else found
    ours = data.fingerprint == card.get("data_fingerprint")
    if not ours and not out:
        raise UserError(
            f"{data.place} is not what {found} was trained on: name a folder for these figures with --out, or they "
            "would take the place of the run's own"
        )
    target = Place.of(out) if out else own
    with ExitStack() as held:
        # Figures of its own data go to the checkpoint, too.
        for folder in sorted({str(target), str(own)} if ours else {str(target)}):
            held.enter_context(alone.refusing(Place.of(folder), *BUSY))
        _show_evaluation(found, data, target, address, {"evidence_rows": config.evaluate.evidence_rows})
    console.say("next", f"broadsheet serve {run}")


def compare(config: Config, runs: tuple[str, str], out: str | None) -> None:
    """``broadsheet evaluate --compare``: two evaluated runs on the same rows."""
    from pipeline.evaluate import compare as comparison
    from pipeline.evaluate.predictions import Predictions

    a = Predictions.load(runs[0])
    other = Predictions.load(runs[1])
    b = comparison.aligned(a, other, runs)
    if None not in (a.data, other.data) and a.data != other.data:
        said = (
            "their data was prepared differently: the rows have the same ids and labels, but perhaps not the same texts"
        )
        console.warn("compare", said)
    result = comparison.compare(a, b, config.seed)
    show_comparison(result, runs)
    console.say("compare", comparison.verdict(result, runs))
    if out:
        file = Place.of(out) / "comparison.json"
        facts = {"runs": list(runs), "verdict": comparison.verdict(result, runs), **result}
        file.write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n")
        console.say("compare", f"-> {file}")


def show_comparison(result: dict[str, Any], names: tuple[str, str]) -> None:
    """Print two sides' figures (``evaluate.compare``)."""
    from pipeline.evaluate import compare as comparison

    console.table(
        f"{result['rows']:,} {result['split']} rows", ("figure", *names, "difference"), comparison.table(result)
    )
    low, high = result["difference_macro_f1"]["interval"]
    only = f"{result['only_a']:,} rows only {names[0]} gets right, {result['only_b']:,} only {names[1]}"
    console.say("compare", f"{only}; macro F1 differs by {result['difference_macro_f1']['value']:+.4f} "
                f"(95% {low:+.4f} to {high:+.4f})")  # fmt: skip


def predict(config: Config, files: tuple[str, ...], where: str | None, out: str, address: str | None) -> None:
    """``broadsheet predict``."""
    from pipeline.evaluate.predict_files import predict_files
    from pipeline.train import checkpoint

    found = checkpoint.find(where or str(Place.of(config.storage) / config.name))
    began = time.monotonic()
    with alone.refusing(Place.of(out), "the folder", "give this one another --out"):
        total = predict_files(files, found, Place.of(out), config, address)
    if total["reused"]:
        console.say("predict", "unchanged, all rows are classified already")
    console.say("predict", f"{total['rows']:,} rows in {console.seconds(time.monotonic() - began)} -> {total['out']}")
    if total["errors"]:
        console.warn("predict", f"{total['errors']:,} rows could not be classified; their 'error' column says why")


def make_prepared(job: Job, address: str | None, note: bool = True) -> None:
    """The prepare stage: find or make the prepared data, and print its ledger.

    Args:
        job: of the run.
        address: the Ray cluster.
        note: whether ``config.yaml`` and ``data.json`` are written to the run's folder.
    """
    began = time.monotonic()
    prepared, reused = preparation.prepare(job.config, job.model, address)
    job.prepared = prepared
    job.seconds["prepare"] = time.monotonic() - began
    ledger = prepared.ledger
    kept = ledger["kept"]
    if reused:
        console.say("prepare", f"unchanged, reusing {prepared.place}")
    console.say("prepare", f"{ledger['read']:,} rows read = {sum(kept.values()):,} kept + "
                f"{sum(ledger['rejected'].values()):,} rejected + {ledger['duplicates']:,} duplicates")  # fmt: skip
    console.say("prepare", f"train {kept['train']:,}, validation {kept['validation']:,}, test {kept['test']:,}; "
                f"{len(prepared.labels)} labels: {_some(prepared.labels)}")  # fmt: skip
    if ledger["rejected"]:
        console.say("prepare", "rejected: " + ", ".join(f"{n:,} {r}" for r, n in ledger["rejected"].items()))
    if ledger["duplicates"]:
        reasons = ledger["duplicates_by_reason"]
        console.say("prepare", "duplicates: " + ", ".join(f"{n:,} {r}" for r, n in reasons.items()))
    if ledger["augmented"]:
        made = ", ".join(f"{n:,} by {operation}" for operation, n in ledger["augmented"].items())
        console.say("prepare", f"changed copies of training rows: {made}")
    if prepared.profile["filled"]:
        filled = ", ".join(f"{n:,} from {way}" for way, n in prepared.profile["filled"].items())
        console.say("prepare", f"missing texts filled: {filled}")
    if changes := prepared.profile.get("corrections"):
        done = f"{changes['relabelled']:,} rows relabelled, {changes['dropped']:,} dropped"
        console.say("prepare", f"corrections: {done}")
    for concern in gates.concerns(job.config.data, ledger, prepared.profile["classes"]):
        console.warn("prepare", concern)
    for warning in prepared.profile["warnings"]:
        console.warn("prepare", warning)
    if not reused:
        console.say("prepare", f"{console.seconds(job.seconds['prepare'])} -> {prepared.place}")
    if note:
        leave_note(job)


def leave_note(job: Job) -> None:
    """Write the configuration, and which prepared data is used, to the run's folder."""
    assert job.prepared is not None
    (job.run / "config.yaml").write_text(configuration.dump(job.config))
    pointer = {"prepared": str(job.prepared.place), "ledger": job.prepared.ledger}
    (job.run / "data.json").write_text(json.dumps(pointer, ensure_ascii=False, indent=1) + "\n")


def _train(job: Job, address: str | None) -> None:
    from pipeline.train import trainer

    assert job.prepared is not None
    gates.refuse(job.config.data, job.prepared.ledger, job.prepared.profile["classes"])
    began = time.monotonic()
    trained = trainer.train(job.config, job.prepared, job.model, address, job.run)
    job.checkpoint = trained.checkpoint
    job.seconds["train"] = time.monotonic() - began
    best = max(trained.history, key=lambda h: (h["validation_macro_f1"], -h["step"]))
    if trained.reused:
        console.say("train", f"unchanged, reusing the finished training in {trained.checkpoint}")
        job.seconds["train"] = float(trained.summary["seconds"])
    score, seconds = best["validation_macro_f1"], console.seconds(trained.summary["seconds"])
    steps = f"step {best['step']:,} of {trained.summary['steps']:,}"
    console.say("train", f"best validation macro F1 {score:.4f} at {steps}, {seconds} -> {trained.checkpoint}")


def _evaluate(job: Job, address: str | None) -> None:
    assert job.prepared is not None
    assert job.checkpoint is not None
    extra = {"data_line": job.data_line, "stages": job.seconds, "evidence_rows": job.config.evaluate.evidence_rows}
    job.seconds |= _show_evaluation(job.checkpoint, job.prepared, job.run, address, extra)


def _show_evaluation(
    where: Place, prepared: Prepared, out: Place, address: str | None, extra: dict[str, Any]
) -> dict[str, float]:
    from pipeline.evaluate import baseline, cascade, report, slices
    from pipeline.evaluate import evaluate as evaluation

    done = evaluation.evaluate(where, prepared, out, address, extra)
    test = done.metrics["test"]
    if done.reused:
        console.say("evaluate", "unchanged, reusing the figures")
    header = ("class", "precision", "recall", "F1", "rows")
    console.table(f"{done.metrics['split']} split", header, report.terminal_rows(test))
    low, high = test["accuracy_interval"]
    console.say(
        "evaluate",
        f"accuracy {test['accuracy']:.4f} (95% {low:.4f} to {high:.4f}), macro F1 {test['macro_f1']:.4f}",
    )
    if linear := done.metrics["baseline"]:
        console.say("evaluate", baseline.line(linear, test["accuracy"]))
    if weak := baseline.warning(linear, test["accuracy"]):
        console.warn("evaluate", weak)
    if pair := done.metrics["cascade"]:
        console.say("evaluate", cascade.line(pair))
    scaling = done.metrics["calibration"]
    before, after = scaling["before"]["ece"], scaling["after"]["ece"]
    console.say("evaluate", f"calibration error {before:.4f}, at temperature {scaling['temperature']:g} {after:.4f} "
                f"({scaling['how']})")  # fmt: skip
    if weak := slices.warning(done.metrics["slices"]):
        console.warn("evaluate", weak)
    suspects = ", ".join(f"{c['suspects']:,} of {c['rows']:,} {s}" for s, c in done.metrics["suspects"].items())
    console.say("evaluate", f"suspected wrong labels: {suspects} rows -> {done.suspects_file}")
    console.say("evaluate", f"-> {done.metrics_file} and {done.report_file}")
    return {k: float(v) for k, v in done.metrics["seconds"].items()}


def _some(labels: list[str]) -> str:
    return ", ".join(labels[:10]) + (f" and {len(labels) - 10} more" if len(labels) > 10 else "")


def flags(config: Config) -> str:
    """The flags that say the same again, for the next command."""
    words: list[str] = []
    for flag, value, default in (("name", config.name, "default"), ("storage", config.storage, "runs"),
                                 ("model", config.model.name, "minilm")):  # fmt: skip
        if value != default:
            words += [f"--{flag}", value]
    data = config.data
    if data.train:
        for flag, values in (("data", data.train), ("validation", data.validation), ("test", data.test)):
            for value in values:
                words += [f"--{flag}", value]
        words += ["--text", ",".join(data.text), "--label", data.label]
    elif data.dataset != "auto":
        words += ["--dataset", data.dataset]
    said = ("model.name", "data.train", "data.validation", "data.test", "data.text", "data.label", "data.dataset")
    for key, value in configuration.changed(config, ("seed", "data", "model", "train", "evaluate")).items():
        if key not in said:
            words += ["--set", f"{key}={json.dumps(value, ensure_ascii=False)}"]
    return " " + " ".join(shlex.quote(w) for w in words) if words else ""


def two_texts(job: Job) -> list[str]:
    """Two texts to ask the endpoint: headlines for AG News, else the starts of two test rows."""
    if job.config.data.dataset == "ag_news":
        return [
            "Oil prices climb as exporters agree to cut output",
            "Late goal sends the home side through to the cup final",
        ]
    assert job.prepared is not None
    split = "test" if job.prepared.rows("test") else "train"
    table = job.prepared.table(split, ["text", "label"])
    if not table.num_rows:
        raise UserError(f"{job.prepared.place} has no rows to ask about")
    first = table["label"][0].as_py()
    other = next((i for i, v in enumerate(table["label"].to_pylist()) if v != first), 0)
    return [table["text"][i].as_py()[:300] for i in (0, other)]
