"""Engines beside PyTorch that evaluate a network on the CPU: ONNX Runtime and OpenVINO.

    engine = Engine(fold_batch_norm(network), "openvino", "float32")
    logits, _ = engine(images)

Both compute with as many threads as PyTorch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model import Network
from training.export import Logits, check_packages, to_onnx
from utils import say

# Largest difference of the logits from PyTorch's in float32, as a share of the largest logit.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1}

ONNX = ("onnx", "onnxscript")  # packages that export

Compute = Callable[[np.ndarray], Any]


class Engine(nn.Module):
    """A network that an engine computes; its first images are also computed by PyTorch, and compared.

    ValueError where packages are missing, where the engine does not know the precision or the device, or, at
    the first images, where the logits differ by more than `TOLERANCES`.
    """

    def __init__(self, network: Network, backend: str, precision: str) -> None:
        super().__init__()
        begin = time.perf_counter()
        self.network, self.backend, self.precision, self.checked = network, backend, precision, False
        device = next(network.parameters()).device
        if device.type != "cpu":
            raise ValueError(f"--backend {backend}: computes on the CPU; give --device cpu")
        self._compute = {"onnxruntime": _onnxruntime, "openvino": _openvino}[backend](network, precision)
        self.seconds = time.perf_counter() - begin

    def largest_map(self) -> int:
        """That of the network: it is as right for how many images are computed at once."""
        return self.network.largest_map()

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        """Normalised images (N, C, H, W), to logits (N, num_classes) as a network returns them."""
        logits = torch.from_numpy(np.asarray(self._compute(images.contiguous().numpy())))
        if not self.checked:
            self._check(images[:8], logits[:8])
        return logits, None

    def _check(self, images: Tensor, logits: Tensor) -> None:
        with torch.autocast("cpu", enabled=False):
            wanted = self.network(images)[0]
        difference, size = (logits - wanted).abs().max().item(), wanted.abs().max().item()
        if not difference <= TOLERANCES[self.precision] * max(1.0, size):
            raise ValueError(
                f"--backend {self.backend}: its logits differ from PyTorch's by {difference:.1e}"
            )
        say(
            f"{self.backend} {self.precision}: ready after {self.seconds:.0f} s; logits of the first "
            f"{len(images)} images differ from PyTorch's in float32 by at most {difference:.1e} of {size:.1e}"
        )
        self.checked = True


def _converted(network: Network, package: str) -> bytes:
    check_packages(f"--backend {package}", *ONNX, package)
    return to_onnx(Logits(network), torch.zeros(3, network.in_channels, *network.image_size))


def _onnxruntime(network: Network, precision: str) -> Compute:
    if precision != "float32":
        raise ValueError(f"--precision {precision}: --backend onnxruntime computes in float32")
    return onnxruntime_session(_converted(network, "onnxruntime"), torch.get_num_threads())


def onnxruntime_session(content: bytes, threads: int) -> Compute:
    """What ONNX Runtime computes from a file of `to_onnx`, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images})[0]


def _openvino(network: Network, precision: str) -> Compute:
    if precision not in TOLERANCES:
        raise ValueError(f"--precision {precision}: --backend openvino computes in float32 or bfloat16")
    content = _converted(network, "openvino")
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # or the processes of one evaluation would share the first cores
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
    }
    core = openvino.Core()
    model = core.compile_model(core.read_model(content), "CPU", settings)
    return lambda images: model(images)[0]
