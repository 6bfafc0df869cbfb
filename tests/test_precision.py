"""training/precision.py: what is computed in which type."""

import pytest
import torch

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
