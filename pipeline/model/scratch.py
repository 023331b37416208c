"""What the networks that are trained from scratch share: a configuration and a folder, without ``transformers``.

They keep to the shape of its models (``config.json``, ``model.safetensors``, ``save_pretrained``,
``model(input_ids, attention_mask).logits``), so that whatever trains, evaluates and serves needs no special case.
Importing it takes longer than anything else a replica does when it starts, and nothing of it would be used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.errors import UserError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

N = TypeVar("N", bound="ScratchNetwork")


class Output(NamedTuple):
    """What a forward pass returns: logits [rows, labels]."""

    logits: Tensor


class ScratchConfig:
    """The sizes of a network, and the names of its labels.

    Args:
        id2label: label names by id (in a file: by the id's digits).
        num_labels: how many, where they have no names.
        **_: keys that other releases wrote; they change nothing.
    """

    model_type: ClassVar[str]

    def __init__(self, id2label: Mapping[Any, str] | None = None, num_labels: int | None = None, **_: Any) -> None:
        if id2label is not None and not isinstance(id2label, Mapping):
            raise ValueError("id2label is no mapping")
        names = id2label or {i: f"LABEL_{i}" for i in range(num_labels or 2)}
        self.id2label = {int(i): str(name) for i, name in names.items()}

    @property
    def num_labels(self) -> int:
        """How many labels there are."""
        return len(self.id2label)

    def to_dict(self) -> dict[str, Any]:
        """The content of ``config.json``."""
        return {"model_type": self.model_type, **vars(self), "label2id": {n: i for i, n in self.id2label.items()}}


class ScratchNetwork(nn.Module):
    """A sequence classifier that starts from drawn weights.

    Attributes:
        config: as given.
    """

    config_class: ClassVar[type[ScratchConfig]]
    config: Any

    def __init__(self, config: ScratchConfig) -> None:
        super().__init__()
        self.config = config

    def gradient_checkpointing_enable(self) -> None:
        """Refused.

        Raises:
            UserError: always.
        """
        raise UserError("train.gradient_checkpointing is for transformers: this network is small, set it to false")

    def save_pretrained(self, folder: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors``.

        Args:
            folder: made if need be.
            state_dict: other weights than its own.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = {"architectures": [type(self).__name__], **self.config.to_dict()}
        (folder / CONFIG).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        state = self.state_dict() if state_dict is None else state_dict
        save_file({k: v.detach().contiguous() for k, v in state.items()}, folder / WEIGHTS, {"format": "pt"})

    @classmethod
    def from_pretrained(cls: type[N], folder: str | Path, **changes: Any) -> N:
        """Read what ``save_pretrained`` wrote, in evaluation mode.

        Args:
            folder: with both files.
            **changes: keys of the configuration that are to be other ones, to train on from these weights. What no
                longer fits (the layer that gives the labels, where there are more of them) is drawn anew.

        Raises:
            OSError, ValueError, TypeError, safetensors.SafetensorError: a file is missing or damaged, or holds the
                weights of another network.
        """
        folder = Path(folder)
        network = cls(cls.config_class(**json.loads((folder / CONFIG).read_text(encoding="utf-8")) | changes))
        found = load_file(folder / WEIGHTS)
        mine = network.state_dict()
        if changes:
            found = {k: mine[k] if k in mine and mine[k].shape != v.shape else v for k, v in found.items()}
        for name in sorted(mine.keys() | found.keys()):
            one, other = (tuple(s[name].shape) if name in s else "missing" for s in (mine, found))
            if one != other:
                raise ValueError(f"{name} should be {one} by config.json and is {other} in {WEIGHTS}")
        network.load_state_dict(found)
        return network.eval()
