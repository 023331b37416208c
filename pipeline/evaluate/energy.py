"""A rough estimate of the energy of a run, from time and an assumed power: no meter is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.cluster import Resources

# Rated power of current server processors per core, and of a data-centre GPU; a laptop's core takes less, the largest
# GPUs more than twice as much. Memory, disks, network and cooling are left out.
WATT_PER_CORE = 12.0
WATT_PER_GPU = 300.0


def estimate(
    stages: Mapping[str, float], ran_on: Mapping[str, Mapping[str, int] | None], have: Resources
) -> dict[str, Any]:
    """Watt-hours, as if every core and GPU of the cluster had been busy all the time: an upper estimate.

    Args:
        stages: seconds of each.
        ran_on: ``cpus`` and ``gpus`` of the cluster that a stage ran on, where it is known.
        have: the cluster of all others: the one that is there now.
    """
    now = {"cpus": have.cpus, "gpus": have.gpus}
    on = {name: ran_on.get(name) or now for name in stages}
    cpu_seconds = sum(seconds * on[name]["cpus"] for name, seconds in stages.items())
    gpu_seconds = sum(seconds * on[name]["gpus"] for name, seconds in stages.items())
    return {
        "watt_hours": round((cpu_seconds * WATT_PER_CORE + gpu_seconds * WATT_PER_GPU) / 3600, 3),
        "cpu_seconds": round(cpu_seconds, 1),
        "gpu_seconds": round(gpu_seconds, 1),
        "watt_per_core": WATT_PER_CORE,
        "watt_per_gpu": WATT_PER_GPU,
    }
