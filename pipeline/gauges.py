"""How far a run is and how good, on the metrics port of the node that runs the command.

Ray's agent exports it with Ray's prefix: ``ray_broadsheet_run_done``. ``serve/grafana/stages.json`` shows it. Without a
Ray (small data are prepared without one) there is no such port, and nothing is shown.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from typing import Any

EVERY_S = 2.0  # between two values of a progress; the agent is told every 10

log = logging.getLogger(__name__)


class Utf8(str):
    """The value of a label. Ray 2.60 asks it for ASCII, which a name need not be; the rest takes UTF-8."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return super().encode("utf-8", errors)


DONE = "broadsheet_run_done"
TOTAL = "broadsheet_run_total"
SCORE = "broadsheet_run_score"
HELP = {
    DONE: "What a stage of a run has done, by unit (steps, rows, trials).",
    TOTAL: "What it has to do; not there where nobody knows.",
    SCORE: "Figures of the last evaluation of a training or trial, by name.",
}
KEYS = {DONE: ("run", "stage", "unit"), TOTAL: ("run", "stage", "unit"), SCORE: ("run", "stage", "figure", "trial")}

_gauges: dict[str, Any] = {}
_told: dict[tuple[str, ...], float] = {}


def show(name: str, value: float, **labels: str) -> None:
    """Set a gauge of ``HELP``, if there is a Ray to export it.

    Args:
        name: of the gauge.
        value: what is no finite number is left out.
        **labels: of ``KEYS``; one that is missing is empty.
    """
    ray: Any = sys.modules.get("ray")
    if ray is None or not ray.is_initialized() or not math.isfinite(value):
        return
    try:
        if name not in _gauges:
            from ray.util.metrics import Gauge

            _gauges[name] = Gauge(name, HELP[name], tag_keys=KEYS[name])
        _gauges[name].set(value, tags={key: Utf8(labels.get(key, "")) for key in KEYS[name]})
    except (RuntimeError, ValueError, OSError) as e:  # of Ray, as where it is just ending: the work counts
        log.warning("%s is not exported: %s", name, e)


def progress(run: str, stage: str, unit: str, done: float, total: float | None, last: bool = False) -> None:
    """Show how far a stage is; at most every ``EVERY_S``, but for the last time."""
    key, now = (run, stage, unit), time.monotonic()
    if not last and done != total and now - _told.get(key, -math.inf) < EVERY_S:
        return
    _told[key] = now
    show(DONE, done, run=run, stage=stage, unit=unit)
    if total is not None:
        show(TOTAL, total, run=run, stage=stage, unit=unit)
