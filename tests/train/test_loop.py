"""One step: the same whatever the pieces and the ranks; the loss is what torch says it is."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from small import network, tokens

from pipeline.train import recipe
from pipeline.train.adversarial import Adversary
from pipeline.train.batches import pad
from pipeline.train.distributed import wrap
from pipeline.train.loop import Loop, precision

CPU = torch.device("cpu")
WAYS = [(micro, size) for micro in (None, 16) for size in (0.0, 0.2)]


def loop(model: Any, **more: Any) -> Loop:
    optimizer = recipe.optimizer_for(model, 1e-2, 0.01)
    return Loop(more.pop("wrapped", model), optimizer, tokens(), 0, CPU, "fp32", more.pop("clip", 1.0), 1, **more)


def batches() -> list[np.ndarray]:
    """Four global batches of falling length, the last of one row: less than there are ranks."""
    lengths = tokens().lengths
    parts = np.split(np.random.default_rng(0).permutation(40), [13, 26, 39])
    return [rows[np.argsort(-lengths[rows], kind="stable")] for rows in parts]


def trained(size: float = 0.0, **more: Any) -> tuple[dict[str, torch.Tensor], list[float]]:
    model = network()
    one = loop(model, adversary=Adversary(model, size) if size else None, **more)
    losses = [float(one.step(i, rows, 1e-2)) for i, rows in enumerate(batches())]
    return {k: v.clone() for k, v in model.state_dict().items()}, losses


def test_pieces_add_up_to_the_whole() -> None:
    whole, losses = trained()
    pieces, same = trained(micro_tokens=24)
    assert losses == pytest.approx(same, rel=1e-5)
    for name, value in whole.items():
        torch.testing.assert_close(pieces[name], value, rtol=1e-4, atol=2e-6, msg=name)


def test_the_loss_is_torchs() -> None:
    rows, labels = batches()[0], tokens().labels
    weights = recipe.class_weights("balanced", "abc", labels)
    assert weights is not None
    inputs, mask = pad(tokens().ids, tokens().offsets, rows, 0)
    logits = network()(input_ids=torch.from_numpy(inputs), attention_mask=torch.from_numpy(mask)).logits
    truth = torch.from_numpy(labels[rows])
    each = torch.nn.functional.cross_entropy(logits, truth, weight=weights, label_smoothing=0.1, reduction="none")
    step = loop(network(), class_weights=weights, label_smoothing=0.1).step(0, rows, 1e-3)
    assert float(step) == pytest.approx(float(each.detach().mean()), rel=1e-5)


def test_gradients_are_clipped_only_above_the_norm() -> None:
    for clip in (1e-3, 1e3):
        model = network()
        one = loop(model, clip=clip)
        norms: list[float] = []
        one.optimizer.register_step_pre_hook(
            lambda *_, m=model, out=norms: out.append(
                float(torch.nn.utils.get_total_norm([p.grad for p in m.parameters() if p.grad is not None]))
            )
        )
        one.step(0, batches()[0], 1e-3)
        assert norms[0] == pytest.approx(1e-3, rel=1e-3) if clip < 1 else 1e-2 < norms[0] < 1e3


def _meet(rank: int, folder: str, world: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)


def _rank(rank: int, folder: str) -> None:
    _meet(rank, folder, 2)
    for micro, size in WAYS:
        model = network()
        wrapped, exchange = wrap(model, CPU, tokens(), 0)
        adversary = Adversary(model, size) if size else None
        more = {"rank": rank, "world": 2, "exchange": exchange, "micro_tokens": micro, "adversary": adversary}
        ours = loop(model, wrapped=wrapped, **more)
        losses = [float(ours.step(i, rows, 1e-2)) for i, rows in enumerate(batches())]
        save_file({**model.state_dict(), "losses": torch.tensor(losses)}, f"{folder}/{micro}-{size}-{rank}.safetensors")
    dist.destroy_process_group()


def test_two_ranks_take_the_step_of_one(tmp_path: Path) -> None:
    """The embedding's rows are exchanged apart from the rest: all of it must come out as in one process."""
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    untouched = network().state_dict()["bert.embeddings.word_embeddings.weight"][40:]
    for micro, size in WAYS:
        alone, losses = trained(size)
        first, second = (load_file(tmp_path / f"{micro}-{size}-{rank}.safetensors") for rank in (0, 1))
        assert (first.pop("losses") + second.pop("losses")).tolist() == pytest.approx(losses, rel=1e-5)
        for name, value in alone.items():
            assert torch.equal(first[name], second[name]), f"{name}: the ranks drifted apart"
            torch.testing.assert_close(first[name], value, rtol=1e-4, atol=2e-6, msg=name)
        decayed = first["bert.embeddings.word_embeddings.weight"][40:]
        torch.testing.assert_close(decayed, untouched * (1 - 1e-2 * 0.01) ** 4, rtol=1e-5, atol=1e-7)


def _resumed_rank(rank: int, folder: str) -> None:
    _meet(rank, folder, 3)
    given: tuple[Any, Any] | None = None
    for life in ("whole", "resumed"):
        model = network()
        wrapped, exchange = wrap(model, CPU, tokens(), 0)
        one = loop(model, wrapped=wrapped, rank=rank, world=3, exchange=exchange)
        if given is not None:
            model.load_state_dict(given[0])
            one.optimizer.load_state_dict(given[1])
        for step, rows in enumerate(batches()):
            if given is None or step >= 2:
                one.step(step, rows, 1e-2)
            if step == 1 and life == "whole":
                between = copy.deepcopy((model.state_dict(), one.optimizer.state_dict()))
        given = between
        save_file(model.state_dict(), f"{folder}/{life}-{rank}.safetensors")
    dist.destroy_process_group()


def test_three_ranks_that_resume_are_bit_identical(tmp_path: Path) -> None:
    """Two cannot show it: a + b is b + a, but from three on the order of adding up counts."""
    torch.multiprocessing.spawn(_resumed_rank, (str(tmp_path),), nprocs=3)
    whole = load_file(tmp_path / "whole-0.safetensors")
    for rank in range(3):
        resumed = load_file(tmp_path / f"resumed-{rank}.safetensors")
        differing = [name for name, value in whole.items() if not torch.equal(resumed[name], value)]
        assert not differing, f"rank {rank}: {differing}"


def test_precision_says_why() -> None:
    assert precision("fp32", CPU, "bert") == ("fp32", "as configured")
    assert precision("auto", torch.device("cuda"), "broadsheet-lstm")[0] == "fp32"
