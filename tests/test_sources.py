"""dense/sources.py, dense/digits.py, dense/batches.py: what is read, and what a batch holds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dense import digits, sources
from dense.batches import Scenes, augmentation
from dense.sources import Boxes, Source

KINDS = ("Main", "Segmentation")
ANNOTATION = """<annotation><filename>a.jpg</filename>
<object><name>dog</name><difficult>{difficult}</difficult>
<bndbox><xmin>{x1}</xmin><ymin>3</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object>
</annotation>"""


@pytest.fixture
def voc(tmp_path):
    """VOC2007 with images a (a dog) and b (a difficult one); a mask of both."""
    root = tmp_path / "VOC2007"
    for name in (
        "JPEGImages",
        "Annotations",
        "ImageSets/Main",
        "ImageSets/Segmentation",
        "SegmentationClass",
    ):
        (root / name).mkdir(parents=True)
    for name, difficult in (("a", 0), ("b", 1)):
        Image.new("RGB", (40, 32), (90, 20, 20)).save(root / "JPEGImages" / f"{name}.jpg")
        (root / "Annotations" / f"{name}.xml").write_text(ANNOTATION.format(difficult=difficult, x1=1))
        mask = Image.fromarray(np.full((32, 40), 12, np.uint8), mode="P")
        mask.putpalette([0, 0, 0] * 256)
        mask.save(root / "SegmentationClass" / f"{name}.png")
    for kind in KINDS:
        (root / "ImageSets" / kind / "trainval.txt").write_text("a  1\nb -1\n")
    return tmp_path


def test_boxes_of_voc_begin_at_zero_and_difficult_ones_do_not_train(voc):
    source = sources.load("voc", voc, ["2007-trainval"], masks=False, train=True)
    assert source.boxes[0].boxes.tolist() == [[0, 2, 20, 30]]
    assert (source.boxes[0].labels.tolist(), source.boxes[1].ignored.tolist()) == ([12], [True])
    assert source.classes[11] == "dog"
    training = source.with_boxes()
    assert [len(training), len(source)] == [1, 2]
    twice = sources.load("voc", voc, ["2007-trainval"] * 2, masks=False, train=True)
    assert len(twice) == 4
    assert twice.fingerprint() != source.fingerprint()


def test_masks_of_voc_are_the_indices_of_their_palette(voc):
    source = sources.load("voc", voc, ["2007-trainval"], masks=True, train=True)
    assert source.mask(0).unique().tolist() == [12]
    path = voc / "VOC2007" / "SegmentationClass" / "b.png"
    Image.fromarray(np.full((32, 40), 21, np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"b\.png: label 21"):
        source.mask(1)
    Image.new("RGB", (40, 32)).save(path)
    with pytest.raises(ValueError, match="mode RGB"):
        source.mask(1)
    Image.fromarray(np.full((32, 40), 12, np.uint16)).save(path)  # of which only the upper bits would be read
    with pytest.raises(ValueError, match=r"b\.png: mode I;16: needed are labels"):
        sources.load("voc", voc, ["2007-trainval"], masks=True, train=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    with pytest.raises(ValueError, match="differ in size"):  # it was changed after the start
        list(Scenes(source).batches(2, torch.device("cpu")))
    with pytest.raises(ValueError, match=r"b\.png: has 8x8 pixels, its image 40x32"):
        sources.load("voc", voc, ["2007-trainval"], masks=True, train=True)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("Annotations/a.xml", "<annotation>", "no annotation of VOC"),
        ("Annotations/a.xml", ANNOTATION.format(difficult=0, x1=21), "no box: 21"),
        ("Annotations/a.xml", ANNOTATION.format(difficult=0, x1="nan"), "xmin 'nan': must be a number"),
        (
            "Annotations/a.xml",
            ANNOTATION.format(difficult=0, x1=1).replace("dog", "unicorn"),
            "class 'unicorn': VOC has aeroplane",
        ),
        ("Annotations/a.xml", ANNOTATION.format(difficult=0, x1=1).replace("<xmin>1</xmin>", ""), "xmin ''"),
        (
            "Annotations/a.xml",
            ANNOTATION.format(difficult=0, x1=41).replace("<xmax>20", "<xmax>60"),
            "box 40 2 60 30 lies outside its image of 40x32",
        ),
        ("Annotations/a.xml", "<?xml version='1.0' encoding='none'?><annotation/>", "no annotation of VOC"),
        ("JPEGImages/a.jpg", "nonsense", "it is no BMP"),
        ("ImageSets/Main/trainval.txt", b"\xff\xfe", "is no text"),
        ("ImageSets/Main/trainval.txt", "\n", "names no image"),
        ("ImageSets/Main/trainval.txt", "../a\n", "no name of an image"),
    ],
)
def test_damaged_files_of_voc(voc, file, content, words):
    (voc / "VOC2007" / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=words) as error:
        sources.load("voc", voc, ["2007-trainval"], masks=False, train=True)
    assert file in str(error.value)


@pytest.mark.parametrize("file", ["JPEGImages/b.jpg", "SegmentationClass/b.png"])
def test_a_missing_file_is_named_before_anything_is_read(voc, file):
    (voc / "VOC2007" / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"part 2007-trainval: there is no .*{file}"):
        sources.load("voc", voc, ["2007-trainval"], masks="png" in file, train=True)


SIZE = "<size><width>{}</width><height>{}</height></size><object>"


@pytest.mark.parametrize("size", ["", SIZE.format(0, 0), SIZE.format(40, 32)])
def test_boxes_are_cut_off_at_the_edge_of_their_image(voc, size):
    content = ANNOTATION.format(difficult=0, x1=0).replace("<xmax>20", "<xmax>44")
    (voc / "VOC2007" / "Annotations" / "a.xml").write_text(content.replace("<object>", size or "<object>"))
    source = sources.load("voc", voc, ["2007-trainval"], masks=False, train=True)
    assert source.boxes[0].boxes.tolist() == [[0, 2, 40, 30]]  # of 40x32


@pytest.mark.parametrize("masks", [False, True])
def test_boxes_and_masks_are_those_of_the_stored_pixels(voc, masks):
    """EXIF data do not turn an image whose annotation is not turned, as in torchvision and pycocotools."""
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: 32x40
    image = Image.new("RGB", (40, 32))
    image.paste((250, 250, 250), (0, 0, 20, 32))
    image.save(voc / "VOC2007" / "JPEGImages" / "a.jpg", exif=exif)
    source = sources.load("voc", voc, ["2007-trainval"], masks=masks, train=True)
    _, seen, _ = Scenes(source)[0]
    assert seen.shape == (3, 32, 40)
    assert seen[:, :, :18].min() > 200 > 50 > seen[:, :, 22:].max()


def test_an_annotation_of_the_turned_image_is_an_error(voc):
    path = voc / "VOC2007" / "Annotations" / "a.xml"
    path.write_text(path.read_text().replace("<object>", SIZE.format(32, 40)))
    with pytest.raises(ValueError, match=r"a\.xml: .*it is for 32x40 pixels, its image is stored as 40x32"):
        sources.load("voc", voc, ["2007-trainval"], masks=False, train=True)


COCO = {
    "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    "images": [{"id": 5, "file_name": "a.png"}, {"id": 6, "file_name": "b.png", "width": 16, "height": 8}],
    "annotations": [
        {"image_id": 5, "category_id": 7, "bbox": [1, 2, 10, 20], "area": 50, "iscrowd": 0},
        {"image_id": 5, "category_id": 3, "bbox": [0, 0, 5, 0]},
        {"image_id": 5, "category_id": 3, "bbox": [20, 0, 1e-7, 5]},  # in float32 it has no width
        {"image_id": 5, "category_id": 3, "bbox": [0, 0, 5, 5], "iscrowd": 1},
    ],
}


def coco(file, content=None):
    """A JSON file; the images beside it, or in the folder of its name."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(COCO if content is None else content))
    folder = file.parent
    if folder.name == "annotations":
        folder = folder.parent / file.stem.removeprefix("instances_")
    folder.mkdir(exist_ok=True)
    for name, size in (("a.png", (30, 30)), ("b.png", (16, 8))):
        Image.new("RGB", size).save(folder / name)


def test_coco_json_by_name_and_by_file(tmp_path):
    for file in (tmp_path / "annotations" / "instances_mine.json", tmp_path / "other" / "boxes.json"):
        coco(file)
    source = sources.load("coco", tmp_path, ["mine"], masks=False, train=True)
    assert source.classes == ("dog", "cat")  # in the order of their numbers
    assert source.images == [str(tmp_path / "mine" / name) for name in ("a.png", "b.png")]
    boxes = source.boxes[0]
    assert boxes.boxes.tolist() == [[1, 2, 11, 22], [0, 0, 5, 5]]
    assert (boxes.labels.tolist(), boxes.areas.tolist()) == ([2, 1], [50, 25])
    assert boxes.ignored.tolist() == [False, True]
    assert len(source.boxes[1].labels) == 0
    other = sources.load("coco", tmp_path, ["other/boxes.json"], masks=False, train=True)
    assert other.images[0] == str(tmp_path / "other" / "a.png")
    (tmp_path / "other" / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"part other/boxes\.json: there is no .*b\.png"):
        sources.load("coco", tmp_path, ["other/boxes.json"], masks=False, train=True)


def annotation(**more):
    return {"annotations": [{"image_id": 5, "category_id": 3, "bbox": [0, 0, 1, 1]} | more]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": [], "annotations": []}, "no images"),
        ({"images": [{"id": 5}]}, "there is no 'file_name'"),
        ({"images": COCO["images"][:1] * 2}, "twice"),
        ({"categories": [{"id": 3, "name": "dog"}, {"id": 3, "name": "cat"}]}, "twice"),
        (annotation(category_id=1), "annotation 0: category_id 1 is not in the file"),
        (annotation(image_id=1), "annotation 0: image_id 1 is not in the file"),
        (annotation(bbox=[0, 0, 1]), "not enough values"),
        (annotation(bbox=[0, 0, -1, 1]), "annotation 0: bbox"),
        (annotation(bbox=[0, 0, float("nan"), 1]), "annotation 0: bbox"),
        ({"images": [COCO["images"][0] | {"width": 9, "height": 30}]}, "image 0: it is for 9x30 pixels"),
        (annotation(bbox=[30, 0, 5, 5]), "the box 30 0 35 5 lies outside its image of 30x30"),
        ({"categories": 3}, "not iterable"),
        ({"images": [3]}, "not subscriptable"),
        (annotation(bbox=None), "annotation 0: "),
        (annotation(area=float("nan")), "area nan"),
        ([], "holds a list"),
    ],
)
def test_damaged_coco_json(tmp_path, change, words):
    coco(tmp_path / "boxes.json", COCO | change if change else change)
    with pytest.raises(ValueError, match=r"boxes\.json: ") as error:
        sources.load("coco", tmp_path, ["boxes.json"], masks=False, train=True)
    assert words in str(error.value)


def test_the_scenes_of_digits_are_the_same_each_time_and_their_boxes_fit_their_masks():
    first, again = digits.scenes("train", 20), digits.scenes("train", 20)
    assert np.array_equal(first.images, again.images)
    assert not np.array_equal(first.images, digits.scenes("test", 20).images)
    assert {label for labels in first.labels for label in labels.tolist()} <= set(range(1, 11))
    for mask, boxes, labels in zip(first.masks, first.boxes, first.labels, strict=True):
        assert 1 <= len(labels) <= 5
        left = mask.copy()
        for (x1, y1, x2, y2), label in zip(boxes.astype(int), labels, strict=True):
            inside = left[y1:y2, x1:x2] == label
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()
            left[y1:y2, x1:x2][inside] = 0
        assert not left.any()


@pytest.fixture
def source():
    """Seven images, each with one box; they are told apart by their brightness."""
    images = np.stack([np.full((48, 64, 3), 30 * i, np.uint8) for i in range(7)])
    return Source("made", ("cat",), images, [Boxes.of([[4, 8, 20, 40]], [1]) for _ in images])


def batches(scenes, **more):
    return list(scenes.batches(2, torch.device("cpu"), **more))


def test_training_batches_depend_on_seed_epoch_and_index_alone(source):
    scenes = Scenes(source, augmentation("ssdlite", 48, digits=False), seed=3)
    whole = batches(scenes)
    assert sorted(index for indices, *_ in whole for index in indices) != list(
        range(7)
    )  # the last is left out
    rest = batches(scenes, first=1, workers=1)
    for (_, images, targets), (_, again, others) in zip(whole[1:], rest, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(images, again, strict=True))
        assert all(torch.equal(x["boxes"], y["boxes"]) for x, y in zip(targets, others, strict=True))
    scenes.epoch = 1
    assert [indices for indices, *_ in batches(scenes)] != [indices for indices, *_ in whole]


def test_a_flip_moves_the_box_with_the_image(source):
    scenes, seen = Scenes(source, augmentation("fcos", 48, digits=False)), set()
    for epoch in range(4):
        scenes.epoch = epoch
        seen |= {tuple(t["boxes"][0].tolist()) for _, _, targets in batches(scenes) for t in targets}
    assert seen == {(4, 8, 20, 40), (44, 8, 60, 40)}


def test_a_crop_for_masks_has_one_size_and_counts_nothing_outside():
    images, masks = np.full((4, 40, 70, 3), 9, np.uint8), np.ones((4, 40, 70), np.uint8)
    scenes = Scenes(Source("made", ("cat",), images, masks=masks), augmentation("lraspp", 52, digits=False))
    for _, crops, targets in batches(scenes):
        assert {x.shape for x in crops} == {(3, 48, 48)}
        assert {x.shape for x in targets} == {(48, 48)}
        for crop, target in zip(crops, targets, strict=True):
            assert set(target.unique().tolist()) <= {1, 255}
            assert (crop[:, target == 255] == 0).all()


def test_digits_for_masks_train_at_the_size_at_which_they_are_tested():
    images, masks = np.full((2, 40, 40, 3), 9, np.uint8), np.full((2, 40, 40), 7, np.uint8)
    scenes = Scenes(Source("made", ("cat",), images, masks=masks), augmentation("lraspp", 60, digits=True))
    ((_, scaled, targets),) = batches(scenes)
    assert {x.shape[-2:] for x in (*scaled, *targets)} == {(60, 60)}
    assert {int(x) for target in targets for x in target.unique()} == {7}


def test_evaluation_sees_every_image_once_whatever_the_processes(source):
    seen = [
        i for rank in range(3) for indices, *_ in batches(Scenes(source), shard=(rank, 3)) for i in indices
    ]
    assert sorted(seen) == list(range(7))
