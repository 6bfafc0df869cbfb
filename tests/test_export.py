"""training/export.py: the ONNX file computes what the network does, from pixels, and says what it is."""

import json
import sys

import pytest
import torch
from test_inference import with_statistics

import genotypes
from images.sets import Statistics, normalise
from model import NetworkCIFAR
from training import export
from training.inference import fold_batch_norm
from training.weights import Loaded

GREY = Statistics((0.3,), (0.2,))


@pytest.mark.parametrize(("fold", "pixels"), [(True, "uint8"), (False, "float32")])
def test_the_file_takes_pixels_and_gives_the_same_logits_for_any_number_of_images(fold, pixels, tmp_path):
    pytest.importorskip("torch", minversion="2.9")
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = with_statistics(
        NetworkCIFAR(4, 10, 3, False, genotypes.lookup("RelativeNAS"), in_channels=1, image_size=9)
    )
    path = tmp_path / "network.onnx"
    exported = fold_batch_norm(network) if fold else network
    assert export.export_onnx(exported, str(path), GREY, pixels, {"set": "mine"}) < 1e-4
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = torch.randint(256, (5, 1, 9, 9)).to(torch.uint8)
    given = images if pixels == "uint8" else images / 255
    (found,) = session.run(["logits"], {"images": given.numpy()})
    wanted = network(normalise(images, GREY))[0]
    assert wanted.std(0).min() > 1e-3
    assert torch.allclose(torch.from_numpy(found), wanted, rtol=0, atol=1e-5)
    assert session.get_modelmeta().custom_metadata_map == {"set": "mine"}


def test_what_is_known_of_a_network_is_in_its_file():
    network = NetworkCIFAR(4, 2, 3, False, genotypes.lookup("RelativeNAS"), in_channels=1, image_size=9)
    images = {"set": "folder", "classes": ["cat", "dög"], "mean": [0.3], "std": [0.2]}
    known = export.metadata(Loaded(network, {"images": images, "result": {}}), GREY, "uint8", "crop it")
    assert json.loads(known["classes"]) == ["cat", "dög"]
    assert (json.loads(known["mean"]), json.loads(known["std"])) == ([0.3], [0.2])
    assert (known["set"], known["image_size"], known["channels"]) == ("folder", "9", "1")
    assert known["preparation"] == "crop it"
    assert "bytes" in known["input"]
    assert json.loads(known["card"])["images"] == images
    bare = export.metadata(Loaded(network), GREY, "float32", "crop it")
    assert "0 to 1" in bare["input"]
    assert not {"classes", "set", "card"} & set(bare)


def test_a_missing_package_is_named_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    network = NetworkCIFAR(4, 10, 3, False, genotypes.lookup("RelativeNAS"), in_channels=1)
    with pytest.raises(ValueError, match=r"--export: onnxruntime is missing"):
        export.export_onnx(network, str(tmp_path / "network.onnx"), GREY)
    assert list(tmp_path.iterdir()) == []
