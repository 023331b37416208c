"""Checkpoints: a Hugging Face folder with ``broadsheet.json`` beside it, and the state that resuming needs.

Everything is safetensors or JSON; nothing is pickled.
"""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.model import adapters
from pipeline.storage import Place
from pipeline.train.average import Average

CARD = "broadsheet.json"
STATE = ("optimizer.safetensors", "progress.json")
SEAL = "checkpoint.json"  # written last: a folder without it is none
FORMAT = 1
LEARNED = "value"  # of a parameter, where the saved model shows another: one with adapters merged in, or an average
AVERAGE = "average"  # of the values of a parameter


def versions() -> dict[str, str]:
    """What the work was done with."""
    names = ("broadsheet", "ray", "torch", "transformers", "tokenizers", "pyarrow", "ftfy")
    return {"python": platform.python_version(), **{n: version(n) for n in names}}


def save_model(model: nn.Module, tokenizer: Path, card: dict[str, Any], folder: Path) -> None:
    """Write a checkpoint that Broadsheet can load, and ``from_pretrained`` where the model is one of ``transformers``.

    Args:
        model: unwrapped.
        tokenizer: folder with the tokenizer's files.
        card: the content of ``broadsheet.json``; ``format`` and ``versions`` are added.
        folder: made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = adapters.merged(model) if adapters.present(model) else None
    model.save_pretrained(folder, state_dict=state)  # type: ignore[operator]
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o644)  # safetensors keeps them from everybody else; whoever serves may be another user
    for file in tokenizer.iterdir():
        shutil.copy(file, folder / file.name)
    _limit_tokens(folder / "tokenizer_config.json", int(card["max_tokens"]))
    full = {"format": FORMAT, **card, "versions": versions()}
    (folder / CARD).write_text(json.dumps(full, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _limit_tokens(file: Path, max_tokens: int) -> None:
    """Say in the tokenizer's configuration where texts are cut, for all who ask transformers to truncate."""
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    content["model_max_length"] = max_tokens
    file.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


class Snapshot:
    """Weights and moments as they were after one step, in host memory: written out while training goes on.

    Attributes:
        model: the weights to be evaluated and served.
        moments: and whatever else going on takes, by parameter and kind.

    Args:
        network: the model (unwrapped). A twin of it holds the copied weights, so that whatever can be saved of the
            model can be saved of the copy.
        optimizer: over its parameters.
        twin: a copy of it in host memory, made before it went to its device; None: made here.
        average: of its weights, which is what is saved of the model then.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        twin: nn.Module | None = None,
        average: Average | None = None,
    ) -> None:
        self._network, self._optimizer, self._average = network, optimizer, average
        self.model = twin if twin is not None else copy.deepcopy(network).to("cpu")
        self.moments: dict[str, Tensor] = {}

    def take(self) -> None:
        """Copy; the buffers of the last time are used again."""
        with torch.no_grad():
            mine = self.model.state_dict()
            for name, value in self._network.state_dict().items():
                mine[name].copy_(value)
            averages = self._average.values if self._average is not None else {}
            merged = adapters.present(self._network)
            for name, parameter in self._network.named_parameters():
                kept = dict(self._optimizer.state.get(parameter, {}))
                if parameter.requires_grad and (averages or merged):
                    kept[LEARNED] = parameter
                if name in averages:
                    kept[AVERAGE] = averages[name]
                    mine[name].copy_(averages[name])
                for key, value in kept.items():
                    at, value = f"{name}|{key}", torch.as_tensor(value).detach()
                    if at in self.moments:
                        self.moments[at].copy_(value)
                    else:
                        self.moments[at] = value.to("cpu", copy=True).contiguous()

    def bad(self) -> str | None:
        """The name of a tensor with a value that is no finite number, if there is one."""
        tensors = {**self.model.state_dict(), **self.moments}
        return next((n for n, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()), None)


def save_state(moments: dict[str, Tensor], progress: dict[str, Any], folder: Path) -> None:
    """Write what a snapshot holds besides the model, and how far training is."""
    save_file(moments, folder / STATE[0])
    (folder / STATE[1]).write_text(json.dumps(progress), encoding="utf-8")


def seal(folder: Path, facts: dict[str, Any]) -> str:
    """What the file ``checkpoint.json`` of a folder has to say: ``facts``, and each file's size and BLAKE2b digest."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != SEAL)
    return json.dumps({**facts, "files": {p.name: [p.stat().st_size, _digest(p)] for p in files}}, indent=1) + "\n"


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder; None if every file is as it was written."""
    try:
        files = json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]
        for name, (size, digest) in files.items():
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found:,} bytes instead of {size:,}"
            if _digest(folder / name) != digest:
                return f"{name} has other bytes than were written"
    except FileNotFoundError as e:
        return f"{Path(str(e.filename)).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{SEAL} cannot be read"
    except OSError as e:
        return f"{Path(str(e.filename)).name}: {e.strerror}"
    return None


def _digest(file: Path) -> str:
    total = hashlib.blake2b(digest_size=16)
    with file.open("rb") as f:
        while block := f.read(1 << 22):
            total.update(block)
    return total.hexdigest()


def load_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, average: Average | None = None
) -> dict[str, Any]:
    """Restore weights, moments and the average in place; returns the progress."""
    tensors = load_file(folder / STATE[0])
    if not adapters.present(model):  # else what is in the folder is merged: all that was learned is in the state
        weights = load_file(folder / "model.safetensors")
        missing, unexpected = model.load_state_dict(weights, strict=False)
        # Tied weights are stored once; anything else missing means the folder is another model's.
        if unexpected or any(not _is_tied(model, name) for name in missing):
            raise UserError(f"{folder}: the checkpoint belongs to another network")
    for name, parameter in model.named_parameters():
        state = {k.split("|")[1]: v for k, v in tensors.items() if k.split("|")[0] == name}
        learned, averaged = state.pop(LEARNED, None), state.pop(AVERAGE, None)
        if learned is not None:
            parameter.data.copy_(learned)
        if average is not None and name in average.values:
            average.values[name].copy_(parameter.detach() if averaged is None else averaged)
        if state:
            optimizer.state[parameter] = {
                # Fused kernels want the step on the parameter's device, too.
                k: v.to(parameter.device, v.dtype if k == "step" else parameter.dtype).clone()
                for k, v in state.items()
            }
    return json.loads((folder / STATE[1]).read_text(encoding="utf-8"))


def _is_tied(model: nn.Module, name: str) -> bool:
    tied = getattr(model, "_tied_weights_keys", None) or {}
    return name in tied or name in dict(model.named_buffers())


def read_card(where: str | Path | Place) -> dict[str, Any]:
    """The content of a checkpoint's ``broadsheet.json``.

    Raises:
        UserError: the folder is no checkpoint.
    """
    place = Place.of(where)
    file = place / CARD
    if not file.exists():
        raise UserError(f"no checkpoint in {place} (it has no {CARD}): train one with 'broadsheet train' or 'make run'")
    try:
        card = json.loads(file.read_text())
        if card["format"] != FORMAT or not card["labels"]:
            raise KeyError("format")
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{file} is damaged or was written by another version of Broadsheet: train again") from e
    return dict(card)


def find(where: str | Path) -> Place:
    """The checkpoint that a user means: the folder itself, or ``checkpoint`` or ``best`` inside a run or search.

    Raises:
        UserError: there is none.
    """
    place = Place.of(where)
    for candidate in (place, place / "checkpoint", place / "best"):
        if (candidate / CARD).exists():
            return candidate
    raise UserError(f"no checkpoint in {place}: train one with 'broadsheet train', or name a run or checkpoint folder")
