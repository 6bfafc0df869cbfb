"""dense/measure.py: known answers, and those of torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics import JaccardIndex
from torchmetrics.detection import MeanAveragePrecision

from dense import measure
from dense.sources import Boxes


def found(boxes, labels, scores):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
    }


def square(x, y=0, size=10):
    return [x, y, x + size, y + size]


# Of label 1 there are three objects in two images, one more is difficult. Best first: right (0.9), a second
# box on the same object, wrong (0.8), right (0.7), on the difficult one, which does not count (0.6), nowhere,
# wrong (0.5). One object is not found. Precision: 1, 1/2, 2/3, 1/2 at recalls of 1/3, 1/3, 2/3, 2/3.
FOUND = [
    found([square(0), square(1), square(100)], [1, 1, 1], [0.9, 0.8, 0.6]),
    found([square(0), square(60)], [1, 1], [0.7, 0.5]),
]
TRUTH = [
    Boxes.of([square(0), square(100)], [1, 1], [False, True]),
    Boxes.of([square(0), square(30)], [1, 1]),
]


def matches(label=1):
    return [measure.match(f, truth, label) for f, truth in zip(FOUND, TRUTH, strict=True)]


def test_vocs_average_precision_of_a_case_done_by_hand():
    assert [each.objects for each in matches()] == [1, 2]
    assert measure.average_precision(matches()) == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    # recalls 0 to 0.3 reach precision 1 (4 levels), 0.4 to 0.6 reach 2/3 (3 levels), 0.7 to 1 none
    assert measure.average_precision(matches(), eleven_points=True) == pytest.approx((4 + 3 * 2 / 3) / 11)


def test_a_class_without_objects_has_no_precision_and_leaves_the_mean_alone():
    assert math.isnan(measure.average_precision(matches(label=2)))
    result = measure.detection(FOUND, TRUTH, ["cat", "dog"])
    assert result["ap50"] == pytest.approx(5 / 9)
    assert result["ap50_of_class"] == {"cat": pytest.approx(5 / 9), "dog": None}
    low, high = result["ap50_interval"]
    assert low <= 5 / 9 <= high


def test_nothing_to_find_is_an_error_and_nothing_found_is_none():
    with pytest.raises(ValueError, match="has an object"):
        measure.detection([FOUND[0]], [Boxes.of([square(0)], [1], [True])], ["cat"])
    nothing = found([], [], [])
    assert measure.detection([nothing] * 2, TRUTH, ["cat"])["ap50"] == 0


@pytest.mark.filterwarnings("error")
def test_resamples_without_objects_are_left_out_of_the_interval():
    nothing = found([], [], [])
    result = measure.detection([FOUND[0], nothing], [Boxes.of([square(0)], [1]), Boxes.of([], [])], ["cat"])
    assert result["ap50_interval"] == [1, 1]


def test_an_overlap_of_exactly_a_half_is_enough():
    truth = Boxes.of([[0, 0, 10, 10]], [1])
    for width, right in ((5, True), (4.9, False)):
        assert measure.match(found([[0, 0, width, 10]], [1], [1.0]), truth, 1).right.tolist() == [right]


def test_cocos_average_precision_of_a_case_done_by_hand():
    # A box of IoU 0.72 is right at the thresholds 0.50 to 0.70, five of ten; at 0.75 it is not.
    truth = [Boxes.of([[0, 0, 100, 100]], [1])]
    result = measure.coco_precision([found([[0, 0, 72, 100]], [1], [0.9])], truth)
    assert result["coco_ap"] == pytest.approx(0.5)
    assert (result["coco_ap50"], result["coco_ap75"]) == (pytest.approx(1), pytest.approx(0))
    assert (result["coco_ap_large"], result["coco_ap_small"]) == (pytest.approx(0.5), -1)
    # A crowd counts neither way.
    crowd = [Boxes.of([[0, 0, 100, 100], [200, 0, 300, 100]], [1, 1], [False, True])]
    both = found([[0, 0, 100, 100], [210, 10, 290, 90]], [1, 1], [0.5, 0.9])
    assert measure.coco_precision([both], crowd)["coco_ap"] == pytest.approx(1)


def test_eleven_points_agree_with_torchmetrics_on_random_boxes():
    """Where no box lies on two objects both count in the same way."""
    random = np.random.default_rng(0)
    all_found, truths = [], []
    for _ in range(20):
        places = random.permutation(12)[:6]
        truths.append(Boxes.of([square(40 * x) for x in places[:4]], random.integers(1, 4, 4).tolist()))
        shifts = random.uniform(-6, 6, 6)
        boxes = [square(40 * x + shift) for x, shift in zip(places, shifts, strict=True)]
        all_found.append(found(boxes, random.integers(1, 4, 6).tolist(), random.uniform(0, 1, 6).tolist()))
    metric = MeanAveragePrecision(iou_thresholds=[0.5], rec_thresholds=np.linspace(0, 1, 11).tolist())
    metric.update(all_found, [{"boxes": t.boxes, "labels": t.labels} for t in truths])
    result = measure.detection(all_found, truths, ["a", "b", "c"])
    assert 0.05 < result["ap50_11_point"] < 0.9
    assert result["ap50_11_point"] == pytest.approx(float(metric.compute()["map"]), abs=1e-6)


def test_mean_iou_of_a_case_done_by_hand():
    truth = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 255]])
    mask = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 2]])
    confusion = measure.confusion(mask, truth, 4)
    # background: 3 right of 3 + 1 + 1; label 1: 2 of 2 + 1 + 1; label 2 only where nothing counts; 3 never
    result = measure.segmentation(np.stack([confusion]), ["a", "b", "c"])
    assert result["iou_of_class"] == {"background": 0.6, "a": 0.5, "b": None, "c": None}
    assert result["mean_iou"] == pytest.approx(0.55)
    assert result["pixel_accuracy"] == pytest.approx(5 / 7)


def test_mean_iou_is_that_of_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    truth, mask = (torch.randint(0, 4, (5, 8, 8), generator=generator) for _ in range(2))
    truth[0, :3] = 255
    confusions = np.stack([measure.confusion(m, t, 4) for m, t in zip(mask, truth, strict=True)])
    expected = JaccardIndex("multiclass", num_classes=4, ignore_index=255)(mask, truth)
    assert measure.segmentation(confusions, ["a", "b", "c"])["mean_iou"] == pytest.approx(float(expected))


def test_the_interval_is_that_of_a_mean():
    values = np.random.default_rng(1).normal(size=400)
    low, high = measure.interval(400, lambda chosen: float(values[chosen].mean()), resamples=1000)
    assert low == pytest.approx(values.mean() - 1.96 / 20, abs=0.02)
    assert high == pytest.approx(values.mean() + 1.96 / 20, abs=0.02)
