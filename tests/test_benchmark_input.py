"""benchmarks/input.py: what is compared is the same input, and a result is never overwritten."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import evidence  # noqa: E402
import input as input_benchmark  # noqa: E402
import timing  # noqa: E402


@pytest.fixture(scope="module")
def variants():
    config = input_benchmark.Config(images=200, image_size=16, batch_size=32)
    return input_benchmark.variants(config)


def test_every_variant_sees_every_image(variants):
    for name, run in variants.items():
        assert run() == (20 if name == "single PIL images" else 200), name


def test_the_plain_pipelines_give_the_same_kind_of_batches():
    """Sizes, and the mean and spread of values that crop, flip and normalisation leave, agree."""
    from images import sets
    from images.augmentation import Augmentation

    pixels = torch.randint(
        0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    images = sets.ImageSet(pixels, torch.arange(64) % 2, ("a", "b"))
    augmentation = Augmentation.of(images.image_size, "cifar10", cutout=True)
    generator = torch.Generator().manual_seed(0)
    statistics = sets.channel_statistics(pixels)
    ours = sets.batches(images, 64, statistics, generator=generator, augmentation=augmentation)
    others = (
        input_benchmark.single_images(images, augmentation, 64),
        input_benchmark.indexed(pixels, images.labels, augmentation, 64),
    )
    expected = next(ours)[0]
    for other in others:
        values, labels = next(other)
        assert values.shape == expected.shape
        assert labels.bincount().tolist() == [32, 32]
        assert values.mean() == pytest.approx(expected.mean().item(), abs=0.1)
        assert values.std() == pytest.approx(expected.std().item(), abs=0.1)
        assert (values == 0).double().mean() == pytest.approx(
            (expected == 0).double().mean().item(), abs=0.06
        )


def test_a_result_says_where_it_comes_from_and_is_never_overwritten(tmp_path, capsys):
    path = str(tmp_path / "result.json")
    input_benchmark.main(input_benchmark.Config(images=60, image_size=8, repeats=1, json=path))
    assert "sets.batches" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["config"]["images"] == 60
    assert len(result["images_per_second"]["sets.batches"]) == 1
    assert result["versions"]["torch"] == torch.__version__
    assert result["hardware"]["gflops_float32_matrix_product"] > 0
    with pytest.raises(ValueError, match="exists already"):
        evidence.check_output(str(tmp_path / "result.json"))
    with pytest.raises(ValueError, match="there is no folder"):
        evidence.check_output(str(tmp_path / "absent" / "result.json"))


def test_a_result_is_whole_or_not_there(tmp_path, monkeypatch):
    def killed(descriptor):
        raise KeyboardInterrupt

    path = tmp_path / "result.json"
    with monkeypatch.context() as disk:
        disk.setattr("os.fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            evidence.write(str(path), {"a": 1})
    with pytest.raises(TypeError):
        evidence.write(str(path), {"a": object()})
    assert list(tmp_path.iterdir()) == []
    evidence.write(str(path), {"a": [1.5, None]})
    assert path.read_text() == json.dumps({"a": [1.5, None]}, indent=1) + "\n"
    with pytest.raises(FileExistsError, match=r"File exists: .*result\.json'$"):
        evidence.write(str(path), {"a": 2})
    assert json.loads(path.read_text()) == {"a": [1.5, None]}


def test_the_table_compares_within_each_round():
    rates = {"slow": [1.0, 2.0, 10.0], "fast": [3.0, 6.0, 30.0]}
    assert timing.table(rates, "slow").splitlines()[-1].split()[-1] == "3.00"
