"""``broadsheet run --from-feedback``: the new data version, the training on it, and the comparison, as a person meets
them. Promotion is the endpoint's business (``serve.succession``)."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from pipeline import alone, console, stages
from pipeline import config as configuration
from pipeline.config import Config
from pipeline.data.prepared import Prepared
from pipeline.errors import UserError
from pipeline.evaluate import compare
from pipeline.model import source
from pipeline.retrain import base as bases
from pipeline.retrain import merge, version
from pipeline.retrain.base import Run
from pipeline.retrain.decide import Decision, decide
from pipeline.storage import Place
from pipeline.train import checkpoint

DECISION = "decision.json"
OWN_KEYS = ("data.train", "data.validation", "data.test", "data.dataset", "data.text", "data.label", "data.format")
OF_THE_ENDPOINT = ("port", "host", "feedback")  # of the section serve: where the base was served says nothing of today


@dataclass(frozen=True)
class Begun:
    """An earlier attempt at a run: where it lies, the run that it started from, and the port of its endpoint."""

    storage: str
    base: str
    port: int | None


def begun(storage: str, name: str) -> Begun | None:
    """The earlier attempt under this name, if there was one."""
    made = bases.read_version(Place.of(storage) / name)
    if made is None:
        return None
    return Begun(str(Place.of(storage)), str(made["made_of"]["base"]), made["made_of"].get("port"))


def beside(where: str) -> str:
    """The storage that a run lies in, by its folder or its checkpoint's.

    Raises:
        UserError: there is no checkpoint.
    """
    return str(bases.run_of(checkpoint.find(where)).parent)


def says(key: str, sets: Sequence[str], flags: Mapping[str, Any]) -> bool:
    """Whether the command itself gives a key a value."""
    return flags.get(key) is not None or key in (item.partition("=")[0].strip() for item in sets)


def new_config(base: Run, sets: Sequence[str], flags: Mapping[str, Any]) -> Config:
    """The configuration of the base, with what the command says on top; the new run lies beside it.

    Where the endpoint listens and keeps feedback (``OF_THE_ENDPOINT``), the base does not say.

    Raises:
        UserError: the command names other data, or a name that is taken.
    """
    for item in sets:
        key = item.partition("=")[0].strip()
        if key in OWN_KEYS:
            raise UserError(f"--set {key}: the data is that of {base.place} and the feedback: leave it away")
    tree = {**base.card["config"], "storage": str(base.place.parent)}
    tree["serve"] = {k: v for k, v in tree.get("serve", {}).items() if k not in OF_THE_ENDPOINT}
    config = configuration.load(tree, sets, flags)
    run = Place.of(config.storage) / config.name
    if run == base.place:
        raise UserError(f"{run} is the run that it starts from: give the new one another --name")
    taken = any((run / name).exists() for name in ("config.yaml", "checkpoint", "search.json", "best"))
    if taken and bases.read_version(run) is None:
        raise UserError(f"{run} is a run already, and not one from feedback: give the new one another --name")
    return config


def train(base: Run, config: Config, feedback: str | None, suspects: str, address: str | None) -> stages.Job | None:
    """Make the data version, prepare, train and evaluate; None where there is nothing to learn.

    Args:
        base: the run that it starts from.
        config: of ``new_config``.
        feedback: the folder that the endpoint here writes to; ``serve.feedback`` of the command counts before it, that
            of the base after it.
        suspects: 'ignore' or 'drop'.
        address: the Ray cluster.

    Raises:
        UserError: feedback or corrections make no sense, or the test rows would not be those of the base.
    """
    from pipeline.train import teacher

    tested = base.predictions()
    run = Place.of(config.storage) / config.name
    config = teacher.check(config, config.model.name)  # the base's own may be gone by now
    with alone.refusing(run, *stages.BUSY):  # its data version, too, is one command's
        before = bases.read_version(run)
        if before is not None:  # the endpoint that told where feedback lies may be gone by now
            feedback = before["made_of"]["feedback"] or None
        else:
            feedback = feedback or base.card["config"].get("serve", {}).get("feedback")
        folder = _folder(config.serve.feedback or feedback, must_exist=before is None)
        config = config.updated({"serve.feedback": None if folder is None else str(folder)})
        file = config.data.corrections
        file = "" if file == base.card["config"]["data"]["corrections"] else file  # those are in the base's labels
        if folder is None and not file and suspects == "ignore":
            raise UserError("where is the feedback? Name its folder with --set serve.feedback=FOLDER")
        made = version.make(base, config, run, folder, "drop" if suspects == "drop" else "ignore", file)
        _say(base, made, folder)
        if not made.learns:
            told = f"; what became of each row of feedback: {made.place / version.TOLD}" if folder is not None else ""
            console.say("done", f"nothing that {base.place} does not know already: no run was made{told}")
            return None
        job = stages.Job(
            made.config(config),
            source.resolve(config.model.name),
            f"{base.place} and what people said of it: {made.place}",
        )
        stages.make_prepared(job, address)
        assert job.prepared is not None
        try:
            bases.check_same_test(job.prepared, bases.origins(run), tested)
        except UserError:
            if not made.reused:  # made with settings that will not do: the same command with others makes it anew
                made.place.delete()
            raise
        _say_fate(job.prepared)
        stages.learn(job, address)
    return job


def _folder(where: str | None, must_exist: bool) -> Place | None:
    if where is None:
        return None
    folder = Place.of(where)
    if must_exist and not folder.exists():
        raise UserError(f"serve.feedback: no such folder: {folder}; name it with --set serve.feedback=FOLDER")
    return folder


def _say(base: Run, made: version.Version, folder: Place | None) -> None:
    ledger = made.ledger
    if made.reused:
        console.say("feedback", f"going on with the data version in {made.place}")
    outcomes = ", ".join(f"{what} {n:,}" for what, n in ledger["outcomes"].items())
    if folder is not None:
        console.say("feedback", f"{ledger['feedback_rows']:,} rows in {folder}" + (f": {outcomes}" if outcomes else ""))
    changed = ", ".join(f"{n:,} {why}" for why, n in ledger["changed"].items()) or "none changed"
    where = f" -> {made.place}" if made.learns else ""
    console.say("feedback", f"{ledger['training_rows']:,} training rows of {base.place}: {changed}; "
                f"{ledger['outcomes'].get(merge.NEW, 0):,} new{where}")  # fmt: skip
    for warning in made.warnings:
        console.warn("feedback", warning)


def _say_fate(prepared: Prepared) -> None:
    """Say which new rows are not trained on, and why (nearly equal to another row, for one), and how many training rows
    gave way to new ones."""
    why: Counter[str] = Counter()
    for folder in ("duplicates", "rejected"):
        if prepared.shards(folder):
            columns = ["id", "reason", *(["kept_id"] if folder == "duplicates" else [])]
            rows = prepared.table(folder, columns)
            if folder == "duplicates":
                kept = pc.starts_with(rows["kept_id"], f"{version.FEEDBACK}:")
                gave_way = rows.filter(pc.and_(kept, pc.starts_with(rows["id"], "train-"))).num_rows
                if gave_way:
                    console.warn("feedback", f"{gave_way:,} training rows gave way to feedback that is nearly equal: "
                                 f"{prepared.place / 'duplicates'} lists them")  # fmt: skip
            ours = rows.filter(pc.starts_with(rows["id"], f"{version.FEEDBACK}:"))
            why.update(ours["reason"].to_pylist())
    if why:
        console.say("feedback", "new rows that are set aside: " + ", ".join(f"{n:,} {r}" for r, n in why.items()))


def check_rival(rival: Run, base: Run) -> None:
    """Make sure that what serves was tested on the rows that the new run is tested on.

    Raises:
        UserError: it was made from other data, or not evaluated.
    """
    if rival.root != base.root:
        raise UserError(
            f"the endpoint serves {rival.place}, made from other data than {base.place}: the two cannot be compared. "
            f"Start from the one that serves, --from-feedback {shlex.quote(str(rival.place))}"
        )
    rival.predictions()


def judge(run: Place, rival: Run, seed: int) -> tuple[Decision, dict[str, Any]]:
    """Compare a new run with its rival on the same test rows.

    Returns:
        The decision, and what ``decision.json`` says of it.

    Raises:
        UserError: they are not about the same rows.
    """
    new = Run.open(str(run))
    names = (run.name, rival.place.name) if run.name != rival.place.name else (str(run), str(rival.place))
    mine = new.predictions()
    result = compare.compare(mine, compare.aligned(mine, rival.predictions(), names), seed)
    stages.show_comparison(result, names)
    decision = decide(result, names)
    console.say("decide", decision.reason)
    facts = {
        "run": str(run),
        "rival": str(rival.checkpoint),
        "better": decision.promote,
        "reason": decision.reason,
        "training": new.fingerprint,
        "promoted": False,
        "comparison": result,
        "version": (bases.read_version(run) or {}).get("ledger"),
    }
    return decision, facts


def was_promoted(run: Place, training: str) -> bool:
    """Whether ``decision.json`` says that this very training was promoted."""
    file = run / DECISION
    if not file.exists():
        return False
    try:
        before = json.loads(file.read_text())
        return bool(before["promoted"]) and before.get("training") == training
    except (ValueError, KeyError, TypeError):
        return False


def note(run: Place, facts: Mapping[str, Any]) -> None:
    """Write ``decision.json``."""
    file = run / DECISION
    file.write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n")
    console.say("decide", f"-> {file}")
