"""Networks that only evaluate: batch-norm folded into the convolutions, and the export to ONNX.

folded = fold_batch_norm(network)          # the same logits, faster
export_onnx(folded, "network.onnx")
"""

from __future__ import annotations

import copy
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from model import Network
from operations import FactorizedReduce
from utils import write_atomically

AnyNetwork = TypeVar("AnyNetwork", bound=Network)


def fold_batch_norm(network: AnyNetwork) -> AnyNetwork:
    """A copy for evaluation whose convolutions include the batch-norms after them; exact up to rounding.

    In evaluation a batch-norm multiplies and shifts each channel by constants: the convolution takes the
    factor into its weight, and the shift becomes its bias. The copy's parameters are not those of `count`.
    """
    folded = copy.deepcopy(network).eval()
    for module in list(folded.modules()):
        if isinstance(module, FactorizedReduce):
            half = module.conv_1.out_channels
            _fold(module.conv_1, module.bn, slice(0, half))
            _fold(module.conv_2, module.bn, slice(half, None))
            module.set_submodule("bn", nn.Identity())
        elif isinstance(module, nn.Sequential):
            for i, (layer, norm) in enumerate(pairwise(module)):
                if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    _fold(layer, norm, slice(None))
                    module[i + 1] = nn.Identity()
    return folded


@torch.no_grad()
def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d, part: slice) -> None:
    """Give `convolution` the factors and shifts that the channels `part` of `norm` have."""
    assert norm.running_mean is not None and norm.running_var is not None  # noqa: PT018
    factor = norm.weight[part].double() / (norm.running_var[part].double() + norm.eps).sqrt()
    shift = norm.bias[part].double() - norm.running_mean[part].double() * factor
    weight = convolution.weight
    weight.copy_(weight.double() * factor[:, None, None, None])
    convolution.bias = nn.Parameter(shift.to(weight.dtype))


class Logits(nn.Module):
    """A network that returns its logits alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)[0]


def export_onnx(network: Network, path: str) -> float:
    """Write the network as ONNX: "images" (N, C, H, W) to "logits" (N, num_classes), for any N.

    Returns the largest difference of its logits from PyTorch's; the file gets its name only after that check.
    ValueError where a package is missing, or where the logits differ by more than 1e-4 of their size.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  what torch.onnx.export needs
    except ImportError as error:
        missing = f"--export: {error.name} is missing; pip install onnx onnxscript onnxruntime"
        raise ValueError(missing) from error
    if torch.__version__ < "2.9":  # compared as versions, not as words
        raise ValueError(
            f"--export: needs PyTorch 2.9 or newer, whose exporter is another; this is {torch.__version__}"
        )
    shape = (3, network.in_channels, *network.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    content = _to_onnx(network, images)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(["logits"], {"images": images[:2].numpy()})[0])
    with torch.no_grad():
        wanted = network(images[:2])[0]
    difference = (found - wanted).abs().max().item()
    if not difference <= 1e-4 * max(1.0, wanted.abs().max().item()):
        raise ValueError(
            f"--export {path}: not written, as its logits differ from PyTorch's by {difference:.1e}"
        )
    write_atomically(path, content)
    return difference


def _to_onnx(network: Network, images: Tensor) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        torch.onnx.export(
            Logits(network).eval(),
            (images,),
            file,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            external_data=False,
            verbose=False,
        )
        return file.read_bytes()
