"""A search laid out on Ray Tune, whose trials report every evaluation.

Tune counts only what a trial's own process holds, not the workers that a Ray Train run in it asks for; so the number of
trials at once is computed by us (``room``), and given to Tune. What has been tried and what comes next is known by the
journal and the plan, not by Tune, whose own memory is a pickle.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pipeline import cluster
from pipeline.errors import UserError, WorkFailed, first_line
from pipeline.storage import Place
from pipeline.train.layout import Layout
from pipeline.train.store import SCORE, Store, name_of
from tune import population
from tune.journal import Journal, Trial, best_of
from tune.live import Board
from tune.plan import WAIT, Plan
from tune.space import stops_early
from tune.tracks import Tracks
from tune.trial import ERROR, training

ACTOR_FAILURES = 2  # times that the driver of a trial may be lost with its node


class Launch:
    """One command's share of a search.

    Args:
        plan: what comes next.
        folder: the search's; checkpoints go to ``trials/``.
        layout: of one trial.
        concurrent: trials at once.
        job_of: what ``worker.fit`` is handed for a trial.
        board: what a person sees.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Place,
        layout: Layout,
        concurrent: int,
        job_of: Callable[[Trial], dict[str, Any]],
        board: Board,
    ) -> None:
        self.plan, self.folder, self.layout, self.concurrent = plan, folder, layout, concurrent
        self.journal: Journal = plan.journal
        self.board = board
        self.tracks = Tracks(plan.config, plan.journal, plan.default)
        self.interrupted = False
        self._job_of = job_of
        self._running: set[int] = set()
        self._freed: set[int] = set()
        self._known: dict[int, int] = {}  # scores of a trial when it was started
        self._began, self._before = time.monotonic(), float(self.journal.facts.get("seconds", 0.0))
        self._searched = float(self.journal.facts.get("search_seconds", 0.0))
        self._search_ended: float | None = None

    def seconds(self) -> float:
        """Seconds of the search, earlier commands included."""
        return self._before + time.monotonic() - self._began

    def _search_seconds(self) -> float:
        """Seconds of the search without the final trainings, which ``tune.max_minutes`` does not limit."""
        return self._searched + (self._search_ended or time.monotonic()) - self._began

    def _time_is_up(self) -> bool:
        return self._search_ended is None and self.plan.time_is_up(self._search_seconds())

    def run(self) -> None:
        """Work until the plan has nothing more, or Ctrl-C.

        Raises:
            WorkFailed: Ray broke.
        """
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # ours keeps the best so far
        from ray import tune

        for name in ("ray.tune", "ray.train"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        tuner = tune.Tuner(
            tune.with_resources(training, held(self.layout)),
            tune_config=tune.TuneConfig(
                search_alg=self._searcher(),
                max_concurrent_trials=self.concurrent,
                num_samples=-1,
                reuse_actors=self.layout.workers == 1,  # one that waits for Ray Train must die with its trial
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(self.folder / "trials"),
                verbose=0,
                callbacks=[self._callback()],
                stop=self._stopper(),
                failure_config=tune.FailureConfig(max_failures=ACTOR_FAILURES),
            ),
        )
        (self.folder / "trials" / "tune").delete()
        try:
            with self._ctrl_c(), self.board:
                tuner.fit()
        except (UserError, WorkFailed):
            raise
        except Exception as e:
            ours = cluster.our_error(e, "tune.concurrent")
            if ours is not None:
                raise ours from None
            last = (str(e).strip().splitlines() or [type(e).__name__])[-1]
            raise WorkFailed(f"the search stopped: {last}. The same command goes on with it") from e
        finally:
            for number in self._running:
                self.journal.get(number).status = "waiting"  # to go on with
            self.save()
            (self.folder / "trials" / "tune").delete()

    def save(self) -> None:
        """Write the journal."""
        self.journal.facts["seconds"] = round(self.seconds(), 1)
        self.journal.facts["search_seconds"] = round(self._search_seconds(), 1)
        self.journal.write()

    @contextmanager
    def _ctrl_c(self) -> Iterator[None]:
        """The first Ctrl-C ends the search and keeps the best so far; the second is Python's own."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def stop(number: int, frame: FrameType | None) -> None:
            self.interrupted = True
            self.board.note("interrupted: ending the trials, keeping the best so far")
            signal.signal(signal.SIGINT, before)

        signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    # What Tune asks.

    def suggest(self) -> dict[str, Any] | str | None:
        """The next trial for Tune; None: ask again later; 'over': there is none."""
        if self.interrupted:
            return "over"
        self._time_is_up()
        if self.plan.config.tune.algorithm == "pbt" and not self._running:
            self._copy_weights()
        ended = {t.trial for t in self.journal.trials if t.ended}
        found = self.plan.next(self._running)
        for one in self.journal.trials:
            if one.ended and one.trial not in ended:  # it had paused, and will not go on
                self.board.ended(one.trial)
                self.tracks.end(one)
        if found is None:
            return "over"
        if not isinstance(found, Trial):
            assert found == WAIT
            return None
        trial = found
        if trial.phase == "final" and self._search_ended is None:
            self._search_ended = time.monotonic()
        try:
            job = json.dumps(self._job_of(trial))
        except Exception as e:  # a point that no network can be built of ends its trial, not the search
            trial.error = first_line(e)
            self.completed(trial.trial)
            return self.suggest()
        trial.status = "running"
        self._running.add(trial.trial)
        self._known[trial.trial] = len(trial.history)
        self.save()
        self._free_disk()
        return {
            "trial": trial.trial,
            "work": str(self.folder / "trials"),
            "folder": trial.folder,
            "known": len(trial.history),
            "layout": [self.layout.workers, self.layout.cpus, self.layout.gpus],
            "job": job,  # as one string: Tune makes names of trials from all keys and values that it finds
        }

    def _copy_weights(self) -> None:
        """Give the members of a population that fell behind the weights of better ones."""
        config, members = self.plan.config, self.journal.of("search")
        done = population.round_over(members)
        if not done or done >= config.tune.evaluations:
            return
        for copy in population.copies(members, done, self.plan.space, config.seed):
            trial, donor = self.journal.get(copy.trial), self.journal.get(copy.donor)
            source = Store(self.folder / "trials" / donor.folder, 1)
            step = int(donor.history[done - 1]["step"])
            old = self.folder / "trials" / trial.folder
            trial.lineage.append({"round": done, "from": donor.trial, "step": step, "point": copy.point})
            target = Store(self.folder / "trials" / trial.folder, 1)
            target.place.delete()
            with source.opened(step) as (files, damage):
                if damage is not None:
                    trial.lineage.pop()
                    self.board.note(f"trial {donor.trial}: {name_of(step)} is damaged ({damage}); nobody copies it")
                    continue
                target.adopt(step, files)
            trial.point = copy.point
            self.save()
            old.delete()
            self.board.note(f"trial {trial.trial} goes on with the weights of trial {donor.trial}")

    def reported(self, number: int, result: dict[str, Any]) -> None:
        """A trial reported."""
        if ERROR in result:
            self.journal.get(number).error = str(result[ERROR])
        elif SCORE in result and self.journal.reported(number, result):
            self.save()
            self.board.reported(number)
            self.tracks.log(self.journal.get(number))

    def completed(self, number: int, error: str | None = None) -> None:
        """A trial came to an end, or was ended."""
        trial = self.journal.get(number)
        self._running.discard(number)
        trial.error = trial.error or error
        if trial.error:
            trial.status = "failed"
        elif self._whole(trial):
            trial.status = "finished"
        elif self.interrupted:
            trial.status = "waiting"  # to go on with
        elif trial.phase == "final" or len(trial.history) == self._known.get(number):
            trial.status = "finished"  # where there are fewer steps than rungs, there are fewer scores
        elif trial.until is not None and not self._time_is_up():
            trial.status = "waiting"  # for the next rung or round
        else:
            trial.status = "stopped"
        self.save()
        self._free_disk()
        self.board.ended(number)
        if trial.ended:
            self.tracks.end(trial)

    def _free_disk(self) -> None:
        """Remove the checkpoints of the trials of the search that ended, but for the best."""
        search = self.journal.of("search")
        best = best_of(search)
        for trial in search:
            if trial.ended and trial is not best and trial.trial not in self._freed:
                (self.folder / "trials" / trial.folder).delete()
                self._freed.add(trial.trial)

    def _whole(self, trial: Trial) -> bool:
        """Whether a trial of the search was trained to its end."""
        if trial.phase == "final":
            return False
        tune = self.plan.config.tune
        wanted = tune.rungs if stops_early(tune.algorithm) else tune.evaluations
        # The epoch of the last evaluation: where there are fewer steps than evaluations, there are fewer of these.
        epochs = float(trial.point.get("train.epochs", tune.epochs))
        return len(trial.history) >= wanted or bool(trial.history and trial.history[-1]["epoch"] >= epochs - 1e-3)

    def _searcher(self) -> Any:
        from ray.tune.search import Searcher

        launch = self

        class Next(Searcher):
            def suggest(self, trial_id: str) -> Any:
                found = launch.suggest()
                return Searcher.FINISHED if found == "over" else found

            def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
                pass

            def save(self, checkpoint_path: str) -> None:
                pass  # the journal is the memory

            def restore(self, checkpoint_path: str) -> None:
                pass

        return Next()

    def _stopper(self) -> Any:
        from ray.tune import Stopper

        launch = self

        class Limits(Stopper):
            def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
                if not launch._time_is_up():
                    return False
                return launch.journal.get(int(result["config"]["trial"])).phase == "search"

            def stop_all(self) -> bool:
                return launch.interrupted

        return Limits()

    def _callback(self) -> Any:
        from ray.tune import Callback

        launch = self

        class Follow(Callback):
            def on_step_begin(self, iteration: int, trials: Any, **_: Any) -> None:
                launch.board.tick()

            def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any) -> None:
                launch.reported(int(trial.config["trial"]), result)

            def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
                launch.completed(int(trial.config["trial"]))

            def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
                text = str(trial.get_error() or "its process died, and so did those that tried again")
                lines = [line.strip() for line in text.splitlines() if line.strip()]
                launch.completed(int(trial.config["trial"]), lines[-1][:300] if lines else "unknown")

        return Follow()


def held(layout: Layout) -> dict[str, float]:
    """What Tune reserves for a trial.

    Where Ray Train's workers hold the CPUs and GPUs, the process of the trial only waits; but Tune refuses an empty
    request: one byte of memory is one that every cluster can give.
    """
    if layout.workers > 1:
        return {"CPU": 0, "memory": 1}
    return {"CPU": layout.cpus, **({"GPU": layout.gpus} if layout.use_gpu else {})}
