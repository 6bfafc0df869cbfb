"""Images with boxes or masks: PASCAL VOC folders, COCO-format JSON, and the scenes of digits.

A part is YEAR-SET of VOC (2007-trainval: the names in VOC2007/ImageSets), or of COCO a name (val2017:
annotations/instances_val2017.json, images in val2017/) or a JSON file whose images lie beside it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dense import digits
from images import files

VOC_CLASSES: tuple[str, ...] = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat")
VOC_CLASSES += ("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant")
VOC_CLASSES += ("sheep", "sofa", "train", "tvmonitor")
SETS = ("digits", "voc", "coco")
DEFAULT_PARTS = {  # (set, whether masks are wanted): what trains, what is tested
    ("voc", False): (("2007-trainval", "2012-trainval"), ("2007-test",)),
    ("voc", True): (("2012-train",), ("2012-val",)),
    ("coco", False): (("train2017",), ("val2017",)),
}
OUTSIDE = 255  # in masks: a pixel that counts for nothing


class Boxes(NamedTuple):
    """The objects of one image: boxes (n, 4) as x1, y1, x2, y2 in pixels, labels (n,) from 1 on.

    `ignored` (n,) are those that count neither for nor against a detector: VOC's difficult ones, COCO's
    crowds. `areas` (n,) are the objects' own, or the boxes'.
    """

    boxes: Tensor
    labels: Tensor
    ignored: Tensor
    areas: Tensor

    @classmethod
    def of(cls, boxes: Any, labels: Any, ignored: Any = None, areas: Any = None) -> Boxes:
        corners = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        own = (corners[:, 2:] - corners[:, :2]).prod(1)
        return cls(
            corners,
            torch.as_tensor(labels, dtype=torch.int64),
            torch.zeros(len(corners), dtype=torch.bool)
            if ignored is None
            else torch.as_tensor(ignored).bool(),
            own if areas is None else torch.as_tensor(areas, dtype=torch.float32),
        )

    def chosen(self, mask: Tensor) -> Boxes:
        return Boxes(*(each[mask] for each in self))


@dataclass
class Source:
    """The images of one or more parts: `images` and `masks` are paths or arrays, `boxes` of each image.

    `classes` are the names of the labels 1, 2, ...; 0 is the background."""

    name: str
    classes: tuple[str, ...]
    images: Sequence[str] | NDArray[np.uint8]
    boxes: Sequence[Boxes] | None = None
    masks: Sequence[str] | NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Tensor:
        """uint8 (3, H, W), as stored, whatever its EXIF data say: as torchvision and pycocotools read it.

        ValueError names a file that cannot be read.
        """
        image: Any = self.images[index]
        if isinstance(image, str):
            image = np.array(files.open_image(image, upright=False).convert("RGB"))
        return torch.from_numpy(image).permute(2, 0, 1)

    def mask(self, index: int) -> Tensor:
        """uint8 (H, W): labels, or 255. ValueError names a file that holds others."""
        assert self.masks is not None
        mask: Any = self.masks[index]
        if isinstance(mask, str):
            path, mask = mask, _labels(mask)
            if odd := sorted({*np.unique(mask).tolist()} - {*range(len(self.classes) + 1), OUTSIDE}):
                raise ValueError(f"{path}: label {odd[0]} is none of 0 to {len(self.classes)}, nor 255")
        return torch.from_numpy(mask)

    def subset(self, indices: Sequence[int]) -> Source:
        """The images of these indices."""
        pick: Callable[[Any], Any] = lambda each: None if each is None else [each[i] for i in indices]  # noqa: E731
        return Source(self.name, self.classes, pick(self.images), pick(self.boxes), pick(self.masks))

    def with_boxes(self) -> Source:
        """For training: without ignored objects, and without the images that then have none."""
        if self.boxes is None:
            return self
        kept = [boxes.chosen(~boxes.ignored) for boxes in self.boxes]
        found = dataclasses.replace(self, boxes=kept)
        return found.subset([i for i, boxes in enumerate(kept) if len(boxes.labels)])

    def fingerprint(self) -> str:
        """Of names (or pixels), classes and boxes; wherever the folder lies."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for image in self.images:
            digest.update(Path(image).name.encode() if isinstance(image, str) else image.tobytes())
        for boxes in self.boxes or ():
            digest.update(boxes.boxes.numpy().tobytes() + boxes.labels.numpy().tobytes())
        return f"{len(self)}:{digest.hexdigest()[:16]}"


def _labels(path: str) -> NDArray[np.uint8]:
    """The labels of a mask file: the indices of its palette, or its greys."""
    image = files.open_image(path, upright=False)
    if image.mode not in ("P", "L"):
        raise ValueError(f"{path}: mode {image.mode}: needed are labels, as a palette's indices or as greys")
    return np.array(image)


def load(name: str, data: str | Path, parts: Sequence[str], masks: bool, train: bool) -> Source:
    """The parts of the set `name` ("digits", "voc", "coco") in the folder `data`, with boxes or with masks.

    Without `parts` the usual ones. ValueError or OSError, in one line, for what is not there or damaged.
    """
    if name == "digits":
        made = digits.scenes("train" if train else "test")
        boxes = [Boxes.of(*each) for each in zip(made.boxes, made.labels, strict=True)]
        return Source(
            "digits", made.classes, made.images, None if masks else boxes, made.masks if masks else None
        )
    if (name, masks) not in DEFAULT_PARTS:
        raise ValueError(f"--set {name}: has no masks here, only boxes")
    root = Path(data).expanduser()
    parts = parts or DEFAULT_PARTS[name, masks][0 if train else 1]
    if not root.is_dir():
        raise FileNotFoundError(f"--data {root}: there is no such folder")
    read = {"voc": _voc_masks if masks else _voc_boxes, "coco": _coco}[name]
    found = [read(root, part) for part in parts]
    first = found[0]
    for part, each in zip(parts, found, strict=True):
        if each.classes != first.classes:
            raise ValueError(f"--data {root}: {part} has other classes than {parts[0]}")
    together: Callable[[str], Any] = lambda key: [x for each in found for x in getattr(each, key) or ()]  # noqa: E731
    lists: list[Any] = [together(key) or None for key in ("images", "boxes", "masks")]
    return Source(f"{name} {' '.join(parts)}", first.classes, *lists)


# What is wrong with a file is said before anything is trained, not hours later when the image's turn comes.


def _check_files(root: Path, part: str, paths: Sequence[str]) -> None:
    """FileNotFoundError names the first image or mask that is not there."""
    if missing := next((path for path in paths if not Path(path).is_file()), None):
        raise FileNotFoundError(f"--data {root}: part {part}: there is no {missing}")


def _size(image: str, told: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    """(width, height) of an image as stored; ValueError where its annotation tells another. Some tell 0."""
    size = files.image_size(image)
    if all(told) and told != size:
        (width, height), (w, h) = size, told
        raise ValueError(
            f"{image} is stored as {width}x{height} pixels, but its annotation is for {w}x{h}; boxes are of "
            "the pixels as stored, which EXIF data do not turn"
        )
    return size


def inside(boxes: Sequence[Sequence[float]], size: tuple[int, int]) -> list[list[float]]:
    """Boxes as corners, cut off at the edges of an image of (width, height).

    torchvision's reference does so too. ValueError where nothing is left.
    """
    cut = []
    for x1, y1, x2, y2 in boxes:
        cut.append([max(0.0, x1), max(0.0, y1), min(size[0], x2), min(size[1], y2)])
        if not (cut[-1][0] < cut[-1][2] and cut[-1][1] < cut[-1][3]):
            raise ValueError(
                f"the box {x1:g} {y1:g} {x2:g} {y2:g} lies outside its image of {size[0]}x{size[1]} pixels"
            )
    return cut


# --- PASCAL VOC


def _voc_names(root: Path, part: str, kind: str) -> tuple[Path, list[str]]:
    """The folder of the year, and the names of its images in the set, of ImageSets/`kind`."""
    if not re.fullmatch(r"\d{4}-\w+", part):
        raise ValueError(f"part {part!r}: of VOC a part is YEAR-SET, such as 2007-trainval")
    year, _, name = part.partition("-")
    folder = next((f for f in (root / f"VOC{year}", root / "VOCdevkit" / f"VOC{year}") if f.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(f"--data {root}: there is no folder VOC{year}")
    listing = folder / "ImageSets" / kind / f"{name}.txt"
    if not listing.is_file():
        raise FileNotFoundError(f"--data {root}: part {part}: there is no {listing}")
    try:
        names = [line.split()[0] for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f"{listing}: is no text ({error})") from None
    if not names:
        raise ValueError(f"{listing}: names no image")
    if odd := next((name for name in names if Path(name).name != name), None):
        raise ValueError(f"{listing}: {odd!r} is no name of an image")
    return folder, names


def _voc_boxes(root: Path, part: str) -> Source:
    folder, names = _voc_names(root, part, "Main")
    images = [str(folder / "JPEGImages" / f"{name}.jpg") for name in names]
    _check_files(root, part, images)
    boxes = [
        _voc_annotation(folder / "Annotations" / f"{name}.xml", image)
        for name, image in zip(names, images, strict=True)
    ]
    return Source("voc", VOC_CLASSES, images, boxes=boxes)


def _voc_masks(root: Path, part: str) -> Source:
    folder, names = _voc_names(root, part, "Segmentation")
    images = [str(folder / "JPEGImages" / f"{name}.jpg") for name in names]
    masks = [str(folder / "SegmentationClass" / f"{name}.png") for name in names]
    _check_files(root, part, images + masks)
    for image, mask in zip(images, masks, strict=True):
        if (size := files.image_size(image)) != (other := files.image_size(mask)):
            raise ValueError(f"{mask}: has {other[0]}x{other[1]} pixels, its image {size[0]}x{size[1]}")
    return Source("voc", VOC_CLASSES, images, masks=masks)


def _voc_annotation(path: Path, image: str) -> Boxes:
    """The objects of an annotation of the file `image`.

    VOC counts pixels from 1 and the last one in: x1 - 1 to x2 here.
    """
    boxes, labels, difficult = [], [], []
    try:
        root = ElementTree.parse(path).getroot()
        for entry in root.iter("object"):
            x1, y1, x2, y2 = (_number(entry, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax"))
            if not (x1 <= x2 and y1 <= y2):
                raise ValueError(f"no box: {x1:g} {y1:g} {x2:g} {y2:g}")
            boxes.append([x1 - 1, y1 - 1, x2, y2])
            if (name := entry.findtext("name", "").strip()) not in VOC_CLASSES:
                raise ValueError(
                    f"class {name!r}: VOC has {', '.join(VOC_CLASSES)}; for your own there is --set coco"
                )
            labels.append(VOC_CLASSES.index(name) + 1)
            difficult.append(entry.findtext("difficult", "0").strip() == "1")
        told = (0, 0)
        if root.find("size") is not None:
            told = int(_number(root, "size/width")), int(_number(root, "size/height"))
        boxes = inside(boxes, _size(image, told))
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{path}: no annotation of VOC ({' '.join(str(error).split())})") from None
    return Boxes.of(boxes, labels, difficult)


def _number(entry: ElementTree.Element, name: str) -> float:
    text = entry.findtext(name, "").strip()
    try:
        if abs(value := float(text)) < 1e6:
            return value
    except ValueError:
        pass
    raise ValueError(f"{name} {text!r}: must be a number below 1e6")


# --- COCO


def _coco(root: Path, part: str) -> Source:
    if part.endswith(".json"):
        file, folder = root / part, (root / part).parent
    else:
        file, folder = root / "annotations" / f"instances_{part}.json", root / part
    if not file.is_file():
        raise FileNotFoundError(f"--data {root}: part {part}: there is no {file}")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        categories = sorted((int(entry["id"]), str(entry["name"])) for entry in found["categories"])
        label = {number: place for place, (number, _) in enumerate(categories, start=1)}
        objects: dict[Any, list[Any]] = {entry["id"]: [] for entry in found["images"]}
        if len(label) < len(categories) or len(objects) < len(found["images"]):
            raise ValueError("an id of its categories or images is there twice")
        images = [str(folder / entry["file_name"]) for entry in found["images"]]
        _check_files(root, part, images)
        size = {
            entry["id"]: _size(image, (int(entry.get("width") or 0), int(entry.get("height") or 0)))
            for entry, image in zip(found["images"], images, strict=True)
        }
        for place, entry in enumerate(found["annotations"]):
            for key, known in (("category_id", label), ("image_id", objects)):
                if entry[key] not in known:
                    raise ValueError(f"annotation {place}: {key} {entry[key]!r} is not in the file")
            x, y, w, h = (float(value) for value in entry["bbox"])
            if not (all(abs(value) < 1e6 for value in (x, y, w, h)) and w >= 0 and h >= 0):
                raise ValueError(f"annotation {place}: bbox {entry['bbox']} is no x, y, width, height")
            if w > 0 and h > 0:  # COCO has a few that are none
                (box,) = inside([[x, y, x + w, y + h]], size[entry["image_id"]])
                row = box, label[entry["category_id"]], bool(entry.get("iscrowd", 0))
                objects[entry["image_id"]].append((*row, float(entry.get("area", w * h))))
        columns = (tuple(zip(*rows, strict=True)) or ((), ()) for rows in objects.values())
        boxes = [Boxes.of(*each) for each in columns]
    except FileNotFoundError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{file}: no COCO annotations ({reason})") from None
    if not categories or not images:
        raise ValueError(f"{file}: has no categories, or no images")
    return Source("coco", tuple(name for _, name in categories), images, boxes=boxes)
