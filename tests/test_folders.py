"""Class folders: what they become, and which are refused."""

import numpy as np
import pytest
from PIL import Image

from images import files, sets
from images.cache import CACHE_FOLDER


def write_tree(
    root, parts=("train", "test"), classes=("bird", "cat"), count=3, size=8, mode="RGB", suffix="png"
):
    random = np.random.default_rng(1)
    shape = (size, size, 3) if mode == "RGB" else (size, size)
    for part in parts:
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                image = Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8))
                image.save(root / part / name / f"{index:03}.{suffix}")
    return root


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
@pytest.mark.parametrize("test_name", ["test", "val"])
def test_class_folders_become_a_set(tmp_path, mode, channels, test_name):
    write_tree(tmp_path, parts=("train", test_name), mode=mode)
    for part, place in (("train", "train"), ("test", test_name)):
        found = sets.load("folder", tmp_path, part)
        assert found.classes == ("bird", "cat")
        assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
        expected = np.asarray(Image.open(tmp_path / place / "cat" / "001.png"))
        assert np.array_equal(found.images[4].permute(1, 2, 0).numpy().squeeze(), expected)
        assert found.channels == channels


def test_one_colour_image_makes_the_whole_folder_colour(tmp_path):
    write_tree(tmp_path, mode="L")
    grey = np.asarray(Image.open(tmp_path / "train" / "bird" / "000.png"))
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "test" / "cat" / "001.png")
    train, test = sets.load("folder", tmp_path), sets.load("folder", tmp_path, "test")
    assert (train.channels, test.channels) == (3, 3)
    assert np.array_equal(train.images[0].numpy(), np.stack([grey] * 3))
    assert test.images[4, :, 0, 0].tolist() == [1, 2, 3]


def test_image_size_scales_and_crops_the_middle(tmp_path):
    write_tree(tmp_path, size=16)
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, 20:40] = 200
    Image.fromarray(wide).save(tmp_path / "train" / "bird" / "000.png")
    found = sets.load("folder", tmp_path, image_size=10)
    assert found.images.shape == (6, 3, 10, 10)
    assert (found.images[0, :, :, 2:8] > 190).all()
    assert sets.load("folder", tmp_path, image_size=12).image_size == 12


def test_photographs_are_turned_upright(tmp_path):
    write_tree(tmp_path)
    image = Image.new("RGB", (8, 8))
    image.paste((255, 255, 255), (0, 0, 8, 2))  # white on top
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was upside down
    image.save(tmp_path / "train" / "bird" / "000.png", exif=exif)
    found = sets.load("folder", tmp_path).images[0, 0]
    assert found[-1].float().mean() > 200 > 50 > found[0].float().mean()


def test_class_folders_alone_give_every_fifth_image_as_test(tmp_path, capsys):
    write_tree(tmp_path, parts=("",), count=11)
    train, test = sets.load("folder", tmp_path), sets.load("folder", tmp_path, "test")
    assert "every fifth image" in capsys.readouterr().out
    assert (len(train), len(test)) == (18, 4)
    expected = np.asarray(Image.open(tmp_path / "bird" / "004.png")).transpose(2, 0, 1)
    assert np.array_equal(test.images[0].numpy(), expected)
    together = np.concatenate([train.images.flatten(1), test.images.flatten(1)])
    assert len(np.unique(together, axis=0)) == 22


def break_tree(root, wrong):
    path = root / "train" / "bird" / "001.png"
    if wrong == "unreadable":
        path.write_text("no image")
    elif wrong == "cut off":
        Image.effect_noise((8, 8), 100).convert("RGB").save(path.with_suffix(".jpg"))
        path.with_suffix(".jpg").write_bytes(path.with_suffix(".jpg").read_bytes()[:-60])
    elif wrong == "sizes":
        Image.new("RGB", (9, 8)).save(path)
    elif wrong == "32 bits":
        Image.fromarray(np.full((8, 8), 4000, dtype=np.int32)).save(path.with_suffix(".tif"))
    elif wrong == "empty class":
        for file in path.parent.iterdir():
            file.rename(file.with_suffix(".txt"))
    elif wrong == "one class":
        for part in ("train", "test"):
            (root / part / "cat").rename(root / part / ".cat")
    elif wrong == "other class":
        (root / "test" / "cat").rename(root / "test" / "dog")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("unreadable", r"001\.png cannot be read as an image"),
        ("cut off", r"001\.jpg cannot be read as an image"),
        ("sizes", r"001\.png is 9x8, but .*000\.png is 8x8: --image_size"),
        ("32 bits", r"001\.tif cannot be read .*more than 16 bits"),
        ("empty class", r"bird holds no image"),
        ("one class", r"train has 1 class folders \(bird\)"),
        ("other class", r"class 'cat' is in only one of train/ and test/"),
    ],
)
def test_wrong_folders_are_refused_by_name(tmp_path, wrong, message):
    write_tree(tmp_path)
    break_tree(tmp_path, wrong)
    with pytest.raises(ValueError, match=message):
        sets.load("folder", tmp_path)
    assert not (tmp_path / CACHE_FOLDER / "original.npz").exists()


def test_other_refusals_of_folders(tmp_path):
    with pytest.raises(OSError, match=r"absent: there is no such folder"):
        sets.load("folder", tmp_path / "absent")
    write_tree(tmp_path / "small", size=7)
    with pytest.raises(ValueError, match=r"7x7: allowed are 8 pixels or more"):
        sets.load("folder", tmp_path / "small")
    write_tree(tmp_path / "half", parts=("train",))
    with pytest.raises(ValueError, match=r"there is no test/ or val/"):
        sets.load("folder", tmp_path / "half", "test")
    write_tree(tmp_path / "few", parts=("",), count=4)
    with pytest.raises(ValueError, match=r"class 'bird' has 4 images"):
        sets.load("folder", tmp_path / "few")
    write_tree(tmp_path / "wide")
    for file in (tmp_path / "wide").rglob("*.png"):
        Image.new("RGB", (10, 8)).save(file)
    with pytest.raises(ValueError, match=r"10x8: images must be square"):
        sets.load("folder", tmp_path / "wide")
    Image.new("L", (10, 8)).save(tmp_path / "alone.png")
    assert files.read_image(tmp_path / "alone.png", 8).shape == (8, 8, 1)


def test_sixteen_bits_are_the_upper_eight(tmp_path):
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1023
    for name in ("a.png", "a.tif", "a.pgm"):
        Image.fromarray(values).save(tmp_path / name)
        assert np.array_equal(files.read_image(tmp_path / name)[..., 0], values >> 8), name
