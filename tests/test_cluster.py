"""What fits on a cluster: arithmetic node by node."""

from __future__ import annotations

import os

import pytest

from pipeline.cluster import Layout, Resources, check_fits, pinned, train_layout
from pipeline.config import load
from pipeline.errors import UserError
from pipeline.evaluate.predict import pool
from tune.search import at_once


def cpus(*nodes: int) -> Resources:
    return Resources(tuple((n, 0) for n in nodes))


@pytest.mark.parametrize(
    ("nodes", "replicas", "threads"),
    [((1,), 1, 1), ((2,), 1, 2), ((2, 2), 2, 2), ((0, 2, 2), 2, 2), ((16,), 4, 4), ((2, 8), 6, 2), ((3,), 1, 3)],
)
def test_inference_replicas_fit_on_the_nodes(nodes: tuple[int, ...], replicas: int, threads: int) -> None:
    lay = pool(cpus(*nodes))
    assert (lay.replicas, lay.threads) == (replicas, threads)
    assert cpus(*nodes).room(lay.cpus) >= replicas
    assert sum(nodes) - lay.cpus * replicas >= 0.5


def test_one_replica_per_gpu() -> None:
    lay = pool(Resources(((8, 2), (8, 2))))
    assert (lay.replicas, lay.gpus) == (4, 1)


def test_a_worker_must_fit_on_one_node() -> None:
    check_fits("training", Layout(2, 2, 0), cpus(2, 2), "train.workers")
    with pytest.raises(
        UserError, match=r"1 worker x 3 CPU = 3 CPUs.* 4 CPUs \(2 \+ 2\).*0 such workers fit node by node"
    ):
        check_fits("training", Layout(1, 3, 0), cpus(2, 2), "train.workers")
    with pytest.raises(UserError, match=r"1 such worker fit"):
        check_fits("training", Layout(2, 1, 1), Resources(((1, 2), (1, 0))), "train.workers")


def test_the_default_layout_never_exceeds_the_nodes() -> None:
    config = load(sets=["train.cpus_per_worker=2"])
    assert train_layout(config, cpus(3, 3)).workers == 2
    assert train_layout(load(), Resources(((8, 4), (8, 4)))).workers == 8


def test_trials_at_once_node_by_node() -> None:
    layout = Layout(1, 2, 0)
    number, words = at_once(load(), layout, cpus(3, 3))
    assert (number, words) == (2, "room for 2 workers of 2 CPU / 1 a trial = 2")
    assert at_once(load(sets=["tune.trials=1"]), layout, cpus(3, 3))[0] == 1


def test_ray_train_still_hands_the_address_on(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A private set of Ray Train: without it, stopped trials keep their CPUs wherever another Ray is or was."""
    import ray
    from ray.train.v2._internal.constants import get_env_vars_to_propagate

    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:1")
    with pinned():
        assert get_env_vars_to_propagate()["RAY_ADDRESS"] == ray.get_runtime_context().gcs_address
    assert os.environ["RAY_ADDRESS"] == "elsewhere:1"
