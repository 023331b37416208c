"""How deep in a network a parameter lies."""

from __future__ import annotations

import re

from torch import nn

LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


def depths(model: nn.Module) -> dict[str, int]:
    """How far each parameter lies above the input: 0 for embeddings, n for the n-th layer, and the head on top.

    Layers are recognised by the names that ``transformers`` gives them (``encoder.layer.3.``, ``h.3.``, ...); where
    there are none, everything but the token embeddings is the head.
    """
    tables = {id(p) for p in model.get_input_embeddings().parameters()}  # type: ignore[operator]
    found: dict[str, int | None] = {}
    for name, parameter in model.named_parameters():
        layer = LAYER.search(name)
        at_input = id(parameter) in tables or "embeddings." in name
        found[name] = int(layer[1]) + 1 if layer else 0 if at_input else None
    top = max((d for d in found.values() if d is not None), default=0) + 1
    return {name: top if depth is None else depth for name, depth in found.items()}
