"""How many processors a local Ray may be given."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def local_cpus() -> int:
    """The cores this process may use: those it is held to, or as many as its container is given the time of."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _quota()))


def _quota(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Processors' worth of time that the control group may take, rounded up; a large number where it may take all."""
    try:
        quota, period = (root / "cpu.max").read_text(encoding="ascii").split()  # cgroup v2
    except (OSError, ValueError):
        try:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = ((root / "cpu" / name).read_text(encoding="ascii") for name in names)
        except OSError:
            return sys.maxsize
    return -(-int(quota) // int(period)) if quota.strip().lstrip("-").isdigit() and int(quota) > 0 else sys.maxsize
