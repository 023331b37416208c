"""What fits on a cluster: arithmetic node by node."""

from __future__ import annotations

import os

import pytest
import ray
from ray import exceptions as broken

from pipeline import cluster
from pipeline.cluster import Resources, our_error, pinned
from pipeline.errors import UserError, WorkFailed
from pipeline.evaluate import predict
from pipeline.evaluate.predict import found_room, pool


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


def test_an_inference_replica_is_no_larger_than_what_others_leave() -> None:
    lay = pool(cpus(4), free=3.0)  # an endpoint holds one
    assert (lay.cpus, lay.threads) == (2.5, 3)
    assert pool(cpus(4), free=4.0) == pool(cpus(4))
    assert pool(cpus(2), free=1.0).cpus == 0.5


def test_without_a_free_cpu_inference_is_refused_unless_nodes_may_join(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predict, "PATIENCE_S", 0.0)
    monkeypatch.setattr(predict, "LAST_PATIENCE_S", 0.0)
    monkeypatch.setattr(cluster, "connect", lambda *_: cpus(2))
    monkeypatch.setattr(cluster, "resources", lambda: cpus(2))
    monkeypatch.setattr(cluster, "may_grow", lambda: False)
    for free in (0.0, 0.75):
        monkeypatch.setattr(cluster, "most_free_cpus", lambda free=free: free)
        with pytest.raises(UserError, match=rf"needs 1 free CPU .*2 CPUs.* all but {free:g} on .*stop the endpoint"):
            found_room("somewhere:6379")
    monkeypatch.setattr(cluster, "may_grow", lambda: True)
    assert found_room("somewhere:6379").cpus == 0.5
    assert "waiting for another node" in capsys.readouterr().out
    monkeypatch.setattr(cluster, "most_free_cpus", lambda: 1.0)
    assert found_room("somewhere:6379").cpus == 0.5
    assert "waiting" not in capsys.readouterr().out


def test_an_autoscaler_is_known_by_the_groups_of_its_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": True, "Labels": {"ray.io/node-id": "a"}}, {"Alive": False, "Labels": {"ray.io/node-group": "b"}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert not cluster.may_grow()
    nodes.append({"Alive": True, "Labels": {"ray.io/node-group": "cpu"}})
    assert cluster.may_grow()


def test_one_replica_per_gpu() -> None:
    lay = pool(Resources(((8, 2), (8, 2))))
    assert (lay.replicas, lay.gpus) == (4, 1)


def test_ray_train_still_hands_the_address_on(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A private set of Ray Train: without it, stopped trials keep their CPUs wherever another Ray is or was."""
    from ray import get_runtime_context
    from ray.train.v2._internal.constants import get_env_vars_to_propagate

    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:1")
    with pinned():
        assert get_env_vars_to_propagate()["RAY_ADDRESS"] == get_runtime_context().gcs_address
    assert os.environ["RAY_ADDRESS"] == "elsewhere:1"


def in_a_task(cause: Exception) -> broken.RayTaskError:
    """As Ray raises what a task raised."""
    return broken.RayTaskError("do", "Traceback ...", cause, pid=1, ip="127.0.0.1").as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (broken.LocalRayletDiedError("x\ny"), "Ray's own process on this machine, the raylet, died. "),
        (broken.NodeDiedError("node 1"), "a node of the Ray cluster died or cannot be reached. "),
        (broken.OwnerDiedError("ab", None, ""), "the process that owned data on its way between two steps died. "),
        (broken.ObjectReconstructionFailedError("ab"), "data on its way between two steps was lost "),
        (broken.ObjectStoreFullError("x"), "the memory that Ray keeps its objects in is full. "),
        (broken.OutOfDiskError("x"), "the disk that Ray keeps its objects on is full. "),
        (broken.WorkerCrashedError(), "a worker process of Ray died, and so did those that tried again. "),
        (broken.RaySystemError("Broken pipe.", "Traceback ..."), "Ray itself failed (System error: Broken pipe). "),
        (broken.RpcError("no route\nto it", 14), "a process of Ray does not answer (no route). "),
    ],
)
def test_ray_that_breaks_stops_the_work_in_one_sentence(error: Exception, said: str) -> None:
    nested = RuntimeError("the dataset stopped")
    nested.__cause__ = in_a_task(error)
    for caught in (error, in_a_task(error), nested):
        ours = our_error(caught)
        assert isinstance(ours, WorkFailed)
        assert str(ours).startswith(said)
        assert str(ours).endswith(". What is finished is kept: run the same command to go on")
        assert "\n" not in str(ours)


def test_memory_that_runs_out_counts_before_what_it_drags_along() -> None:
    error = broken.LocalRayletDiedError()
    error.__context__ = broken.OutOfMemoryError("Task was killed\ndue to the node running low on memory.")
    said = str(our_error(error, "data.shard_mb", "The end"))
    assert said == "memory ran out, and Ray ended a worker process: free some, or lower data.shard_mb. The end"


def test_our_own_errors_count_before_those_of_ray_and_bugs_stay_bugs() -> None:
    error = broken.NodeDiedError("node 1")
    error.__cause__ = in_a_task(UserError("no such file: x.csv"))
    ours = our_error(error)
    assert type(ours) is UserError
    assert str(ours) == "no such file: x.csv"
    for other in (in_a_task(KeyError("x")), broken.ActorDiedError(), broken.TaskCancelledError(), OSError("Ray")):
        assert our_error(other) is None
    interrupted = KeyboardInterrupt()
    interrupted.__context__ = broken.NodeDiedError("node 1")
    assert our_error(interrupted) is None, "Ctrl-C stays Ctrl-C"
