"""What is said while work goes on: live bars in a terminal, one line per fact elsewhere.

``BROADSHEET_LOG=json`` makes each fact a line of JSON instead, for whoever collects logs: ``time`` (UTC), ``level``,
``run``, ``stage``, ``node``, ``message``, and ``trial`` where it is about one trial of a search.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, TextIO

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from pipeline import gauges
from pipeline.errors import UserError

# Facts hold names of files and labels: they are printed as ``Text``, in which nothing is markup.
out = Console(highlight=False, soft_wrap=True, emoji=False)

LINE_EVERY_SECONDS = 10.0
LOG = "BROADSHEET_LOG"
FORMATS = ("text", "json")

_about: dict[str, object] = {"run": None}
_one_at_a_time = threading.Lock()


def about(where: str) -> None:
    """Name the run that all is about from now on: its name, its folder, or that of its checkpoint."""
    _about["run"] = run_of(where)


def run_of(where: str) -> str:
    """The name of a run, by that, its folder, or its checkpoint's; options of a URI do not count."""
    if "://" in where:
        from pipeline.object_store import split

        where = split(where)[0]
    *above, last = where.rstrip("/").split("/")
    return above[-1] if above and last in ("checkpoint", "best") else last


def run() -> str:
    """The run that all is about; empty before one is named."""
    return str(_about["run"] or "")


def check() -> None:
    """Refuse a format that does not exist.

    Raises:
        UserError: ``BROADSHEET_LOG`` is neither 'text' nor 'json'.
    """
    wanted = os.environ.get(LOG) or FORMATS[0]
    if wanted not in FORMATS:
        raise UserError(f"{LOG} is '{wanted}': set it to {' or '.join(FORMATS)}")


def as_json() -> bool:
    """Whether facts are lines of JSON."""
    return os.environ.get(LOG) == "json"


def live() -> bool:
    """Whether bars and tables may move."""
    return out.is_terminal and not as_json()


def record(level: str, stage: str | None, message: str, to: TextIO | None = None, **more: Any) -> None:
    """Print a line of JSON.

    Args:
        level: 'info', 'warning' or 'error'.
        stage: what the fact is about.
        message: the fact.
        to: where it goes; None: standard output.
        **more: keys of its own.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    line = {"time": now, "level": level, **_about, "stage": stage, "node": socket.gethostname(), "message": message}
    text = json.dumps(line | more, ensure_ascii=False, default=str) + "\n"
    stream = to or sys.stdout
    with _one_at_a_time:
        stream.write(text)
        stream.flush()


def say(stage: str, fact: str, **more: Any) -> None:
    """Print one fact about one stage, on one line; ``more`` are keys that only JSON has."""
    if as_json():
        record("info", stage, fact, **more)
    else:
        out.print(Text.assemble((f"{stage:<9}", "bold cyan"), " ", fact))


def warn(stage: str, fact: str, **more: Any) -> None:
    """Print a warning that does not stop the work; ``more`` as of ``say``."""
    if as_json():
        record("warning", stage, fact, **more)
    else:
        out.print(Text.assemble((f"{stage:<9} warning:", "bold yellow"), " ", fact))


def left(sentence: str) -> None:
    """Say on standard error what goes on without this command, after a Ctrl-C."""
    if as_json():
        record("info", None, sentence, sys.stderr)
    else:
        click.echo(f"\n{sentence}", err=True)


def fail(sentence: str, code: int) -> None:
    """Say on standard error why the command ends, and with which exit code."""
    if as_json():
        record("error", None, sentence, sys.stderr, exit_code=code)
    else:
        click.echo(click.style("error: ", fg="red", bold=True) + sentence, err=True)


class Bar:
    """A progress bar that turns into a line every few seconds when output is not a terminal."""

    def __init__(self, stage: str, what: str, total: int | None) -> None:
        self.stage, self.what, self.total = stage, what, total
        self.done = 0
        self._said = time.monotonic()
        self._bar: Progress | None = None
        if live():
            self._bar = Progress(
                TextColumn(f"[bold cyan]{stage:<9}[/] {what}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
                console=out,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(what, total=total, note="")

    def update(self, done: int, note: str = "") -> None:
        """Move the bar to ``done`` (an absolute count)."""
        self.done = done
        gauges.progress(run(), self.stage, self.what, done, self.total)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif time.monotonic() - self._said >= LINE_EVERY_SECONDS:
            self._said = time.monotonic()
            of = f" of {self.total:,}" if self.total else ""
            fact = f"{self.what}: {done:,}{of}{'  ' + note if note else ''}"
            say(self.stage, fact, done=done, total=self.total, unit=self.what)

    def close(self) -> None:
        """Remove the live bar; what stays on screen are the facts."""
        gauges.progress(run(), self.stage, self.what, self.done, self.total, last=True)
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def bar(stage: str, what: str, total: int | None = None) -> Iterator[Bar]:
    """A ``Bar`` that is closed whatever happens."""
    b = Bar(stage, what, total)
    try:
        yield b
    finally:
        b.close()


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a small table: first column left, the others right. As JSON each row is a line."""
    if as_json():
        for row in rows:
            record("info", None, title, columns=list(header), row=[str(cell) for cell in row])
        return
    t = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(header):
        t.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        t.add_row(*(Text(str(c)) for c in row))
    out.print(t)


def seconds(value: float) -> str:
    """``83.2`` -> ``1 min 23 s``."""
    if value < 60:
        return f"{value:.1f} s"
    return f"{int(value // 60)} min {int(value % 60)} s"
