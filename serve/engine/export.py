"""Measure once, for a checkpoint and a kind of machine, which runtime serves it; the outcome stays with the checkpoint.

``engines/<kind of machine>.json`` holds the figures and the choice, ``engines/*.onnx`` what they need. The golden rows
that evaluation left with the checkpoint are what is run: all runtimes take each batch in turn, so that whatever else
the machine does hits them alike, and must agree with the network as it was evaluated.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.errors import UserError, WorkFailed, first_line
from pipeline.evaluate.classifier import Classifier, Runtime
from pipeline.evaluate.golden import Golden, agreement
from pipeline.storage import Place
from pipeline.train import batches
from serve.engine import onnx_file, runtimes
from serve.engine.choice import FOLDER as FOLDER
from serve.engine.choice import Choice, Measured, choose

log = logging.getLogger("ray.serve")

VERSION = 3  # raise it whenever a runtime is made in another way
MIN_ROWS = 200  # golden rows; one in 200 is what may differ
MAX_ROWS = 1_000
SINGLES = 40  # texts that are run alone
BUDGET_S = 90.0  # of measuring; MIN_ROWS are run even so
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
    def pass_tokens(self) -> float:
        """Of the runtime for batches; infinite where nothing was measured."""
        return next((m.pass_tokens for m in self.measured if m.name == self.choice.batch), math.inf)


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
        choice = Choice(str(content["single"]), str(content["batch"]))
        if {choice.single, choice.batch} - set(runtimes.NAMES):
            return None
        measured = tuple(Measured(**m) for m in content["measured"])
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


def measure(
    classifier: Classifier,
    golden: Golden,
    made: dict[str, Runtime],
    batch_tokens: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Measured]:
    """Time each runtime on golden rows and compare its answers, the network as evaluated first."""
    golden = golden.head(MAX_ROWS)
    ids = classifier.encode(golden.texts).ids
    everyone = {runtimes.TORCH: classifier.as_evaluated, **made}
    lengths = np.array([len(i) for i in ids])
    order = np.argsort(-lengths, kind="stable")
    single_ms: dict[str, list[float]] = {name: [] for name in everyone}
    seconds = dict.fromkeys(everyone, 0.0)
    logits = {name: np.zeros((len(ids), len(classifier.labels)), np.float32) for name in everyone}
    failed: dict[str, str] = {}

    def turn(name: str, rows: Sequence[int]) -> float:
        inputs, mask = classifier.padded([ids[i] for i in rows])
        began = clock()
        try:
            logits[name][list(rows)] = everyone[name](inputs, mask)
        except Exception as e:  # a runtime may raise anything; then it does not serve
            if name == runtimes.TORCH:
                raise
            failed[name] = f"cannot run: {first_line(e)[:200]}"
        return clock() - began

    until = clock() + BUDGET_S
    spaced = order[:: max(1, len(order) // SINGLES)]
    for i in (*spaced[:3], *spaced):  # the first ones warm everything up
        for name in everyone:
            if name not in failed:
                single_ms[name].append(1_000 * turn(name, [int(i)]))
    # Batches from all over the range of lengths first: the budget may end before all have had their turn.
    cut = list(batches.cut(order, lengths[order], batch_tokens))
    done: list[int] = []
    tokens = 0  # padding included
    for at in np.random.default_rng(0).permutation(len(cut)):
        rows = [int(i) for i in cut[at]]
        for name in everyone:
            if name not in failed:
                seconds[name] += turn(name, rows)
        done += rows
        tokens += len(rows) * int(lengths[rows].max())
        if clock() > until and len(done) >= MIN_ROWS:
            break
    truth, exact = golden.labels[done], logits[runtimes.TORCH][done]
    each = {name: seconds[name] / max(1, tokens) for name in everyone}  # of a token in a batch
    middle = float(np.median(lengths[spaced]))
    right = float((exact.argmax(1) == truth).mean())
    return [
        Measured(name, failed=failed[name])
        if name in failed
        else Measured(
            name,
            statistics.median(single_ms[name][3:]),
            len(done) / max(seconds[name], 1e-9),
            agreement(exact, logits[name][done]),
            right - float((logits[name][done].argmax(1) == truth).mean()),
            max(0.0, statistics.median(single_ms[name][3:]) / 1_000 / max(each[name], 1e-12) - middle),
        )
        for name in everyone
    ]


def _save(folder: Place, classifier: Classifier, record: Record, files: dict[str, bytes]) -> None:
    """Leave the outcome with the checkpoint, its files first; where nothing may be written there, it is lost."""
    name, facts = kind_of_machine()
    content = {
        "version": VERSION, "model": classifier.version, "machine": facts,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "single": record.choice.single, "batch": record.choice.batch,
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
