"""torchvision's detectors and segmentation heads on any body that has `strides`, `channels` and named maps.

    model = build("fcos", body, classes=20, image_size=600)
    losses = model(images, targets)            # training mode: images a list of (3, H, W) in [0, 1]
    results = find(model, images)              # a detector's boxes, labels, scores; or masks (H, W)

Label 0 is the background, everywhere.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.models.segmentation import LRASPP, DeepLabV3
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from dense.recipes import SEGMENTERS
from images.sets import IMAGENET_STATISTICS
from model import multiply_adds
from training.precision import autocast

LOSSES = {  # the parts of each model's loss
    "fcos": ("classification", "bbox_regression", "bbox_ctrness"),
    "retinanet": ("classification", "bbox_regression"),
    "fasterrcnn": ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"),
    "ssdlite": ("classification", "bbox_regression"),
    "deeplabv3": (),
    "lraspp": (),
}
RANKED = {"score_thresh": 0.05, "detections_per_img": 100}  # precision is that of all boxes above a low score


def build(
    name: str,
    body: Any,
    classes: int,
    image_size: int,
    head_channels: int = 256,
    box_scales: Sequence[float] = (0.2, 0.95),
) -> nn.Module:
    """The model on `body`, for so many classes beside the background; anchors follow the strides.

    `image_size` is the shorter side that a detector scales images to (SSDLite: both sides), `head_channels`
    is for the detectors with a pyramid, `box_scales` for SSDLite: its smallest and largest default box, as
    shares of the image.
    """
    if name in SEGMENTERS:
        model: nn.Module = Segmenter(name, body, classes + 1, image_size)
    elif name == "ssdlite":
        model = _ssdlite(body, classes + 1, image_size, box_scales)
    else:
        model = _pyramid_detector(name, body, classes + 1, image_size, head_channels)
    model.genotype = getattr(body, "genotype", None)  # type: ignore[assignment]  # other bodies have none
    return model


class Pyramid(nn.Module):
    """A body and torchvision's feature pyramid on its maps: all of `out_channels`, with further levels."""

    def __init__(self, body: Any, out_channels: int, extra: nn.Module) -> None:
        super().__init__()
        self.body, self.out_channels = body, out_channels
        self.pyramid = FeaturePyramidNetwork(list(body.channels), out_channels, extra_blocks=extra)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.pyramid(self.body(images))


def _pyramid_detector(name: str, body: Any, labels: int, image_size: int, channels: int) -> nn.Module:
    last = body.strides[-1]
    if name == "fasterrcnn":
        strides = (*body.strides, 2 * last)
        backbone = Pyramid(body, channels, LastLevelMaxPool())
    else:
        strides = (*body.strides, 2 * last, 4 * last)
        backbone = Pyramid(body, channels, LastLevelP6P7(channels, channels))
    sizes = {"min_size": image_size, "max_size": image_size * 5 // 3}  # 800 and 1333 in the papers
    if name == "fcos":
        anchors = AnchorGenerator(tuple((s,) for s in strides), ((1.0,),) * len(strides))
        return detection.FCOS(backbone, labels, anchor_generator=anchors, **sizes, **RANKED)
    if name == "retinanet":
        octaves = tuple(tuple(int(4 * s * 2 ** (k / 3)) for k in range(3)) for s in strides)
        anchors = AnchorGenerator(octaves, ((0.5, 1.0, 2.0),) * len(strides))
        return detection.RetinaNet(backbone, labels, anchor_generator=anchors, **sizes, **RANKED)
    anchors = AnchorGenerator(tuple((8 * s,) for s in strides), ((0.5, 1.0, 2.0),) * len(strides))
    names = [f"stride{stride}" for stride in body.strides]
    pool = MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2)
    scores = {"box_score_thresh": 0.05, "box_detections_per_img": 100}
    return detection.FasterRCNN(
        backbone, labels, rpn_anchor_generator=anchors, box_roi_pool=pool, **sizes, **scores
    )


def _ssdlite(body: Any, labels: int, image_size: int, scales: Sequence[float]) -> nn.Module:
    """SSDLite: torchvision's depthwise heads on every map of the body, and its default boxes."""
    boxes = DefaultBoxGenerator([[2, 3]] * len(body.strides), min_ratio=scales[0], max_ratio=scales[1])
    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)  # as torchvision's SSDLite
    head = SSDLiteHead(list(body.channels), boxes.num_anchors_per_location(), labels, norm)
    return SSD(body, boxes, (image_size, image_size), labels, head=head, nms_thresh=0.55, **RANKED)


class Named(nn.Module):
    """A body whose maps bear the names that a segmentation head asks for."""

    def __init__(self, body: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.body, self.names = body, tuple(names)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict(zip(self.names, self.body(images).values(), strict=True))


class Segmenter(nn.Module):
    """DeepLabV3 on the body's last map, or LR-ASPP on its first and last, in the manner of the detectors.

    Training: images of one size and masks, a list of (H, W) labels of which 255 counts for nothing, give
    {"segmentation": the mean cross-entropy}. Evaluation: images of any size, scaled to a shorter side of
    `image_size`, give a list of masks (H, W), uint8, each in the size of its image.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, body: Any, labels: int, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        for key, values in IMAGENET_STATISTICS._asdict().items():
            self.register_buffer(key, torch.tensor(values)[:, None, None], persistent=False)
        channels = body.channels
        if name == "lraspp":
            self.model: nn.Module = LRASPP(Named(body, ("low", "high")), channels[0], channels[-1], labels)
        else:
            rate = max(
                1, 96 // body.strides[-1]
            )  # 12, 24, 36 at stride 8; half of it at 16 (arXiv 1706.05587)
            head = DeepLabHead(channels[-1], labels, (rate, 2 * rate, 3 * rate))
            self.model = DeepLabV3(Named(body, ("out",)), head)

    @property
    def backbone(self) -> nn.Module:
        return self.model.backbone  # type: ignore[return-value]

    @torch.no_grad()
    def begin_with_background(self, share: float) -> None:
        """Let the last biases give the background this probability in every pixel, and the others the same.

        As RetinaNet begins (arXiv 1708.02002, 4.1): where nearly all pixels are background, the first steps
        else teach that alone, at a loss so large that what tells the classes apart is spoilt.
        """
        head: Any = self.model.classifier
        lasts = [head.low_classifier, head.high_classifier] if isinstance(self.model, LRASPP) else [head[-1]]
        for last in lasts:
            last.bias.zero_()
        lasts[0].bias[0] = math.log(share / (1 - share) * (len(lasts[0].bias) - 1))

    def forward(self, images: list[Tensor], targets: list[Tensor] | None = None) -> Any:
        if targets is not None and self.training:
            batch = torch.stack([(image - self.mean) / self.std for image in images])
            logits = self.model(batch)["out"].float()
            return {"segmentation": F.cross_entropy(logits, torch.stack(targets), ignore_index=255)}
        return [self._mask(image) for image in images]

    def _mask(self, image: Tensor) -> Tensor:
        """One image (3, H, W) to its labels (H, W): alone, so that no neighbour's size matters."""
        H, W = image.shape[1:]
        scale = self.image_size / min(H, W)
        size = (max(1, round(H * scale)), max(1, round(W * scale)))
        x = F.interpolate(((image - self.mean) / self.std)[None], size, mode="bilinear", antialias=True)
        logits = F.interpolate(self.model(x)["out"].float(), (H, W), mode="bilinear", align_corners=False)
        return logits[0].argmax(0).to(torch.uint8)


@torch.no_grad()
def find(model: nn.Module, images: list[Tensor], precision: str = "float32") -> list[Any]:
    """What a model in evaluation mode finds in images (3, H, W), on the CPU: boxes, or masks (H, W).

    Boxes of label 0 are left out: torchvision's FCOS and RetinaNet have an output for the background.
    """
    with autocast(images[0].device, precision):
        results = model(images)
    if isinstance(results[0], Tensor):
        return [mask.cpu() for mask in results]
    return [{key: x[found["labels"] > 0].cpu() for key, x in found.items()} for found in results]


@torch.no_grad()
def costs(model: Any, image_size: int) -> dict[str, int]:
    """Parameters and multiply-adds, for one square image, of the backbone alone and of the whole.

    What a detector's second stage computes for each region depends on the image: here it is one of noise.
    """
    body = model.backbone.body if hasattr(model.backbone, "body") else model.backbone
    first = next(model.parameters())
    image = torch.rand(3, image_size, image_size, generator=torch.Generator().manual_seed(0)).to(first.device)
    training = model.training
    model.eval()
    found = {
        "backbone_parameters": sum(p.numel() for p in body.parameters()),
        "backbone_multiply_adds": multiply_adds(body, image[None]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "multiply_adds": multiply_adds(model, [image]),
    }
    model.train(training)
    return found


def costs_in_words(found: Mapping[str, int]) -> str:
    """What `costs` found, in a line."""
    millions = {name: f"{value / 1e6:.2f} M" for name, value in found.items()}
    return (
        f"{millions['parameters']} parameters ({millions['backbone_parameters']} of the backbone), "
        f"{millions['multiply_adds']} multiply-adds ({millions['backbone_multiply_adds']})"
    )
