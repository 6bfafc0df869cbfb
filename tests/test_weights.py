"""training/weights.py: the weights that a training starts from."""

import hashlib
import resource
from types import SimpleNamespace

import pytest
import torch

import genotypes
from common import checkpoint
from model import NetworkCIFAR, NetworkImageNet
from training import weights
from training.card import describe_network
from training.weights import load_network, load_weights


def network(classes=3, auxiliary=False, seed=0, channels=2):
    torch.manual_seed(seed)
    return NetworkCIFAR(channels, classes, 2, auxiliary, genotypes.lookup("RelativeNAS"), 1, 8)


def config(path, **more):
    return SimpleNamespace(**{"weights": path, "arch": "RelativeNAS", "init_channels": 2, "layers": 2} | more)


def of_network(network, classes="abc"):
    return describe_network(
        network,
        images={"set": "folder", "classes": list(classes)},
        recipe={"epochs": 3},
        result={"test_error": 0.5},
    )


@pytest.mark.parametrize(
    ("classes", "auxiliary", "own_auxiliary", "anew"),
    [
        ("abc", False, False, []),
        ("abc", True, True, []),
        ("abc", True, False, []),
        ("abc", False, True, ["auxiliary_head"]),
        ("abcde", False, False, ["classifier"]),
        ("abcde", True, True, ["auxiliary_head.classifier", "classifier"]),
        ("bac", True, True, ["auxiliary_head.classifier", "classifier"]),
    ],
)
@pytest.mark.parametrize("published", [False, True])
def test_weights_to_start_from(tmp_path, published, classes, auxiliary, own_auxiliary, anew):
    trained, own = network(len(classes), auxiliary, seed=1), network(3, own_auxiliary)
    for module in (trained, own):  # what would be ones and zeros in both
        for value in module.state_dict().values():
            if value.is_floating_point():
                value += torch.rand_like(value)
    before = {name: value.clone() for name, value in own.state_dict().items()}
    source, path = trained.state_dict(), tmp_path / "model.pt"
    bare = {f"module.{name}": value for name, value in source.items()}
    checkpoint.save(path, bare if published else of_network(trained, classes) | {"origin": {"sha256": "f"}})
    known = load_weights(own, config(path), tuple("abc"))
    if published and classes == "bac":  # a bare state dict has no names
        anew = []
    for name, value in own.state_dict().items():
        drawn = name.startswith(tuple(f"{part}." for part in anew))
        wanted, other = (before, source) if drawn else (source, before)
        assert torch.equal(value, wanted[name]), name
        if value.is_floating_point() and name in other and value.shape == other[name].shape:
            assert not torch.equal(value, other[name]), name
    facts = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "drawn_anew": anew}
    more = {"recipe": {"epochs": 3}, "result": {"test_error": 0.5}, "origin": {"sha256": "f"}}
    assert known == (facts if published else facts | more)


def test_a_lack_of_memory_says_nothing_of_the_file(tmp_path, monkeypatch):
    own, path = network(), tmp_path / "model.pt"
    checkpoint.save(path, of_network(own))

    def fail(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(weights, "load_network_state", fail)
    with pytest.raises(RuntimeError, match="allocate memory"):
        load_weights(own, config(path), tuple("abc"))
    facts = checkpoint.load(path)["network"] | {"genotype": own.genotype}
    with pytest.raises(RuntimeError, match="allocate memory"):
        load_network(NetworkCIFAR, SimpleNamespace(model_path=str(path)), facts, own.state_dict())


def with_nan(state):
    state["cells.0.preprocess0.op.2.running_var"][0] = torch.nan
    return state


def large():
    return NetworkImageNet(2, 3, 2, False, genotypes.lookup("RelativeNAS"))


@pytest.mark.parametrize(
    ("content", "flags", "words"),
    [
        (of_network(network()), {"arch": "DARTS_V2"}, "--arch DARTS_V2: the network in the file has another"),
        (of_network(network()), {"layers": 3}, "--layers 3: the network in the file has 2"),
        (of_network(network()), {"init_channels": 4}, "--init_channels 4: the network in the file has 2"),
        (of_network(large()), {}, "holds a NetworkImageNet, which the other training script trains"),
        (network(channels=4).state_dict(), {}, "another network: stem.0.weight has shape (12, 1, 3, 3)"),
        (with_nan(network().state_dict()), {}, "its weights are not finite numbers"),
        ({"kind": "search", "epoch": 3}, {}, "how far a search is; needed is a network's model.pt"),
        ({"kind": "dense"}, {}, "a detector or segmentation network, no classifier; needed is a network's"),
        ({"kind": "train_dense"}, {}, "a checkpoint of train_dense; needed is a network's"),
        ({"kind": "train", "network": {}}, {}, "of an older version, which does not describe its network"),
        ({"classifier.bias": torch.ones(3)}, {}, "another network: stem.0.weight is missing"),
        ({"state_dict": 3}, {}, "no checkpoint of a network"),
        ({"classifier.bias": 3}, {}, "no checkpoint of a network"),
        (of_network(network()) | {"result": torch.ones(1)}, {}, "no checkpoint of a network"),
        ({"kind": "network", "state_dict": {}}, {}, "no checkpoint of a network ('network')"),
    ],
)
def test_weights_of_something_else_are_refused(tmp_path, content, flags, words):
    path = tmp_path / "model.pt"
    checkpoint.save(path, content)
    with pytest.raises(ValueError, match=f"^--weights {path}: ") as error:
        load_weights(network(), config(path, **flags), tuple("abc"))
    assert words in str(error.value)


@pytest.mark.parametrize(
    "claim",
    [{"C": 2**20}, {"layers": 10**7}, {"num_classes": 10**9}, {"image_size": 10**6}],
)
def test_a_file_that_claims_a_huge_network_is_refused_before_anything_is_allocated(claim):
    real = network()
    facts = {"C": 2, "num_classes": 3, "layers": 2, "genotype": real.genotype, "in_channels": 1}
    given = SimpleNamespace(model_path="claims.pt")
    loaded = load_network(NetworkCIFAR, given, facts | {"image_size": 8}, real.state_dict())
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(loaded.eval()(images)[0], real.eval()(images)[0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"--model_path claims\.pt: "):
        load_network(NetworkCIFAR, given, facts | {"image_size": 8} | claim, real.state_dict())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "kilobytes"


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("network", "C", torch.zeros(2, dtype=torch.int64)),
        ("network", "image_size", [8.0, 8.0]),
        ("images", "classes", ["a", {}, "c"]),
        ("images", "mean", ["half"]),
        ("images", "set", None),
    ],
)
def test_a_description_of_other_kinds_is_one_line(tmp_path, part, name, value):
    state = of_network(network())
    checkpoint.save(tmp_path / "model.pt", state | {part: state[part] | {name: value}})
    with pytest.raises(ValueError, match=r"no checkpoint of a network .*where a number or a name belongs"):
        load_weights(network(), config(tmp_path / "model.pt"), tuple("abc"))
