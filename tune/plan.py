"""What a search does next: a new trial, the next part of one that has paused, a final training, or nothing more.

A function of the journal. Whatever was cut off comes first again.
"""

from __future__ import annotations

from typing import Any

from pipeline.config import Config
from tune import halving
from tune.halving import paused
from tune.journal import Journal, Trial, best_of
from tune.propose import grid, propose
from tune.space import Point, Space, final_config, shares, stops_early

WAIT = "wait"


class Plan:
    """The order of a search's work.

    Attributes:
        spent: the limit that was reached, in words for a person.

    Args:
        config: of the search.
        space: the domains.
        default: the default recipe.
        journal: what is known.
    """

    def __init__(self, config: Config, space: Space, default: Point, journal: Journal) -> None:
        self.config, self.space, self.default, self.journal = config, space, default, journal
        self.spent: str | None = None
        self._out_of_time = False
        self._shares = shares(config)
        self._grid = [p for p in grid(space) if p != default] if config.tune.algorithm == "grid" else []

    def count(self) -> int:
        """Trials of the whole search: a grid has as many as it has points."""
        if self.config.tune.algorithm == "grid":
            return 1 + len(self._grid)
        return self.config.tune.trials

    def next(self, running: set[int]) -> Trial | str | None:
        """The next trial to start or to go on with; ``WAIT`` while it depends on those that run; None: all is done.

        Args:
            running: numbers of the trials that are under way.
        """
        for trial in self.journal.trials:
            begun = not trial.ended and trial.trial not in running and not paused(trial)
            if begun and (trial.phase == "final" or not self._out_of_time):
                return trial
        search = self.journal.of("search")
        found = None if self._out_of_time else self._of_the_search(running)
        if found is not None:
            return found
        if any(t.trial in running for t in search):
            return WAIT
        for trial in search:
            if not trial.ended:
                trial.status = "stopped"
        return self._final()

    # Limits.

    def time_is_up(self, seconds: float) -> bool:
        """Whether ``tune.max_minutes`` is over; then no trial of the search goes on.

        Args:
            seconds: that the search has taken, earlier commands included.
        """
        limit = self.config.tune.max_minutes
        if limit is not None and seconds >= 60 * limit:
            self._out_of_time, self.spent = True, f"tune.max_minutes={limit:g}"
        return self._out_of_time

    def _fits(self, steps: float) -> bool:
        """Whether so many steps more stay within ``tune.max_steps``, with what running trials have yet to take."""
        limit = self.config.tune.max_steps
        if limit is None:
            return True
        search = self.journal.of("search")
        ahead = sum(max(0.0, self._steps_at(t, t.until) - t.steps) for t in search if not t.ended and not paused(t))
        if self.journal.steps() + ahead + steps <= limit:
            return True
        self.spent = f"tune.max_steps={limit:,}"
        return False

    def _steps_at(self, trial: Trial, evaluation: int | None) -> float:
        """Steps of a trial at an evaluation (None: at its end): told by its own scores, else by the first trial's."""
        whole = self._whole(trial)
        return whole if evaluation is None else whole * self._share(evaluation)

    def _share(self, evaluation: int) -> float:
        if self._shares is None:
            return min(1.0, evaluation / self.config.tune.evaluations)
        return self._shares[min(evaluation, len(self._shares)) - 1]

    def whole_steps(self) -> float:
        """Steps that all trials of the search would have taken to their ends."""
        return sum(self._whole(t) for t in self.journal.of("search") if t.history)

    def _whole(self, trial: Trial) -> float:
        if trial.history:
            return trial.steps / self._share(len(trial.history))
        first = next((t for t in self.journal.of("search") if t.history), None)
        if first is None:
            return 0.0
        return self._whole(first) * self._size(trial.point) / self._size(first.point)

    def _size(self, point: Point) -> float:
        """Something that the steps of a trial are in proportion to."""
        epochs = float(point.get("train.epochs") or self.config.tune.epochs)
        return epochs / float(point.get("train.batch_tokens") or self.config.train.batch_tokens)

    # What comes next.

    def _of_the_search(self, running: set[int]) -> Trial | str | None:
        algorithm = self.config.tune.algorithm
        if stops_early(algorithm):
            return self._by_halving()
        return self._member(running) if algorithm == "pbt" else self._new(None)

    def _more(self) -> bool:
        return not self.spent and len(self.journal.of("search")) < self.count()

    def _new(self, until: int | None, ahead: float = 0.0) -> Trial | None:
        """A new trial, if there is one and it fits, and ``ahead`` whole ones besides."""
        if not self._more():
            return None
        search = self.journal.of("search")
        point = propose(self.config.tune.algorithm, self.space, self.default, search, self.config.seed)
        if point is None:
            return None
        unknown = self.config.tune.max_steps is not None and not any(t.history for t in search)
        if unknown and any(not t.ended for t in search):
            return None  # what a trial takes is known when the first has been scored
        trial = Trial(0, "search", point, self.config.seed, until=until)
        if search and not self._fits(self._steps_at(trial, until) + ahead * self._whole(trial)):
            return None
        return self._add(trial)

    def _by_halving(self) -> Trial | None:
        tune, search = self.config.tune, self.journal.of("search")
        for behind in halving.hopeless(search, tune.rungs, tune.reduction_factor, max(len(search), self.count())):
            behind.status = "stopped"
        for _ in range(2):  # once more where the limit of steps has just ended the new trials
            while (trial := halving.promoted(search, tune.rungs, tune.reduction_factor, self._more())) is not None:
                assert trial.until is not None
                if self._fits(self._steps_at(trial, trial.until + 1) - trial.steps):
                    trial.until += 1
                    return trial
                trial.status = "stopped"
            new = self._new(1, ahead=1.0)  # what is ahead: one trial must be able to come to its end
            if new is not None:
                return new
        return None

    def _member(self, running: set[int]) -> Trial | str | None:
        search = self.journal.of("search")
        if (new := self._new(1)) is not None:
            return new
        alive = [t for t in search if not t.ended]
        if not alive or all(t.trial in running for t in alive):
            return None
        behind = min(len(t.history) for t in alive)
        if any(t.trial in running and len(t.history) >= (t.until or 0) for t in alive):
            return WAIT  # it has been scored, and is about to pause
        ready = [t for t in alive if len(t.history) == behind and t.trial not in running]
        if not ready:
            return WAIT
        if not self._fits(self._steps_at(ready[0], behind + 1) - ready[0].steps):
            return None
        ready[0].until = behind + 1
        return ready[0]

    def _add(self, trial: Trial) -> Trial:
        trial.trial = len(self.journal.trials) + 1
        self.journal.trials.append(trial)
        return trial

    def _final(self) -> Trial | None:
        best = best_of(self.journal.of("search"))
        if best is None or not self.config.tune.seeds:
            return None
        wanted = [("default", self.default), *([("winner", best.point)] if best.trial != 1 else [])]
        for i in range(self.config.tune.seeds if len(wanted) > 1 else 1):
            for arm, point in wanted:
                seed = self.config.seed + 1 + i
                if not any(t.arm == arm and t.seed == seed for t in self.finals(best)):
                    return self._add(Trial(0, "final", dict(point), seed, arm, size=self._final_size()))
        return None

    def finals(self, best: Trial) -> list[Trial]:
        """The final trainings that are of use for this winner: an extended search may have had another before."""
        points: dict[str | None, Point] = {"default": self.default, "winner": best.point}
        known = self.journal.of("final")
        return [t for t in known if t.point == points.get(t.arm) and t.size == self._final_size()]

    def _final_size(self) -> list[float | None]:
        one = final_config(self.config, {}, 0).train
        return [one.max_rows, one.epochs]


def facts_of(config: Config, space: Space, default: Point, identity: dict[str, Any]) -> dict[str, Any]:
    """What makes two searches the same one: all that the scores of their trials depend on."""
    tune = config.tune.model_dump(mode="json")
    free = ("trials", "max_minutes", "max_steps", "concurrent", "seeds", "final_rows", "final_epochs", "space")
    return {
        **{f"tune.{k}": v for k, v in tune.items() if k not in free},
        **{f"tune.space.{key}": [d.kind, *d.values] for key, d in space.items()},
        **{f"the default {key}": value for key, value in default.items()},
        **identity,
    }
