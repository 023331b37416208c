"""Jobs on a cluster: submit, follow, list, stop. Through Ray's job server, which is part of the head's dashboard."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline import cluster, console
from pipeline.errors import UserError, WorkFailed, first_line
from pipeline.submission import MEANT, WRITES, Submission

HERE = "http://127.0.0.1:8265"  # what 'ray dashboard cluster.yaml' opens on a laptop
DASHBOARD = ":8265"
REQUEST_S = 60.0  # for one answer of the server
SILENCE_S = 30.0  # a job may be silent for longer, but then nobody knows whether the connection still is one
LONGEST_SILENCE_S = 480.0  # each time that the log, sent again, has nothing new, twice as long is waited, up to this
RETRY_S = 2.0
PATIENCE_S = 600.0  # with a connection that does not come back
STOP_S = 60.0
OVER = ("SUCCEEDED", "FAILED", "STOPPED")
INTERRUPTED = 130


class Shown:
    """What has been printed of a log that is sent from its beginning each time one asks.

    Args:
        write: where new text goes.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self.count = self._skip = 0

    def again(self) -> None:
        """The log is about to be sent from its beginning."""
        self._skip = self.count

    def add(self, text: str) -> None:
        """A piece of it; what was shown before is not shown again."""
        new = text[self._skip :]
        self._skip = max(0, self._skip - len(text))
        self.count += len(new)
        if new:
            self._write(new)


def connect(address: str | None) -> Any:
    """A client of the job server.

    Args:
        address: ``http://host:8265``, or ``HOST:6379`` of a cluster that this machine is a node of; None: as the
            environment says (RAY_API_SERVER_ADDRESS, RAY_ADDRESS), else port 8265 of this machine.

    Raises:
        UserError: nobody answers there, or not to us.
    """
    known = [os.environ.pop(name, None) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")]  # Ray prefers these
    address = address or next((a for a in known if a), HERE)
    if "://" not in address and address.endswith(DASHBOARD):
        address = f"http://{address}"
    if "://" not in address and address != "auto":
        cluster.check_reachable(address)
    token = os.environ.get("RAY_AUTH_TOKEN") or Path("~/.ray/auth_token").expanduser().is_file()
    if token:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray  # noqa: F401
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, *args: Any, **more: Any) -> Any:  # a cut connection would be waited for for ever
            return super()._do_request(*args, timeout=REQUEST_S, **more)

    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        return Client(address)
    except AuthenticationError as e:
        raise UserError(
            f"--address {address}: the cluster wants another token than ~/.ray/auth_token has here: copy the head's "
            "file to this machine"
        ) from e
    except Exception as e:  # Ray and requests raise many kinds here
        raise UserError(
            f"--address {address}: no Ray job server answers there ({first_line(e)}). From a laptop, open the way with "
            "'ray dashboard cluster.yaml' in another terminal; on the head, name HOST:6379"
        ) from e


def submit(client: Any, wanted: Submission, follow_it: bool = True) -> int:
    """Send a job and, unless told not to, show what it says until it is over.

    Returns:
        The exit code: the job's own, 0 if nobody follows it.

    Raises:
        UserError: another job works on the same run, or Ray refuses the job.
    """
    if wanted.verb in WRITES:
        for job in _jobs(client):
            data = job.metadata or {}
            same = (data.get("run"), data.get("storage")) == (wanted.run, wanted.storage)
            if same and data.get("broadsheet") in WRITES and job.status.value not in OVER:
                raise UserError(
                    f"job {job.submission_id} works on run '{wanted.run}': follow it with 'broadsheet logs "
                    f"{wanted.run}', end it with 'broadsheet stop {wanted.run}', or give this one another --name"
                )
    try:
        job = client.submit_job(entrypoint=wanted.entrypoint, submission_id=wanted.id(time.time()),
                                runtime_env=wanted.runtime_env, metadata=wanted.metadata)  # fmt: skip
    except Exception as e:
        raise UserError(f"the cluster does not take the job: {first_line(e)[:400]}") from e
    console.say("submit", f"job {job}")
    if not follow_it:
        console.say("next", f"broadsheet logs {job}, broadsheet status, broadsheet stop {job}")
        return 0
    return follow(client, job)


def follow(client: Any, job: str) -> int:
    """Show what a job says until it is over. A connection that breaks is made again, and nothing is shown twice.

    Returns:
        The job's exit code; 130 on Ctrl-C, which leaves the job alone.

    Raises:
        WorkFailed: the cluster is gone, or has not answered for ten minutes.
    """
    shown = Shown(_print)
    cut, silence = None, SILENCE_S
    try:
        while True:
            try:
                before = shown.count
                ended = asyncio.run(_tail(client, job, shown, silence))
                silence = SILENCE_S if shown.count > before else min(2 * silence, LONGEST_SILENCE_S)
                info = client.get_job_info(job)
                if cut is not None:
                    console.warn("submit", "connected again")
                cut = None
                if info.status.value in OVER:
                    if not ended:  # what was said after the connection had gone
                        shown.again()
                        shown.add(client.get_job_logs(job))
                    return _exit_code(info)
                if ended:  # the server closes a log when it restarts, or a moment before the job counts as over
                    time.sleep(RETRY_S)
            except Exception as e:  # whatever Ray, aiohttp and requests raise for a connection that broke
                if getattr(e, "status", None) == 404 or "status code 404" in str(e):
                    raise WorkFailed(
                        f"the cluster knows no job {job}: it was started anew. Submit again, to go on"
                    ) from e
                if cut is None:
                    cut = time.monotonic()
                    console.warn(
                        "submit", f"the connection broke ({first_line(e)[:120]}); the job goes on. Trying again"
                    )
                elif time.monotonic() - cut > PATIENCE_S:
                    raise WorkFailed(
                        f"no answer for {PATIENCE_S / 60:.0f} minutes. If the cluster is there the job goes on: come "
                        f"back with 'broadsheet logs {job}'"
                    ) from e
                time.sleep(RETRY_S)
    except KeyboardInterrupt:
        sys.stdout.flush()
        say = f"the job goes on: come back with 'broadsheet logs {job}', end it with 'broadsheet stop {job}'"
        console.left(say)
        return INTERRUPTED


async def _tail(client: Any, job: str, shown: Shown, silence: float) -> bool:
    """Show the log until it ends, the connection breaks, or is so silent that it may have.

    Args:
        client, job: as for ``follow``.
        shown: where the log goes.
        silence: seconds after which the connection may have broken; the job is asked after more often.

    Returns:
        Whether the log has ended.
    """
    shown.again()
    pieces = client.tail_job_logs(job)
    while True:
        piece = asyncio.ensure_future(pieces.__anext__())
        since = time.monotonic()
        while not (await asyncio.wait({piece}, timeout=SILENCE_S))[0]:
            if time.monotonic() - since >= silence or client.get_job_info(job).status.value in OVER:
                return False
        try:
            shown.add(piece.result())
        except StopAsyncIteration:
            return True


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _exit_code(info: Any) -> int:
    """A finished job's exit code; 1 where it ended without one."""
    status = info.status.value
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        console.warn("submit", f"job {info.submission_id} was stopped: the same command goes on from what is finished")
    elif info.driver_exit_code is None:  # else the command has said why itself
        console.warn("submit", f"job {info.submission_id} failed: {(info.message or 'without a word').strip()[:400]}")
    return info.driver_exit_code or 1


def find(client: Any, name: str) -> Any:
    """A job by its id, or the one of a run that is not over: one that works on it before one that only looks at it
    (evaluate, serve, doctor). Where all are over, the newest.

    Raises:
        UserError: there is none, or several work on the run.
    """
    jobs = _jobs(client)
    for job in jobs:
        if job.submission_id == name:
            return job
    of_run = [j for j in jobs if (j.metadata or {}).get("run") == name]
    running = [j for j in of_run if j.status.value not in OVER]
    meant = [j for j in running if j.metadata.get("broadsheet") in MEANT] or running or of_run[:1]
    if len(meant) > 1:
        ids = ", ".join(j.submission_id for j in meant)
        raise UserError(f"{len(meant)} jobs of run '{name}' are not over; name one of them instead: {ids}")
    if meant:
        return meant[0]
    known = list(dict.fromkeys((j.metadata or {}).get("run") or j.submission_id for j in jobs))[:8]
    raise UserError(f"no job '{name}' on this cluster; it has: {', '.join(known) or 'none'}")


def logs(client: Any, name: str, follow_it: bool) -> int:
    """Show what a job has said, and go on with it. Returns the exit code, see ``follow``."""
    job = find(client, name)
    if follow_it:
        return follow(client, job.submission_id)
    _print(client.get_job_logs(job.submission_id))
    return 0


def status(client: Any, name: str | None) -> None:
    """Print a table of the cluster's jobs, the newest first; or of one, with Ray's message."""
    jobs = _jobs(client) if name is None else [find(client, name)]
    rows = [[j.submission_id, (j.metadata or {}).get("run", "-"), j.status.value, _when(j.start_time), _took(j)]
            for j in jobs]  # fmt: skip
    console.table("", ["job", "run", "status", "started", "took"], rows)
    if name is not None and jobs[0].message:
        console.say("status", jobs[0].message.strip())
    if not jobs:
        console.say("next", "broadsheet submit -- run --storage ...")


def stop(client: Any, name: str) -> None:
    """End a job and wait until it has ended.

    Raises:
        WorkFailed: it does not end.
    """
    job = find(client, name)
    if job.status.value in OVER:
        console.say("stop", f"job {job.submission_id} is over already: {job.status.value.lower()}")
        return
    client.stop_job(job.submission_id)
    until = time.monotonic() + STOP_S
    while client.get_job_info(job.submission_id).status.value not in OVER:
        if time.monotonic() > until:
            raise WorkFailed(f"job {job.submission_id} has not ended within {STOP_S:g} s: see 'broadsheet status'")
        time.sleep(0.5)
    console.say("stop", f"job {job.submission_id} has ended; the same command goes on from what is finished")


def _jobs(client: Any) -> list[Any]:
    """Those submitted as jobs, the newest first."""
    return sorted((j for j in client.list_jobs() if j.submission_id), key=lambda j: j.start_time or 0, reverse=True)


def _when(milliseconds: int | None) -> str:
    return datetime.fromtimestamp(milliseconds / 1000).strftime("%Y-%m-%d %H:%M") if milliseconds else "-"


def _took(job: Any) -> str:
    if not job.start_time:
        return "-"
    return console.seconds((job.end_time or time.time() * 1000) / 1000 - job.start_time / 1000)
