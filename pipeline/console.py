"""What a person sees while work goes on: live bars in a terminal, one line per fact elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

LINE_EVERY_SECONDS = 10.0


def say(stage: str, fact: str) -> None:
    """Print one fact about one stage, on one line."""
    out.print(f"[bold cyan]{stage:<9}[/] {escape(fact)}")


def warn(stage: str, fact: str) -> None:
    """Print a warning that does not stop the work."""
    out.print(f"[bold yellow]{stage:<9} warning:[/] {escape(fact)}")


def escape(text: str) -> str:
    """Keep square brackets of data from being read as markup."""
    return text.replace("[", "\\[")


class Bar:
    """A progress bar that turns into a line every few seconds when output is not a terminal."""

    def __init__(self, stage: str, what: str, total: int | None) -> None:
        self.stage, self.what, self.total = stage, what, total
        self.done = 0
        self._said = time.monotonic()
        self._bar: Progress | None = None
        if out.is_terminal:
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
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif time.monotonic() - self._said >= LINE_EVERY_SECONDS:
            self._said = time.monotonic()
            of = f" of {self.total:,}" if self.total else ""
            say(self.stage, f"{self.what}: {done:,}{of}{'  ' + note if note else ''}")

    def close(self) -> None:
        """Remove the live bar; what stays on screen are the facts."""
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
    """Print a small table: first column left, the others right."""
    t = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(header):
        t.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        t.add_row(*(escape(str(c)) for c in row))
    out.print(t)


def facts(stage: str, pairs: Mapping[str, object]) -> None:
    """Print several facts of one stage, a line each."""
    for name, value in pairs.items():
        say(stage, f"{name}: {value}")


def seconds(value: float) -> str:
    """``83.2`` -> ``1 min 23 s``."""
    if value < 60:
        return f"{value:.1f} s"
    return f"{int(value // 60)} min {int(value % 60)} s"


def interactive() -> bool:
    """Whether a person is watching."""
    return sys.stdout.isatty()
