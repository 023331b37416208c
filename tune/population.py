"""A population that trains in rounds: after each, the lowest take over the weights of the highest.

Population-based training (Jaderberg et al., 2017), with a barrier at the end of a round: who takes over from whom is a
function of the scores and the seed, and a population that was cut off goes on as it would have.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.train.store import SCORE
from tune.journal import Trial
from tune.space import Point, Space

EXPLOITED, COPIED = 0.25, 0.25  # the lowest quarter takes over the weights of one of the highest
FACTORS = (0.8, 1.25)  # by which a copied number moves
REDRAWN = 0.25  # probability that it is drawn anew instead


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


def round_over(trials: Sequence[Trial]) -> int | None:
    """The round that all living members have finished, if none has begun to be scored in the next."""
    alive = [t for t in trials if not t.ended]
    rounds = {len(t.history) for t in alive}
    return rounds.pop() if len(rounds) == 1 and len(alive) > 1 else None


def copies(trials: Sequence[Trial], done: int, space: Space, seed: int) -> list[Copy]:
    """Who has yet to take over whose weights after a round, and with which point: the same whenever it is asked.

    Args:
        trials: the members.
        done: the round that all have finished.
        space: the domains.
        seed: of the search.
    """
    alive = [t for t in trials if not t.ended]
    ranked = sorted(alive, key=lambda t: (-float(t.history[done - 1][SCORE]), t.trial))
    low, high = max(1, int(len(ranked) * EXPLOITED)), max(1, int(len(ranked) * COPIED))
    found = []
    for member in ranked[-low:]:
        if any(step["round"] == done for step in member.lineage):
            continue  # it was done before the search was cut off
        generator = random.Random(f"{seed}:{done}:{member.trial}")
        donor = generator.choice(ranked[:high])
        if donor is not member:
            found.append(Copy(member.trial, donor.trial, explored(donor.point, space, generator)))
    return found


def explored(point: Point, space: Space, generator: random.Random) -> Point:
    """A point near another one."""
    return {
        key: domain.draw(generator)
        if generator.random() < REDRAWN
        else domain.moved(point[key], generator.choice(FACTORS), generator)
        for key, domain in space.items()
    }
