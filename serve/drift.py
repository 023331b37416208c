"""Drift: how far the texts of the last hour, and the answers to them, have moved from those of evaluation.

Each replica counts what it classified over the bins of the checkpoint's reference: in a sliding window for
``GET /v1/drift`` and its own gauges, and since its start in counters, from which Prometheus takes the index over all
replicas.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from pydantic import BaseModel, ConfigDict, Field

from pipeline.evaluate.reference import FeatureName, Reference, seen
from serve import stability

SLOTS = 60  # of the window; it slides by one at a time
TOGETHER = 64  # texts counted at once: a request of one text then costs 3 µs instead of 60

Counts = npt.NDArray[np.int64]


class Bin(BaseModel):
    """A bin of a feature, or a label."""

    bin: str
    reference: float = Field(description="Share of the reference's rows.")
    live: float | None = Field(description="Share of the rows in the window; null where there are none.")


class FeatureDrift(BaseModel):
    """How far one feature has moved."""

    psi: float | None = Field(description="Population stability index; null without rows.")
    noise: float | None = Field(description="What the index would be in the mean if nothing had changed.")
    verdict: stability.Verdict = Field(
        description=f"Of psi less noise: 'warn' from {stability.WARN:g}, 'alarm' from {stability.ALARM:g}."
    )
    rows_needed: int | None = Field(description="Rows before there is a verdict; null: the reference is too small.")
    bins: list[Bin]


class DriftReport(BaseModel):
    """The answer of ``GET /v1/drift``."""

    model_config = ConfigDict(protected_namespaces=())
    model_version: str
    scope: str = Field("replica", description="Whose texts these are: those of the replica that answers, no others.")
    window_s: float
    rows: int = Field(description="Texts in the window.")
    reference_rows: int
    verdict: stability.Verdict = Field(description="The worst of the features.")
    features: dict[str, FeatureDrift]


WORSE: tuple[stability.Verdict, ...] = ("too few rows", "ok", "warn", "alarm")


class Drift:
    """Counts what one model classified. Every method may be called from any thread.

    Args:
        reference: of the model.
        window_s: how far back the window reaches; the oldest sixtieth of it goes at once.
        clock: seconds, monotonic.
    """

    def __init__(self, reference: Reference, window_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.reference = reference
        self.window_s = window_s
        self._clock = clock
        self._edges = {name: np.array(feature.edges) for name, feature in reference.features.items()}
        self._at: dict[FeatureName, slice] = {}
        end = 0
        for name, feature in reference.features.items():
            self._at[name] = slice(end, end + len(feature.counts))
            end += len(feature.counts)
        self._totals: Counts = np.zeros(end, np.int64)
        self._slots: Counts = np.zeros((SLOTS, end), np.int64)
        self._tick = self._now()
        self._waiting: list[tuple[npt.NDArray[np.floating], Sequence[npt.NDArray[Any]], Sequence[bool]]] = []
        self._texts_waiting = 0
        self._lock = threading.Lock()

    def add(
        self, probabilities: npt.NDArray[np.floating], ids: Sequence[npt.NDArray[Any]], truncated: Sequence[bool]
    ) -> None:
        """Count the texts of one request, at least one; see ``pipeline.evaluate.reference.seen``."""
        with self._lock:
            if self._now() != self._tick:
                self._turn()
            self._waiting.append((probabilities, ids, truncated))
            self._texts_waiting += len(ids)
            if self._texts_waiting >= TOGETHER:
                self._count()

    def window(self) -> dict[FeatureName, Counts]:
        """Rows per bin in the window."""
        with self._lock:
            self._turn()
            counts = self._slots.sum(0)
        return {name: counts[at] for name, at in self._at.items()}

    def totals(self) -> dict[FeatureName, Counts]:
        """Rows per bin since the start."""
        with self._lock:
            self._count()
            counts = self._totals.copy()
        return {name: counts[at] for name, at in self._at.items()}

    def report(self, version: str) -> DriftReport:
        """The window against the reference, for the model of that version."""
        known, live = self.reference, self.window()
        rows = int(live["label"].sum())
        features = {name: _feature(known, name, counts, rows) for name, counts in live.items()}
        return DriftReport(
            model_version=version,
            scope="replica",
            window_s=self.window_s,
            rows=rows,
            reference_rows=known.rows,
            verdict=max((f.verdict for f in features.values()), key=WORSE.index),
            features={str(name): feature for name, feature in features.items()},
        )

    def _now(self) -> int:
        return int(self._clock() * SLOTS / self.window_s)

    def _count(self) -> None:
        """Put the texts that wait into the newest slot."""
        if not self._waiting:
            return
        probabilities = np.concatenate([p for p, _, _ in self._waiting], dtype=float)
        ids = [row for _, rows, _ in self._waiting for row in rows]
        truncated = [cut for _, _, rows in self._waiting for cut in rows]
        self._waiting, self._texts_waiting = [], 0
        values = seen(probabilities, ids, truncated, self.reference.unknown_id)
        bins = [self._edges[name].searchsorted(of, side="right") + self._at[name].start for name, of in values.items()]
        counts = np.bincount(np.concatenate(bins), minlength=len(self._totals))
        self._slots[self._tick % SLOTS] += counts
        self._totals += counts

    def _turn(self) -> None:
        """Go on to the slot of now; those whose time has come again are emptied."""
        self._count()
        now = self._now()
        for tick in range(max(self._tick + 1, now - SLOTS + 1), now + 1):
            self._slots[tick % SLOTS] = 0
        self._tick = max(self._tick, now)


def _feature(known: Reference, name: FeatureName, counts: Counts, rows: int) -> FeatureDrift:
    feature = known.features[name]
    needed = stability.rows_needed(feature.filled, known.rows)
    live = counts / rows if rows else None
    index = None if live is None else stability.psi(feature.shares, live)
    return FeatureDrift(
        psi=index,
        noise=stability.noise(feature.filled, rows, known.rows) if rows else None,
        verdict=stability.verdict(index, feature.filled, rows, known.rows) if index is not None else "too few rows",
        rows_needed=int(needed) if math.isfinite(needed) else None,
        bins=[
            Bin(bin=name, reference=float(share), live=None if live is None else float(live[i]))
            for i, (name, share) in enumerate(zip(known.names(name), feature.shares, strict=True))
        ],
    )


class Collector:
    """The series of every model's ``Drift`` for a registry of ``prometheus_client``, made at each scrape."""

    def __init__(self) -> None:
        self._drifts: dict[str, Drift] = {}

    def show(self, version: str, drift: Drift | None) -> None:
        """Show a model's drift among the metrics, or with None no longer."""
        if drift is None:
            self._drifts.pop(version, None)
        else:
            self._drifts[version] = drift

    def collect(self) -> Iterator[Metric]:
        """All series; none where no model has a reference."""
        drifts = dict(self._drifts)
        if not drifts:
            return
        by_feature, by_bin = ["version", "feature"], ["version", "feature", "bin"]
        index = GaugeMetricFamily("broadsheet_drift_psi", "PSI of the window, of this replica.", labels=by_feature)
        rows = GaugeMetricFamily("broadsheet_drift_rows", "Texts in the window, of this replica.", labels=["version"])
        needed = GaugeMetricFamily("broadsheet_drift_rows_needed", "Texts before PSI says anything.", labels=by_feature)
        behind = GaugeMetricFamily("broadsheet_drift_reference_rows", "Rows of the reference.", labels=["version"])
        share = GaugeMetricFamily("broadsheet_drift_reference", "Share of the reference's rows.", labels=by_bin)
        count = CounterMetricFamily("broadsheet_drift_bin", "Texts classified, by bin of a feature.", labels=by_bin)
        for version, drift in drifts.items():
            report, totals = drift.report(version), drift.totals()
            rows.add_metric([version], report.rows)
            behind.add_metric([version], drift.reference.rows)
            for name, of in totals.items():
                found = report.features[name]
                index.add_metric([version, name], math.nan if found.psi is None else found.psi)
                needed.add_metric([version, name], math.inf if found.rows_needed is None else found.rows_needed)
                for one, total in zip(found.bins, of.tolist(), strict=True):
                    share.add_metric([version, name, one.bin], one.reference)
                    count.add_metric([version, name, one.bin], total)
        yield from (index, rows, needed, behind, share, count)
