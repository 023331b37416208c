"""Broadsheet's front door: the command line and nothing else. Heavy imports stay inside the commands."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline import console
from pipeline.errors import UserError, WorkFailed, first_line, of_system
from pipeline.job_commands import JOBS, logs, status, stop
from serve.key_commands import keys

if TYPE_CHECKING:
    from pipeline.config import Config

F = Callable[..., Any]


def _options(*options: F) -> Callable[[F], F]:
    def decorate(f: F) -> F:
        for option in reversed(options):
            f = option(f)
        return f

    return decorate


CONFIGURED = _options(
    click.option("--config", "config_file", metavar="FILE", help="YAML configuration (see 'broadsheet config')."),
    click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Set one key; may be repeated."),
    click.option("--name", metavar="NAME", help="Name of the run; everything goes under <storage>/<name>/."),
    click.option("--storage", metavar="PATH", help="Where runs live: a folder or s3://... [runs]"),
)
COMMON = _options(
    CONFIGURED,
    click.option("--address", metavar="HOST:PORT", help="Ray cluster; RAY_ADDRESS works too. [a local Ray]"),
)
DATA = _options(
    click.option("--dataset", metavar="NAME", help="auto, ag_news, reuters8, reuters52 or newsgroups20."),
    click.option("--data", "train_files", multiple=True, metavar="FILE", help="Your own rows: a file, glob or URI."),
    click.option(
        "--validation", "validation_files", multiple=True, metavar="FILE", help="Validation rows. [split off]"
    ),
    click.option("--test", "test_files", multiple=True, metavar="FILE", help="Test rows. [split off]"),
    click.option("--text", metavar="COLUMNS", help="Text columns, comma-separated, joined in order. [text]"),
    click.option("--label", metavar="COLUMN", help="The label column. [label]"),
    click.option("--format", "file_format", metavar="FORMAT", help="csv, tsv, tab, jsonl or parquet. [by name]"),
)
MODEL = click.option("--model", metavar="MODEL", help="minilm, lstm, linear, a hub name or a folder. [minilm]")
WORKERS = click.option("--workers", type=int, metavar="N", help="DDP workers. [one per GPU, else 2]")
FULL = click.option("--full", is_flag=True, help="All rows and epochs of a named data set, not the short job.")
ENDPOINT = _options(
    click.option("--host", metavar="ADDRESS", help="Address to listen on. [127.0.0.1]"),
    click.option("--port", type=int, metavar="PORT", help="HTTP port. [8000]"),
    click.option("--insecure", is_flag=True, default=None, help="Listen beyond loopback without API keys."),
)
RELEASE_FLAGS = ("update", "canary", "shadow", "promote", "rollback", "status", "unchecked", "stop")
RELEASES = _options(
    click.option("--update", metavar="RUN", help="Have the running endpoint serve this checkpoint instead."),
    click.option("--canary", metavar="SHARE", help="With --update: beside the old one, for a share such as 10%."),
    click.option("--shadow", is_flag=True, help="With --update: beside the old one, on copies of requests."),
    click.option("--promote", is_flag=True, help="Have the checkpoint that is beside the old one replace it."),
    click.option("--rollback", is_flag=True, help="Take that one away again; else go back to the one before."),
    click.option("--status", is_flag=True, help="Show the models of the running endpoint, side by side."),
    click.option("--stop", is_flag=True, help="End the endpoint on the cluster of --address."),
    click.option(
        "--unchecked", is_flag=True, help="With --update: without golden rows or a cascade, or with other labels."
    ),
)

# What 'run --from-feedback' takes of the run that it starts from.
OF_THE_BASE = {
    "dataset": "--dataset", "train_files": "--data", "validation_files": "--validation", "test_files": "--test",
    "text": "--text", "label": "--label", "file_format": "--format", "model": "--model",
}  # fmt: skip
FLAGS = {
    "name": "name", "storage": "storage", "dataset": "data.dataset", "train_files": "data.train",
    "validation_files": "data.validation", "test_files": "data.test", "text": "data.text", "label": "data.label",
    "file_format": "data.format", "model": "model.name", "workers": "train.workers", "host": "serve.host",
    "port": "serve.port", "insecure": "serve.insecure", "trials": "tune.trials", "algorithm": "tune.algorithm",
}  # fmt: skip


def _load(options: dict[str, Any], where: str | None = None) -> Config:
    """The configuration from a command's options, which are taken out of ``options``; ``where`` is the run meant."""
    from pipeline import config

    flags = {key: options.pop(flag) for flag, key in FLAGS.items() if flag in options}
    if flags.get("data.dataset") not in (None, "auto", "files") and flags.get("data.train"):
        raise UserError("--dataset names data of ours and --data yours: leave one of the two away")
    found = config.load(options.pop("config_file"), options.pop("sets"), flags)
    console.about(where or found.name)
    return found


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="broadsheet", prog_name="broadsheet")
def cli() -> None:
    """From raw labelled text to a served classifier, on a laptop or on a Ray cluster.

    Start with 'broadsheet run'. Every command says what it wrote and what to type next.
    """


@cli.command()
@COMMON
@DATA
@MODEL
@WORKERS
@ENDPOINT
@FULL
@click.option("--keep-serving", is_flag=True, help="Leave the endpoint running until Ctrl-C; on a cluster, for good.")
@click.option(
    "--from-feedback",
    metavar="[RUN]",
    is_flag=False,
    flag_value="",
    help="Train RUN again with what people said of its answers, and promote it if it is better. [the run that serves]",
)
@click.option(
    "--suspects", type=click.Choice(["ignore", "drop"]), help="With --from-feedback: suspected wrong labels. [ignore]"
)
def run(full: bool, keep_serving: bool, from_feedback: str | None, suspects: str | None, **options: Any) -> None:
    """The whole loop: prepare, train, evaluate, serve, classify two headlines."""
    address = options.pop("address")
    if from_feedback is not None:
        given = {"--config": options.pop("config_file"), "--full": full, "--keep-serving": keep_serving}
        given |= {flag: options.pop(name) for name, flag in OF_THE_BASE.items()}
        if unfit := next((flag for flag, value in given.items() if value), None):
            raise UserError(
                f"{unfit} does not go with --from-feedback, which takes data and recipe of the run that it starts from "
                "(--set changes a single key)"
            )
        from serve import succession

        sets = options.pop("sets")
        flags = {FLAGS[flag]: value for flag, value in options.items()}
        succession.run(from_feedback, suspects or "ignore", sets, flags, address)
        return
    if suspects is not None:
        raise UserError("--suspects goes with --from-feedback: suspects are those of the run that it starts from")
    config = _load(options)
    from pipeline import stages
    from serve import stage

    stage.before_connecting(config, address)
    done = stages.run(config, full, address)
    stage.answer_and_stop(done, address, keep_serving)


@cli.command()
@COMMON
@DATA
@MODEL
def prepare(**options: Any) -> None:
    """Read, clean, deduplicate, split and tokenize; every row is kept, rejected or listed as a duplicate."""
    address = options.pop("address")
    config = _load(options)
    from pipeline import stages

    stages.prepare(config, address)


@cli.command()
@COMMON
@DATA
@MODEL
@WORKERS
@FULL
def train(full: bool, **options: Any) -> None:
    """Fine-tune on prepared data (made first if need be); the same command resumes after a kill."""
    address = options.pop("address")
    config = _load(options)
    from pipeline import stages

    stages.train(config, full, address)


@cli.command()
@COMMON
@DATA
@MODEL
@click.option("--trials", type=int, metavar="N", help="Trials, the default recipe among them. [8]")
@click.option("--algorithm", metavar="NAME", help="asha, random, grid, optuna or pbt. [asha]")
@click.option("--resume", is_flag=True, help="Go on with the search of --name, with the configuration that it has.")
@click.option("--extend", type=click.IntRange(1, 10_000), metavar="N", help="Add N trials to a finished search.")
@click.option("--show", metavar="SEARCH", help="Print what a search found and stop.")
def tune(show: str | None, resume: bool, extend: int | None, **options: Any) -> None:
    """Search hyper-parameters; the winner, compared with the default recipe, is a checkpoint that 'serve' takes."""
    address = options.pop("address")
    from tune import search

    if show:
        search.show(show)
        return
    if (resume or extend) and not options["config_file"]:
        options["config_file"] = search.saved_config(options["storage"], options["name"])
    search.run(_load(options), address, extend or 0, resume)


@cli.command()
@click.argument("where", required=False, metavar="[RUN]")
@COMMON
@click.option("--prepared", metavar="FOLDER", help="Prepared data to test on. [the run's own]")
@click.option("--out", metavar="FOLDER", help="Where metrics.json and report/ go; needed for other data. [the run]")
@click.option("--compare", nargs=2, metavar="A B", help="Compare two evaluated runs on the same rows instead.")
def evaluate(
    where: str | None, prepared: str | None, out: str | None, compare: tuple[str, str] | None, **options: Any
) -> None:
    """Score a checkpoint on the test rows: metrics.json, a table, report/index.html and suspected wrong labels."""
    address = options.pop("address")
    config = _load(options, where)
    from pipeline import stages

    if compare:
        if unfit := next((f for f, v in (("RUN", where), ("--prepared", prepared), ("--address", address)) if v), None):
            raise UserError(f"{unfit} does not go with --compare, which reads what two evaluations have left")
        stages.compare(config, compare, out)
    else:
        stages.evaluate(config, where, prepared, out, address)


@cli.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@COMMON
@click.option("--checkpoint", metavar="RUN", help="A run, search or checkpoint folder. [the run of --name]")
@click.option("--text", metavar="COLUMNS", help="Text columns. [those the model was trained on]")
@click.option("--format", "file_format", metavar="FORMAT", help="csv, tsv, tab, jsonl or parquet. [by name]")
@click.option("--out", required=True, metavar="FOLDER", help="A new folder for the Parquet files.")
def predict(files: tuple[str, ...], checkpoint: str | None, out: str, **options: Any) -> None:
    """Classify files of any size on Ray Data, to Parquet."""
    address = options.pop("address")
    config = _load(options, checkpoint)
    from pipeline import stages

    stages.predict(config, files, checkpoint, out, address)


@cli.command()
@click.argument("where", required=False, metavar="[RUN]")
@CONFIGURED
def export(where: str | None, **options: Any) -> None:
    """Measure which engine serves a checkpoint fastest on this machine; 'serve' does it, too, at its first start."""
    config = _load(options, where)
    from serve import stage

    stage.export(config, where)


@cli.command()
@click.argument("where", required=False, metavar="[RUN]")
@COMMON
@ENDPOINT
@RELEASES
def serve(where: str | None, **options: Any) -> None:
    """Serve a checkpoint over HTTP until Ctrl-C, or on a cluster for good; or change the models of what runs."""
    address = options.pop("address")
    releases = {flag: options.pop(flag) for flag in RELEASE_FLAGS}
    config = _load(options, where)
    from serve import release_stage, stage

    wanted = release_stage.Wanted(**releases)
    if wanted.anything:
        release_stage.run(config, wanted, where, address)
    else:
        stage.serve(config, where, address)


@cli.command()
@COMMON
@DATA
@MODEL
@WORKERS
@ENDPOINT
def doctor(**options: Any) -> None:
    """Examine all nodes (versions, storage, ports, clock, memory, GPUs, token), and whether the configured run fits."""
    address = options.pop("address")
    config = _load(options)
    from pipeline.doctor import examination

    if not examination.run(config, address):
        sys.exit(1)


@cli.command(context_settings={"allow_interspersed_args": False})
@JOBS
@click.option("--working-dir", metavar="FOLDER", help="Send this folder along; the command runs in a copy of it.")
@click.option("--requirements", metavar="FILE", help="Packages that every node installs for this job.")
@click.option("--env", "variables", multiple=True, metavar="NAME=VALUE", help="For the job's environment; repeatable.")
@click.option("--no-follow", is_flag=True, help="Come back at once instead of showing what the job says.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
def submit(address: str | None, no_follow: bool, command: tuple[str, ...], **options: Any) -> None:
    """Run a command as a job on a cluster, show what it says, and end with its exit code.

    For example: broadsheet submit -- run --storage s3://bucket/runs --data s3://bucket/rows.parquet
    """
    from pipeline import jobs, submission

    verb = cli.commands.get(command[0])
    if verb is None or command[0] not in submission.VERBS:
        raise UserError(f"submit takes one of {', '.join(submission.VERBS)} after the '--', not '{command[0]}'")
    understood = dict(verb.make_context(f"broadsheet submit -- {command[0]}", list(command[1:])).params)
    config = _load(dict(understood))
    wanted = submission.plan(command, understood, config, **options)
    sys.exit(jobs.submit(jobs.connect(address), wanted, not no_follow))


@cli.command("config")
@click.option("--config", "config_file", metavar="FILE", help="YAML configuration to resolve.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Set one key; may be repeated.")
def config_command(**options: Any) -> None:
    """Print the resolved configuration with a line of explanation per key."""
    from pipeline import config

    click.echo(config.explained(_load(options)), nl=False)


for _command in (keys, status, logs, stop):
    cli.add_command(_command)


def main() -> None:
    """Run a command and turn what went wrong into one sentence and an exit code (see the house rules)."""
    try:
        console.check()
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (UserError, WorkFailed) as e:
        _fail(str(e), e.exit_code)
    except click.ClickException as e:
        if console.as_json():
            _fail(e.format_message(), 2)
        e.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; the same command goes on from what is finished", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as e:  # the last resort: a person still gets one sentence
        if os.environ.get("BROADSHEET_DEBUG"):
            raise
        said = of_system(e)
        if said is not None:
            _fail(str(said), said.exit_code)
        _fail(f"unexpected {type(e).__name__}: {first_line(e)[:300]} (details in {_logged()})", 1)


def _logged() -> Path:
    """Where the traceback of what is being handled was written: here, or where one may write."""
    for folder in (Path(), Path(tempfile.gettempdir())):
        try:
            log = (folder / "broadsheet-error.log").absolute()
            log.write_text(traceback.format_exc(), encoding="utf-8")
            return log
        except OSError:
            continue
    return Path(os.devnull)


def _fail(sentence: str, code: int) -> None:
    console.fail(sentence, code)
    sys.exit(code)


if __name__ == "__main__":
    main()
