"""How good boxes and masks are: VOC's and COCO's average precision, and the mean intersection over union.

VOC's precision is computed as its development kit does, which no kept library has: a second box on the same
object is wrong, and objects that are hard to see count neither way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from dense.sources import Boxes

RESAMPLES = 200  # of the images, for an interval


class Matches(NamedTuple):
    """Of one image and class: scores (n,) of the boxes that count, whether each is right; the objects."""

    scores: NDArray[np.float64]
    right: NDArray[np.bool_]
    objects: int


def match(found: Mapping[str, Tensor], truth: Boxes, label: int, iou: float = 0.5) -> Matches:
    """Which of the boxes found in an image, best first, are right: each may claim what it covers most."""
    mine = found["labels"] == label
    scores, order = found["scores"][mine].double().sort(descending=True, stable=True)
    objects = truth.chosen(truth.labels == label)
    right, counts = np.zeros(len(scores), bool), np.ones(len(scores), bool)
    if len(objects.labels):
        overlaps, nearest = box_iou(found["boxes"][mine][order].double(), objects.boxes.double()).max(1)
        taken: set[int] = set()
        for place, (overlap, index) in enumerate(zip(overlaps.tolist(), nearest.tolist(), strict=True)):
            if overlap < iou:
                continue
            counts[place] = not objects.ignored[index]
            right[place] = index not in taken
            taken.add(index)
    return Matches(scores.numpy()[counts], right[counts], int((~objects.ignored).sum()))


def average_precision(matches: Sequence[Matches], eleven_points: bool = False) -> float:
    """VOC's average precision of one class over images; NaN where the class has no object.

    The area under the precision, made monotone, over recall (VOC 2010 on); or the mean of the best precision
    at recalls of at least 0, 0.1, ..., 1 (VOC 2007).
    """
    objects = sum(each.objects for each in matches)
    if objects == 0:
        return float("nan")
    scores = np.concatenate([each.scores for each in matches])
    right = np.concatenate([each.right for each in matches])[np.argsort(-scores, kind="stable")]
    hits = np.cumsum(right)
    recall, precision = hits / objects, hits / np.arange(1, len(hits) + 1)
    if eleven_points:
        levels = [precision[recall >= level - 1e-12] for level in np.linspace(0, 1, 11)]
        return float(np.mean([level.max() if len(level) else 0.0 for level in levels]))
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((best * right).sum() / objects)  # recall rises by 1 / objects at each right box


def interval(
    count: int, value: Callable[[NDArray[np.int64]], float], resamples: int = RESAMPLES
) -> list[float]:
    """The 95% interval of a value of `count` images: percentiles over resamples of the images (bootstrap)."""
    random = np.random.default_rng(0)
    values = [value(random.integers(0, count, count)) for _ in range(resamples)]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return [float(low), float(high)]


def detection(
    found: Sequence[Mapping[str, Tensor]], truths: Sequence[Boxes], classes: Sequence[str]
) -> dict[str, Any]:
    """Precision of the boxes found in each image: {"boxes", "labels", "scores"} on the CPU, labels from 1 on.

    VOC's at an IoU of 0.5, by both rules, with an interval and for each class; COCO's, by torchmetrics.
    """
    matches = [
        [match(f, truth, label) for f, truth in zip(found, truths, strict=True)]
        for label in range(1, len(classes) + 1)
    ]
    each = [average_precision(rows) for rows in matches]
    present = [rows for rows, value in zip(matches, each, strict=True) if not np.isnan(value)]
    if not present:
        raise ValueError("none of the tested images has an object that counts")

    def resampled(chosen: NDArray[np.int64]) -> float:
        values = [average_precision([rows[i] for i in chosen]) for rows in present]
        # Of few images, none that was drawn may have an object.
        return float("nan") if np.isnan(values).all() else float(np.nanmean(values))

    return {
        "ap50": float(np.nanmean(each)),
        "ap50_interval": interval(len(truths), resampled),
        "ap50_11_point": float(np.mean([average_precision(rows, eleven_points=True) for rows in present])),
        **coco_precision(found, truths),
        "ap50_of_class": {name: None if np.isnan(x) else x for name, x in zip(classes, each, strict=True)},
    }


def coco_precision(found: Sequence[Mapping[str, Tensor]], truths: Sequence[Boxes]) -> dict[str, float]:
    """COCO's average precision: over IoU 0.50 to 0.95, at 0.50, at 0.75, and by the size of objects."""
    from torchmetrics.detection import MeanAveragePrecision  # here, as only this needs it

    metric = MeanAveragePrecision(backend="pycocotools", sync_on_compute=False)  # one process has all
    metric.warn_on_many_detections = False
    wanted = [
        {"boxes": t.boxes, "labels": t.labels, "iscrowd": t.ignored.long(), "area": t.areas} for t in truths
    ]
    metric.update([dict(each) for each in found], wanted)
    result = metric.compute()
    names = {"map": "ap", "map_50": "ap50", "map_75": "ap75", "map_small": "ap_small"}
    names |= {"map_medium": "ap_medium", "map_large": "ap_large"}
    return {f"coco_{short}": float(result[name]) for name, short in names.items()}  # -1: no such object


def confusion(found: Tensor, truth: Tensor, labels: int) -> NDArray[np.int64]:
    """Pixels of each (true, found) label of an image, (labels, labels), without those of 255 in the truth."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    return multiclass_confusion_matrix(found, truth, labels, ignore_index=255).cpu().numpy()


def segmentation(confusions: NDArray[np.int64], classes: Sequence[str]) -> dict[str, Any]:
    """Mean IoU over all labels that occur, the background too; of images' `confusion` (N, labels, labels)."""

    def of_labels(total: NDArray[np.int64]) -> NDArray[np.float64]:
        union = total.sum(0) + total.sum(1) - total.diagonal()
        return np.where(union > 0, total.diagonal() / np.maximum(union, 1), np.nan)

    def mean(chosen: Any) -> float:
        return float(np.nanmean(of_labels(confusions[chosen].sum(0))))

    total = confusions.sum(0)
    names = ["background", *classes]
    each = dict(zip(names, of_labels(total).tolist(), strict=True))
    return {
        "mean_iou": mean(slice(None)),
        "mean_iou_interval": interval(len(confusions), mean),
        "pixel_accuracy": float(total.diagonal().sum() / total.sum()),
        "iou_of_class": {name: None if np.isnan(x) else x for name, x in each.items()},
    }


def in_words(result: Mapping[str, Any], part: str = "") -> str:
    """The main numbers of a result of `detection` or `segmentation`."""
    if f"{part}mean_iou" in result:
        low, high = result[f"{part}mean_iou_interval"]
        accuracy = result[f"{part}pixel_accuracy"]
        mean = result[f"{part}mean_iou"]
        return f"mean IoU {mean:.2%} (95% interval: {low:.2%} to {high:.2%}), pixel accuracy {accuracy:.2%}"
    low, high = result[f"{part}ap50_interval"]
    return (
        f"AP at IoU 0.5 {result[f'{part}ap50']:.2%} (95% interval: {low:.2%} to {high:.2%}), 11-point "
        f"{result[f'{part}ap50_11_point']:.2%}, COCO's AP {result[f'{part}coco_ap']:.2%}"
    )
