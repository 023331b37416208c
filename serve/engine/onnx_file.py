"""A network as an ONNX file, in 32 bits and in 8 (extra ``broadsheet[onnx]``)."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import first_line
from serve.engine.runtimes import has_vnni

OPSET = 18


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def write(model: nn.Module, file: Path) -> None:
    """Write a network with inputs ``input_ids`` and ``attention_mask``, [rows, tokens] int64, and output ``logits``.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        RuntimeError: the network has something that ONNX does not.
    """
    import onnxscript  # noqa: F401  # torch's exporter needs it, and says so less plainly

    ids = torch.ones(2, 7, dtype=torch.int64)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    rows, tokens = torch.export.Dim("rows"), torch.export.Dim("tokens")
    shapes = {"input_ids": {0: rows, 1: tokens}, "attention_mask": {0: rows, 1: tokens}}
    try:
        with _quietly():
            torch.onnx.export(
                _Logits(model).eval(), (ids, mask), str(file), input_names=["input_ids", "attention_mask"],
                output_names=["logits"], dynamic_shapes=shapes, dynamo=True, external_data=False, verbose=False,
                opset_version=OPSET,
            )  # fmt: skip
    except OSError:
        raise
    except Exception as e:  # torch's exporter raises whatever its parts do
        raise RuntimeError(f"{type(e).__name__}: {first_line(e)[:200]}") from e


def quantize(file: Path, out: Path) -> None:
    """Write the 8-bit twin of a file: weights per output channel, activations as they come.

    Raises:
        RuntimeError: it cannot be done.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer

    try:
        with _quietly(), tempfile.TemporaryDirectory(prefix="broadsheet-fused-") as temporary:
            # A GELU, its bias included, in one step: in the quantized graph ONNX Runtime no longer finds it by itself.
            fused = Path(temporary, "fused.onnx")
            optimizer.optimize_model(str(file), model_type="bert", opt_level=0).save_model_to_file(str(fused))
            quantize_dynamic(
                fused, out, weight_type=QuantType.QInt8, per_channel=True, reduce_range=not has_vnni(),
                op_types_to_quantize=["MatMul", "Gemm"],
            )  # fmt: skip
    except OSError:
        raise
    except Exception as e:  # as above
        raise RuntimeError(f"{type(e).__name__}: {first_line(e)[:200]}") from e


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The exporters talk to whoever listens: on stdout, by logging and by warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
