"""Ways to run a checkpoint's network: token ids and mask in, logits out. Every one takes the same padded batch.

- ``torch``: as evaluated, in the precision that the machine computes in.
- ``torch-int8``: the linear layers in 8 bits, weights per output channel, activations per batch as they come.
- ``onnx``, ``onnx-int8``: the same network in ONNX Runtime (extra ``broadsheet[onnx]``), in 32 and in 8 bits.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import first_line
from pipeline.evaluate.classifier import Floats, Ints, Runtime, in_torch
from pipeline.model.first_token import OneToken
from pipeline.train.loop import cpu_flags

TORCH, TORCH_INT8, ONNX, ONNX_INT8 = "torch", "torch-int8", "onnx", "onnx-int8"
NAMES = (TORCH, TORCH_INT8, ONNX, ONNX_INT8)
ONE_ENGINE = ("broadsheet-lstm", "broadsheet-linear")  # networks that 8 bits or ONNX would not speed up


def has_vnni() -> bool:
    """Whether 8-bit products are summed in 32 bits at once. Without, pairs are summed in 16 bits first, which two
    large activations overflow: they then get 7 bits."""
    return bool(cpu_flags() & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


def in_torch_int8(model: nn.Module) -> Runtime:
    """A copy of the network with 8-bit linear layers, on CPU.

    Raises:
        RuntimeError: this build of torch has no 8-bit kernels, or the network has no linear layer.
    """
    small = copy.deepcopy(model).to("cpu").eval()
    used_by_weight = {id(m) for layer in small.modules() if isinstance(layer, OneToken) for m in layer.weights_only()}
    found = [
        (parent, name, child)
        for parent in small.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and id(child) not in used_by_weight
    ]
    if not found:
        raise RuntimeError("the network has no linear layers")
    for parent, name, child in found:
        setattr(parent, name, Int8Linear(child))
    return in_torch(small, "fp32", torch.device("cpu"))


class Int8Linear(nn.Module):
    """``y = x W' + b`` with W rounded to 8 bits, one scale per output channel, and x to 8 bits, one scale per call.

    The kernels are those of torch's dynamic quantization (FBGEMM on x86).
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(1).clamp_min(1e-8).double() / 127
        zeros = torch.zeros(len(scales), dtype=torch.long)
        with warnings.catch_warnings():
            # torch means to drop quantized tensors one day (pytorch#184982), and has no other fast 8-bit kernel for
            # processors without VNNI. Then this runtime says that it cannot be made.
            warnings.simplefilter("ignore")
            packed = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        bias = None if linear.bias is None else linear.bias.detach().float()
        self._packed = torch.ops.quantized.linear_prepack(packed, bias)
        self._reduce_range = not has_vnni()

    def forward(self, x: Tensor) -> Tensor:
        """As of ``nn.Linear``."""
        y: Tensor = torch.ops.quantized.linear_dynamic(x, self._packed, self._reduce_range)
        return y


def in_onnx(file: Path) -> Runtime:
    """A network in a file that ``onnx_file`` wrote, with as many threads as torch has.

    Raises:
        ImportError: ONNX Runtime is not installed.
        RuntimeError: the file cannot be read.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin between calls take the processor from the event loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as e:  # its exceptions have no common base
        raise RuntimeError(f"ONNX Runtime cannot read {file.name}: {first_line(e)[:200]}") from e
    wanted = {i.name for i in session.get_inputs()}

    def run(ids: Ints, mask: Ints) -> Floats:
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        found: Floats = session.run(None, {k: v for k, v in given.items() if k in wanted})[0]
        return found

    return run
