"""Measure once, for a checkpoint and a kind of machine, which runtime serves it; the outcome stays with the checkpoint.

``engines/<kind of machine>.json`` holds the figures and the choice, ``engines/*.onnx`` what they need. The golden rows
that evaluation left with the checkpoint are what is run: all runtimes take a few batches in turn, so that whatever else
the machine does hits them alike, and must agree with the network as it was evaluated.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import math
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import UserError, WorkFailed, first_line
from pipeline.evaluate.classifier import Classifier, Runtime
from pipeline.evaluate.golden import Golden
from pipeline.evaluate.passes import Passes
from pipeline.storage import Place
from serve.engine import onnx_file, runtimes
from serve.engine.choice import FOLDER as FOLDER
from serve.engine.choice import Choice, Measured, choose
from serve.engine.race import MIN_ROWS, measure

log = logging.getLogger("ray.serve")

VERSION = 5  # raise it whenever a runtime is made in another way
MOST_S = 200.0  # a network that would take longer over MIN_ROWS serves as it is: whoever starts it would give up


@dataclass(frozen=True)
class Record:
    """What was measured and chosen.

    Attributes:
        choice: what serves.
        measured: every runtime, the network as evaluated first; empty where there was nothing to measure.
        reason: why there was not; None where there was.
        digests: SHA-256 of each ONNX file that the choice needs, by runtime.
    """

    choice: Choice
    measured: tuple[Measured, ...] = ()
    reason: str | None = None
    digests: tuple[tuple[str, str], ...] = ()

    @property
    def passes(self) -> Passes:
        """Which batches the choice is fastest in."""
        cost = {m.name: m.pass_tokens for m in self.measured}
        return Passes(
            self.choice.batch_tokens or math.inf,
            self.choice.large_from,
            cost.get(self.choice.batch, math.inf),
            cost.get(self.choice.single, math.inf),
        )


def kind_of_machine() -> tuple[str, dict[str, Any]]:
    """A file name for this kind of machine, threads and releases, and what it stands for."""
    processor = _processor()
    facts = {
        "processor": processor,
        "vnni": runtimes.has_vnni(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **{package: _release(package) for package in ("onnxruntime", "onnx", "onnxscript")},
        "version": VERSION,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    name = "".join(c if c.isalnum() else "-" for c in processor.lower())
    return f"{'-'.join(filter(None, name.split('-')))[:40]}-{digest}", facts


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
            return next(line.split(":", 1)[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _release(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def known(folder: Place, classifier: Classifier) -> Record | None:
    """What was found before for this checkpoint on this kind of machine; None where nothing holds."""
    file = folder / FOLDER / f"{kind_of_machine()[0]}.json"
    try:
        if not file.exists():
            return None
        content = json.loads(file.read_text())
        if content["model"] != classifier.version or content["version"] != VERSION:
            return None
        sizes = int(content["batch_tokens"]), int(content["large_from"])
        choice = Choice(str(content["single"]), str(content["batch"]), *sizes)
        if {choice.single, choice.batch} - set(runtimes.NAMES) or min(sizes) < 0:
            return None
        measured = tuple(
            Measured(**{**m, "rates": tuple((int(n), float(r)) for n, r in m["rates"])}) for m in content["measured"]
        )
        if not all(math.isfinite(m.single_ms + m.rows_per_s + m.pass_tokens) for m in measured):
            return None
        digests = tuple((str(k), str(v)) for k, v in content["digests"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError, WorkFailed) as e:
        log.warning("%s cannot be read (%s): the engines are measured again", file, e)
        return None
    return Record(choice, measured, None, digests)


def export(
    folder: Place,
    classifier: Classifier,
    batch_tokens: int,
    say: Callable[[str], None] = log.info,
    may_measure: bool = True,
) -> tuple[Record, dict[str, Runtime]]:
    """Measure the runtimes and leave the outcome with the checkpoint, or find it done.

    Args:
        folder: the checkpoint.
        classifier: loaded from it.
        batch_tokens: rows x longest of a batch.
        say: told what takes long.
        may_measure: else what is not known yet stays so.

    Returns:
        The record, and the runtimes of its choice as far as they are at hand already.
    """
    golden, reason = None, None
    network = classifier.network.config.model_type
    if network in runtimes.ONE_ENGINE:
        reason = f"there is but one engine for {network}"
    elif classifier.device.type == "cuda":
        reason = "a GPU runs the network as it was evaluated"
    else:
        if found := known(folder, classifier):
            return found, {}
        golden = Golden.load(folder)
        if golden is None or len(golden.texts) < MIN_ROWS:
            reason = f"under {MIN_ROWS} golden rows to measure on: 'broadsheet evaluate' leaves them with a checkpoint"
        elif not may_measure:
            reason = "not measured on this kind of machine: 'broadsheet export' does it"
        elif (seconds := _seconds_a_text(classifier, golden)) * MIN_ROWS * len(runtimes.NAMES) > MOST_S:
            reason = f"at {seconds:.2f} s a text, measuring would take too long: name an engine with serve.engine"
    if golden is None or reason is not None:
        return Record(Choice(runtimes.TORCH, runtimes.TORCH), reason=reason), {}
    say("measuring engines, once for this checkpoint and kind of machine")
    with tempfile.TemporaryDirectory(prefix="broadsheet-engines-") as temporary:
        made, failed, passing = _made(classifier, Path(temporary))
        measured = (*measure(classifier, golden, made, batch_tokens), *failed)
        choice = choose(measured)
        chosen = {choice.single, choice.batch}
        files = {n: Path(temporary, f"{n}.onnx").read_bytes() for n in sorted(chosen) if n.startswith(runtimes.ONNX)}
        digests = tuple((name, hashlib.sha256(content).hexdigest()) for name, content in files.items())
        record = Record(choice, measured, None, digests)
        if not passing:
            _save(folder, classifier, record, files)
    return record, {name: runtime for name, runtime in made.items() if name in chosen}


def _made(classifier: Classifier, temporary: Path) -> tuple[dict[str, Runtime], list[Measured], bool]:
    """Every runtime that this machine can make, why it cannot make the others, and whether that may pass (a full
    disk): then it is tried again at the next start."""
    makers: dict[str, Callable[[], Runtime]] = {runtimes.TORCH_INT8: lambda: runtimes.in_torch_int8(classifier.network)}
    plain, small = temporary / f"{runtimes.ONNX}.onnx", temporary / f"{runtimes.ONNX_INT8}.onnx"

    def in_onnx() -> Runtime:
        onnx_file.write(classifier.network, plain)
        return runtimes.in_onnx(plain)

    def in_onnx_int8() -> Runtime:
        onnx_file.quantize(plain, small)
        return runtimes.in_onnx(small)

    if _release("onnxruntime"):
        makers |= {runtimes.ONNX: in_onnx, runtimes.ONNX_INT8: in_onnx_int8}
    made: dict[str, Runtime] = {}
    failed, passing = [], False
    for name, make in makers.items():
        try:
            made[name] = make()
        except Exception as e:  # exporters raise whatever their parts do
            failed.append(Measured(name, failed=f"cannot be made: {first_line(e)[:200]}"))
            passing = passing or isinstance(e, (OSError, MemoryError))
    return made, failed, passing


def _seconds_a_text(classifier: Classifier, golden: Golden) -> float:
    """What the network takes for a text of middling length."""
    ids = sorted(classifier.encode(golden.head(MIN_ROWS).texts).ids, key=len)
    inputs, mask = classifier.padded([ids[len(ids) // 2]])
    took = []
    for _ in range(3):
        began = time.perf_counter()
        classifier.as_evaluated(inputs, mask)
        took.append(time.perf_counter() - began)
    return min(took)


def _save(folder: Place, classifier: Classifier, record: Record, files: dict[str, bytes]) -> None:
    """Leave the outcome with the checkpoint, its files first; where nothing may be written there, it is lost."""
    name, facts = kind_of_machine()
    content = {
        "version": VERSION, "model": classifier.version, "machine": facts,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "single": record.choice.single, "batch": record.choice.batch, "batch_tokens": record.choice.batch_tokens,
        "large_from": record.choice.large_from,
        "measured": [asdict(m) for m in record.measured], "digests": dict(record.digests),
    }  # fmt: skip
    try:
        target = (folder / FOLDER).mkdir()
        for runtime, digest in record.digests:
            (target / onnx_name(runtime, digest)).write_bytes(files[runtime])
        (target / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    except (OSError, UserError, WorkFailed) as e:
        log.warning("the choice of engine cannot be kept in %s (%s): it is made again at the next start", folder, e)


def onnx_name(runtime: str, digest: str) -> str:
    """The file of an ONNX runtime: kinds of machine that round in another way do not overwrite each other's."""
    return f"{runtime}-{digest[:16]}.onnx"
