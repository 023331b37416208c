"""What feedback, corrections and suspects make of the rows of a run: rules over plain values, without files or Ray.

Held-out rows are never changed, nor is a text of theirs trained on: else nothing could be compared. Of what is said of
one training row, a correction by row id counts before feedback, and feedback before a suspicion.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.errors import WorkFailed

# What becomes of a row of feedback; each has exactly one of these.
NEW = "new training row"
RELABELS = "relabels a training row"
CONFIRMS = "confirms a training row"
OVERRULED = "a correction of that training row counts instead"
HELD_OUT = "text of a held-out row"
DISPUTES = "disputes a held-out row"
REPEATED = "said again"
SUPERSEDED = "another label was said later"
EARLIER = "counted in an earlier round"
CONTRADICTORY = "several labels at one time"
UNKNOWN = "label unknown to the model"
NO_TEXT = "text or label missing, or text too short"

# What becomes of a training row.
BY_FEEDBACK = "relabelled by feedback"
BY_CORRECTION = "relabelled by a correction"
DROPPED = "dropped by a correction"
SUSPECT = "dropped as a suspect"
LEFT_OUT = "left out by train.max_rows"


@dataclass(frozen=True)
class Said:
    """One row of feedback.

    Attributes:
        key: of its cleaned text (``dedup.text_key``).
        label: as given.
        when: microseconds since 1970 when it was received; -1 where that is not known.
        usable: whether there is a label, and text enough.
        earlier: whether the run that this one starts from was made with it: it has had its say.
    """

    key: bytes
    label: str
    when: int
    usable: bool = True
    earlier: bool = False


@dataclass(frozen=True)
class Change:
    """A training row that is not what it was.

    Attributes:
        row: its number among those of the call.
        label: the new label; '' where the row is left out.
        why: ``BY_FEEDBACK`` and so on.
    """

    row: int
    label: str
    why: str


def settle(said: Sequence[Said], labels: Collection[str]) -> tuple[list[str | None], dict[bytes, int]]:
    """Which row of feedback counts for each text: the latest; none if the latest contradict each other.

    Args:
        said: in order of files and rows, which decides between equal labels said at one time.
        labels: of the model.

    Returns:
        What becomes of each row, None for those that count; and by key the row that counts.
    """
    outcomes: list[str | None] = [None] * len(said)
    by_key: dict[bytes, list[int]] = {}
    for i, one in enumerate(said):
        if one.earlier:
            outcomes[i] = EARLIER
        elif not one.usable:
            outcomes[i] = NO_TEXT
        elif one.label not in labels:
            outcomes[i] = UNKNOWN
        else:
            by_key.setdefault(one.key, []).append(i)
    counts: dict[bytes, int] = {}
    for key, rows in by_key.items():
        last = max(said[i].when for i in rows)
        latest = [i for i in rows if said[i].when == last]
        if len({said[i].label for i in latest}) > 1:
            for i in rows:
                outcomes[i] = CONTRADICTORY if said[i].when == last else SUPERSEDED
            continue
        counts[key] = latest[-1]
        for i in rows:
            if i != latest[-1]:
                outcomes[i] = REPEATED if said[i].label == said[latest[-1]].label else SUPERSEDED
    return outcomes, counts


@dataclass
class Merge:
    """Rows of a run, block by block, and what is said of them.

    Attributes:
        said: all feedback.
        labels: of the model.
        corrections: by row id: the label to use instead ('' drops the row) and the one that was judged, if known.
        suspects: ids of training rows to leave out.
    """

    said: Sequence[Said]
    labels: Collection[str]
    corrections: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)
    suspects: Collection[str] = ()

    def __post_init__(self) -> None:
        self._outcomes, self._counts = settle(self.said, self.labels)
        self._met: set[str] = set()
        self.rows: Counter[str] = Counter()  # what became of training rows
        self.read = 0  # training rows so far
        self.corrections_stale: list[str] = []  # ids whose row has another label than was judged
        self.corrections_held_out: list[str] = []  # ids of held-out rows

    def held_out(self, ids: Sequence[str], keys: Sequence[bytes], labels: Sequence[str]) -> None:
        """Take note of validation or test rows: what is said of them is not used."""
        for name, key, label in zip(ids, keys, labels, strict=True):
            if key in self._counts:
                at = self._counts.pop(key)
                self._outcomes[at] = HELD_OUT if self.said[at].label == label else DISPUTES
            if name in self.corrections:
                self._met.add(name)
                self.corrections_held_out.append(name)

    def train(
        self, ids: Sequence[str], keys: Sequence[bytes], labels: Sequence[str], sampled: Sequence[bool] | None = None
    ) -> list[Change]:
        """What changes among some training rows.

        Args:
            ids, keys, labels: of the rows.
            sampled: which rows a sample of the run holds; what somebody has spoken of stays all the same. None: all.

        Returns:
            The rows that change, in order.
        """
        changes: list[Change] = []
        for row, (name, key, label) in enumerate(zip(ids, keys, labels, strict=True)):
            change = self._of(row, name, key, label, sampled is None or sampled[row])
            if change is not None:
                changes.append(change)
                self.rows[change.why] += 1
        self.read += len(ids)
        return changes

    def _of(self, row: int, name: str, key: bytes, label: str, sampled: bool) -> Change | None:
        at = self._counts.pop(key, None)
        wanted, judged = self.corrections.get(name, (None, None))
        if wanted is not None:
            self._met.add(name)
            if judged is not None and judged != label:
                self.corrections_stale.append(name)
                wanted = None
        if wanted is not None:
            if at is not None:
                self._outcomes[at] = CONFIRMS if wanted == self.said[at].label else OVERRULED
            if not wanted:
                return Change(row, "", DROPPED)
            return Change(row, wanted, BY_CORRECTION) if wanted != label else None
        if at is not None:
            said = self.said[at].label
            self._outcomes[at] = CONFIRMS if said == label else RELABELS
            return Change(row, said, BY_FEEDBACK) if said != label else None
        if name in self.suspects:
            return Change(row, "", SUSPECT)
        return None if sampled else Change(row, "", LEFT_OUT)

    def finish(self) -> tuple[list[str], list[int]]:
        """When all rows were seen: what became of each row of feedback, and those that are new training rows.

        Raises:
            WorkFailed: they do not add up, which is a bug.
        """
        new = sorted(self._counts.values())
        for at in new:
            self._outcomes[at] = NEW
        done = [outcome for outcome in self._outcomes if outcome is not None]
        if len(done) != len(self.said):
            raise WorkFailed(f"{len(self.said) - len(done)} rows of feedback got lost. This is a bug in Broadsheet")
        return done, new

    @property
    def corrections_unmet(self) -> list[str]:
        """Ids of corrections without a row."""
        return [name for name in self.corrections if name not in self._met]


def suspects_to_drop(
    rows: Sequence[Mapping[str, str]], classes: Mapping[str, int], sure: float, most: float
) -> list[str]:
    """The training rows that are left out on a suspicion alone: the surest, and few of each class.

    A suspicion is a model's opinion, and models err alike: where it is wrong it takes the hard rows away, which a model
    learns most from. So the bar is high, rows are left out rather than relabelled, and no class loses many.

    Args:
        rows: of ``suspects.csv``, the most suspect first: ``id``, ``split``, ``label``, ``confidence``.
        classes: training rows of each label.
        sure: least probability of the label that is suggested.
        most: share of a class that may go.
    """
    gone: Counter[str] = Counter()
    ids: list[str] = []
    for row in rows:
        label = row["label"]
        if row["split"] != "train" or float(row["confidence"]) < sure:
            continue
        if gone[label] + 1 <= most * classes.get(label, 0):
            gone[label] += 1
            ids.append(row["id"])
    return ids
