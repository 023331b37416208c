"""Runtimes: each answers as the network does, in every shape of batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_bert import WORDS

from pipeline.evaluate.classifier import Classifier
from serve.engine import onnx_file, runtimes

TEXTS = [" ".join(words[i : i + 3] * (1 + i % 9)) for words in WORDS.values() for i in range(len(words) - 2)]


@pytest.fixture(scope="module")
def classifier(bert: Path) -> Classifier:
    return Classifier.load(str(bert), "fp32")  # processors with bf16 round otherwise


def batches(classifier: Classifier) -> list[tuple[np.ndarray, np.ndarray]]:
    ids = classifier.encode(TEXTS).ids
    return [classifier.padded(ids[:1]), classifier.padded(ids[:2]), classifier.padded(ids)]


def test_int8_linear_is_close_to_the_layer_it_replaces() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 32)
    x = torch.randn(5, 64)
    exact, found = linear(x), runtimes.Int8Linear(linear)(x)
    assert found.shape == exact.shape
    assert (found - exact).abs().max() < 0.05 * exact.abs().max()


def close(found: np.ndarray, exact: np.ndarray) -> None:
    """8 bits on a network of 32 units, whose logits reach 7: rounding shows, and labels stay."""
    assert np.abs(found - exact).mean() < 0.4
    assert (found.argmax(1) == exact.argmax(1)).mean() > 0.9


def test_torch_int8_leaves_the_network_itself_alone(classifier: Classifier) -> None:
    inputs, mask = batches(classifier)[2]
    before = classifier.as_evaluated(inputs, mask)
    run = runtimes.in_torch_int8(classifier.network)
    close(run(inputs, mask), before)
    np.testing.assert_array_equal(classifier.as_evaluated(inputs, mask), before)


def test_onnx_answers_as_the_network_does(classifier: Classifier, bert_onnx: Path, tmp_path: Path) -> None:
    onnx_file.quantize(bert_onnx, tmp_path / "int8.onnx")
    run, small = runtimes.in_onnx(bert_onnx), runtimes.in_onnx(tmp_path / "int8.onnx")
    for inputs, mask in batches(classifier):
        exact = classifier.as_evaluated(inputs, mask)
        np.testing.assert_allclose(run(inputs, mask), exact, atol=1e-4)
        assert small(inputs, mask).shape == exact.shape
    close(small(inputs, mask), exact)


def test_what_cannot_be_made_says_so(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no linear layers"):
        runtimes.in_torch_int8(torch.nn.Sequential(torch.nn.ReLU()))
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match=r"broken\.onnx"):
        runtimes.in_onnx(tmp_path / "broken.onnx")
    with pytest.raises(RuntimeError):
        onnx_file.write(torch.nn.Linear(2, 2), tmp_path / "no.onnx")
