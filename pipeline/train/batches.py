"""Token-budget batches, planned from lengths alone: the same global batches whatever the number of workers.

An epoch is a seeded permutation cut into pools; within a pool rows are sorted by length and cut into batches of
at most ``batch_tokens`` tokens, padding included; then the batches are shuffled. Every rank knows the whole
plan and takes its share of each batch, so all ranks take equally many steps by construction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]

POOL_BATCHES = 64  # sorting over this many batches leaves about 3% padding and still mixes rows well


def sample(labels: npt.NDArray[np.int64], max_rows: int | None, seed: int) -> Rows:
    """A fixed, stratified sample: every class keeps its share, and at least one row.

    Args:
        labels: [rows] class ids.
        max_rows: size of the sample (exceeded only where there are more classes); None takes all rows.
        seed: of the draw.

    Returns:
        Row numbers, rising.
    """
    n = len(labels)
    if max_rows is None or max_rows >= n:
        return np.arange(n)
    generator = np.random.default_rng([seed, 1])
    shuffled = generator.permutation(n)
    counts = np.unique(labels, return_counts=True)[1]
    exact = counts * (max_rows / n)
    take = np.maximum(np.floor(exact).astype(np.int64), 1)
    while take.sum() > max_rows and take.max() > 1:  # the rows given to small classes come from the largest
        take[np.argmax(take)] -= 1
    # Largest remainders get the rows that rounding down left over.
    for i in np.argsort(-(exact - np.floor(exact)), kind="stable"):
        if take.sum() >= max_rows:
            break
        take[i] = min(take[i] + 1, counts[i])
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    starts = np.cumsum(counts) - counts
    return np.sort(np.concatenate([by_class[s : s + k] for s, k in zip(starts, take, strict=True)]))


def plan_epoch(lengths: Rows, batch_tokens: int, seed: int, epoch: int) -> list[Rows]:
    """The global batches of one epoch.

    Args:
        lengths: tokens of each row, [rows].
        batch_tokens: upper bound of rows x longest row in a batch (one longer row makes a batch of its own).
        seed: of the run.
        epoch: 0-based; each epoch has its own order.

    Returns:
        Batches of row numbers, each sorted by falling length; together every row once.
    """
    generator = np.random.default_rng([seed, 2, epoch])
    order = generator.permutation(len(lengths))
    mean = max(1.0, float(lengths.mean())) if len(lengths) else 1.0
    pool = max(1, int(POOL_BATCHES * batch_tokens / mean))
    batches: list[Rows] = []
    for start in range(0, len(order), pool):
        rows = order[start : start + pool]
        rows = rows[np.argsort(-lengths[rows], kind="stable")]
        batches += cut(rows, lengths[rows], batch_tokens)
    return [batches[i] for i in generator.permutation(len(batches))]


def cut(rows: Rows, falling: Rows, budget: int) -> list[Rows]:
    """Cut rows of falling length greedily: the first row of a batch is its longest."""
    batches = []
    start = 0
    while start < len(rows):
        size = max(1, budget // max(1, int(falling[start])))
        batches.append(rows[start : start + size])
        start += size
    return batches


class Plan:
    """All steps of a training, epoch after epoch; the last epoch may be a part of one.

    Args:
        lengths: tokens of each training row.
        batch_tokens: tokens per global batch.
        epochs: passes over the rows, for example 1.5.
        seed: of the run.
    """

    def __init__(self, lengths: Rows, batch_tokens: int, epochs: float, seed: int) -> None:
        self._arguments = (lengths, batch_tokens, seed)
        whole = int(epochs)
        # What each epoch would take in full, and what is taken of it.
        self._full = [len(plan_epoch(*self._arguments, e)) for e in range(whole + (epochs > whole))]
        sizes = list(self._full)
        if epochs > whole:
            sizes[-1] = max(1, round(sizes[-1] * (epochs - whole)))
        self.steps_per_epoch = sizes
        self.steps = sum(sizes)
        self._epoch = -1
        self._batches: list[Rows] = []

    def batch(self, step: int) -> tuple[int, Rows]:
        """The (0-based) epoch and the global batch of a 0-based step."""
        epoch, first = self._at(step)
        if epoch != self._epoch:
            self._batches, self._epoch = plan_epoch(*self._arguments, epoch), epoch
        return epoch, self._batches[step - first]

    def epochs_done(self, step: int) -> float:
        """Passes over the data after a 0-based step: 1.5 half-way through the second epoch."""
        epoch, first = self._at(step)
        return epoch + (step + 1 - first) / self._full[epoch]

    def _at(self, step: int) -> tuple[int, int]:
        epoch, first = 0, 0
        while step >= first + self.steps_per_epoch[epoch]:
            first += self.steps_per_epoch[epoch]
            epoch += 1
        return epoch, first


def share(batch: Rows, rank: int, world: int) -> Rows:
    """A rank's rows of a global batch: every ``world``-th, so that all ranks get rows of like length."""
    return batch[rank::world]


def evaluation_steps(steps: int, evaluations: int, shares: Sequence[float] | None = None) -> list[int]:
    """The (1-based) steps after which to evaluate, the last step always among them.

    Args:
        steps: in all.
        evaluations: how many, evenly spaced.
        shares: of the training, 0..1, instead.
    """
    count = min(evaluations, steps)
    shares = shares if shares is not None else [(i + 1) / count for i in range(count)]
    return sorted({*(max(1, round(steps * share)) for share in shares), steps})


def learning_rate_at(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear warm-up over ``warmup * steps`` steps, then linear to zero at the last step.

    Args:
        step: 0-based.
        steps: in all.
        peak: the highest rate.
        warmup: share of the steps, 0..1.
    """
    rising = max(1, round(steps * warmup)) if warmup else 0
    if step < rising:
        return peak * (step + 1) / rising
    return peak * max(0.0, (steps - step) / max(1, steps - rising))


def gather(ids: npt.NDArray[np.int32], offsets: Rows, rows: Rows) -> npt.NDArray[np.int32]:
    """The token ids of some rows, end to end: [tokens of these rows]."""
    lengths = offsets[rows + 1] - offsets[rows]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return ids[np.repeat(offsets[rows], lengths) + within]


def pad(
    ids: npt.NDArray[np.int32], offsets: Rows, rows: Rows, pad_id: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Gather rows into a padded batch, without a Python loop over rows.

    Args:
        ids: all token ids end to end.
        offsets: [all rows + 1] where each row starts.
        rows: the rows wanted.
        pad_id: fills the right.

    Returns:
        ``input_ids`` and ``attention_mask``, [rows, longest] int64.
    """
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts
    columns = np.arange(max(1, int(lengths.max(initial=1))))
    mask = columns < lengths[:, None]
    at = np.where(mask, starts[:, None] + columns, 0)
    gathered = ids[at] if len(ids) else np.zeros(at.shape, np.int32)
    return np.where(mask, gathered, pad_id).astype(np.int64), mask.astype(np.int64)
