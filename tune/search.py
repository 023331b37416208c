"""``broadsheet tune``: search, go on with a search, extend it, show it."""

from __future__ import annotations

import json
from typing import Any

from pipeline import cluster, console, stages
from pipeline import config as configuration
from pipeline.config import Config
from pipeline.data import gates
from pipeline.errors import UserError, WorkFailed
from pipeline.storage import Place, local_folder
from pipeline.train import trainer
from tune import conclude, keep, report, room, space
from tune.assets import Assets
from tune.journal import FORMAT, Journal, Trial, best_of, shown, table
from tune.launch import Launch
from tune.live import Board
from tune.plan import Plan, facts_of
from tune.propose import check_installed

# Of the run's configuration: what the scores of the trials depend on, besides the space and section tune.
_LAYOUT = ("workers", "min_workers", "cpus_per_worker", "gpus_per_worker", "max_failures", "keep_checkpoints",
           "checkpoint_seconds", "track", "epochs", "evaluations", "evaluate_at")  # fmt: skip
_KINDS = {"asha": "ASHA", "optuna": "Optuna's TPE with ASHA", "pbt": "a population"}


def folder_of(config: Config) -> Place:
    """The folder of a search: a search is not the run 'default'."""
    named = "name" in config.model_fields_set and config.name != "default"
    return Place.of(config.storage) / (config.name if named else "search")


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


def run(config: Config, address: str | None, extend: int = 0) -> None:
    """Search, or go on with what was cut off, and say what the search bought.

    Args:
        config: of the search.
        address: the Ray cluster.
        extend: trials to add to a finished search.

    Raises:
        UserError: the configuration does not fit the data, the cluster or the search that is there.
        WorkFailed: every trial failed; the message carries the first reason.
    """
    folder = folder_of(config)
    config = config.updated({"name": folder.name})
    if config.model.name == "linear":
        raise UserError(
            "tune: the linear model has nothing to search for; train it with 'broadsheet train --model linear'"
        )
    if config.tune.algorithm == "optuna":
        check_installed()
    journal = Journal.load(folder)
    job = stages.begin(config, False)
    rate = trainer.learning_rate(job.config, job.model)
    domains = space.space_of(job.config, job.model.kind, rate)
    default = space.default_point(job.config, domains, rate)
    have = cluster.connect(address, dashboard=config.tune.workers > 1)
    stages.make_prepared(job, address)
    assert job.prepared is not None
    gates.refuse(job.config.data, job.prepared.ledger, job.prepared.profile["classes"])
    facts = json.loads(json.dumps(facts_of(job.config, domains, default, _identity(job))))
    journal = _found(journal, folder, facts, job.config, extend)
    if extend:
        count = len(journal.of("search")) + extend
        job.config = job.config.updated({"tune.trials": count})
        journal.facts.pop("result", None)
    elif "result" in journal.facts:
        console.say("tune", "unchanged, the search is finished; '--extend 8' adds trials to it")
        show(str(folder))
        return
    (folder / "config.yaml").write_text(configuration.dump(job.config))
    assets = Assets(job, domains, folder / "trials")
    assets.prepare(address)
    plan = Plan(job.config, domains, default, journal)
    interrupted = _search(job.config, plan, assets, folder, have)
    _finish(job.config, plan, assets, folder, address, interrupted)


def _identity(job: stages.Job) -> dict[str, Any]:
    assert job.prepared is not None
    train = {k: v for k, v in job.config.train.model_dump(mode="json").items() if k not in _LAYOUT}
    model = job.config.model.model_dump(mode="json")
    return {
        "the data": job.prepared.fingerprint,
        "the model": job.model.identity,
        "seed": job.config.seed,
        "train's version": trainer.VERSION,
        **{f"train.{k}": v for k, v in train.items()},
        **{f"model.{k}": v for k, v in model.items()},
    }


def _found(journal: Journal | None, folder: Place, facts: dict[str, Any], config: Config, extend: int) -> Journal:
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
    layout = cluster.train_layout(base, have)
    initial = assets.initial(base, assets.of(plan.default))
    count, concurrent, words = plan.count(), 1, ""
    with local_folder(initial) as files:
        network = json.loads((files / "config.json").read_text(encoding="utf-8"))
        weights = sum(f.stat().st_size for f in files.glob("*.safetensors"))
    hidden = int(network.get("hidden_size") or sum(config.model.hidden))
    each = room.worker_gb(
        weights, base.train.batch_tokens // layout.workers, hidden, int(network.get("num_hidden_layers") or 1)
    )
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
        raise WorkFailed(f"every trial failed; the first said: {first or 'nothing'}")
    finals = [t for t in plan.finals(best) if t.status == "finished"]
    result = None
    if not interrupted and best.trial != 1:
        result = keep.compared(config.seed, finals, assets, folder, address)
    chosen = conclude.chosen(finals, best)
    keep.keep(chosen, finals, folder)
    words = conclude.verdict(result, best, finals)
    if interrupted:
        words = f"interrupted; best so far: trial {best.trial}, macro F1 {best.best:.4f} on validation rows"
    looked = int(journal.facts.get("looked_at_test", 0)) + (result is not None)
    journal.facts |= {"verdict": words, "comparison": result, "best": chosen.trial, "looked_at_test": looked}
    if plan.spent:
        journal.facts["spent"] = plan.spent
        console.say("tune", f"the limit {plan.spent} ended the search")
    page = report.write(journal, plan.space, config, folder)
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
        sets = "".join(f" --set '{k}={json.dumps(v, ensure_ascii=False)}'" for k, v in chosen.point.items())
        flags = stages.flags(config.updated({"name": "winner"}))
        console.say("next", f"train the winner on all rows: broadsheet train --full{flags}{sets}")


def _where(config: Config) -> str:
    words = f" --name {config.name}" if config.name != "search" else ""
    return words + (f" --storage {config.storage}" if config.storage != "runs" else "")


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
        console.say("tune", f"report: {folder}/report/index.html")
        console.say("next", f"broadsheet serve {folder}/best")
