"""The metrics of every replica on a port of its node: handed to Ray, whose agent there exports them.

``/metrics`` is reached through the proxy, which picks a replica, so a scraper of several would add apples to pears. The
agent shows each replica's series under its own label ``replica``, with Ray's prefix: ``ray_broadsheet_texts_total``.
"""

from __future__ import annotations

import logging
import math
import threading
from typing import Any

from prometheus_client import CollectorRegistry

from pipeline.gauges import Utf8

PERIOD_S = 5.0  # the agent itself is told every 10 s (Ray's metrics_report_interval_ms)

log = logging.getLogger("ray.serve")


class Mirror:
    """Copies the series of a registry into Ray's metrics, in a thread of its own that ends with the process.

    All are gauges for Ray, histograms' buckets and counters too: those have kept their names and their running totals,
    and to Prometheus' ``rate`` a type means nothing. The agent drops a gauge when its replica has gone.

    Args:
        registry: of ``prometheus_client``.
        period_s: between two copies.
    """

    def __init__(self, registry: CollectorRegistry, period_s: float = PERIOD_S) -> None:
        self._registry = registry
        self._period_s = period_s
        self._gauges: dict[str, Any] = {}
        self._stop = threading.Event()

    def start(self) -> None:
        """Copy now, and again every period."""
        threading.Thread(target=self._run, name="node-metrics", daemon=True).start()

    def stop(self) -> None:
        """No further copy."""
        self._stop.set()

    def copy(self) -> None:
        """Every finite sample; ``..._created``, the time of a counter's birth, is left out."""
        from ray.serve.metrics import Gauge

        for family in self._registry.collect():
            for sample in family.samples:
                if sample.name.endswith("_created") or not math.isfinite(sample.value):
                    continue
                if sample.name not in self._gauges:
                    keys = tuple(sorted(sample.labels))
                    self._gauges[sample.name] = Gauge(sample.name, family.documentation, tag_keys=keys)  # type: ignore[arg-type]  # it says tuple[str], and takes more
                self._gauges[sample.name].set(sample.value, tags={k: Utf8(v) for k, v in sample.labels.items()})

    def _run(self) -> None:
        try:
            self.copy()
            while not self._stop.wait(self._period_s):
                self.copy()
        except Exception:  # the replica must go on answering
            log.exception(
                "the metrics of this replica are no longer exported on its node's port; /metrics still has them"
            )
