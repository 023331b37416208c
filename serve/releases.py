"""Which models answer, and how large a share of the requests each: plain values, without Ray or HTTP.

A lineup is never changed; each operation gives the next one, with a generation one higher. Replicas serve the lineup of
the highest generation that they know of.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from pipeline.errors import UserError
from pipeline.storage import Place, identity

WEIGHTS = "model.safetensors"
TAGGED = "~"
PARTS = 10_000  # a share is a whole number of these


@dataclass(frozen=True)
class Release:
    """A checkpoint at one point in time: its folder may be trained again.

    Attributes:
        checkpoint: folder or URI.
        version: of its weights, as the engine that is loaded from it says; with ``TAGGED`` before it, as the store says
            that they lie in; empty: whatever is there.
        kept: a copy of it as it was, which replicas load; empty: there is none. A checkpoint that was evaluated again
            is another copy, and so another release, of the same model.
    """

    checkpoint: str
    version: str = ""
    kept: str = ""

    @property
    def place(self) -> str:
        """What to load."""
        return self.kept or self.checkpoint

    def __str__(self) -> str:
        known = self.version and not self.version.startswith(TAGGED)
        return f"{self.checkpoint} ({self.version})" if known else self.checkpoint

    def same(self, other: Release | None) -> bool:
        """Whether the other one has the same weights."""
        return other is not None and (self.checkpoint, self.version) == (other.checkpoint, other.version)


@dataclass(frozen=True)
class Lineup:
    """The models of an endpoint.

    Attributes:
        stable: answers all requests but the candidate's.
        generation: counts the changes.
        previous: what was stable before, for a rollback.
        candidate: the model on trial.
        share: of requests that the candidate answers, 0 to 1.
        shadow: whether the candidate gets copies of requests, and answers none.
    """

    stable: Release
    generation: int = 1
    previous: Release | None = None
    candidate: Release | None = None
    share: float = 0.0
    shadow: bool = False

    def __post_init__(self) -> None:
        on_trial = (self.share > 0) + self.shadow
        if on_trial != (self.candidate is not None) or not 0 <= self.share < 1:
            raise ValueError(f"a candidate has either a share or shadows: {self}")
        if self.candidate == self.stable or self.previous == self.stable:
            raise ValueError(f"one model in two places: {self}")

    @property
    def releases(self) -> tuple[Release, ...]:
        """All that it names; what must be loaded to serve it comes first."""
        return tuple(r for r in (self.stable, self.candidate, self.previous) if r is not None)

    def update(self, release: Release) -> Lineup:
        """``release`` in place of the stable model, which is kept for a rollback.

        Raises:
            UserError: it serves already, or another one is on trial.
        """
        self._is_new(release)
        if release == self.candidate:
            return self.promote()
        self._nothing_else_on_trial(release)
        return Lineup(release, self.generation + 1, previous=self.stable)

    def canary(self, release: Release, share: float) -> Lineup:
        """``release`` beside the stable model with ``share`` of the requests, 0 to 1.

        Raises:
            UserError: it serves already, another one is on trial, or the share is none.
        """
        self._is_new(release)
        self._nothing_else_on_trial(release)
        if not 1 <= round(share * PARTS) < PARTS:
            raise UserError(f"--canary: a share is more than 0% and less than 100%, got {100 * share:g}%")
        return self._beside(release, share=share)

    def shadowed(self, release: Release) -> Lineup:
        """``release`` beside the stable model with a copy of its requests.

        Raises:
            UserError: it serves already, or another one is on trial.
        """
        self._is_new(release)
        self._nothing_else_on_trial(release)
        return self._beside(release, shadow=True)

    def promote(self) -> Lineup:
        """The candidate in place of the stable model, which is kept for a rollback.

        Raises:
            UserError: nothing is on trial.
        """
        if self.candidate is None:
            raise UserError("nothing to promote: put a checkpoint beside the serving one with --update and --canary")
        return Lineup(self.candidate, self.generation + 1, previous=self.stable)

    def rollback(self) -> Lineup:
        """The stable model alone if one is on trial beside it, else the one before it.

        The model that is rolled back is not kept: whoever asks for a rollback twice does not get it again.

        Raises:
            UserError: there is none before it.
        """
        if self.candidate is not None:
            return replace(self, generation=self.generation + 1, candidate=None, share=0.0, shadow=False)
        if self.previous is None:
            raise UserError("nothing to roll back to: no model served here before this one")
        return Lineup(self.previous, self.generation + 1)

    def instead(self, newer: Lineup) -> Lineup:
        """This lineup once more, in place of a newer one that failed."""
        return replace(self, generation=newer.generation + 1)

    def _beside(self, release: Release, share: float = 0.0, shadow: bool = False) -> Lineup:
        previous = None if release == self.previous else self.previous
        return Lineup(self.stable, self.generation + 1, previous, release, share, shadow)

    def _is_new(self, release: Release) -> None:
        if release == self.stable:
            raise UserError(f"{release} serves already")

    def _nothing_else_on_trial(self, release: Release) -> None:
        if self.candidate is not None and not release.same(self.candidate):
            raise UserError(f"{self.candidate} is on trial: --promote it, or end that with --rollback, first")


def version_of(folder: Place) -> str:
    """The version of a checkpoint's weights, as the engine that is loaded from it says; where that would have to be
    fetched, what the store says, with ``TAGGED`` before it; empty if there are none."""
    weights = folder / WEIGHTS
    if not weights.is_file():
        return ""
    known = identity(str(weights))
    return known[:12] if folder.is_local else TAGGED + hashlib.blake2b(known.encode(), digest_size=6).hexdigest()


class Split:
    """Which requests the candidate answers: exactly ``share`` of them, evenly spread, by counting.

    Args:
        share: 0 to 1; rounded to a whole number of ``PARTS``.
    """

    def __init__(self, share: float) -> None:
        self._parts = round(share * PARTS)
        self._sum = 0

    def next(self) -> bool:
        """Whether the next request goes to the candidate."""
        self._sum += self._parts
        if self._sum < PARTS:
            return False
        self._sum -= PARTS
        return True


def parse_share(text: str) -> float:
    """``10%`` or ``0.1`` as 0.1.

    Raises:
        UserError: it is neither, or not between 0% and 100%.
    """
    number = text.strip()
    try:
        share = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
        if 1 <= round(share * PARTS) < PARTS:
            return share
    except (ValueError, OverflowError):
        pass
    raise UserError(f"--canary {text}: name a share between 0% and 100%, such as 10%")
