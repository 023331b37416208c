"""A loaded checkpoint that classifies raw text as training saw it: the engine of evaluate, predict and serve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.data import clean
from pipeline.data.tokenize import TextTokenizer
from pipeline.errors import UserError
from pipeline.evaluate.passes import ANY
from pipeline.folders import local_folder
from pipeline.model import build
from pipeline.storage import identity
from pipeline.train import batches, checkpoint
from pipeline.train.loop import autocast, precision

Ids = npt.NDArray[np.int32]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
# Padded token ids and mask (0 for padding), both [rows, longest], to logits [rows, labels].
Runtime = Callable[[Ints, Ints], Floats]


def in_torch(network: torch.nn.Module, precision: str, device: torch.device) -> Runtime:
    """A network as a runtime.

    Args:
        network: a sequence classifier on ``device``.
        precision: 'bf16' or 'fp32'.
        device: where it runs.
    """

    def run(ids: Ints, mask: Ints) -> Floats:
        with torch.inference_mode(), autocast(precision, device):
            logits = network(
                input_ids=torch.from_numpy(ids).to(device), attention_mask=torch.from_numpy(mask).to(device)
            ).logits
        found: Floats = logits.float().cpu().numpy()
        return found

    return run


@dataclass(frozen=True)
class Encoded:
    """Texts made ready for the network.

    Attributes:
        ids: token ids of each text.
        truncated: whether each text was cut at ``max_tokens`` (or ``max_chars``).
        cleaned: each text after the cleaning rules.
    """

    ids: list[Ids]
    truncated: list[bool]
    cleaned: list[str]


def check_rules(folder: object, card: dict[str, Any]) -> None:
    """Refuse a checkpoint that reads texts as this version no longer cleans them.

    Raises:
        UserError: it does.
    """
    version = card["cleaning"]["version"]
    if version != clean.VERSION:
        raise UserError(
            f"{folder}: trained with cleaning rules version {version}, this Broadsheet has "
            f"{clean.VERSION}: train again, or install the version named in its broadsheet.json"
        )


class Classifier:
    """A checkpoint in memory.

    Attributes:
        labels: label names; the id is the index.
        max_tokens: longer texts are truncated.
        version: a short id of weights and labels.
        temperature: what logits are divided by, the card's unless set.
        card: the content of ``broadsheet.json``.
        network: the model of ``transformers``, on ``device``, computing in ``precision``.
        as_evaluated: the network itself as a runtime, whatever ``single`` and ``batch`` are.
        single, batch: what runs one text and small batches, and what runs large ones, if not the network itself.
        runs: names of the two, for people.
        passes: which batches it is fastest in, as far as that was measured.
    """

    def __init__(self, folder: Path, kind: str = "auto", device: str | None = None) -> None:
        self.card: dict[str, Any] = checkpoint.read_card(folder)
        self.labels: list[str] = list(self.card["labels"])
        self.max_tokens = int(self.card["max_tokens"])
        self._pad_id = int(self.card["pad_id"])
        self.temperature = float(self.card["temperature"])
        check_rules(folder, self.card)
        cleaning = self.card["cleaning"]
        self._rules = clean.select(cleaning["rules"])
        self._max_chars = int(cleaning["max_chars"])
        self._tokenizer = TextTokenizer(folder, self.max_tokens)
        self.single: Runtime | None = None
        self.batch: Runtime | None = None
        self.runs = {"single": "torch", "batch": "torch"}
        self.passes = ANY
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.network = build.load(folder).to(self.device)
        if self.network.config.num_labels != len(self.labels):
            raise UserError(
                f"{folder}: the network has {self.network.config.num_labels} labels, "
                f"broadsheet.json names {len(self.labels)}"
            )
        self.precision, _ = precision(kind, self.device, self.network.config.model_type)
        self.as_evaluated = in_torch(self.network, self.precision, self.device)
        self.version = identity(str(folder / "model.safetensors"))[:12]

    @classmethod
    def load(cls, folder: str, precision: str = "auto") -> Classifier:
        """Load a checkpoint from a local folder or a URI.

        Raises:
            UserError: it is no checkpoint, or it is damaged.
        """
        with local_folder(folder) as local:
            return cls(local, precision)

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Clean and tokenize raw texts as training did."""
        cut = [len(t) > self._max_chars for t in texts]
        cleaned = [clean.clean(t[: self._max_chars], self._rules) for t in texts]
        ids, truncated = self._tokenizer.encode(cleaned)
        return Encoded(ids, [a or b for a, b in zip(cut, truncated, strict=True)], cleaned)

    @property
    def unknown_id(self) -> int | None:
        """The token for what the vocabulary does not have; None if it has all."""
        return self._tokenizer.unknown_id

    def length(self, text: str) -> int:
        """Tokens of a raw text after cleaning, if nothing were cut off; it is truncated above ``max_tokens``."""
        return self._tokenizer.length(clean.clean(text, self._rules))

    def words(self, cleaned: str) -> list[tuple[int, int]]:
        """Where each word of a cleaned text begins and ends, as far as the network reads it."""
        return self._tokenizer.words(cleaned)

    def as_it_is(self) -> None:
        """Run the network itself from now on, whatever ``single`` and ``batch`` were."""
        self.single = self.batch = None
        self.runs = dict.fromkeys(self.runs, "torch")
        self.passes = ANY

    def padded(self, ids: Sequence[Ids]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Rows as a runtime takes them: token ids and mask, both [rows, longest]."""
        return batches.pad(*_end_to_end(ids), np.arange(len(ids)), self._pad_id)

    def logits(self, ids: Sequence[Ids]) -> npt.NDArray[np.float32]:
        """One padded forward pass, [rows, labels]."""
        return self._forward(*_end_to_end(ids), np.arange(len(ids)))

    def all_logits(self, ids: Sequence[Ids], batch_tokens: int, large: bool = False) -> npt.NDArray[np.float32]:
        """Logits of any number of rows, [rows, labels], in length-sorted batches of at most ``batch_tokens``, or of as
        many as are fastest; ``large``: by what runs large batches, also where they are small."""
        flat, offsets = _end_to_end(ids)
        lengths = np.diff(offsets)
        out = np.empty((len(ids), len(self.labels)), np.float32)
        order = np.argsort(-lengths, kind="stable")
        for rows in batches.cut(order, lengths[order], int(min(batch_tokens, self.passes.batch_tokens))):
            out[rows] = self._forward(flat, offsets, rows, large=large)
        return out

    def with_states(
        self, ids: Sequence[Ids], batch_tokens: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None:
        """What ``all_logits`` returns, and what the last linear layer was given for it.

        Returns:
            Logits [rows, labels] and states [rows, width], each of length 1: the text as the labels are read off it.
            None where the network has no such layer.
        """
        linear = [m for m in self.network.modules() if isinstance(m, torch.nn.Linear)]
        heads = [m for m in linear if m.out_features == len(self.labels)]
        if not heads or not ids:
            return None
        caught: list[torch.Tensor] = []
        hook = heads[-1].register_forward_pre_hook(lambda _, given: caught.append(given[0].detach()))
        flat, offsets = _end_to_end(ids)
        lengths = np.diff(offsets)
        logits = np.empty((len(ids), len(self.labels)), np.float32)
        states = np.empty((len(ids), heads[-1].in_features), np.float32)
        order = np.argsort(-lengths, kind="stable")
        try:
            for rows in batches.cut(order, lengths[order], batch_tokens):
                logits[rows] = self._forward(flat, offsets, rows, exact=True)
                state = caught.pop().float().cpu().numpy()
                if state.ndim == 3:  # one per token: the head of a decoder
                    mask = np.arange(state.shape[1]) < lengths[rows, None]
                    state = (state * mask[..., None]).sum(1) / np.maximum(1, mask.sum(1, keepdims=True))
                states[rows] = state / np.maximum(1e-12, np.linalg.norm(state, axis=1, keepdims=True))
        finally:
            hook.remove()
        return logits, states

    def _forward(
        self, flat: Ids, offsets: batches.Rows, rows: batches.Rows, exact: bool = False, large: bool = False
    ) -> npt.NDArray[np.float32]:
        if len(rows) == 0:
            return np.empty((0, len(self.labels)), np.float32)
        inputs, mask = batches.pad(flat, offsets, rows, self._pad_id)
        large = large or (len(rows) > 1 and inputs.size >= self.passes.large_from)
        run = self.batch if large else self.single
        return self.as_evaluated(inputs, mask) if run is None or exact else run(inputs, mask)

    def probabilities(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Softmax at ``temperature``, [rows, labels]; each row sums to 1."""
        scaled = logits.astype(np.float64) / self.temperature
        scaled -= scaled.max(axis=-1, keepdims=True)
        exponents = np.exp(scaled)
        return exponents / exponents.sum(axis=-1, keepdims=True)


def _end_to_end(ids: Sequence[Ids]) -> tuple[Ids, batches.Rows]:
    """All rows in one array, and where each begins, [rows + 1]."""
    offsets = np.zeros(len(ids) + 1, np.int64)
    np.cumsum([len(i) for i in ids], out=offsets[1:])
    return np.concatenate(ids) if len(ids) else np.empty(0, np.int32), offsets
