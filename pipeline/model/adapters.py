"""Low-rank adapters (LoRA: Hu et al., 2021) through peft: a large model learns through small matrices beside its own.

``W x`` becomes ``W x + (alpha / rank) B A x`` in every linear layer of the encoder or decoder; W stays as it is, so
neither gradients nor moments of it are kept, and ranks exchange only A, B and the head. A checkpoint holds the sum
``W + (alpha / rank) B A``: it is an ordinary model folder that needs no peft to be served.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.model import first_token
from pipeline.model.depth import LAYER, depths

NAME = "default"


def add(model: Any, rank: int, alpha: int | None, dropout: float, base: torch.dtype = torch.float32) -> None:
    """Put adapters into a classifier, in place, and freeze all but them and the head.

    Args:
        model: a transformers classifier.
        rank: of the adapters' matrices.
        alpha: scale of what they add, over the rank; None for twice the rank.
        dropout: before the adapters, 0..1.
        base: what the frozen weights are kept in: bfloat16 halves their memory where training computes in it.

    Raises:
        UserError: peft is not installed, or the model has no linear layers that adapters fit.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as e:
        raise UserError(
            "model.lora_rank needs the package peft: pip install 'broadsheet[lora]', or set model.lora_rank=0"
        ) from e
    first_token.whole_last_layer(model)  # it multiplies by the bare matrices
    targets = [
        name
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and LAYER.search(name + ".") and m.weight.requires_grad  # not frozen
    ]
    if not targets:
        raise UserError(
            f"model.lora_rank: a {model.config.model_type} has no layer that adapters fit and that train.freeze_layers "
            "leaves; set it to 0"
        )
    known = depths(model)
    head = [p for name, p in model.named_parameters() if known[name] == max(known.values())]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if base != torch.float32:
        kept = {id(p) for p in head}
        for parameter in model.parameters():
            if id(parameter) not in kept:
                parameter.data = parameter.data.to(base)
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha or 2 * rank,
        lora_dropout=dropout,
        target_modules=targets,
        bias="none",
    )
    inject_adapter_in_model(settings, model, adapter_name=NAME)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
    for parameter in head:
        parameter.requires_grad_(True)


def present(model: nn.Module) -> bool:
    """Whether a model has adapters."""
    return any(".lora_A." in name for name, _ in model.named_parameters())


def merged(model: nn.Module) -> dict[str, Tensor]:
    """The weights of an ordinary model that computes the same: float32, on the CPU, under the names it had before."""
    state = {
        name.replace(".base_layer.", "."): value.detach().float().cpu()
        for name, value in model.state_dict().items()
        if ".lora_" not in name
    }
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            delta = module.get_delta_weight(NAME).detach()
            state[f"{name}.weight"] = state[f"{name}.weight"] + delta.float().cpu()
    return state
