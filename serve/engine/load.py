"""Load a checkpoint with the engine that serves it."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.config import ServeConfig
from pipeline.errors import UserError, WorkFailed
from pipeline.evaluate.classifier import Classifier, Runtime
from pipeline.storage import Place
from serve.engine import export, onnx_file, runtimes
from serve.engine.choice import Choice
from serve.engine.export import Record

log = logging.getLogger("ray.serve")


def load(
    checkpoint: str, config: ServeConfig, say: Callable[[str], None] = log.info, measure: bool = True
) -> tuple[Classifier, Record]:
    """The checkpoint in memory, with as many threads as a replica has CPUs, and what was chosen to run it.

    Args:
        checkpoint: folder or URI.
        config: the serve section; ``engine`` is 'auto' or one of ``runtimes.NAMES``.
        say: told what takes long.
        measure: whether 'auto' may measure; else it takes what is known, or torch.

    Raises:
        UserError: the checkpoint cannot be loaded, or not with the engine that is asked for.
    """
    torch.set_num_threads(max(1, int(config.cpus_per_replica)))
    classifier = Classifier.load(checkpoint)
    folder = Place.of(checkpoint)
    if config.engine != "auto":
        runtime = _asked(classifier, config.engine)
        classifier.single = classifier.batch = runtime
        classifier.runs = dict.fromkeys(classifier.runs, config.engine)
        return classifier, Record(Choice(config.engine, config.engine), reason="as configured")
    record, made = export.export(folder, classifier, config.batch_tokens, say, measure)
    try:
        classifier.single = _of_record(record.choice.single, record, made, folder, classifier)
        classifier.batch = (
            classifier.single
            if record.choice.batch == record.choice.single
            else _of_record(record.choice.batch, record, made, folder, classifier)
        )
    except (ImportError, RuntimeError, AttributeError, KeyError, OSError, UserError, WorkFailed) as e:
        # What was chosen is gone: slower is better than not.
        classifier.as_it_is()
        log.warning("%s: the engine %s cannot be loaded (%s): torch serves instead", folder, record.choice, e)
        return classifier, Record(Choice(runtimes.TORCH, runtimes.TORCH), record.measured, reason=f"{e}")
    classifier.passes = record.passes
    classifier.runs = {"single": record.choice.single, "batch": record.choice.batch}
    return classifier, record


def _asked(classifier: Classifier, name: str) -> Runtime | None:
    if name == runtimes.TORCH:
        return None
    network = classifier.network.config.model_type
    try:
        if network in runtimes.ONE_ENGINE or classifier.device.type == "cuda":
            where = "on a GPU" if classifier.device.type == "cuda" else f"for {network}"
            raise RuntimeError(f"there is no such engine {where}")
        if name == runtimes.TORCH_INT8:
            return runtimes.in_torch_int8(classifier.network)
        with tempfile.TemporaryDirectory(prefix="broadsheet-engines-") as temporary:
            file = Path(temporary, "plain.onnx")
            onnx_file.write(classifier.network, file)
            if name == runtimes.ONNX_INT8:
                onnx_file.quantize(file, Path(temporary, "int8.onnx"))
                file = Path(temporary, "int8.onnx")
            return runtimes.in_onnx(file)
    except ImportError as e:
        raise UserError(f"serve.engine={name} needs 'pip install broadsheet[onnx]' ({e})") from e
    except (RuntimeError, AttributeError) as e:
        raise UserError(f"serve.engine={name}: {e}; leave it at auto, or take torch") from e


def _of_record(
    name: str, record: Record, made: dict[str, Runtime], folder: Place, classifier: Classifier
) -> Runtime | None:
    """The runtime that was chosen; None for the network as evaluated."""
    if name == runtimes.TORCH:
        return None
    if name in made:
        return made[name]
    if name == runtimes.TORCH_INT8:
        return runtimes.in_torch_int8(classifier.network)
    digest = dict(record.digests)[name]
    content = (folder / export.FOLDER / export.onnx_name(name, digest)).read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(f"{export.onnx_name(name, digest)} is not the file that was measured")
    with tempfile.TemporaryDirectory(prefix="broadsheet-engines-") as temporary:
        file = Path(temporary, "model.onnx")
        file.write_bytes(content)
        return runtimes.in_onnx(file)
