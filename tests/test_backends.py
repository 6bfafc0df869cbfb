"""training/backends.py: other engines give PyTorch's logits, or say that they do not."""

import sys

import pytest
import torch
from test_inference import with_statistics

import genotypes
from model import NetworkCIFAR
from training.backends import Engine


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    cell = genotypes.lookup("DARTS_V2")
    return with_statistics(NetworkCIFAR(4, 10, 3, False, cell, in_channels=1, image_size=9))


def needs(backend):
    pytest.importorskip("torch", minversion="2.9")
    pytest.importorskip("onnxscript")
    pytest.importorskip(backend)


@pytest.mark.parametrize(
    ("backend", "precision"),
    [("onnxruntime", "float32"), ("openvino", "float32"), ("openvino", "bfloat16")],
)
def test_an_engine_gives_the_networks_logits(network, backend, precision, capsys):
    needs(backend)
    engine = Engine(network, backend, precision)
    assert engine.largest_map() == network.largest_map()
    for count in (11, 5):
        images = torch.randn(count, 1, 9, 9)
        with torch.no_grad():
            (logits, none), wanted = engine(images), network(images)[0]
        assert none is None
        assert wanted.std(0).min() > 0.01
        tolerance = 1e-4 if precision == "float32" else 0.05
        assert torch.allclose(logits, wanted, rtol=0, atol=tolerance * wanted.abs().max())
    assert capsys.readouterr().out.count("logits of the first 8 images differ from PyTorch's") == 1


def test_an_engine_that_computes_something_else_is_stopped(network):
    needs("onnxruntime")
    engine = Engine(network, "onnxruntime", "float32")
    network.classifier.bias.data += 1
    with pytest.raises(ValueError, match=r"--backend onnxruntime: its logits differ from PyTorch's by 1\.0"):
        engine(torch.randn(3, 1, 9, 9))


def test_what_an_engine_cannot_do_is_one_line(network, monkeypatch):
    with pytest.raises(ValueError, match=r"--precision bfloat16: --backend onnxruntime computes in float32"):
        Engine(network, "onnxruntime", "bfloat16")
    with pytest.raises(ValueError, match=r"--precision float16: --backend openvino computes in float32 or"):
        Engine(network, "openvino", "float16")
    with pytest.raises(ValueError, match=r"--backend openvino: computes on the CPU"):
        Engine(NetworkCIFAR(4, 10, 3, False, network.genotype).to("meta"), "openvino", "float32")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match=r"--backend openvino: openvino is missing; pip install onnx "):
        Engine(network, "openvino", "float32")
