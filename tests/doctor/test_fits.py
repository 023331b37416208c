"""Whether a run fits, with the arithmetic in the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import config
from pipeline.cluster import Resources
from pipeline.doctor import fits
from pipeline.doctor.judge import GB, Finding
from pipeline.model import build, source

THREE = Resources(((0, 0), (4, 0), (4, 0)), memory_gb=16.0)


def found(have: Resources = THREE, parameters: int = 22_700_000, free: int | None = 50 * GB, **sets: Any) -> Any:
    loopback, averaged = sets.pop("loopback", False), sets.pop("averaged", False)
    made = config.load(None, [f"{k.replace('__', '.')}={v}" for k, v in sets.items()], {})
    return dict(enumerate(fits.findings(made, have, (0, 0), loopback, parameters, averaged, free)))


def good(findings: dict[int, Finding]) -> list[bool]:
    return [f.good for f in findings.values()]


def test_all_fits_with_the_arithmetic() -> None:
    training, memory, serving, disk = found().values()
    assert "2 workers x 4 CPU = 8 CPUs of 8 CPUs" in training.fact
    assert "2 workers x 22.7 M parameters x 16 bytes = 0.7 GB" in memory.fact
    assert "1 to 2 replicas of 1 CPU, room for 8" in serving.fact
    assert "4 checkpoints x 22.7 M parameters x 12 bytes = 1.0 GB, twice that must be free; 50.0 GB are" in disk.fact
    assert good(found()) == [True] * 4


def test_an_average_of_the_weights_takes_room() -> None:
    _, memory, _, disk = found(averaged=True).values()
    assert "parameters x 20 bytes" in memory.fact
    assert "parameters x 20 bytes" in disk.fact


def test_what_does_not_fit() -> None:
    assert "does not fit: 9 workers" in found(train__workers=9)[0].advice
    assert good(found(parameters=7_000_000_000, train__workers=2)) == [True, False, True, False]
    assert good(found(free=GB)) == [True, True, True, False]
    assert good(found(serve__min_replicas=9, serve__max_replicas=9)) == [True, True, False, True]


def test_a_head_without_cpus_serves_nothing_on_loopback() -> None:
    serving = found(loopback=True)[2]
    assert not serving.good
    assert "all on this node" in serving.fact
    assert "--host 0.0.0.0" in serving.advice


def test_the_room_of_an_object_store_is_not_measured() -> None:
    assert good(found(free=None, parameters=7_000_000_000, train__workers=1))[-1]


def test_parameters_of_an_lstm_and_of_a_folder(bert: Path) -> None:
    small = ["model.name=lstm", "model.vocab_size=300", "model.embedding_dim=16", "model.hidden=[16,8]"]
    made = config.load(None, small, {})
    network = build.initial(made, source.resolve("lstm"), ["a", "b"], 300, 0)
    real = sum(p.numel() for n, p in network.named_parameters() if not n.startswith("classifier"))
    assert fits.parameters(made, None) == real
    from transformers import AutoModelForSequenceClassification

    whole = AutoModelForSequenceClassification.from_pretrained(bert)
    assert fits.parameters(made, bert) == sum(p.numel() for p in whole.parameters())


def test_nobody_has_counted_the_words_of_linear() -> None:
    assert fits.parameters(config.load(None, ["model.name=linear"], {}), None) == 0
