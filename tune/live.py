"""What a person sees of a search: a live table in a terminal, a line per score elsewhere."""

from __future__ import annotations

import time
from typing import Any

from pipeline import console, gauges
from pipeline.train.store import SCORE
from tune.journal import Journal, Trial, best_of, shown

SHOWN = 12  # trials in the live table: all that run, and the best


class Board:
    """Follows a journal.

    Args:
        journal: of the search.
        total: trials that the search will have, the final ones not counted.
        finals: final trainings there will be at most.
        concurrent: trials at once.
    """

    def __init__(self, journal: Journal, total: int, finals: int, concurrent: int) -> None:
        self.journal, self.total, self.finals, self.concurrent = journal, total, finals, concurrent
        self._began: dict[int, float] = {}
        self._parts: dict[int, float] = {}  # seconds of the parts of a trial that pauses
        self._took: dict[str, list[float]] = {"search": [], "final": []}
        self._live: Any = None
        self._drawn = 0.0

    def __enter__(self) -> Board:
        if console.live():
            from rich.live import Live

            self._live = Live(self._table(), console=console.out, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, fact: str, trial: int | None = None) -> None:
        """Say something about the search, or about one trial."""
        console.say("tune", fact, **({} if trial is None else {"trial": trial}))

    def tick(self) -> None:
        """Time went by."""
        now = time.monotonic()
        for trial in self.journal.trials:
            if trial.status == "running":
                self._began.setdefault(trial.trial, now)
        if self._live is not None and now - self._drawn > 1:
            self._drawn = now
            self._live.update(self._table(), refresh=True)

    def reported(self, number: int) -> None:
        """A trial was scored."""
        trial = self.journal.get(number)
        score = float(trial.history[-1][SCORE])
        labels = {"run": console.run(), "stage": "tune", "trial": str(number)}
        gauges.show(gauges.SCORE, score, figure=SCORE, **labels)
        if trial.phase == "final":
            self.note(f"{trial.arm}, seed {trial.seed}, step {trial.steps:,}: macro F1 {score:.4f}", number)
            return
        best = best_of(self.journal.of("search"))
        so_far = f" (best so far {best.best:.4f}, trial {best.trial})" if best is not None else ""
        self.note(
            f"trial {number}, score {len(trial.history)}, step {trial.steps:,}: macro F1 {score:.4f}{so_far}", number
        )

    def ended(self, number: int) -> None:
        """A trial came to an end, or pauses."""
        trial = self.journal.get(number)
        if trial.error:
            console.warn("tune", f"trial {number} failed: {trial.error}", trial=number)
        elif trial.status == "stopped":
            self.note(f"trial {number} stopped after {trial.steps:,} steps", number)
        gauges.progress(console.run(), "tune", "trials", sum(t.ended for t in self.journal.of("search")), self.total)
        now = time.monotonic()
        self._parts[number] = self._parts.get(number, 0.0) + now - self._began.pop(number, now)
        if trial.status in ("finished", "stopped"):
            self._took[trial.phase].append(self._parts.pop(number))
        left = self.left()
        if left is not None and self._live is None and trial.ended and trial.phase == "search":
            done = sum(t.ended for t in self.journal.of("search"))
            self.note(f"{done} of {self.total} trials done, about {console.seconds(left)} left")

    def left(self) -> float | None:
        """Seconds that are left, by what trials took so far; None before the first has ended."""
        times = self._took["search"] + self._took["final"]
        if not times:
            return None
        search, final = self.journal.of("search"), self.journal.of("final")
        of_search = sum(self._took["search"]) / len(self._took["search"]) if self._took["search"] else 0.0
        # A final training is not stopped early: the longest trial so far tells what it takes.
        of_final = max(self._took["final"] or self._took["search"])
        ahead = max(0, self.total - sum(t.ended for t in search)) * of_search
        ahead += max(0, self.finals - sum(t.ended for t in final)) * of_final
        return ahead / max(1, self.concurrent)

    def _table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        search = self.journal.of("search")
        best, left = best_of(search), self.left()
        title = f"{sum(t.ended for t in search)} of {self.total} trials, {self.journal.steps():,} steps"
        if best is not None:
            title += f"; best so far {best.best:.4f}, trial {best.trial}"
        if left is not None:
            title += f"; about {console.seconds(left)} left"
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
        keys = list(search[0].point) if search else []
        for i, name in enumerate(("trial", *(k.split(".", 1)[1] for k in keys), "scores", "macro F1", "status")):
            table.add_column(name, justify="left" if i == 0 else "right")
        for trial in self._rows():
            name = str(trial.trial) if trial.phase == "search" else f"{trial.arm} {trial.seed}"
            scores = " ".join(f"{e[SCORE]:.3f}" for e in trial.history[-4:])
            score = "-" if trial.best is None else f"{trial.best:.4f}"
            row = (name, *(shown(v) for v in trial.point.values()), scores, score, trial.status)
            table.add_row(*(Text(c) for c in row))
        return table

    def _rows(self) -> list[Trial]:
        running = [t for t in self.journal.trials if t.status == "running"]
        others = [t for t in self.journal.trials if t.status != "running" and t.best is not None]
        others.sort(key=lambda t: (-(t.best or 0.0), t.trial))
        return running + others[: max(0, SHOWN - len(running))]
