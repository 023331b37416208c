"""``broadsheet status``, ``logs`` and ``stop``: coming back to the jobs of a cluster."""

from __future__ import annotations

import sys

import click

JOBS = click.option(
    "--address",
    metavar="URL",
    help="The head's dashboard, or HOST:6379 on the head. [RAY_ADDRESS, else port 8265 here]",
)


@click.command()
@JOBS
@click.argument("run", required=False, metavar="[RUN]")
def status(address: str | None, run: str | None) -> None:
    """List the jobs of a cluster, or show one (RUN: its run or its id)."""
    from pipeline import jobs

    jobs.status(jobs.connect(address), run)


@click.command()
@JOBS
@click.option("--no-follow", is_flag=True, help="Only what it has said so far.")
@click.argument("run", metavar="RUN")
def logs(address: str | None, run: str, no_follow: bool) -> None:
    """Show what a job says (RUN: its run or its id), and end with its exit code. Ctrl-C leaves the job alone."""
    from pipeline import jobs

    sys.exit(jobs.logs(jobs.connect(address), run, not no_follow))


@click.command()
@JOBS
@click.argument("run", metavar="RUN")
def stop(address: str | None, run: str) -> None:
    """End a job (RUN: its run or its id); what it has finished stays."""
    from pipeline import jobs

    jobs.stop(jobs.connect(address), run)
