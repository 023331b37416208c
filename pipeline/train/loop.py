"""One optimiser step and one evaluation, without Ray: what every rank runs."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.prepared import Tokens
from pipeline.train import batches
from pipeline.train.adversarial import Adversary
from pipeline.train.distill import Teaching
from pipeline.train.distributed import Exchange


def precision(wanted: str, device: torch.device, network: str) -> tuple[str, str]:
    """What to compute in, and why.

    Args:
        wanted: 'auto', 'bf16' or 'fp32'.
        device: where the model runs.
        network: its model_type.
    """
    if wanted != "auto":
        return wanted, "as configured"
    if network == "broadsheet-linear":
        return "fp32", "sums of weights that are looked up"
    if network == "broadsheet-lstm" and (device.type != "cpu" or not cpu_flags() & {"avx512_bf16", "amx_bf16"}):
        return "fp32", "recurrent layers gain nothing from bf16 here"
    if device.type == "cuda":
        good = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "the GPU computes in it") if good else ("fp32", "this GPU has no bf16")
    flags = cpu_flags()
    if flags & {"avx512_bf16", "amx_bf16", "bf16", "sve_bf16"}:
        return "bf16", "the processor computes in it"
    return "fp32", "this processor has no bf16 instructions"


def cpu_flags() -> set[str]:
    """What the processor says it can do, as Linux names it; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as f:
            for line in f:
                if line.startswith(("flags", "Features")):
                    return set(line.split(":", 1)[1].split())
    except OSError:
        pass
    return set()


def autocast(kind: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The autocast context of a precision."""
    if kind == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


@dataclass
class Loop:
    """What a rank needs to take steps.

    Attributes:
        model: the network, wrapped for DDP where there are several ranks.
        optimizer: over its parameters.
        tokens: the training rows.
        pad_id: fills batches.
        device: where the model lives.
        precision: 'bf16' or 'fp32'.
        clip_norm: the largest gradient norm.
        seed: of the run.
        rank, world: of this process.
        exchange: averages over ranks what DDP does not.
        class_weights: [labels] what a row counts in the loss; None for 1.
        label_smoothing: share of the target that is spread over all labels.
        micro_tokens: tokens (padding included) of one forward pass; a larger share of a batch is done in pieces,
            whose gradients add up.
        adversary: changes the token vectors of a second pass over each batch; None: there is none.
        teaching: what a teacher says of ``tokens``; None: there is none.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    tokens: Tokens
    pad_id: int
    device: torch.device
    precision: str
    clip_norm: float
    seed: int
    rank: int = 0
    world: int = 1
    exchange: Exchange | None = None
    class_weights: Tensor | None = None
    label_smoothing: float = 0.0
    micro_tokens: int | None = None
    adversary: Adversary | None = None
    teaching: Teaching | None = None
    _settled: bool = field(default=False, init=False)

    def step(self, step: int, global_batch: batches.Rows, learning_rate: float) -> Tensor:
        """Take one step on this rank's share of a global batch.

        The loss is the mean over the *global* batch whatever the shares: each rank's sum is scaled by
        ``world / rows`` and DDP averages gradients over ranks. Random state (dropout) is a function of seed,
        step and rank, so that a resumed training draws what an undisturbed one would have drawn.

        Returns:
            This rank's part of the mean loss (add up over ranks), detached.
        """
        if self.world > 1 and not self._settled:
            self._settle(global_batch[-1:])
        torch.manual_seed((self.seed * 1_000_003 + step) * 1_009 + self.rank)
        mine = batches.share(global_batch, self.rank, self.world)
        idle = len(mine) == 0
        rows = global_batch[:1] if idle else mine  # every rank must take part in the all-reduce
        pieces = batches.cut(rows, self.tokens.lengths[rows], self.micro_tokens) if self.micro_tokens else [rows]
        scale = 0.0 if idle else 1.0 / len(global_batch)
        self.model.train()
        part = torch.zeros((), device=self.device)
        for k, piece in enumerate(pieces):
            batch = self._batch(self.tokens, piece)
            told = self.teaching.of(piece, self.device) if self.teaching is not None else None
            last = k + 1 == len(pieces)
            part += self._pass(*batch, scale, last and self.adversary is None, told)
            if self.adversary is not None:
                with self.adversary.at_work(batch[1]):
                    self._pass(*batch, scale, last, told)
        if self.exchange is not None:
            self.exchange(global_batch)
        self._clip()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["scale"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return part

    def _settle(self, rows: batches.Rows) -> None:
        """Have DDP lay out its buckets, with gradients that are thrown away.

        DDP fills other buckets in its first backward pass than in all later ones, and where a gradient lies decides
        in which order an all-reduce adds up the ranks. From three ranks on, ``a + (b + c)`` is not ``(a + b) + c``
        to the last bit: a training that resumes would part from one that nothing happened to.
        """
        self.model.train()
        self._pass(*self._batch(self.tokens, rows), 0.0, last=True)
        self.optimizer.zero_grad(set_to_none=True)
        self._settled = True

    def _pass(
        self, inputs: Tensor, mask: Tensor, labels: Tensor, scale: float, last: bool, told: Tensor | None = None
    ) -> Tensor:
        """Forward and backward; gradients add up, and are exchanged with the last pass of a step.

        Returns:
            The loss of these rows' part of the mean, detached.
        """
        alone = self.world > 1 and not last
        with self.model.no_sync() if alone else contextlib.nullcontext():  # type: ignore[operator]
            with autocast(self.precision, self.device):
                logits = self.model(input_ids=inputs, attention_mask=mask).logits
            loss = scale * self._loss(logits.float(), labels, told)
            (loss * self.world).backward()
        return loss.detach()

    def _loss(self, logits: Tensor, labels: Tensor, told: Tensor | None = None) -> Tensor:
        """Summed over rows; ``told`` is what a teacher says of them."""
        loss = nn.functional.cross_entropy(
            logits, labels, weight=self.class_weights, label_smoothing=self.label_smoothing, reduction="sum"
        )
        if told is None or self.teaching is None:
            return loss
        counts = self.class_weights[labels] if self.class_weights is not None else None
        return self.teaching.loss(loss, logits, told, counts)

    def _clip(self) -> None:
        """Scale gradients down to ``clip_norm``; on a CPU only where there is something to scale."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.device.type != "cpu" or not norm <= self.clip_norm:  # a GPU would have to be waited for
            nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)

    def _batch(self, tokens: Tokens, rows: batches.Rows) -> tuple[Tensor, Tensor, Tensor]:
        inputs, mask = batches.pad(tokens.ids, tokens.offsets, rows, self.pad_id)
        labels = torch.from_numpy(tokens.labels[rows])
        move: dict[str, Any] = {"device": self.device, "non_blocking": True}
        return torch.from_numpy(inputs).to(**move), torch.from_numpy(mask).to(**move), labels.to(**move)

    def evaluate(self, tokens: Tokens, batch_tokens: int, classes: int) -> tuple[Tensor, Tensor]:
        """This rank's share of an evaluation.

        Returns:
            The confusion matrix [classes, classes] (row = truth) and the summed loss [1], both float64 on the
            CPU or GPU of the rank: add them up over ranks for the exact totals.
        """
        cells = [torch.zeros(0, dtype=torch.int64, device=self.device)]  # counted once: there may be many classes
        loss = torch.zeros(1, dtype=torch.float64, device=self.device)
        # DDP's wrapper would synchronise buffers: evaluate the bare module.
        model = getattr(self.model, "module", self.model)
        model.eval()
        order = np.argsort(-tokens.lengths, kind="stable")[self.rank :: self.world]
        with torch.inference_mode():
            for rows in batches.cut(order, tokens.lengths[order], batch_tokens):
                inputs, mask, labels = self._batch(tokens, rows)
                with autocast(self.precision, self.device):
                    logits = model(input_ids=inputs, attention_mask=mask).logits.float()
                loss += nn.functional.cross_entropy(logits, labels, reduction="sum").double()
                cells.append(labels * classes + logits.argmax(-1))
            confusion = torch.bincount(torch.cat(cells), minlength=classes * classes).view(classes, classes).double()
        return confusion, loss
