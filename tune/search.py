"""``broadsheet tune``: search, go on with a search, extend it, show it."""

from __future__ import annotations

import json
import shlex
from typing import Any

from pipeline import alone, cluster, console, stages
from pipeline.config import Config
from pipeline.data import gates
from pipeline.errors import UserError, WorkFailed
from pipeline.folders import local_folder
from pipeline.storage import Place
from pipeline.train import teacher, trainer
from pipeline.train.layout import train_layout
from tune import conclude, keep, report, room, space
from tune.assets import Assets
from tune.journal import FORMAT, Journal, Trial, best_of, shown, table
from tune.launch import Launch
from tune.live import Board
from tune.plan import Plan, facts_of
from tune.propose import check_installed

# Of the run's configuration: what the scores of the trials depend on, besides the space and section tune.
LAYOUT_KEYS = "tune.workers or train.cpus_per_worker"
_LAYOUT = ("workers", "min_workers", "cpus_per_worker", "gpus_per_worker", "max_failures", "keep_checkpoints",
           "checkpoint_seconds", "track", "epochs", "evaluations", "evaluate_at")  # fmt: skip
_KINDS = {"asha": "ASHA", "optuna": "Optuna's TPE with ASHA", "pbt": "a population"}


def folder_of(config: Config) -> Place:
    """The folder of a search: a search is not the run 'default'."""
    return Place.of(config.storage) / config.search_name


def saved_config(storage: str | None, name: str | None) -> str:
    """The configuration file of an earlier search, for ``--resume`` and ``--extend``.

    Raises:
        UserError: there is no such search.
    """
    folder = Place.of(storage or "runs") / (name or "search")
    if Journal.load(folder) is None or not (folder / "config.yaml").exists():
        raise UserError(
            f"no search in {folder} to go on with: begin one with 'broadsheet tune', or name it (--name, --storage)"
        )
    return str(folder / "config.yaml")


def run(config: Config, address: str | None, extend: int = 0, resume: bool = False) -> None:
    """Search, or go on with what was cut off, and say what the search bought.

    Args:
        config: of the search.
        address: the Ray cluster.
        extend: trials to add to a finished search.
        resume: whether there must be a search to go on with.

    Raises:
        UserError: the configuration does not fit the data, the cluster or the search that is there, or another command
            searches there.
        WorkFailed: every trial failed; the message carries the first reason.
    """
    folder = folder_of(config)
    config = config.updated({"name": folder.name})
    console.about(folder.name)
    if config.model.name == "linear":
        raise UserError(
            "tune: the linear model has nothing to search for; train it with 'broadsheet train --model linear'"
        )
    if config.tune.algorithm == "optuna":
        check_installed()
    journal = Journal.load(folder)
    if journal is None and any((folder / name).exists() for name in ("checkpoint", "best")):
        raise UserError(f"{folder} holds another training or search: give this one another --name")
    if journal is None and (extend or resume):
        raise UserError(f"no search in {folder} to go on with: begin one with 'broadsheet tune'")
    with alone.refusing(folder, "the search", "give this one another --name"):
        _run(config, Journal.load(folder), folder, address, extend)


def _run(config: Config, journal: Journal | None, folder: Place, address: str | None, extend: int) -> None:
    job = stages.begin(config, False)
    job.config = teacher.check(job.config, job.model.kind)
    rate = trainer.learning_rate(job.config, job.model)
    domains = space.space_of(job.config, job.model.kind, rate)
    default = space.default_point(job.config, domains, rate)
    stages.make_prepared(job, address, note=False)
    assert job.prepared is not None
    gates.refuse(job.config.data, job.prepared.ledger, job.prepared.profile["classes"])
    facts = json.loads(json.dumps(facts_of(job.config, domains, default, _identity(job))))
    journal = _found(journal, folder, facts, extend)
    if extend:
        job.config = _extended(journal, job.config, extend)
    elif "result" in journal.facts:
        console.say("tune", "unchanged, the search is finished; '--extend 8' adds trials to it")
        show(str(folder))
        return
    have = cluster.connect(address, dashboard=config.tune.workers > 1)
    stages.leave_note(job)
    assets = Assets(job, domains, folder / "trials")
    assets.prepare(address)
    train_layout(space.trial_config(job.config, default), have, LAYOUT_KEYS)  # refused before a teacher is asked
    assets.ask_teacher(default, address)
    plan = Plan(job.config, domains, default, journal)
    interrupted = _search(job.config, plan, assets, folder, have)
    _finish(job.config, plan, assets, folder, address, interrupted)


def _extended(journal: Journal, config: Config, extend: int) -> Config:
    """The configuration with more trials; what was concluded is forgotten, until it is concluded anew."""
    tune = config.tune
    if tune.algorithm == "grid":
        raise UserError("a grid is tried whole, there is nothing to add: search a larger one under another --name")
    spent = (tune.max_steps is not None and journal.steps() >= tune.max_steps) or (
        tune.max_minutes is not None and float(journal.facts.get("search_seconds", 0.0)) >= 60 * tune.max_minutes
    )
    if spent:
        raise UserError(
            f"the search has spent {journal.facts.get('spent', 'its limit')}: raise it with --set, for example "
            "--set tune.max_steps=null --set tune.max_minutes=null"
        )
    for key in ("result", "verdict", "comparison", "spent"):
        journal.facts.pop(key, None)
    return config.updated({"tune.trials": len(journal.of("search")) + extend})


def _identity(job: stages.Job) -> dict[str, Any]:
    assert job.prepared is not None
    taught = teacher.identity_of(job.config)
    left_out = {*_LAYOUT, *(("teacher",) if taught else trainer.TEACHER)}
    train = {k: v for k, v in job.config.train.model_dump(mode="json").items() if k not in left_out}
    model = job.config.model.model_dump(mode="json")
    return {
        "the data": job.prepared.fingerprint,
        "the model": job.model.identity,
        "seed": job.config.seed,
        "train's version": trainer.VERSION,
        "the average of weights": trainer.ema_decay(job.config, job.model),
        "adversarial changes": trainer.adversarial(job.config, job.model),
        **({"the teacher": taught} if taught else {}),
        **{f"train.{k}": v for k, v in train.items()},
        **{f"model.{k}": v for k, v in model.items()},
    }


def _found(journal: Journal | None, folder: Place, facts: dict[str, Any], extend: int) -> Journal:
    """The journal to go on with, or a new one."""
    if journal is None:
        (folder / "trials").delete()
        return Journal(folder, {"format": FORMAT, "searched": facts, "seconds": 0.0})
    known = journal.facts["searched"]
    other = sorted(k for k in known.keys() | facts.keys() if known.get(k) != facts.get(k))
    if other:
        names = ", ".join(other[:5]) + (f" and {len(other) - 5} more" if len(other) > 5 else "")
        raise UserError(
            f"{folder} holds another search: {names} differ{'s' if len(other) == 1 else ''}. Give this one another "
            "--name, go on with that one (broadsheet tune --resume), or remove the folder"
        )
    if extend and "result" not in journal.facts:
        raise UserError(f"the search in {folder} is not finished: 'broadsheet tune --resume' first")
    if "result" not in journal.facts:
        ended = sum(t.ended for t in journal.trials)
        console.say("tune", f"going on with the search in {folder}: {ended} of {len(journal.trials)} trials had ended")
        for trial in journal.trials:
            if not trial.ended:
                trial.status = "waiting"
    return journal


def _search(config: Config, plan: Plan, assets: Assets, folder: Place, have: cluster.Resources) -> bool:
    """Run the trials; whether it was interrupted."""
    base = space.trial_config(config, plan.default)
    layout = train_layout(base, have, LAYOUT_KEYS)
    initial = assets.initial(base, assets.of(plan.default))
    count = plan.count()
    with local_folder(initial) as files:
        network = json.loads((files / "config.json").read_text(encoding="utf-8"))
        weights = sum(f.stat().st_size for f in files.glob("*.safetensors"))
    hidden = int(network.get("hidden_size") or sum(config.model.hidden))
    layers = int(network.get("num_hidden_layers") or 1)
    budgets = plan.space["train.batch_tokens"].values if "train.batch_tokens" in plan.space else ()
    tokens = max(base.train.batch_tokens, *budgets, 0)
    averaged = trainer.ema_decay(config, assets.of(plan.default).model) > 0
    each = room.worker_gb(weights, tokens // layout.workers, hidden, layers, averaged)
    each += teacher.size_of(base, assets.of(plan.default).prepared) / 1e9
    concurrent, words = room.at_once(config, count, layout, have, each)
    kind = _KINDS.get(config.tune.algorithm, config.tune.algorithm)
    console.say("tune", f"{count} trials, {concurrent} at once ({words}), {kind}, by macro F1 on validation rows; "
                "trial 1 is the default recipe")  # fmt: skip
    console.say("tune", "searched: " + "; ".join(_domain(k, d) for k, d in plan.space.items()))

    def job_of(trial: Trial) -> dict[str, Any]:
        if trial.phase == "final":
            one = space.final_config(config, trial.point, trial.seed)
        else:
            one = space.trial_config(config, trial.point)
        asset = assets.of(trial.point)
        return trainer.job(one, asset.prepared, asset.model, layout, assets.initial(one, asset), until=trial.until)

    finals = 2 * config.tune.seeds
    launch = Launch(plan, folder, layout, concurrent, job_of, Board(plan.journal, count, finals, concurrent))
    launch.run()
    return launch.interrupted


def _domain(key: str, domain: space.Domain) -> str:
    name = key.split(".", 1)[1]
    if domain.kind == "choice":
        return f"{name} of {', '.join(shown(v) for v in domain.values)}"
    scale = {"loguniform": " (log)", "int": " (whole)"}.get(domain.kind, "")
    return f"{name} {domain.values[0]:g} to {domain.values[1]:g}{scale}"


def _finish(config: Config, plan: Plan, assets: Assets, folder: Place, address: str | None, interrupted: bool) -> None:
    journal = plan.journal
    console.table("trials", *table(journal.trials))
    best = best_of(journal.of("search"))
    if best is None:
        first = next((t.error for t in journal.trials if t.error), None)
        if interrupted:
            raise WorkFailed("interrupted before any trial was scored; 'broadsheet tune --resume' goes on")
        if first is None:
            raise WorkFailed(f"{plan.spent or 'its limit'} ended the search before any trial was scored: raise it")
        raise WorkFailed(f"every trial failed; the first said: {first} (all of them: {folder}/trials.jsonl)")
    finals = plan.finals(best)
    result = None
    if not interrupted and best.trial != 1:
        result = keep.compared(config.seed, finals, assets, folder, address)
    chosen = conclude.chosen(finals, best)
    if not interrupted or keep.place_of(chosen, folder) is not None:  # else what was kept before stays
        keep.keep(chosen, finals, folder)
    words = conclude.verdict(result, best, _why_not(plan, finals), _failed(finals))
    if interrupted:
        words = f"interrupted; best so far: trial {best.trial}, macro F1 {best.best:.4f} on validation rows"
    looked = int(journal.facts.get("looked_at_test", 0)) + (result is not None)
    journal.facts |= {"verdict": words, "comparison": result, "best": chosen.trial, "looked_at_test": looked}
    if plan.spent:
        journal.facts["spent"] = plan.spent
        console.say("tune", f"the limit {plan.spent} ended the search")
    page = report.write(journal, plan.space, config, folder, plan.whole_steps())
    if not interrupted:
        journal.facts["result"] = words
    journal.write()
    if not interrupted:
        (folder / "trials").delete()
    cost = f"{journal.steps():,} steps, {console.seconds(float(journal.facts['seconds']))}"
    console.say("tune", f"{words}; the search took {cost}")
    of = f"{chosen.arm}, seed {chosen.seed}" if chosen.phase == "final" else f"trial {chosen.trial}"
    console.say("tune", f"-> {folder}/best ({of}, macro F1 {chosen.best:.4f}), {folder}/trials.jsonl and {page}")
    if interrupted:
        console.say("next", f"broadsheet tune --resume{_where(config)}")
        return
    console.say("next", f"broadsheet serve {folder}/best")
    if chosen.arm != "default" and chosen.point != plan.default:
        pairs = (f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in chosen.point.items())
        sets = "".join(f" --set {shlex.quote(pair)}" for pair in pairs)
        flags = stages.flags(config.updated({"name": "winner", "train.max_rows": None}))
        console.say("next", f"train the winner on all rows: broadsheet train --full{flags}{sets}")


def _where(config: Config) -> str:
    words = f" --name {config.name}" if config.name != "search" else ""
    return words + (f" --storage {shlex.quote(config.storage)}" if config.storage != "runs" else "")


def _why_not(plan: Plan, finals: list[Trial]) -> str:
    """Why winner and default recipe were not compared, if they were not."""
    if not plan.config.tune.seeds:
        return "tune.seeds=0"
    if not conclude.paired(finals)["winner"]:
        return "no seed came to its end with both"
    return "there are no test rows"


def _failed(finals: list[Trial]) -> str:
    """The final trainings that failed, in words."""
    words = []
    for arm, name in (("winner", "the winner"), ("default", "the default recipe")):
        mine = [t for t in finals if t.arm == arm]
        bad = sum(t.status == "failed" for t in mine)
        if bad:
            words.append(f"{bad} of {len(mine)} trainings of {name} failed")
    return " and ".join(words)


def show(where: str) -> None:
    """Print what a search found.

    Raises:
        UserError: there is none.
    """
    folder = Place.of(where)
    journal = Journal.load(folder)
    if journal is None:
        raise UserError(f"no search in {where} (it has no search.json): make one with 'broadsheet tune'")
    console.table("trials", *table(journal.trials))
    words = journal.facts.get("verdict") or "not finished: 'broadsheet tune --resume' goes on with it"
    console.say("tune", f"{words}; {journal.steps():,} steps, {console.seconds(float(journal.facts['seconds']))}")
    if (folder / "best").exists():
        console.say("tune", f"report: {folder}/report/search.html")
        console.say("next", f"broadsheet serve {folder}/best")
