"""The choice of engine, from figures."""

from __future__ import annotations

from dataclasses import replace

from serve.engine.choice import Choice, Measured, best_size, choose, lines

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


def test_batches_are_as_large_as_they_get_faster() -> None:
    assert best_size([(1, 190.0), (256, 170.0), (2048, 110.0)]) == (1, 190.0)
    assert best_size([(1, 100.0), (512, 109.0), (2048, 105.0)]) == (2048, 105.0)  # not worth more passes
    assert best_size([(2048, 7.0)]) == (2048, 7.0)
    rates = ((1, 190.0), (256, 180.0), (512, 170.0))
    one = Measured("onnx-int8", 5.0, 190.0, 0.998, 0.0, batch_tokens=1, rates=rates)
    assert choose([TORCH, one]) == Choice("onnx-int8", "onnx-int8", 1)
    assert "190.0 texts/s one by one" in lines([TORCH, one], choose([TORCH, one]))[1]
    slow_alone = Measured("onnx", 9.0, 200.0, 1.0, 0.0, batch_tokens=1, rates=((1, 200.0), (512, 90.0)))
    assert choose([TORCH, one, slow_alone]).batch == "onnx-int8"


def test_small_batches_go_where_single_texts_go() -> None:
    rates = ((1, 40.0), (256, 120.0), (512, 200.0), (1024, 270.0), (2048, 290.0))
    torch = Measured("torch", 22.0, 290.0, 1.0, 0.0, batch_tokens=2048, rates=rates)
    rates = ((1, 207.0), (256, 246.0), (512, 255.0), (1024, 257.0), (2048, 208.0))
    small = Measured("onnx-int8", 4.7, 257.0, 0.997, 0.0, batch_tokens=1024, rates=rates)
    found = choose([torch, small])
    assert found == Choice("onnx-int8", "torch", 0, 1024)  # no bound: the largest that was tried is the fastest
    assert "serves single texts and small batches" in lines([torch, small], found)[1]
    assert "serves batches from 1,024 tokens on" in lines([torch, small], found)[0]
    assert choose([replace(torch, rates=((1, 40.0), (256, 999.0), (2048, 999.0))), small]).large_from == 0
    rates = ((1, 90.0), (256, 98.0), (512, 300.0), (1024, 90.0), (2048, 85.0))
    peak = Measured("torch-int8", 11.0, 300.0, 1.0, 0.0, batch_tokens=512, rates=rates)
    assert choose([TORCH, small, peak]) == Choice("onnx-int8", "torch-int8", 512, 512)
