"""Export to ONNX: one file that holds the network, how its images are normalised, and what it is.

export(loaded, statistics, config, "scale the shorter side to 32 pixels, crop the middle square")
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from common import checkpoint, distributed
from images.sets import Statistics, normalise
from model import Network
from training.config import EvaluationConfig
from training.weights import Loaded
from utils import say, write_atomically


def export(loaded: Loaded, statistics: Statistics, config: EvaluationConfig, preparation: str) -> None:
    """Write the file that --export names; `preparation` says how its images are made of a picture."""
    if distributed.is_main():
        known = metadata(loaded, statistics, config.pixels, preparation)
        difference = export_onnx(loaded.network, str(config.export), statistics, config.pixels, known)
        say(f"wrote {config.export}; its logits differ from PyTorch's by at most {difference:.1e}")


def metadata(loaded: Loaded, statistics: Statistics, pixels: str, preparation: str) -> dict[str, str]:
    """What the file says of itself: texts, of which classes, mean, std and card are JSON."""
    network, values = loaded.network, {"uint8": "bytes from 0 to 255", "float32": "float32 from 0 to 1"}
    known = {
        "description": f"{type(network).__name__}, trained on {loaded}",
        "input": f"images (N, C, H, W), {values[pixels]}, which the graph normalises",
        "preparation": preparation,
        "channels": str(network.in_channels),
        "image_size": str(network.image_size[0]),
        "mean": json.dumps(statistics.mean),
        "std": json.dumps(statistics.std),
    }
    if loaded.card:
        known |= {
            "set": str(loaded.set),
            "classes": json.dumps(loaded.classes),
            "card": json.dumps(loaded.card),
        }
    return known


class Logits(nn.Module):
    """A network that returns its logits alone, of normalised images or, with `statistics`, of pixels.

    Pixels are bytes, or float32 in [0, 1] (`pixels` is "uint8" or "float32").
    """

    def __init__(
        self, network: nn.Module, statistics: Statistics | None = None, pixels: str = "float32"
    ) -> None:
        super().__init__()
        self.network = network
        self.factors: tuple[Tensor, Tensor] | None = None
        if statistics is not None:
            mean, std = (torch.tensor(x, dtype=torch.float64)[:, None, None] for x in statistics)
            scale = 1 / ((255 if pixels == "uint8" else 1) * std)
            self.factors = scale.float(), (-mean / std).float()

    def forward(self, images: Tensor) -> Tensor:
        if self.factors is not None:
            scale, shift = self.factors
            images = images.float() * scale + shift
        return self.network(images)[0]


def export_onnx(
    network: Network,
    path: str,
    statistics: Statistics,
    pixels: str = "uint8",
    metadata: Mapping[str, str] | None = None,
) -> float:
    """Write the network as ONNX: "images" (N, C, H, W), as `Logits` takes them, to "logits" (N, num_classes).

    Returns the largest difference of its logits from PyTorch's; the file gets its name only after that check.
    ValueError where a package is missing, or where the logits differ by more than 1e-4 of their size.
    """
    check_packages("--export", "onnx", "onnxscript", "onnxruntime")
    import onnx
    import onnxruntime

    shape = (3, network.in_channels, *network.image_size)
    images = torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    given = images if pixels == "uint8" else images / 255
    model = onnx.load_from_string(to_onnx(Logits(network, statistics, pixels), given))
    model.producer_name, model.producer_version = "PairNAS", checkpoint.VERSION
    onnx.helper.set_model_props(model, dict(metadata or {}))
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(["logits"], {"images": given[:2].numpy()})[0])
    with torch.no_grad():
        wanted = network(normalise(images[:2], statistics))[0]
    difference = (found - wanted).abs().max().item()
    if not difference <= 1e-4 * max(1.0, wanted.abs().max().item()):
        raise ValueError(
            f"--export {path}: not written, as its logits differ from PyTorch's by {difference:.1e}"
        )
    write_atomically(path, content)
    return difference


def check_packages(flag: str, *names: str) -> None:
    """Raise ValueError that names `flag` where one of these packages is missing, or PyTorch is too old."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            raise ValueError(f"{flag}: {name} is missing; pip install {' '.join(names)}") from None
    if torch.__version__ < "2.9":  # compared as versions, not as words
        raise ValueError(
            f"{flag}: needs PyTorch 2.9 or newer, whose exporter is another; this is {torch.__version__}"
        )


def to_onnx(network: nn.Module, images: Tensor) -> bytes:
    """The ONNX file of a network that takes such images, any number of them, and returns one tensor."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        torch.onnx.export(
            network.eval(),
            (images,),
            file,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            external_data=False,
            verbose=False,
        )
        return file.read_bytes()
