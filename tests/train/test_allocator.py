"""The allocator's settings reach the process, and only where glibc takes them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import load
from pipeline.storage import Place
from pipeline.train import allocator, trainer
from pipeline.train.layout import Layout

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


@pytest.mark.parametrize("gpus", [0, 1])
def test_workers_on_cpus_start_with_them(gpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", *allocator.settings("glibc", "2.36")):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")  # the user's own wins
    layout = Layout(2, 1, gpus)
    made = trainer.torch_trainer(load(None, [], {}), layout, Place.of(tmp_path), "run", {}, [])
    given = made.run_config.worker_runtime_env
    wanted = {k: v for k, v in allocator.settings().items() if k != "MALLOC_TOP_PAD_"} | {"OMP_NUM_THREADS": "1"}
    assert given == ({} if gpus else {"env_vars": wanted})
