"""The networks against the published facts.

The facts of all cells come from the fixture `published`. A few of them are written down here, so that a clone
without that file checks the real numbers too.
"""

import math
import re
import zlib

import pytest
import torch
from conftest import ROOT

import genotypes
from genotypes import Genotype
from model import NetworkCIFAR, NetworkImageNet, count, load_network_state

CELLS = (
    "NASNet",
    "AmoebaNet",
    "DARTS_V1",
    "DARTS_V2",
    "RelativeNAS",
    "PC_DARTS_cifar",
    "PC_DARTS_image",
    "PDARTS",
)
GOLDEN_CIFAR = {  # 8 channels, 5 layers, 10 classes: the logits of the first of two images
    "RelativeNAS": [
        0.202278349,
        0.368096624,
        -0.240009864,
        -0.222931665,
        0.433644692,
        0.304928124,
        -0.426782634,
        -0.317082545,
        0.3185968,
        0.115084525,
    ],
    "DARTS_V2": [
        -0.299820162,
        0.552582042,
        0.238266253,
        -0.469176334,
        -0.012834136,
        0.608826095,
        -0.019545809,
        -0.673566545,
        -0.042607651,
        0.518210449,
    ],
}
COUNTS_CIFAR10 = {  # 36 channels, 20 layers: parameters without and with the auxiliary head, multiply-adds
    "NASNet": (3830950, 4288944, 603452448),
    "AmoebaNet": (3145078, 3603072, 488931552),
    "DARTS_V2": (3349342, 3825768, 528359040),
    "RelativeNAS": (3928222, 4404648, 616832640),
}


def build_meta(kind, C, classes, layers, auxiliary, genotype, **rest):
    with torch.device("meta"):
        return kind(C, classes, layers, auxiliary, genotype, **rest)


def fill(network):
    """The published filling: every value a sine of its place, shifted by a phase that the key decides."""
    state = network.state_dict()
    for key, value in state.items():
        if not value.is_floating_point():
            continue
        phase = 2 * math.pi * (zlib.crc32(key.encode()) % 1000) / 1000
        s = torch.sin(0.7 * torch.arange(value.numel(), dtype=torch.float64) + phase).reshape(value.shape)
        if key.endswith("running_var"):
            filled = 1 + 0.5 * s.abs()
        elif key.endswith(("running_mean", "bias")):
            filled = 0.1 * s
        elif value.dim() == 1:
            filled = 1 + 0.1 * s
        else:
            filled = s * math.sqrt(2 / value[0].numel())
        value.copy_(filled)
    return network


def golden_logits(kind, genotype, size):
    network = fill(kind(8, 10, 5, True, genotype).double()).eval()
    images = torch.sin(0.37 * torch.arange(2 * 3 * size * size, dtype=torch.float64)).reshape(
        2, 3, size, size
    )
    with torch.no_grad():
        logits, auxiliary = network(images)
    assert auxiliary is None
    return logits


@pytest.mark.parametrize("name", GOLDEN_CIFAR)
def test_golden_logits_written_here(name):
    logits = golden_logits(NetworkCIFAR, genotypes.lookup(name), 32)
    assert torch.allclose(logits[0], torch.tensor(GOLDEN_CIFAR[name], dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", COUNTS_CIFAR10)
def test_counts_written_here(name):
    network = build_meta(NetworkCIFAR, 36, 10, 20, True, genotypes.lookup(name))
    bare, everything, multiply_adds = COUNTS_CIFAR10[name]
    assert count(network) == (bare, multiply_adds)
    assert sum(p.numel() for p in network.parameters()) == everything


def test_imagenet_counts_written_here():
    network = build_meta(NetworkImageNet, 46, 1000, 14, True, genotypes.lookup("RelativeNAS"))
    assert count(network) == (5050029, 562973760)
    assert sum(p.numel() for p in network.parameters()) == 6306709


def test_the_list_of_cells_has_the_counts_of_every_published_one():
    number, page = r"([\d.]+) M \| (\d+) M", (ROOT / "docs" / "drawing.md").read_text()
    table = re.findall(rf"^\| `(\w+)`.* \| {number} \| {number} \|$", page, re.M)
    assert sorted(name for name, *_ in table) == sorted(CELLS)
    for name, *printed in table:
        cell, C = genotypes.lookup(name), 46 if name == "RelativeNAS" else 48
        small = count(build_meta(NetworkCIFAR, 36, 10, 20, False, cell))
        large = count(build_meta(NetworkImageNet, C, 1000, 14, False, cell))
        counted = [f"{n / 1e6:.{digits}f}" for n, digits in zip(small + large, (2, 0, 2, 0), strict=True)]
        assert counted == printed, name


@pytest.mark.parametrize("name", CELLS)
def test_published_counts(published, name):
    facts = published[name]
    genotype = genotypes.from_dict(facts["genotype"])
    assert genotype == genotypes.lookup(name)
    checked = 0
    for key, fact in facts.items():
        if not key.startswith(("cifar", "imagenet")):
            continue
        data, C, layers = key.split("_")
        kind = NetworkImageNet if data == "imagenet" else NetworkCIFAR
        classes = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}[data]
        network = build_meta(kind, int(C[1:]), classes, int(layers[1:]), True, genotype)
        assert count(network) == (fact["parameters_without_auxiliary_head"], fact["multiply_adds_eval"])
        assert sum(p.numel() for p in network.parameters()) == fact["parameters"]
        checked += 1
    assert checked == 3


@pytest.mark.parametrize("name", CELLS)
def test_published_logits(published, name):
    facts = published[name]
    golden = {key: value for key, value in facts.items() if key.startswith("golden")}
    if not golden:
        pytest.skip(f"no golden logits are published for {name}")
    for key, value in golden.items():
        kind, size = (NetworkCIFAR, 32) if "cifar" in key else (NetworkImageNet, 224)
        logits = golden_logits(kind, genotypes.lookup(name), size)
        assert torch.allclose(logits, torch.tensor(value, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "kind", "C", "classes", "layers"),
    [
        ("state_dict_RelativeNAS_cifar10_C36_L20_auxiliary", NetworkCIFAR, 36, 10, 20),
        ("state_dict_RelativeNAS_imagenet_C46_L14_auxiliary", NetworkImageNet, 46, 1000, 14),
    ],
)
def test_published_state_dict(published, key, kind, C, classes, layers):
    network = build_meta(kind, C, classes, layers, True, genotypes.lookup("RelativeNAS"))
    ours = {name: list(value.shape) for name, value in network.state_dict().items()}
    assert ours == published[key]
    assert list(ours) == list(published[key]), "the order of the keys"


@pytest.mark.parametrize(
    ("kind", "C", "classes", "layers", "checksum"),
    [(NetworkCIFAR, 36, 10, 20, 1348473476), (NetworkImageNet, 46, 1000, 14, 2797637308)],
)
def test_names_and_shapes_written_here(kind, C, classes, layers, checksum):
    # The checksum is that of the published names and shapes, in their order.
    network = build_meta(kind, C, classes, layers, True, genotypes.lookup("RelativeNAS"))
    lines = "".join(f"{name} {list(value.shape)}\n" for name, value in network.state_dict().items())
    assert zlib.crc32(lines.encode()) == checksum


def test_count_on_a_real_network_leaves_it_alone():
    network = NetworkCIFAR(4, 10, 3, True, genotypes.lookup("RelativeNAS")).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.device("meta"):
        meta = NetworkCIFAR(4, 10, 3, True, genotypes.lookup("RelativeNAS"))
    assert count(network) == count(meta)
    assert count(network, 64)[1] > 3 * count(network, 32)[1]
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 15, 28, (8, 21), 40])
def test_any_channels_and_size(channels, size):
    network = NetworkCIFAR(
        4, 3, 6, True, genotypes.lookup("RelativeNAS"), in_channels=channels, image_size=size
    )
    rows, columns = (size, size) if isinstance(size, int) else size
    logits, auxiliary = network.train()(torch.randn(4, channels, rows, columns))
    assert logits.shape == auxiliary.shape == (4, 3)
    (logits.sum() + auxiliary.sum()).backward()
    unused = {name for name, p in network.named_parameters() if p.grad is None}
    # The reduction cell of RelativeNAS reads its second input only.
    assert unused == {
        name for name, _ in network.named_parameters() if re.match(r"cells\.[24]\.preprocess0", name)
    }


@pytest.mark.parametrize("size", [64, 96])
def test_imagenet_network_on_smaller_images(size):
    network = NetworkImageNet(4, 3, 5, True, genotypes.lookup("NASNet"), image_size=size)
    logits, auxiliary = network.train()(torch.randn(2, 3, size, size))
    assert logits.shape == auxiliary.shape == (2, 3)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (NetworkCIFAR, {"image_size": 7}, ["7x7", "at least 8x8"]),
        (NetworkCIFAR, {"image_size": (32, 4)}, ["32x4", "at least 8x8"]),
        (NetworkImageNet, {"image_size": 32}, ["32x32", "at least 64x64"]),
        (NetworkCIFAR, {"C": 0}, ["C is 0"]),
        (NetworkCIFAR, {"layers": 0}, ["layers is 0"]),
        (NetworkCIFAR, {"num_classes": -1}, ["num_classes is -1"]),
        (NetworkImageNet, {"C": 1}, ["C is 1"]),
    ],
)
def test_impossible_networks_are_refused(kind, changes, words):
    arguments = {"C": 4, "num_classes": 10, "layers": 5, "auxiliary": False} | changes
    with pytest.raises(ValueError, match=r"is -?\d|too small") as error:
        kind(genotype=genotypes.lookup("RelativeNAS"), **arguments)
    assert all(word in str(error.value) for word in words)


def drops(genotype, seed, probability=0.5):
    """Which edges (cells, edges, N) a forward pass drops, seen from the masks that the cells get."""
    network = NetworkCIFAR(4, 10, 3, False, genotype).train()
    network.drop_path_prob = probability
    network.drop_path_generator = torch.Generator().manual_seed(seed)
    seen = []
    for cell in network.cells:
        cell.register_forward_pre_hook(lambda cell, inputs: seen.append(inputs[2]))
    network(torch.randn(6, 3, 16, 16))
    return torch.stack(seen)


def test_drop_path_depends_on_the_generator_alone():
    relative, darts = genotypes.lookup("RelativeNAS"), genotypes.lookup("DARTS_V2")
    first = drops(relative, seed=1)
    assert first.shape == (3, 8, 6)
    assert set(first.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(first, drops(darts, seed=1))
    assert not torch.equal(first, drops(relative, seed=2))


def test_drop_path_spares_identities_and_evaluation():
    skips = Genotype(*([[("skip_connect", 0), ("skip_connect", 1)] * 4, [2, 3, 4, 5]] * 2))
    network = NetworkCIFAR(4, 10, 1, False, skips).train()
    network.cells[0] = type(network.cells[0])(skips, 12, 12, 4, reduction=False, reduction_prev=False)
    network.classifier = torch.nn.Linear(16, 10)
    images = torch.randn(4, 3, 8, 8)
    plain = network(images)[0]
    network.drop_path_prob = 0.9
    assert torch.equal(plain, network(images)[0]), "an identity is never dropped"

    network = NetworkCIFAR(4, 10, 3, False, genotypes.lookup("RelativeNAS"))
    network.eval()
    plain = network(images)[0]
    network.drop_path_prob = 0.5  # with 0.9, all paths may be dropped twice
    assert torch.equal(plain, network(images)[0])
    assert not torch.allclose(network.train()(images)[0], network.train()(images)[0])
    network.drop_path_prob = 1.0
    with pytest.raises(ValueError, match="drop_path_prob is 1"):
        network(images)


def test_candidates_are_assigned_from_a_state_without_copies():
    genotype = genotypes.lookup("RelativeNAS")
    real = NetworkCIFAR(4, 10, 3, True, genotype).eval()
    candidate = build_meta(NetworkCIFAR, 4, 10, 3, True, genotype)
    load_network_state(
        candidate, {key: value.clone() for key, value in real.state_dict().items()}, assign=True
    )
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(candidate.eval()(images)[0], real(images)[0])
    assert not any(p.is_meta for p in candidate.parameters())


def test_published_forms_of_state_dicts_load():
    genotype = genotypes.lookup("RelativeNAS")
    source = fill(NetworkCIFAR(4, 10, 3, True, genotype))
    parallel = {f"module.{key}": value for key, value in source.state_dict().items()}
    bare = NetworkCIFAR(4, 10, 3, False, genotype)
    load_network_state(bare, parallel)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(bare.eval()(images)[0], source.eval()(images)[0])


def test_foreign_state_dicts_are_named_and_change_nothing():
    genotype = genotypes.lookup("RelativeNAS")
    network = NetworkCIFAR(4, 10, 3, True, genotype)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    other = NetworkCIFAR(4, 10, 3, True, genotypes.lookup("DARTS_V2")).state_dict()
    with pytest.raises(ValueError, match=r"cells\.0\._ops\.\d\.op\.1\.weight is missing.*and \d+ more"):
        load_network_state(network, other)
    wider = NetworkCIFAR(5, 10, 3, True, genotype).state_dict()
    with pytest.raises(ValueError, match=r"stem\.0\.weight has shape \(15, 3, 3, 3\), not \(12, 3, 3, 3\)"):
        load_network_state(network, wider)
    without = NetworkCIFAR(4, 10, 3, False, genotype).state_dict()
    with pytest.raises(ValueError, match=r"auxiliary_head\.features\.2\.weight is missing"):
        load_network_state(network, without)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
