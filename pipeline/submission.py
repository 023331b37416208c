"""What ``broadsheet submit`` sends to a cluster, and what it refuses to send. No Ray in it."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import console
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.object_store import is_remote
from pipeline.storage import Place

VERBS = ("run", "prepare", "train", "tune", "evaluate", "predict", "serve", "doctor")
WRITES = ("run", "prepare", "train", "tune")  # two of them on one run would get in each other's way
MEANT = (*WRITES, "predict")  # by 'stop RUN', rather than a command that only looks at the run
NAMES_A_RUN = ("where", "checkpoint", "show", "compare", "update", "promote", "rollback", "status", "stop")
EXCLUDED = [".git", ".venv", "runs"]  # of the working directory, beside what .gitignore names


@dataclass(frozen=True)
class Submission:
    """A command for a cluster.

    Attributes:
        verb: the command.
        run: the run that it is about.
        storage: where runs live.
        entrypoint: what the head's shell runs.
        runtime_env: Ray's: the folder that travels, packages, environment variables.
    """

    verb: str
    run: str
    storage: str
    entrypoint: str
    runtime_env: dict[str, Any] = field(default_factory=dict)

    @property
    def metadata(self) -> dict[str, str]:
        """What the cluster keeps with the job."""
        return {"broadsheet": self.verb, "run": self.run, "storage": self.storage}

    def id(self, now: float) -> str:
        """A name for the job that says what it is and sorts by time (seconds since the epoch, shown in UTC)."""
        return f"{self.verb}-{self.run}-{time.strftime('%y%m%d-%H%M%S', time.gmtime(now))}"


def plan(
    command: Sequence[str],
    options: Mapping[str, Any],
    config: Config,
    working_dir: str | None = None,
    requirements: str | None = None,
    variables: Iterable[str] = (),
) -> Submission:
    """Put a command together, and refuse what cannot work anywhere else than here.

    Args:
        command: verb and arguments.
        options: the same, as the command line has understood them.
        config: what the command will work with.
        working_dir: a folder to send along; the command runs in a copy of it.
        requirements: a file of packages that every node installs for this job.
        variables: ``NAME=VALUE`` for the environment of the job.

    Raises:
        UserError: with the way out.
    """
    verb, *arguments = command
    if verb not in VERBS:
        raise UserError(f"submit takes one of {', '.join(VERBS)} after the '--', not '{verb}'")
    if options.get("address"):
        raise UserError(
            "leave --address away after the '--': a job knows its cluster. Before it, it names where to submit"
        )
    out = options.get("out")
    # A command that is given its run, or is about an endpoint that runs, needs none.
    storage = None if any(options.get(key) for key in NAMES_A_RUN) else config.storage
    for flag, path, way_out, example in (
        ("--storage", storage, "--storage ", "runs"),
        ("--out", out, "--out ", "scored"),
        ("serve.feedback", config.serve.feedback, "--set serve.feedback=", "feedback"),  # each replica writes its own
    ):
        if path is not None and _is_relative(path):
            raise UserError(
                f"{flag} '{path}' is relative to a folder that ends with the job: name one that every node sees, "
                f"after the '--': {way_out}/mnt/shared/{example}, or {way_out}s3://bucket/{example}"
            )
    if working_dir is None:
        _check_travels(options, config)
    elif not Path(working_dir).is_dir():
        raise UserError(f"--working-dir {working_dir}: no such folder")
    entrypoint = shlex.join(["python", "-m", "broadsheet", verb, *arguments])
    return Submission(verb, _about(verb, options, config), str(Place.of(config.storage)), entrypoint,
                      _runtime_env(working_dir, requirements, variables))  # fmt: skip


def _check_travels(options: Mapping[str, Any], config: Config) -> None:
    """Refuse relative paths: nothing of this folder is there on the cluster.

    Raises:
        UserError: there is one.
    """
    named = [*config.data.train, *config.data.validation, *config.data.test, *(options.get("files") or ())]
    keys = ("config_file", "where", "checkpoint", "update", "prepared", "from_feedback", "show")
    named += [*(options.get(key) for key in keys), *(options.get("compare") or ())]
    named += [config.data.corrections, config.train.teacher]
    named += [config.serve.keys, config.serve.tls_cert, config.serve.tls_key]
    named += [config.model.name] if Path(config.model.name).is_dir() or config.model.name[0] in "./~" else []
    for path in named:
        if path and _is_relative(path):
            raise UserError(
                f"'{path}' is relative to this folder, which the cluster does not have: send the folder along with "
                "--working-dir . before the '--', or name a path that every node sees, or a URI"
            )


def _is_relative(path: str) -> bool:
    return not is_remote(path) and not os.path.isabs(os.path.expanduser(path))


def _about(verb: str, options: Mapping[str, Any], config: Config) -> str:
    where = options.get("where") or options.get("checkpoint") or options.get("show")
    return console.run_of(str(where)) if where else config.search_name if verb == "tune" else config.name


def _runtime_env(working_dir: str | None, requirements: str | None, variables: Iterable[str]) -> dict[str, Any]:
    env: dict[str, Any] = {}
    if working_dir is not None:
        env |= {"working_dir": str(Path(working_dir).resolve()), "excludes": EXCLUDED}
    if requirements is not None:
        try:
            lines = Path(requirements).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(
                f"--requirements {requirements}: {getattr(e, 'strerror', None) or 'not a text file'}"
            ) from e
        env["pip"] = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    pairs = [v.partition("=") for v in variables]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise UserError(f"--env {name}: write NAME=VALUE")
    if pairs:
        env["env_vars"] = {name: value for name, _, value in pairs}
    return env
