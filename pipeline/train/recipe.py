"""What the configuration asks of an optimisation, turned into frozen parameters, rates per layer and class weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.model.depth import depths

NO_DECAY = ("bias", "norm.weight", "layer_norm.weight", "layernorm.weight", "ln_f.weight")


def freeze(model: nn.Module, embeddings: bool, layers: int) -> None:
    """Keep parameters as they are: the token embeddings, or everything below and in the lowest layers.

    Args:
        model: a transformers classifier.
        embeddings: freeze the table of token embeddings (half of MiniLM's parameters, and of what ranks exchange).
        layers: freeze all embeddings and this many layers.

    Raises:
        UserError: the model has no more layers than that.
    """
    if embeddings:
        for parameter in model.get_input_embeddings().parameters():  # type: ignore[operator]
            parameter.requires_grad_(False)
    if layers:
        known = depths(model)
        have = max(known.values()) - 1
        if layers > have:
            raise UserError(f"train.freeze_layers is {layers}, but this model has {have} layers: choose fewer")
        for name, parameter in model.named_parameters():
            if known[name] <= layers:
                parameter.requires_grad_(False)


def optimizer_for(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, 2019), no decay on biases and norms; fused kernels.

    Each group's ``scale`` is what its rate is of the peak: ``layer_decay ** (top - depth)`` (Clark et al., ELECTRA,
    2020, appendix A), 1 for the head.
    """
    known = depths(model)
    top = max(known.values(), default=0)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = name.lower().endswith(NO_DECAY) or parameter.ndim < 2
            groups.setdefault((top - known[name] if layer_decay != 1 else 0, plain), []).append(parameter)
    options = [
        {"params": parameters, "weight_decay": 0.0 if plain else weight_decay, "scale": layer_decay**below}
        for (below, plain), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
    return torch.optim.AdamW(options, lr=learning_rate, fused=True)


def class_weights(
    wanted: str | Mapping[str, float], names: Sequence[str], labels: npt.NDArray[np.int64]
) -> Tensor | None:
    """What a row of each class counts in the loss, 1 on the average over the training rows.

    Args:
        wanted: 'none', 'balanced' (inversely to the class's number of rows) or a weight per label name.
        names: of the labels; the id is the index.
        labels: [rows] ids of the training rows.

    Returns:
        [labels] float32, or None where all are alike.

    Raises:
        UserError: a name is unknown, or one is missing.
    """
    if wanted == "none":
        return None
    counts = np.bincount(labels, minlength=len(names)).astype(np.float64)
    if isinstance(wanted, str):
        weights = 1.0 / np.maximum(counts, 1.0)
    else:
        unknown, missing = sorted(set(wanted) - set(names)), sorted(set(names) - set(wanted))
        if unknown or missing:
            what = f"no label is called {unknown[0]!r}" if unknown else f"label {missing[0]!r} has no weight"
            raise UserError(f"train.class_weights: {what}; give each of {', '.join(names[:10])} a weight")
        weights = np.array([wanted[name] for name in names], np.float64)
        if not np.isfinite(weights).all() or (weights < 0).any() or not (weights * counts).sum() > 0:
            raise UserError("train.class_weights: weights are numbers from 0 up, and one at least is above 0")
    return torch.tensor(weights * len(labels) / (weights * counts).sum(), dtype=torch.float32)
