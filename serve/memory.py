"""What a desk must know again after it was restarted: the lineups, as JSON in the cluster's own key-value store.

That store outlives the desk, and with a Redis the head, too (docs/cluster.md).
"""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import asdict
from typing import Any, Protocol

from ray.exceptions import RayError

from serve.releases import Lineup, Release

NAMESPACE = "broadsheet"

log = logging.getLogger("ray.serve")


class Memory(Protocol):
    """Where a desk keeps its lineups."""

    def read(self) -> tuple[Lineup, Lineup] | None:
        """The lineup that was wanted last, and the last that a replica served; None if nothing was kept."""

    def write(self, wanted: Lineup, proven: Lineup) -> None:
        """Keep both."""


class ClusterMemory:
    """Memory of the desk of this name, in the store of the connected cluster."""

    def __init__(self, name: str) -> None:
        self._name = name

    def read(self) -> tuple[Lineup, Lineup] | None:
        """As of ``Memory``."""
        from ray.experimental import internal_kv  # alpha; tests/serve/test_releases_e2e.py watches it

        try:
            kept = internal_kv._internal_kv_get(self._name, namespace=NAMESPACE)
            if not kept:
                return None
            wanted, proven = (from_json(lineup) for lineup in json.loads(kept))
        except (RayError, ValueError, KeyError, TypeError) as e:  # an actor that fails as it starts never starts again
            log.warning("the lineup of before is not known: %s", e)
            return None
        return wanted, proven

    def write(self, wanted: Lineup, proven: Lineup) -> None:
        """As of ``Memory``. Where the store does not answer, replicas still know what they serve."""
        from ray.experimental import internal_kv

        content = json.dumps([asdict(wanted), asdict(proven)])
        try:
            internal_kv._internal_kv_put(self._name, content.encode(), overwrite=True, namespace=NAMESPACE)
        except RayError as e:  # its head is away
            log.warning("the lineup is not kept: %s", e)

    def forget(self) -> None:
        """Keep nothing any more."""
        from ray.experimental import internal_kv

        with contextlib.suppress(RayError):  # it goes with the cluster at the latest
            internal_kv._internal_kv_del(self._name, namespace=NAMESPACE)


def from_json(kept: dict[str, Any]) -> Lineup:
    """A lineup of which ``asdict`` was kept."""
    releases = {key: Release(**kept[key]) for key in ("stable", "previous", "candidate") if kept[key] is not None}
    return Lineup(**{**kept, **releases})
