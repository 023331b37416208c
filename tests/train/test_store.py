"""Checkpoints: whole or not at all, the last ones and the best kept, damage noticed, the failures in words."""

from __future__ import annotations

import copy
import errno
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError, OutOfMemoryError

from pipeline.errors import WorkFailed
from pipeline.storage import Place
from pipeline.train import checkpoint, failures, worker
from pipeline.train.failed_start import FreeFailedStart
from pipeline.train.store import STALL_SHARE, Store, Writer, kept, name_of, unwritable


def fill(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weights" * 50)
    (folder / "progress.json").write_text("{}")


@given(st.dictionaries(st.integers(1, 99), st.none() | st.floats(0, 1), max_size=12), st.integers(1, 4))
def test_the_latest_and_the_best_are_kept(scores: dict[int, float | None], keep: int) -> None:
    stay = kept(scores, keep)
    assert stay >= set(sorted(scores)[-keep:])
    evaluated = {step: score for step, score in scores.items() if score is not None}
    best = [step for step, score in evaluated.items() if score == max(evaluated.values())]
    assert stay - set(sorted(scores)[-keep:]) <= {min(best, default=0)}
    assert not best or min(best) in stay


def test_a_store_keeps_what_it_should(tmp_path: Path) -> None:
    store = Store(Place.of(tmp_path / "run"), 2)
    assert store.steps() == []
    for step, score in ((3, 0.5), (6, 0.9), (9, None), (12, 0.2), (15, 0.9)):
        store.write(step, score, fill)
    assert store.scores() == {15: 0.9, 12: 0.2, 6: 0.9}
    store.write(15, 0.1, fill)  # once more: the new one counts
    assert store.scores()[15] == 0.1
    store.remove(6)
    assert sorted(os.listdir(tmp_path / "run")) == [name_of(12), name_of(15)]


@pytest.mark.parametrize("file", ["model.safetensors", "progress.json", checkpoint.SEAL])
@pytest.mark.parametrize("how", ["flip", "cut", "remove", "empty"])
def test_any_damage_is_noticed(file: str, how: str, tmp_path: Path) -> None:
    store = Store(Place.of(tmp_path), 1)
    store.write(1, 0.5, fill)
    with store.opened(1) as (folder, damage):
        assert damage is None
    victim = folder / file
    data = victim.read_bytes()
    if how == "remove":
        victim.unlink()
    else:
        victim.write_bytes({"flip": bytes([data[0] ^ 1]) + data[1:], "cut": data[:-3], "empty": b""}[how])
    with store.opened(1) as (_, damage):
        assert damage
        assert file in damage
    assert store.scores() in ({1: 0.5}, {1: None}, {})


def test_a_half_written_checkpoint_is_none(tmp_path: Path) -> None:
    store = Store(Place.of(tmp_path), 1)

    def die(folder: Path) -> None:
        fill(folder)
        raise KeyboardInterrupt

    store.write(1, None, fill)
    with pytest.raises(KeyboardInterrupt):
        store.write(2, None, die)
    (tmp_path / ".new-killed").mkdir()
    (tmp_path / name_of(3)).mkdir()  # on an object store: files without their seal
    assert store.steps() == [1]
    store.sweep()
    assert not list(tmp_path.glob(".new-*"))


class Tiny(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)


def step(network: Tiny, optimizer: torch.optim.Optimizer) -> None:
    network.layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_snapshot_is_of_its_moment_and_writing_does_not_wait(tmp_path: Path) -> None:
    network = Tiny()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    step(network, optimizer)
    snapshot = checkpoint.Snapshot(network, optimizer)
    saved: list[dict[str, torch.Tensor]] = []
    writer = Writer(
        Store(Place.of(tmp_path), 2),
        snapshot,
        lambda card, folder: saved.append(copy.deepcopy(dict(snapshot.model.state_dict()))),
        seconds=0.0,
    )
    was = {k: v.clone() for k, v in network.state_dict().items()}
    moment = optimizer.state[network.layer.weight]["exp_avg"].clone()
    written = writer.put({"step": 1}, {})
    step(network, optimizer)
    written.result()
    assert all(torch.equal(saved[0][k], v) for k, v in was.items())
    assert torch.equal(snapshot.moments["layer.weight|exp_avg"], moment)
    assert not torch.equal(network.layer.weight, was["layer.weight"])
    assert 0 < writer.stalled < 60
    assert 0 < writer.interval <= writer.stalled / STALL_SHARE
    assert writer.steps_to_next(10, 1e9) == 1
    writer.put({"step": 2}, {}).result()
    assert not torch.equal(snapshot.moments["layer.weight|exp_avg"], moment)


def test_weights_that_are_no_numbers_are_never_written(tmp_path: Path) -> None:
    network = Tiny()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    store = Store(Place.of(tmp_path), 2)
    writer = Writer(store, checkpoint.Snapshot(network, optimizer), lambda card, folder: None, seconds=0.0)
    writer.put({"step": 1}, {}).result()
    with torch.no_grad():
        network.layer.bias[0] = float("nan")
    with pytest.raises(WorkFailed, match=r"weights \(layer.bias\) are no longer finite at step 2"):
        writer.put({"step": 2}, {}).result()
    with pytest.raises(WorkFailed, match="last good checkpoint is kept"):
        writer.check()
    assert store.steps() == [1]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        RuntimeError('Error while serializing: I/O error: No space left on device (os error 28)'),
        OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
    ],
)  # fmt: skip
def test_a_full_disk_in_words(error: Exception) -> None:
    said = unwritable(error, Place.of("/data/run"))
    assert said == (
        "cannot write to /data/run: the disk is full. The last good checkpoint is kept: make room there, "
        "and the same command resumes"
    )
    assert unwritable(KeyError("x"), Place.of("/data/run")) is None
    assert "Permission denied" in str(unwritable(OSError(errno.EACCES, "Permission denied"), Place.of("/data/run")))


def test_out_of_memory_proposes_a_budget_that_fits() -> None:
    tried = []

    def probe(tokens: int) -> None:
        tried.append(tokens)
        if tokens > 600:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )

    error = RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    said = failures.explained(error, torch.device("cpu"), 4096, probe)
    assert tried == [2048, 1024, 512]
    assert isinstance(said, WorkFailed)
    assert str(said).endswith(
        "a step of 512 tokens fits: --set train.batch_tokens=512; the last good checkpoint is kept"
    )
    never = failures.explained(error, torch.device("cpu"), 128, probe=lambda tokens: probe(9999))
    assert "even the smallest batch does not fit" in str(never)
    other = ValueError("no")
    assert failures.explained(other, torch.device("cpu"), 128, None) is other
    assert failures.is_memory(torch.OutOfMemoryError("x"))


def test_what_is_final_and_what_is_tried_again() -> None:
    assert "halve the batch: --set train.batch_tokens=1024" in str(failures.verdict(OutOfMemoryError("node"), 2048))
    ours = WorkFailed("the training loss is nan")
    assert str(failures.verdict(ours, 2048)) == str(ours)
    assert failures.verdict(RuntimeError("Connection closed by peer"), 2048) is None
    said = failures.worn_out({0: RuntimeError("boom")}, 4, 30, 2048)
    assert said == (
        "training failed 4 times in a row without a new checkpoint in between (boom); "
        "the checkpoint after step 30 is kept"
    )


def test_a_lost_ray_in_words() -> None:
    said = failures.stopped(ActorDiedError(), Place.of("/data/run"))
    assert str(said).startswith("training stopped: Ray went away under it (a node was lost, or its raylet was killed).")
    assert "Checkpoints so far are in /data/run; the same command resumes" in str(said)
    assert "the disk is full" in str(failures.stopped(OSError(errno.ENOSPC, "No space left on device"), Place("/data")))


def test_the_policy_counts_failures_without_progress(tmp_path: Path) -> None:
    store = Store(Place.of(tmp_path), 9)
    policy = failures.FailurePolicy(Place.of(tmp_path), 2, 2048)
    lost = {0: RuntimeError("Connection closed by peer")}

    def lose_a_group() -> None:
        FreeFailedStart.groups += 1
        for _ in range(5):  # polled until it is let go of
            policy.after_exception(None, lost)

    for step in (10, 20, 30):  # each time there is a new checkpoint: ten kills in one training are survived
        for _ in range(2):
            lose_a_group()
        store.write(step, None, fill)
    for _ in range(2):
        lose_a_group()
    with pytest.raises(WorkFailed, match="3 times in a row without a new checkpoint"):
        lose_a_group()
    with pytest.raises(WorkFailed, match="no number"):
        policy.after_exception(None, {0: lost[0], 1: WorkFailed("no number")})


STARVED = """
import resource, numpy, torch
from pipeline.model.lstm import LstmConfig, LstmForSequenceClassification
from pipeline.train import failures
torch.set_num_threads(1)
network = LstmForSequenceClassification(LstmConfig(vocab_size=50, embedding_dim=16, hidden=(16,), num_labels=2))
optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
lengths = numpy.full(20_000, 50)
probe = failures.probe_step(network, optimizer, lengths, "fp32", 1)
probe(64)
before = {k: v.clone() for k, v in network.state_dict().items()}
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), resource.RLIM_INFINITY))
try:
    probe(1_000_000)
except RuntimeError as e:
    said = failures.explained(e, torch.device("cpu"), 1_000_000, probe)
assert not optimizer.state and all(p.grad is None for p in network.parameters())
assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
print(said)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits the address space as Linux counts it")
def test_a_process_without_memory_finds_the_budget_that_fits() -> None:
    done = subprocess.run([sys.executable, "-c", STARVED], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    found = re.search(r"^cpu ran out of memory with train.batch_tokens=1000000; a step of ([\d,]+) tokens", done.stdout)
    assert found, done.stdout
    assert 1_000 < int(found[1].replace(",", "")) < 1_000_000


FULL = """
import sys, torch
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from pipeline.errors import WorkFailed
from pipeline.storage import Place
from pipeline.train import checkpoint
from pipeline.train.store import Store
store = Store(Place.of(sys.argv[1]), 2)
for step, size in ((1, 1_000), (2, 1_000_000)):
    try:
        state = {"w": torch.zeros(size)}, {}
        store.write(step, None, lambda folder: checkpoint.save_state(*state, folder))
    except WorkFailed as e:
        print(e)
with store.opened(1) as (_, damage):
    print(store.steps(), damage, sorted(p.name for p in Path(sys.argv[1]).iterdir()))
"""


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=400k tmpfs {tmp_path}"
    if not shutil.which("unshare") or subprocess.run([*inside, mount], capture_output=True).returncode:
        pytest.skip("no file system of one's own here")
    command = shlex.join([sys.executable, "-c", FULL, str(tmp_path)])
    done = subprocess.run([*inside, f"{mount} && {command}"], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert f"cannot write to {tmp_path}/{name_of(2)}: the disk is full." in done.stdout
    assert done.stdout.endswith(f"[1] None ['{name_of(1)}']\n")


class OneOfTwo:
    """Rank 0 of two, whose neighbour cannot read some of the checkpoints."""

    rank, world = 0, 2

    def from_rank_zero(self, value: Any) -> Any:
        return value


def test_a_checkpoint_that_only_another_worker_cannot_read_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, told = Store(Place.of(tmp_path), 3), list[dict[str, Any]]()
    for step in (1, 2, 3):
        store.write(step, 0.5, fill)
    blind = [1.0, 0.0]
    monkeypatch.setattr(worker, "_summed", lambda value, world: value + (blind.pop(0) if blind else 1.0))
    monkeypatch.setattr(worker.checkpoint, "load_state", lambda *given: {"from": given[2].name})
    teller: Any = SimpleNamespace(tell=told.append)
    seat: Any = OneOfTwo()
    given: Any = (None, None, None, teller, seat, torch.device("cpu"))
    assert worker._resume(store, *given) == {"from": name_of(2)}
    assert store.steps() == [3, 2, 1]
    assert told[0]["why"] == "another worker could not read it"
    store.write(4 - 2, 0.5, fill)  # it went on from there, and comes to a step of before
    assert store.steps() == [3, 2, 1]
    with pytest.raises(RuntimeError, match="can be read by one worker and not by another"):
        worker._resume(store, *given)  # rather than begin anew
    assert store.steps() == [3, 2, 1]
