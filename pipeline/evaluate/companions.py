"""What an evaluation leaves in the checkpoint itself, beside the weights: serving and predicting read it there.

The temperature (in the card), the model card, golden rows, what drift is measured from, and a cascade.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.prepared import Prepared
from pipeline.errors import WorkFailed
from pipeline.evaluate import calibration, cascade, cascade_folder, golden, reference, sample
from pipeline.evaluate.baseline import Baseline
from pipeline.evaluate.classifier import Classifier
from pipeline.evaluate.scored import Scored
from pipeline.storage import Place
from pipeline.train import checkpoint, model_card


def files(where: Place, prepared: Prepared) -> list[Place]:
    """What lies in a checkpoint that was evaluated on its own data; what is missing is made again."""
    names = (golden.FILE, reference.FILE, f"{cascade_folder.FOLDER}/{cascade_folder.FILE}")
    return [where / name for name in names] if prepared.rows("validation") else []


def golden_rows(validation: Scored, seed: int) -> npt.NDArray[np.int64]:
    """Which validation rows are the golden ones: of every class its share, in mixed order."""
    return sample.mixed(validation.labels, golden.ROWS, seed)


def leave(
    classifier: Classifier,
    where: Place,
    prepared: Prepared,
    figures: dict[str, Any],
    validation: Scored | None,
    cascaded: tuple[cascade.Record, Baseline | None, cascade.Both | None],
    seed: int,
) -> None:
    """Write everything.

    Args:
        classifier: the checkpoint, loaded, at the temperature that it gets.
        where: its folder.
        prepared: the data that it was trained on.
        figures: for the model card.
        validation: rows of it that were scored; None: there are none.
        cascaded: whether the linear model may answer first, the model, and what both say of the validation rows.
        seed: of the draws.

    Raises:
        WorkFailed: another checkpoint has taken its place meanwhile.
    """
    record, base, both = cascaded
    now = checkpoint.read_card(where).get("training", {}).get("fingerprint")
    if now != classifier.card.get("training", {}).get("fingerprint"):
        raise WorkFailed(f"{where} was trained again while it was evaluated: evaluate it again")
    card = {**classifier.card, "temperature": classifier.temperature}
    (where / checkpoint.CARD).write_text(json.dumps(card, ensure_ascii=False, indent=1) + "\n")
    (where / model_card.FILE).write_text(model_card.model_card(card, figures, prepared.ledger))
    drift = None
    if validation is not None:
        few = golden_rows(validation, seed)
        known = validation.logits - validation.logits.max(-1, keepdims=True)
        answers = known[few].astype(np.float32)
        golden.Golden(validation.texts(few), validation.labels[few], answers).save(where)
        probabilities = calibration.probabilities_of(validation.logits, classifier.temperature)
        _reference(classifier, validation, probabilities, seed).save(where)
        if both is not None and record.threshold is not None:
            together, _ = both.together(record.temperature, record.threshold)
            drift = _reference(classifier, validation, together, seed)
    cascade_folder.save(where, record, base, classifier.card, drift)


def _reference(
    classifier: Classifier, validation: Scored, probabilities: npt.NDArray[np.float64], seed: int
) -> reference.Reference:
    """What drift is measured from: the rows take the way of a request, so that nothing but the texts can differ."""
    rows = sample.mixed(validation.labels, reference.ROWS, seed)
    encoded = classifier.encode(validation.texts(rows))
    return reference.make(classifier.labels, probabilities[rows], encoded.ids, encoded.truncated, classifier.unknown_id)
