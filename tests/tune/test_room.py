"""How many trials run at once."""

from __future__ import annotations

import pytest

from pipeline.cluster import Resources
from pipeline.config import load
from pipeline.errors import UserError
from pipeline.train.layout import Layout, train_layout
from tune.room import at_once, worker_gb
from tune.space import trial_config


@pytest.mark.parametrize(
    ("layout", "have", "each", "sets", "expected"),
    [
        (Layout(1, 1, 0), Resources(((2, 0),), 16), 1.0, [], 2),
        (Layout(1, 2, 0), Resources(((3, 0), (3, 0)), 16), 1.0, [], 2),  # node by node
        (Layout(2, 1, 0), Resources(((4, 0), (4, 0)), 64), 1.0, [], 4),
        (Layout(1, 1, 0.25), Resources(((8, 1),), 64), 1.0, [], 4),  # several share one GPU
        (Layout(1, 1, 0), Resources(((8, 0),), 5), 2.0, [], 2),  # memory is short
        (Layout(1, 1, 0), Resources(((8, 0),), 1), 2.0, [], 1),  # one is tried all the same
        (Layout(1, 1, 0), Resources(((8, 0),), 64), 1.0, ["tune.concurrent=3"], 3),
        (Layout(1, 1, 0), Resources(((8, 0),), 0), 1.0, [], 5),  # no more than there are trials
    ],
)
def test_trials_at_once(layout: Layout, have: Resources, each: float, sets: list[str], expected: int) -> None:
    count, words = at_once(load(sets=sets), 5, layout, have, each)
    assert count == expected
    assert " a trial = " in words


def test_a_trial_that_does_not_fit_is_refused() -> None:
    config = trial_config(load(sets=["tune.workers=4"]), {})
    with pytest.raises(UserError, match=r"4 workers x 1 CPU = 4 CPUs, .* Lower tune\.workers"):
        train_layout(config, Resources(((2, 0),), 16), "tune.workers")


def test_memory_of_a_worker_grows_with_model_and_batch() -> None:
    small = worker_gb(90_000_000, 2048, 384, 6)
    assert 1.0 < small < 3.0
    assert worker_gb(900_000_000, 2048, 384, 6) > small + 5
    assert worker_gb(90_000_000, 8192, 384, 6) > small + 0.5
