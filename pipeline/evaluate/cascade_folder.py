"""The folder ``cascade`` of a checkpoint: the linear model that answers first, a checkpoint of its own.

``broadsheet evaluate`` leaves it there, with ``cascade.json`` (from which confidence on it answers, and what for)
and a digest of every file. Where a cascade is not worth it, the folder holds ``cascade.json`` alone, with the reason.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pipeline.data import tokenize
from pipeline.errors import UserError
from pipeline.evaluate.cascade import Record
from pipeline.evaluate.classifier import Classifier
from pipeline.evaluate.reference import Reference
from pipeline.folders import local_folder, put_folder
from pipeline.storage import Place
from pipeline.train import checkpoint

if TYPE_CHECKING:  # it fits models, with all that this takes: a replica that serves one does without
    from pipeline.evaluate.baseline import Baseline

FOLDER = "cascade"
FILE = "cascade.json"
AGAIN = "delete that folder and run 'broadsheet evaluate' again"


def save(where: Place, record: Record, base: Baseline | None, card: dict[str, Any], drift: Reference | None) -> None:
    """Leave the cascade with a checkpoint, in place of the one that was there.

    Args:
        where: the checkpoint.
        record: of ``judge``.
        base: the linear model.
        card: of the checkpoint.
        drift: what drift of the cascade is measured from.
    """
    with tempfile.TemporaryDirectory(prefix="broadsheet-cascade-") as temporary:
        folder = Path(temporary, FOLDER)
        folder.mkdir()
        if record.threshold is not None and base is not None:
            tokenizer = Path(temporary, "tokenizer")
            tokenizer.mkdir()
            for name, content in base.tokenizer.items():
                (tokenizer / name).write_bytes(content)
            own = {k: v for k, v in card.items() if k != "training"} | {
                "kind": "linear", "max_tokens": base.max_tokens, "pad_id": tokenize.pad_id(tokenizer),
                "temperature": record.temperature, "metrics": {},
            }  # fmt: skip
            checkpoint.save_model(base.model, tokenizer, own, folder)
            if drift is not None:
                drift.save(Place.of(folder))
        (folder / FILE).write_text(json.dumps(record.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
        (folder / checkpoint.SEAL).write_text(checkpoint.seal(folder, {}), encoding="utf-8")
        put_folder(folder, where / FOLDER, FILE)


def read(where: Place) -> Record | None:
    """The record of a checkpoint's cascade; None where it was never evaluated for one.

    Raises:
        UserError: it is damaged.
    """
    file = where / FOLDER / FILE
    if not file.exists():
        return None
    try:
        return Record.model_validate_json(file.read_bytes())
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        what = f"{place}: {first['msg'].removeprefix('Value error, ')}"
        raise UserError(f"{file} is damaged ({what}): {AGAIN}") from e


def load(where: Place) -> Classifier:
    """The linear model of a checkpoint's cascade, on the CPU.

    Raises:
        UserError: a file is missing, or is not what was written.
    """
    with _whole(where) as local:
        return Classifier(local, device="cpu")


def check(where: Place) -> None:
    """Compare all files of a checkpoint's cascade with what was written.

    Raises:
        UserError: one is missing, or is not what was written.
    """
    with _whole(where):
        pass


@contextmanager
def _whole(where: Place) -> Iterator[Path]:
    folder = where / FOLDER
    with local_folder(folder) as local:
        wrong = checkpoint.damage(local)
        if wrong is not None:
            raise UserError(f"{folder} is damaged ({wrong}): {AGAIN}")
        yield local
