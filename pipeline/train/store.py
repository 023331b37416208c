"""The checkpoints of one training: written in the background, whole or not at all, and checked before use.

A checkpoint is a folder ``checkpoint_00000120`` (after step 120) with a seal, ``checkpoint.json``: the size and digest
of every file. On local disks the folder gets its name when it is complete, on object stores the seal is its last file.
The last ``keep`` stay, and the best of those that were evaluated.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import WorkFailed
from pipeline.folders import local_folder, put_folder
from pipeline.storage import Place
from pipeline.train import checkpoint

SCORE = "validation_macro_f1"
LOOK_SECONDS = 5.0  # between looks for a notice that a node will be taken away, and then between checkpoints
STALL_SHARE = 0.01  # the next checkpoint waits until the time that the last one took from training is this share


def name_of(step: int) -> str:
    """The folder of the checkpoint after a (1-based) step."""
    return f"checkpoint_{step:08d}"


def kept(scores: dict[int, float | None], keep: int) -> set[int]:
    """Which checkpoints stay.

    Args:
        scores: by step; None where there was no evaluation.
        keep: how many of the latest stay, besides the best (the first of equals).
    """
    evaluated = {step: score for step, score in scores.items() if score is not None}
    best = sorted(evaluated, key=lambda step: (-evaluated[step], step))[:1]
    return {*sorted(scores)[-keep:], *best}


class Store:
    """The folder of a training's checkpoints.

    Args:
        place: the folder; made when it is needed.
        keep: how many of the latest stay, besides the best.
    """

    def __init__(self, place: Place, keep: int) -> None:
        self.place, self._keep = place, keep

    def steps(self) -> list[int]:
        """The steps after which there is a complete checkpoint, the latest first."""
        found = []
        for folder in self.place.folders():
            number = folder.name.removeprefix("checkpoint_")
            if number != folder.name and number.isdigit() and (folder / checkpoint.SEAL).exists():
                found.append(int(number))
        return sorted(found, reverse=True)

    def scores(self) -> dict[int, float | None]:
        """The score of each complete checkpoint, by step; None where there was no evaluation or no telling."""
        scores: dict[int, float | None] = {}
        for step in self.steps():
            scores[step] = None
            with suppress(ValueError, KeyError, TypeError, OSError):
                scores[step] = json.loads((self.place / name_of(step) / checkpoint.SEAL).read_text())["score"]
        return scores

    @contextmanager
    def opened(self, step: int) -> Iterator[tuple[Path, str | None]]:
        """A checkpoint as a local folder, and what is wrong with it, if anything."""
        with local_folder(self.place / name_of(step)) as folder:
            yield folder, checkpoint.damage(folder)

    def remove(self, step: int) -> None:
        """Remove a checkpoint; first the seal, so that no part of one is taken for a whole."""
        (self.place / name_of(step) / checkpoint.SEAL).delete()
        (self.place / name_of(step)).delete()

    def sweep(self) -> None:
        """Remove what was being written when a worker was killed."""
        if self.place.is_local:
            for left in Path(self.place.uri).glob(".new-*"):
                shutil.rmtree(left, ignore_errors=True)

    def write(self, step: int, score: float | None, fill: Callable[[Path], None]) -> None:
        """Write one checkpoint, then remove those that need not stay.

        Args:
            step: after which.
            score: its evaluation's, if there was one.
            fill: writes the files into an empty local folder.

        Raises:
            WorkFailed: it cannot be written, for example because the disk is full.
        """
        target = self.place / name_of(step)
        try:
            if self.place.is_local:
                self.place.mkdir()
            near = self.place.uri if self.place.is_local else None
            with tempfile.TemporaryDirectory(prefix=".new-", dir=near) as temporary:
                whole = Path(temporary) / target.name
                whole.mkdir()
                fill(whole)
                seal = checkpoint.seal(whole, {"step": step, "score": score})
                if self.place.is_local:
                    (whole / checkpoint.SEAL).write_text(seal, encoding="utf-8")
                    if target.exists():  # a training that was resumed before this step; the old one may be damaged
                        self.remove(step)
                    whole.rename(target.uri)
                else:
                    put_folder(whole, target)
                    (target / checkpoint.SEAL).write_text(seal)
        except Exception as e:
            reason = unwritable(e, target)
            if reason is None:
                raise
            raise WorkFailed(reason) from e
        # One behind this step could not be read when training resumed, and is perhaps whole: it waits to be passed.
        scores = {known: score for known, score in self.scores().items() if known <= step}
        for old in scores.keys() - kept(scores, self._keep):
            self.remove(old)

    def adopt(self, step: int, files: Path) -> None:
        """Take in a checkpoint of another training, as if it were this one's only one.

        Args:
            step: after which it was made.
            files: its folder, with its seal.
        """

        def fill(folder: Path) -> None:
            for file in files.iterdir():
                if file.is_file() and file.name != checkpoint.SEAL and not file.name.startswith("."):
                    shutil.copyfile(file, folder / file.name)

        score = json.loads((files / checkpoint.SEAL).read_text(encoding="utf-8"))["score"]
        self.write(step, score, fill)


def unwritable(error: BaseException, place: Place) -> str | None:
    """Why a file could not be written, in one sentence; None if the error is about something else."""
    text, seen = str(error), error
    full = ("No space left on device", "os error 28", "errno 28", "Disk quota exceeded", "os error 122")
    if any(part in text for part in full):
        reason = "the disk is full"
    elif isinstance(seen, OSError) or "os error" in text:
        reason = getattr(seen, "strerror", None) or text.splitlines()[0]
    else:
        return None
    return (
        f"cannot write to {place}: {reason}. The last good checkpoint is kept: make room there, "
        "and the same command resumes"
    )


class Writer:
    """Takes snapshots on the training's thread and writes them on its own.

    Attributes:
        stalled: seconds that training has stood still for checkpoints.

    Args:
        store: where to.
        snapshot: copied from the network when a checkpoint is due.
        save: writes the snapshot's model, with a card for ``broadsheet.json``, into a folder.
        seconds: between checkpoints that no evaluation asks for.
        stalled: of the attempts before this one.
    """

    def __init__(
        self,
        store: Store,
        snapshot: checkpoint.Snapshot,
        save: Callable[[dict[str, Any], Path], None],
        seconds: float,
        stalled: float = 0.0,
    ) -> None:
        self._store, self._snapshot, self._save = store, snapshot, save
        self._seconds, self.stalled = seconds, stalled
        self._last, self._last_stall = time.monotonic(), 0.0
        self._thread = ThreadPoolExecutor(1, "checkpoint", torch.set_num_threads, (1,))
        self._running: Future[None] | None = None
        self._failed = threading.Event()

    @property
    def interval(self) -> float:
        """Seconds from one checkpoint to the next."""
        return max(self._seconds, self._last_stall / STALL_SHARE)

    def hurry(self) -> None:
        """The end of a node is near, and nobody says how near: a checkpoint every few seconds from now on."""
        self._seconds = min(self._seconds, LOOK_SECONDS)

    def due(self) -> bool:
        """Whether it is time for a checkpoint, and the last one is written."""
        free = self._running is None or self._running.done()
        return free and time.monotonic() - self._last >= self.interval

    def steps_to_next(self, steps: int, seconds: float) -> int:
        """In how many steps ranks meet again, after ``steps`` that took ``seconds``: for the next checkpoint, or to
        hear whether one must be made now."""
        left = min(self.interval - (time.monotonic() - self._last), LOOK_SECONDS)
        return max(1, round(left * steps / max(seconds, 1e-9)))

    def check(self) -> None:
        """Raise what went wrong in the background."""
        if self._failed.is_set() and self._running is not None:
            self._running.result()

    def put(self, progress: dict[str, Any], card: dict[str, Any], score: float | None = None) -> Future[None]:
        """Take a snapshot (the last one must be written first) and write it in the background.

        Args:
            progress: what resuming needs to know besides weights and moments.
            card: for ``broadsheet.json``.
            score: the evaluation's, if there was one.
        """
        began = time.monotonic()
        if self._running is not None:
            self._running.result()
        free = time.monotonic()
        self._snapshot.take()
        self._last = time.monotonic()
        self._last_stall = self._last - free  # what every checkpoint costs; the wait comes of two at once
        self.stalled += self._last - began
        progress = {**progress, "stalled": round(self.stalled, 4)}
        self._running = self._thread.submit(self._write, progress, card, score)
        return self._running

    def _write(self, progress: dict[str, Any], card: dict[str, Any], score: float | None) -> None:
        try:
            bad = self._snapshot.bad()
            if bad is not None:
                raise WorkFailed(not_finite(f"the weights ({bad.split('|')[0]}) are", progress["step"]))

            def fill(folder: Path) -> None:
                self._save(card, folder)
                checkpoint.save_state(self._snapshot.moments, progress, folder)

            self._store.write(progress["step"], score, fill)
        except BaseException:
            self._failed.set()
            raise


def not_finite(what: str, step: int) -> str:
    """The sentence for a training that has run away."""
    return (
        f"{what} no longer finite at step {step:,}: lower train.learning_rate or train.clip_norm; "
        "the last good checkpoint is kept"
    )
