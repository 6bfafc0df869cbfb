"""Data sets in memory: splits, statistics, augmentation against a per-image reference, batches, shards."""

import numpy as np
import pytest
import torch

from images import sets
from images.augmentation import Augmentation


def random_set(count=23, channels=3, size=12, classes=4):
    generator = torch.Generator().manual_seed(7)
    images = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % classes
    return sets.ImageSet(images, labels, tuple("abcdefgh"[:classes]))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_clean_batches_are_in_order_and_normalised():
    images = random_set()
    statistics = sets.channel_statistics(images.images)
    produced = list(sets.batches(images, 8, statistics))
    assert [len(labels) for _, labels in produced] == [8, 8, 7]
    values = torch.cat([x for x, _ in produced])
    assert torch.equal(torch.cat([y for _, y in produced]), images.labels)
    assert torch.equal(values, sets.normalise(images.images, statistics))
    assert values.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (values.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-5


def test_memory_format_is_as_asked():
    images = random_set()
    statistics = sets.channel_statistics(images.images)
    last = next(sets.batches(images, 8, statistics))[0]
    first = next(sets.batches(images, 8, statistics, channels_last=False))[0]
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert first.is_contiguous()
    assert torch.equal(first, last)


def test_batches_repeat_with_the_seed_and_only_with_it():
    images = random_set()
    statistics = sets.channel_statistics(images.images)
    augmentation = Augmentation.of(images.image_size, "folder", cutout=True)

    def epoch(seed):
        torch.rand(seed + 1)  # the global generator must not matter
        return torch.cat(
            [
                x
                for x, _ in sets.batches(
                    images, 8, statistics, generator=generator(seed), augmentation=augmentation
                )
            ]
        )

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1), epoch(2))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("processes", [2, 3])
def test_shards_together_are_the_whole_epoch_without_padding(training, processes):
    images = random_set(count=28)
    statistics = sets.channel_statistics(images.images)

    def epoch(shard):
        keywords = {"generator": generator(4), "augmentation": Augmentation(2, True, 4)} if training else {}
        return list(sets.batches(images, 8, statistics, shard=shard, **keywords))

    whole = epoch((0, 1))
    shards = [epoch((rank, processes)) for rank in range(processes)]
    if training and processes == 3:  # the last batch has 4 images: too few for 3 processes
        whole = whole[:-1]
    for number, (values, labels) in enumerate(whole):
        parts = [shard[number] for shard in shards]
        assert sum(len(part[1]) for part in parts) == len(labels)
        for rank, (part_values, part_labels) in enumerate(parts):
            assert torch.equal(part_values, values[rank::processes])
            assert torch.equal(part_labels, labels[rank::processes])


def test_a_last_training_batch_of_one_image_is_left_out():
    images = random_set(count=17)
    statistics = sets.channel_statistics(images.images)
    assert [len(y) for _, y in sets.batches(images, 8, statistics, generator=generator())] == [8, 8]
    assert [len(y) for _, y in sets.batches(images, 8, statistics)] == [8, 8, 1]


def test_split_is_seeded_and_covers_everything_once():
    train, validation = sets.split(101, 0.5, seed=3)
    assert (len(train), len(validation)) == (50, 51)
    assert torch.equal(torch.cat([train, validation]).sort().values, torch.arange(101))
    assert torch.equal(train, sets.split(101, 0.5, seed=3)[0])
    assert not torch.equal(train, sets.split(101, 0.5, seed=4)[0])
    few = sets.split(101, 0.5, seed=3, images=20)
    assert (len(few[0]), len(few[1]), len(torch.cat(few).unique())) == (10, 10, 20)


def test_every_seed_has_a_split_of_its_own():
    seeds = (0, 1, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**63 - 1)
    assert len({tuple(sets.split(101, 0.5, seed)[0].tolist()) for seed in seeds}) == len(seeds)


def test_splits_of_recorded_runs_stay():
    assert sets.split(10, 0.5, seed=3)[0].tolist() == [6, 0, 3, 7, 8]
    assert sets.split(10, 0.5, seed=2**32 - 1)[0].tolist() == [1, 4, 6, 2, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 0.5, 0, 11), "--images 11: the training set has 10"),
        ((10, 0.0, 0), "--train_portion 0.0"),
        ((10, 1.0, 0), "--train_portion 1.0"),
        ((10, 0.05, 0), "leaves 0 \\+ 10"),
    ],
)
def test_split_refuses_what_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        sets.split(*arguments)


def test_statistics_are_those_of_numpy_and_never_zero():
    images = random_set(count=50).images
    values = images.numpy() / 255
    statistics = sets.channel_statistics(images)
    np.testing.assert_allclose(statistics.mean, values.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(statistics.std, values.std((0, 2, 3)), rtol=1e-9)
    assert sets.channel_statistics(torch.full((3, 1, 8, 8), 9, dtype=torch.uint8)).std == (1 / 255,)


def test_subset_keeps_images_labels_and_classes_together():
    images = random_set()
    chosen = torch.tensor([5, 0, 22])
    part = images.subset(chosen)
    assert torch.equal(part.images, images.images[chosen])
    assert torch.equal(part.labels, images.labels[chosen])
    assert (part.classes, part.channels, part.image_size, len(part)) == (images.classes, 3, 12, 3)


def test_digits_are_complete_stratified_and_fixed():
    train, test = sets.load("digits", part="train"), sets.load("digits", part="test")
    assert (len(train), len(test)) == (1442, 355)
    assert train.images.shape[1:] == (1, 8, 8)
    assert train.images.max() == 255
    assert test.labels.bincount().min() >= 34
    assert train.classes == tuple("0123456789")
    both = torch.cat([train.images, test.images]).flatten(1)
    assert len(both.unique(dim=0)) == 1797


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mnist",), "--set mnist: .*digits, cluttered_digits, fashion_mnist, cifar10, cifar100, folder"),
        (("digits", "data", "val"), "'val'"),
        (("digits", "data", "train", 4), "--image_size 4"),
        (("folder", "data", "train", 4), "--image_size 4"),
    ],
)
def test_load_refuses_what_it_does_not_know(arguments, message):
    with pytest.raises(ValueError, match=message):
        sets.load(*arguments)


def test_published_statistics_are_used_for_cifar_only():
    images = random_set()
    assert sets.statistics_of("cifar10", images).mean[0] == pytest.approx(0.4914, abs=1e-4)
    assert sets.statistics_of("folder", images) == sets.channel_statistics(images.images)


def test_evaluation_in_more_processes_than_the_last_batch_has_images():
    images = random_set(count=9)
    statistics = sets.channel_statistics(images.images)
    shards = [list(sets.batches(images, 4, statistics, shard=(rank, 3))) for rank in range(3)]
    assert [[len(labels) for _, labels in shard] for shard in shards] == [[2, 2, 1], [1, 1], [1, 1]]


def test_any_set_can_be_resized():
    native, larger = sets.load("digits"), sets.load("digits", image_size=12)
    assert larger.images.shape == (len(native), 1, 12, 12)
    assert larger.images.dtype == torch.uint8
    assert torch.equal(sets.load("digits", image_size=8).images, native.images)
    means = (images.images.float().mean(dim=(1, 2, 3)) for images in (native, larger))
    assert (next(means) - next(means)).abs().max() < 3, "the same pictures, of 0 to 255"
