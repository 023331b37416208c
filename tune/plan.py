"""What a search does next: a new point, a round of the population, a final training, or nothing more.

A function of the journal. Whatever was cut off comes first again.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config import Config
from pipeline.train.store import SCORE
from tune.journal import Journal, Trial, best_of
from tune.propose import grid, propose
from tune.space import Point, Space

EXPLOITED, COPIED = 0.25, 0.25  # the lowest quarter of a population takes over the weights of one of the highest
FACTORS = (0.8, 1.25)  # by which a copied number moves
REDRAWN = 0.25  # probability that it is drawn anew instead

WAIT = "wait"


@dataclass(frozen=True)
class Copy:
    """Weights that a member takes over before its next round.

    Attributes:
        trial: who takes them over.
        donor: whose they are.
        point: with which it goes on.
    """

    trial: int
    donor: int
    point: Point


class Plan:
    """The order of a search's work.

    Args:
        config: of the search.
        space: the domains.
        default: the default recipe.
        journal: what is known.
    """

    def __init__(self, config: Config, space: Space, default: Point, journal: Journal) -> None:
        self.config, self.space, self.default, self.journal = config, space, default, journal
        self.spent: str | None = None  # which limit was reached

    def budget(self, seconds: float) -> str | None:
        """Which limit is reached, in words for a person; None if none is.

        Args:
            seconds: that the trials have taken, earlier commands of the same search included.
        """
        tune = self.config.tune
        if tune.max_minutes is not None and seconds >= 60 * tune.max_minutes:
            self.spent = f"tune.max_minutes={tune.max_minutes:g}"
        if tune.max_steps is not None and self.journal.steps() >= tune.max_steps:
            self.spent = f"tune.max_steps={tune.max_steps:,}"
        return self.spent

    def searching(self) -> bool:
        """Whether trials of the search are to come or under way."""
        search = self.journal.of("search")
        return any(not t.ended for t in search) or self._more()

    def _more(self) -> bool:
        return not self.spent and len(self.journal.of("search")) < self.count()

    def count(self) -> int:
        """Trials of the whole search: a grid has as many as it has points."""
        if self.config.tune.algorithm == "grid":
            return 1 + sum(p != self.default for p in grid(self.space))
        return self.config.tune.trials

    def next(self, running: Mapping[int, int | None]) -> Trial | str | None:
        """The next trial to start; ``WAIT`` while it depends on those that run; None if all is done.

        Args:
            running: numbers of the trials that are under way, each with the evaluation after which it pauses.
        """
        tune = self.config.tune
        idle = [t for t in self.journal.trials if not t.ended and t.trial not in running]
        if tune.algorithm == "pbt" and (idle or self._more()) and self.searching():
            return self._member(running)
        if idle:
            return idle[0]
        if self._more():
            point = propose(tune.algorithm, self.space, self.default, self.journal.of("search"), self.config.seed)
            assert point is not None
            return self._add(Trial(0, "search", point, self.config.seed))
        if running:
            return WAIT
        return self._final()

    def _add(self, trial: Trial) -> Trial:
        trial.trial = len(self.journal.trials) + 1
        self.journal.trials.append(trial)
        return trial

    # A population (Jaderberg et al., 2017) in rounds: nobody goes on before all have been scored.

    def _member(self, running: Mapping[int, int | None]) -> Trial | str | None:
        search = self.journal.of("search")
        if self._more():
            point = propose("pbt", self.space, self.default, search, self.config.seed)
            assert point is not None
            return self._add(Trial(0, "search", point, self.config.seed))
        alive = [t for t in search if not t.ended]
        if any(running.get(t.trial) == len(t.history) for t in alive):
            return WAIT  # it has been scored, and is about to pause
        behind = min(len(t.history) for t in alive)
        ready = [t for t in alive if len(t.history) == behind and t.trial not in running]
        return ready[0] if ready else WAIT

    def round_over(self) -> int | None:
        """The round that all living members of a population have finished, if nobody has begun the next."""
        alive = [t for t in self.journal.of("search") if not t.ended]
        rounds = {len(t.history) for t in alive}
        return rounds.pop() if len(rounds) == 1 and len(alive) > 1 else None

    def copies(self, done: int) -> list[Copy]:
        """Who has yet to take over whose weights after a round, and with which point: the same whenever it is asked.

        Args:
            done: the round that all have finished.
        """
        alive = [t for t in self.journal.of("search") if not t.ended]
        ranked = sorted(alive, key=lambda t: (-float(t.history[done - 1][SCORE]), t.trial))
        low, high = max(1, int(len(ranked) * EXPLOITED)), max(1, int(len(ranked) * COPIED))
        copies = []
        for member in ranked[-low:]:
            if any(step["round"] == done for step in member.lineage):
                continue  # it was done before the search was cut off
            generator = random.Random(f"{self.config.seed}:{done}:{member.trial}")
            donor = generator.choice(ranked[:high])
            if donor is member:
                continue
            copies.append(Copy(member.trial, donor.trial, self._explored(donor.point, generator)))
        return copies

    def _explored(self, point: Point, generator: random.Random) -> Point:
        explored: Point = {}
        for key, domain in self.space.items():
            if generator.random() < REDRAWN:
                explored[key] = domain.draw(generator)
            else:
                explored[key] = domain.moved(point[key], generator.choice(FACTORS), generator)
        return explored

    # The final trainings.

    def _final(self) -> Trial | None:
        best = best_of(self.journal.of("search"))
        if best is None or not self.config.tune.seeds:
            return None
        wanted = [("winner", best.point)] if best.trial != 1 else []
        wanted = [("default", self.default), *wanted]
        for i in range(self.config.tune.seeds if len(wanted) > 1 else 1):
            for arm, point in wanted:
                seed = self.config.seed + 1 + i
                known = [t for t in self.finals(best) if t.arm == arm and t.seed == seed]
                if not known:
                    return self._add(Trial(0, "final", dict(point), seed, arm))
        return None

    def finals(self, best: Trial) -> list[Trial]:
        """The final trainings that are of use for this winner: an extended search may have had another before."""
        points: dict[str | None, Point] = {"default": self.default, "winner": best.point}
        return [t for t in self.journal.of("final") if t.point == points.get(t.arm)]


def item_until(config: Config, trial: Trial) -> int | None:
    """After which evaluation a trial pauses: a member of a population after each, others never (None)."""
    return len(trial.history) + 1 if config.tune.algorithm == "pbt" and trial.phase == "search" else None


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
