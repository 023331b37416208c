"""What texts and answers looked like at evaluation: histograms that live traffic is compared with.

``broadsheet evaluate`` leaves them with the checkpoint, ``reference.json``, made of validation rows that took the way
of a request: cleaned, tokenized and cut as in serving. Serving counts its own rows over the same bins.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import UserError
from pipeline.storage import Place

FILE = "reference.json"
ROWS = 10_000
BINS = 10
LEAST = 0.05  # of the rows in each bin: a thinner one is mostly noise
HEAVY = 0.5  # a value that so many rows have gets a bin of its own, however thin what is left beside it

# Steps below which two values of a feature are the same: no bin ends within one. Two machines, or two sizes of batch,
# do not agree on a confidence to the last digit.
STEPS = {"confidence": 0.001, "tokens": 1.0, "unknown": 0.0001}
BOUNDS = {"confidence": (0.0, 1.0), "tokens": (0.0, float("inf")), "unknown": (0.0, 1.0)}

Floats = npt.NDArray[np.float64]
FeatureName = Literal["label", "confidence", "tokens", "unknown", "truncated"]


def _rising(edges: tuple[float, ...]) -> tuple[float, ...]:
    if any(a >= b for a, b in itertools.pairwise(edges)):
        raise ValueError("edges do not rise")
    return edges


class Feature(BaseModel):
    """A histogram; bin i holds the values from ``edges[i - 1]`` on and below ``edges[i]``.

    Attributes:
        edges: between the bins, one fewer than there are bins.
        counts: rows of each bin.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    edges: Annotated[tuple[float, ...], AfterValidator(_rising)]
    counts: tuple[Annotated[int, Field(ge=0)], ...]

    @property
    def shares(self) -> Floats:
        """Of the rows, in each bin."""
        return np.array(self.counts) / max(1, sum(self.counts))

    @property
    def filled(self) -> int:
        """Bins that hold rows."""
        return sum(count > 0 for count in self.counts)


class Reference(BaseModel):
    """The histograms of a checkpoint.

    Attributes:
        format: of the file.
        rows: they are made of.
        labels: of the checkpoint.
        unknown_id: the token for what the vocabulary does not have; None if the tokenizer has none.
        features: histograms by name; ``unknown`` only where there is such a token.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal[1] = 1
    rows: Annotated[int, Field(ge=1)]
    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    unknown_id: Annotated[int, Field(ge=0)] | None
    features: dict[FeatureName, Feature]

    @model_validator(mode="after")
    def _adds_up(self) -> Reference:
        wanted = {"label", "confidence", "tokens", "truncated"} | (
            {"unknown"} if self.unknown_id is not None else set()
        )
        if set(self.features) != wanted:
            raise ValueError(f"the features are {sorted(self.features)}, and not {sorted(wanted)}")
        for name, feature in self.features.items():
            if len(feature.counts) != len(feature.edges) + 1:
                raise ValueError(f"{name}: {len(feature.edges)} edges and {len(feature.counts)} bins")
            if sum(feature.counts) != self.rows:
                raise ValueError(f"{name}: {sum(feature.counts)} rows in its bins, of {self.rows}")
            if len(set(self.names(name))) != len(feature.counts):
                raise ValueError(f"{name}: two of its bins are alike")
        for name, edges in _fixed(len(self.labels)).items():
            if self.features[name].edges != edges:
                raise ValueError(f"{name}: other bins than its values have")
        return self

    def names(self, feature: FeatureName) -> list[str]:
        """The bins of a feature, in words."""
        if feature == "label":
            return list(self.labels)
        if feature == "truncated":
            return ["whole", "cut"]
        edges = [f"{edge:.6g}" for edge in self.features[feature].edges]
        if not edges:
            return ["any"]
        between = [f"{a} to {b}" for a, b in itertools.pairwise(edges)]
        return [f"below {edges[0]}", *between, f"from {edges[-1]}"]

    def save(self, folder: Place) -> None:
        """Write ``reference.json``."""
        (folder / FILE).write_text(json.dumps(self.model_dump(), ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: Place) -> Reference | None:
        """Read a checkpoint's reference; None where it has none.

        Raises:
            UserError: it is damaged, or of another version.
        """
        file = folder / FILE
        if not file.exists():
            return None
        try:
            return cls.model_validate_json(file.read_bytes(), strict=True)
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            what = f"{where}: {first['msg'].removeprefix('Value error, ')}"
            raise UserError(f"{file} is damaged ({what}): delete it and run 'broadsheet evaluate' again") from e
        except OSError as e:
            raise UserError(f"{file} cannot be read: {e}") from e


def seen(
    probabilities: Floats, ids: Sequence[npt.NDArray[Any]], truncated: Sequence[bool], unknown_id: int | None
) -> dict[FeatureName, Floats]:
    """The features of texts and of the answers to them, a value per text.

    Args:
        probabilities: [texts, labels], calibrated.
        ids: tokens of each text.
        truncated: whether each was cut.
        unknown_id: see ``Reference``.
    """
    lengths = np.array([len(row) for row in ids])
    found: dict[FeatureName, Floats] = {
        "label": probabilities.argmax(1).astype(float),
        "confidence": probabilities.max(1),
        "tokens": lengths.astype(float),
        "truncated": np.array(truncated, float),
    }
    if unknown_id is not None:
        ends = np.cumsum(lengths)
        unknown = np.concatenate([[0], np.cumsum(np.concatenate(ids) == unknown_id)])
        found["unknown"] = (unknown[ends] - unknown[ends - lengths]) / np.maximum(lengths, 1)
    return found


def cuts(values: Floats, step: float, bounds: tuple[float, float] = (-np.inf, np.inf)) -> tuple[float, ...]:
    """Edges of bins that hold about equally many of the values each, and at least ``LEAST`` of them.

    An edge lies halfway between two values, never on one. Values that differ by less than a step count as one.

    Args:
        values: of one feature, [rows], at least one.
        step: see ``STEPS``.
        bounds: within which values can lie.
    """
    distinct, counts = np.unique(np.round(values / step), return_counts=True)
    below = np.cumsum(counts)[:-1] / len(values)  # share up to each distinct value but the last
    found: set[float] = set()
    last = 0.0
    near = np.abs(below - np.arange(1, BINS)[:, None] / BINS).argmin(1) if len(below) else np.empty(0, int)
    for i in np.unique(near).tolist():
        if below[i] - last >= LEAST and 1 - below[i] >= LEAST:
            found.add(float((distinct[i] + distinct[i + 1]) / 2 * step))
            last = float(below[i])
    heaviest = int(counts.argmax())
    if counts[heaviest] >= HEAVY * len(values):
        low, high = (float((distinct[heaviest] + side) * step) for side in (-0.5, 0.5))
        inner = {edge for edge in (low, high) if bounds[0] < edge < bounds[1]}
        # An edge on the same gap, between this value and its neighbour, gives way.
        beside = distinct[max(0, heaviest - 1)] * step, distinct[min(len(distinct) - 1, heaviest + 1)] * step
        found = {edge for edge in found if not beside[0] < edge < beside[1]} | inner
    return tuple(sorted(found))


def make(
    labels: Sequence[str],
    probabilities: Floats,
    ids: Sequence[npt.NDArray[Any]],
    truncated: Sequence[bool],
    unknown_id: int | None,
) -> Reference:
    """The reference of rows, at least one; see ``seen``."""
    features: dict[FeatureName, Feature] = {}
    for name, values in seen(probabilities, ids, truncated, unknown_id).items():
        edges = _fixed(len(labels)).get(name)
        if edges is None:
            edges = cuts(values, STEPS[name], BOUNDS[name])
        counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
        features[name] = Feature(edges=edges, counts=tuple(counts.tolist()))
    return Reference(rows=len(ids), labels=tuple(labels), unknown_id=unknown_id, features=features)


def _fixed(labels: int) -> dict[FeatureName, tuple[float, ...]]:
    """Edges that are known beforehand: between label ids, and between no and yes."""
    return {"label": tuple(i + 0.5 for i in range(labels - 1)), "truncated": (0.5,)}
