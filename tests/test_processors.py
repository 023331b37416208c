"""The processors of a container."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline import processors


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "max 100000"}, sys.maxsize),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, sys.maxsize),
        ({}, sys.maxsize),
    ],
)
def test_a_containers_limit_counts(files: dict[str, str], found: int, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    assert processors._quota(tmp_path) == found
