"""A rough estimate of the energy of a run, from time and an assumed power: no meter is read."""

from __future__ import annotations

from typing import Any

from pipeline.cluster import Resources

# Rated power of current server processors per core, and of a data-centre GPU; a laptop's core takes less, the largest
# GPUs more than twice as much. Memory, disks, network and cooling are left out.
WATT_PER_CORE = 12.0
WATT_PER_GPU = 300.0


def estimate(seconds: float, have: Resources) -> dict[str, Any]:
    """Watt-hours, as if every core and GPU of the cluster had been busy all the time: an upper estimate.

    Args:
        seconds: of the whole run.
        have: the cluster it ran on.
    """
    watt = have.cpus * WATT_PER_CORE + have.gpus * WATT_PER_GPU
    return {
        "watt_hours": round(seconds * watt / 3600, 3),
        "cpu_seconds": round(seconds * have.cpus, 1),
        "gpu_seconds": round(seconds * have.gpus, 1),
        "watt_per_core": WATT_PER_CORE,
        "watt_per_gpu": WATT_PER_GPU,
    }
