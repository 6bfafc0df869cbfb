"""training/precision.py: what is computed in which type."""

import os

import pytest
import torch
from conftest import random_cell

from model import NetworkCIFAR
from training import precision
from training.precision import autocast, choose_precision, grad_scaler


def test_precision():
    cpu = torch.device("cpu")
    assert choose_precision(cpu, "auto") == "float32"
    assert choose_precision(cpu, "bfloat16") == "bfloat16"
    with autocast(cpu, "bfloat16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with autocast(cpu, "float32"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with pytest.raises(ValueError, match="--precision float16: needs a GPU; allowed on the CPU are auto"):
        choose_precision(cpu, "float16")
    assert grad_scaler(cpu, "float16").is_enabled()
    assert not grad_scaler(cpu, "bfloat16").is_enabled()


@pytest.mark.parametrize("deterministic", [False, True])
def test_kernels_of_a_gpu_are_fast_or_deterministic(
    deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled()
    places = [(torch.backends.cudnn, "benchmark"), (torch.backends.cudnn, "allow_tf32")]
    places.append((torch.backends.cuda.matmul, "allow_tf32"))
    kept = [getattr(place, name) for place, name in places]
    try:
        for place, name in places:
            setattr(place, name, deterministic)
        precision.choose_kernels(torch.device("cpu"), deterministic)
        assert torch.are_deterministic_algorithms_enabled() == before
        precision.choose_kernels(torch.device("cuda"), deterministic)
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        assert [getattr(place, name) for place, name in places] == [not deterministic] * 3
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == deterministic
        precision.choose_kernels(torch.device("cuda"), deterministic, one_size=False)
        assert [getattr(place, name) for place, name in places] == [False, *[not deterministic] * 2]
    finally:
        torch.use_deterministic_algorithms(before)
        for (place, name), value in zip(places, kept, strict=True):
            setattr(place, name, value)


def test_lowered_weights_change_no_bit() -> None:
    network = NetworkCIFAR(4, 10, 3, False, random_cell(1), image_size=16)
    images, found = torch.randn(4, 3, 16, 16), []
    for weights in ({}, precision.lowered(network, "bfloat16")):
        network.zero_grad()
        with torch.random.fork_rng(devices=[]):
            logits = precision.forward(network, images, "bfloat16", weights)[0]
        logits.float().square().sum().backward()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        assert all(gradient.dtype == torch.float32 for gradient in gradients)
        found.append([logits.float(), *gradients])
    assert len(weights) > 20
    assert len(found[0]) == len(found[1])
    assert torch.equal(found[0][0], found[1][0])
    for plain, ours in zip(*found, strict=True):
        assert torch.allclose(plain, ours, rtol=1e-2, atol=1e-2 * float(plain.detach().abs().max()))
