"""The choice of engine, from figures."""

from __future__ import annotations

from serve.engine.choice import Choice, Measured, choose, lines

TORCH = Measured("torch", 10.0, 100.0, 1.0, 0.0)


def test_the_fastest_that_agrees_serves_each_use() -> None:
    small = Measured("onnx-int8", 4.0, 120.0, 0.998, 0.001)
    other = Measured("torch-int8", 7.0, 150.0, 0.997, -0.001)
    assert choose([TORCH, small, other]) == Choice("onnx-int8", "torch-int8")


def test_without_a_gain_the_network_as_evaluated_serves() -> None:
    assert choose([TORCH]) == Choice("torch", "torch")
    assert choose([TORCH, Measured("onnx", 9.8, 102.0, 1.0, 0.0)]) == Choice("torch", "torch")
    assert choose([TORCH, Measured("onnx", 30.0, 20.0, 1.0, 0.0)]) == Choice("torch", "torch")


def test_parity_comes_before_speed() -> None:
    differs = Measured("torch-int8", 1.0, 900.0, 0.99, 0.0)
    loses = Measured("onnx-int8", 1.0, 900.0, 0.999, 0.004)
    broken = Measured("onnx", failed="cannot be made: no such operator")
    exact = Measured("onnx", 8.0, 130.0, 1.0, 0.0)
    assert choose([TORCH, differs, loses, broken]) == Choice("torch", "torch")
    assert choose([TORCH, differs, loses, exact]) == Choice("onnx", "onnx")
    said = lines([TORCH, differs, loses, broken], Choice("torch", "torch"))
    assert said[0].endswith("serves single texts and batches")
    assert "agrees on 99.00% of the rows only" in said[1]
    assert "loses 0.40 points" in said[2]
    assert "no such operator" in said[3]


def test_exactly_at_the_limits_is_allowed() -> None:
    assert Measured("onnx", 1, 1, 0.995, 0.003).refusal is None
