"""The allocator's settings reach the process, and only where glibc takes them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from pipeline.train import allocator

STEPS = """
import resource, threading, numpy
def steps():
    for _ in range(20):
        numpy.ones(6_000_000)
        [numpy.ones(500_000) for _ in range(10)]
thread = threading.Thread(target=steps)
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.parametrize(
    ("library", "version", "set_up"),
    [
        ("glibc", "2.36", True),
        ("glibc", "2.35", True),
        ("glibc", "2.34", False),
        ("", "", False),
        ("musl", "2.40", False),
    ],
)
def test_only_where_glibc_takes_them(library: str, version: str, set_up: bool) -> None:
    assert bool(allocator.settings(library, version)) is set_up


@pytest.mark.skipif(not allocator.settings(), reason=f"{platform.libc_ver()} is not set up")
def test_memory_is_kept_from_step_to_step() -> None:
    def faults(more: dict[str, str]) -> int:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))} | more
        command = [sys.executable, "-c", STEPS]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    assert faults(allocator.settings()) < faults({}) / 3
