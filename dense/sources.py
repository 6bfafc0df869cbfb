"""Images with boxes or masks: PASCAL VOC folders, COCO-format JSON, and the scenes of digits.

A part is YEAR-SET of VOC (2007-trainval: the names in VOC2007/ImageSets), or of COCO a name (val2017:
annotations/instances_val2017.json, images in val2017/) or a JSON file whose images lie beside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
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
THINNEST = 0.01  # pixels of a box; thinner ones become none where they are scaled, in float32
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

    `classes` are the names of the labels 1, 2, ...; 0 is the background.
    """

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
    _check_mode(path, image.mode)
    return np.array(image)


def _check_mode(path: str, mode: str) -> None:
    if mode not in ("P", "L"):
        raise ValueError(
            f"{path}: mode {mode}: needed are labels, as a palette's indices or as greys of 8 bits"
        )


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
    root = Path(os.path.expanduser(data))
    parts = parts or DEFAULT_PARTS[name, masks][0 if train else 1]
    if not root.is_dir():
        raise FileNotFoundError(f"--data {root}: there is no such folder")
    odd = next((part for part in parts if name == "voc" and not re.fullmatch(r"\d{4}-\w+", part)), None)
    if odd is not None:
        flag = "--train_parts" if train else "--test_parts"
        raise ValueError(f"{flag} {odd}: of VOC a part is YEAR-SET, such as 2007-trainval")
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


def _check_size(size: tuple[int, int], told: tuple[int, int]) -> None:
    """ValueError where an annotation tells another size than its image has, as stored. Some tell 0."""
    if all(told) and told != size:
        (width, height), (w, h) = size, told
        raise ValueError(
            f"it is for {w}x{h} pixels, its image is stored as {width}x{height}; boxes are of the pixels as "
            "stored, which EXIF data do not turn"
        )


@contextlib.contextmanager
def _in(what: str) -> Iterator[None]:
    """Around reading a part of a file: ValueError says in which the mistake is."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{what}: there is no {error}") from None
    except RecursionError:
        raise ValueError(f"{what}: nested too deeply") from None
    except (OSError, ElementTree.ParseError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{what}: {' '.join(str(error).split())}") from None


def inside(box: Sequence[float], size: tuple[int, int]) -> list[float] | None:
    """Corners cut off at the edges of an image of (width, height), as torchvision's reference does.

    None for what is thinner than `THINNEST`; ValueError for a box outside the image.
    """
    (x1, y1, x2, y2), (width, height) = box, size
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        raise ValueError(
            f"the box {x1:g} {y1:g} {x2:g} {y2:g} lies outside its image of {width}x{height} pixels"
        )
    cut = [max(0.0, x1), max(0.0, y1), min(width, x2), min(height, y2)]
    return cut if min(cut[2] - cut[0], cut[3] - cut[1]) >= THINNEST else None


# --- PASCAL VOC


def _voc_names(root: Path, part: str, kind: str) -> tuple[Path, list[str]]:
    """The folder of the year, and the names of its images in the set, of ImageSets/`kind`."""
    year, _, name = part.partition("-")
    folder = next((f for f in (root / f"VOC{year}", root / "VOCdevkit" / f"VOC{year}") if f.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(f"--data {root}: part {part}: there is no folder VOC{year}")
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
        (size, _), (other, mode) = files.image_header(image), files.image_header(mask)
        _check_mode(mask, mode)
        if size != other:
            raise ValueError(f"{mask}: has {other[0]}x{other[1]} pixels, its image {size[0]}x{size[1]}")
    return Source("voc", VOC_CLASSES, images, masks=masks)


def _voc_annotation(path: Path, image: str) -> Boxes:
    """The objects of an annotation of the file `image`.

    VOC counts pixels from 1 and the last one in: x1 - 1 to x2 here.
    """
    boxes, labels, difficult = [], [], []
    size, _ = files.image_header(image)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such annotation")
    with _in(f"{path}: no annotation of VOC"):
        root = ElementTree.parse(path).getroot()
        if root.find("size") is not None:
            _check_size(size, (int(_number(root, "size/width")), int(_number(root, "size/height"))))
        for entry in root.iter("object"):
            x1, y1, x2, y2 = (_number(entry, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax"))
            if not (x1 <= x2 and y1 <= y2):
                raise ValueError(f"no box: {x1:g} {y1:g} {x2:g} {y2:g}")
            if (name := entry.findtext("name", "").strip()) not in VOC_CLASSES:
                raise ValueError(
                    f"class {name!r}: VOC has {', '.join(VOC_CLASSES)}; for your own there is --set coco"
                )
            if (box := inside((x1 - 1, y1 - 1, x2, y2), size)) is None:
                continue
            boxes.append(box)
            labels.append(VOC_CLASSES.index(name) + 1)
            difficult.append(entry.findtext("difficult", "0").strip() == "1")
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
    with _in(f"{file}: no COCO annotations"):
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"holds a {type(found).__name__}, not a dictionary")
        categories = sorted((int(entry["id"]), str(entry["name"])) for entry in found["categories"])
        label = {number: place for place, (number, _) in enumerate(categories, start=1)}
        objects: dict[Any, list[Any]] = {entry["id"]: [] for entry in found["images"]}
        if len(label) < len(categories) or len(objects) < len(found["images"]):
            raise ValueError("an id of its categories or images is there twice")
        images = [str(folder / str(entry["file_name"])) for entry in found["images"]]
    if not categories or not images:
        raise ValueError(f"{file}: has no categories, or no images")
    _check_files(root, part, images)
    sizes = {number: files.image_header(image)[0] for number, image in zip(objects, images, strict=True)}
    for place, entry in enumerate(found["images"]):
        with _in(f"{file}: image {place}"):
            _check_size(sizes[entry["id"]], (int(entry.get("width") or 0), int(entry.get("height") or 0)))
    with _in(f"{file}: no COCO annotations"):
        for place, entry in enumerate(found["annotations"]):
            with _in(f"annotation {place}"):
                row = _coco_object(entry, label, sizes)
            if row is not None:
                objects[entry["image_id"]].append(row)
    columns = (tuple(zip(*rows, strict=True)) or ((), ()) for rows in objects.values())
    boxes = [Boxes.of(*each) for each in columns]
    return Source("coco", tuple(name for _, name in categories), images, boxes=boxes)


def _coco_object(
    entry: dict[str, Any], label: dict[int, int], sizes: dict[Any, tuple[int, int]]
) -> tuple[list[float], int, bool, float] | None:
    """Corners, label, whether it is a crowd, area; None for a box without area, of which COCO has a few."""
    for key, known in (("category_id", label), ("image_id", sizes)):
        if entry[key] not in known:
            raise ValueError(f"{key} {entry[key]!r} is not in the file")
    x, y, w, h = (float(value) for value in entry["bbox"])
    area = float(entry.get("area", w * h))
    if not (all(abs(value) < 1e6 for value in (x, y, w, h)) and w >= 0 and h >= 0 and 0 <= area < 1e12):
        raise ValueError(f"bbox {entry['bbox']} and area {area:g} are no x, y, width, height and area")
    if w == 0 or h == 0 or (box := inside((x, y, x + w, y + h), sizes[entry["image_id"]])) is None:
        return None
    return box, label[entry["category_id"]], bool(entry.get("iscrowd", 0)), area
