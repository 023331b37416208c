"""The exchange of gradients between ranks: DDP, but for the token embeddings only the rows that a batch touched.

A batch of 2,048 tokens holds about a thousand different ones of MiniLM's 30,522, and the table is half of all
parameters: averaging all of it moves 47 MB a step, of which 45 are zeros. Every rank knows the whole global batch, so
all know without asking which rows there are.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from pipeline.data.prepared import Tokens
from pipeline.train.batches import Rows, gather

Exchange = Callable[[Rows], None]


def wrap(model: nn.Module, device: torch.device, tokens: Tokens, pad_id: int) -> tuple[nn.Module, Exchange]:
    """Wrap a model for DDP.

    Args:
        model: a transformers classifier; all ranks have loaded the same weights.
        device: of this rank.
        tokens: the training rows, the same on all ranks.
        pad_id: fills batches.

    Returns:
        The wrapped model, and what to call with the rows of the global batch after its backward pass.
    """
    table: nn.Parameter = model.get_input_embeddings().weight  # type: ignore[operator]
    ids = [device.index or 0] if device.type == "cuda" else None
    inputs = [name for name, parameter in model.named_parameters() if parameter is table]
    # The one way to tell DDP of parameters that are exchanged otherwise; a test watches it.
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, inputs)
    wrapped = nn.parallel.DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True, bucket_cap_mb=16)
    world = dist.get_world_size()

    def exchange(rows: Rows) -> None:
        if table.grad is None:  # frozen
            return
        seen = np.zeros(len(table), bool)
        seen[gather(tokens.ids, tokens.offsets, rows)] = True
        seen[pad_id] = True
        touched = torch.from_numpy(np.flatnonzero(seen)).to(device)
        part = table.grad[touched]
        dist.all_reduce(part)
        table.grad[touched] = part / world

    return wrapped, exchange
