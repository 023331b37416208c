"""How training is laid out: what is asked for or, where nothing is, all cores in workers of a sound size."""

from __future__ import annotations

import pytest

from pipeline import cluster
from pipeline.cluster import Resources
from pipeline.config import load
from pipeline.errors import UserError
from pipeline.train import layout
from pipeline.train.layout import Layout, beside_others, check_fits, train_layout


def cpus(*nodes: int) -> Resources:
    return Resources(tuple((n, 0) for n in nodes))


def test_a_worker_must_fit_on_one_node() -> None:
    check_fits("training", Layout(2, 2, 0), cpus(2, 2), "train.workers")
    with pytest.raises(
        UserError, match=r"1 worker x 3 CPU = 3 CPUs.* 4 CPUs \(2 \+ 2\).*0 such workers fit node by node"
    ):
        check_fits("training", Layout(1, 3, 0), cpus(2, 2), "train.workers")
    with pytest.raises(UserError, match=r"1 such worker fit"):
        check_fits("training", Layout(2, 1, 1), Resources(((1, 2), (1, 0))), "train.workers")


@pytest.mark.parametrize(
    ("nodes", "workers", "each"),
    [((1,), 1, 1), ((2,), 1, 2), ((6,), 1, 6), ((8,), 1, 8), ((9,), 1, 8), ((10,), 1, 8), ((12,), 2, 6), ((16,), 2, 8),
     ((64,), 8, 8), ((2, 2, 2), 3, 2), ((0, 16, 16), 4, 8), ((2, 16, 16), 4, 8), ((2, 3), 2, 2)],
)  # fmt: skip
def test_without_gpus_all_cores_train(nodes: tuple[int, ...], workers: int, each: int) -> None:
    found = train_layout(load(), cpus(*nodes))
    assert (found.workers, found.cpus, found.gpus) == (workers, each, 0)


@pytest.mark.parametrize(
    ("sets", "have", "expected"),
    [
        (["train.cpus_per_worker=2"], cpus(3, 3), (2, 2)),
        (["train.cpus_per_worker=1"], cpus(64), (2, 1)),  # as configurations of before say it
        (["train.min_workers=2"], cpus(8), (2, 4)),
        (["train.min_workers=4"], cpus(2, 2, 2), (6, 1)),
        (["train.min_workers=1"], cpus(8, 8), (2, 8)),
        (["train.workers=2"], cpus(2), (2, 1)),
        (["train.workers=2"], cpus(8), (2, 4)),
        (["train.workers=1"], cpus(64), (1, 8)),
        (["train.workers=3"], cpus(4, 2), (3, 2)),
        (["model.name=lstm"], cpus(8), (2, 1)),
        (["model.name=lstm"], cpus(8, 8), (4, 1)),
        (["model.name=lstm"], cpus(1), (1, 1)),
        (["model.name=lstm", "train.cpus_per_worker=4"], cpus(4), (1, 4)),
        ([], Resources(((8, 4), (8, 4))), (8, 1)),
    ],
)
def test_what_is_asked_for_and_what_follows(sets: list[str], have: Resources, expected: tuple[int, int]) -> None:
    found = train_layout(load(sets=sets), have)
    assert (found.workers, found.cpus) == expected


def test_too_many_workers_are_refused() -> None:
    with pytest.raises(UserError, match=r"3 workers x 1 CPU = 3 CPUs, but the cluster has .*2 CPUs"):
        train_layout(load(sets=["train.workers=3"]), cpus(2))
    with pytest.raises(UserError, match=r"train\.min_workers=3 is more than the 2 for which the cluster has room"):
        train_layout(load(sets=["train.min_workers=3"]), cpus(2))
    with pytest.raises(UserError, match=r"train\.min_workers=3 is more than the 2 of train\.workers"):
        train_layout(load(sets=["train.min_workers=3", "train.workers=2"]), cpus(2))


@pytest.mark.parametrize(
    ("free", "sets", "expected"),
    [
        (4, [], (1, 4)),
        (3, [], (1, 3)),
        (1, [], (1, 1)),
        (3, ["train.workers=1"], (1, 3)),
        (3, ["train.cpus_per_worker=1"], (2, 1)),
        (1, ["train.cpus_per_worker=1"], (1, 1)),
        (1, ["model.name=lstm"], (1, 1)),
        (1, ["train.workers=2", "train.cpus_per_worker=2"], (2, 2)),  # as it was asked for
    ],
)
def test_beside_an_endpoint_workers_take_what_is_left(
    free: int, sets: list[str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "PATIENCE_S", 0.0)
    monkeypatch.setattr(cluster, "free", lambda: cpus(free))
    found = beside_others(load(sets=sets), cpus(4))
    assert (found.workers, found.cpus) == expected


def test_where_others_hold_everything_as_little_as_possible_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(layout, "PATIENCE_S", 0.0)
    monkeypatch.setattr(layout, "LAST_PATIENCE_S", 0.0)
    monkeypatch.setattr(cluster, "free", lambda: cpus(0))
    found = beside_others(load(), cpus(64))
    assert (found.workers, found.cpus) == (1, 1)
    assert "others hold the CPUs of 1 node, 64 CPUs" in capsys.readouterr().out
    monkeypatch.setattr(cluster, "free", lambda: cpus(1))
    found = beside_others(load(sets=["train.workers=2"]), cpus(4))
    assert (found.workers, found.cpus) == (2, 1)


def test_free_cpus_of_this_cluster(ray_session: None) -> None:
    assert cluster.free().cpus <= cluster.resources().cpus
    assert cluster.free().nodes == cluster.resources().nodes
