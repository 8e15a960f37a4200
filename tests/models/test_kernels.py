"""The faster linear layers give the same numbers and leave nothing behind."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from nsr.models.fast import kernels
from nsr.models.fast.kernels import fast_linears


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 24), (3, 5, 24), (7, 24)])
def test_same_as_torch_to_rounding(bias: bool, shape: tuple[int, ...]) -> None:
    layer = nn.Linear(24, 10, bias=bias)
    inputs = torch.randn(shape)
    with torch.inference_mode(), fast_linears(layer):
        inside = layer(inputs)
    torch.testing.assert_close(inside, layer(inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 24), (3, 5, 24), (2, 3, 4, 24)])
def test_gradients_are_torchs_to_rounding(bias: bool, shape: tuple[int, ...]) -> None:
    layer = nn.Linear(24, 10, bias=bias)
    inputs = torch.randn(shape, requires_grad=True)
    wanted = [inputs, *layer.parameters()]
    coefficients = torch.randn(*shape[:-1], 10)
    plain = torch.autograd.grad((layer(inputs) * coefficients).sum(), wanted)
    with fast_linears(layer):
        fast = torch.autograd.grad((layer(inputs) * coefficients).sum(), wanted)
    for value, expected in zip(fast, plain, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


def test_frozen_weights_and_inputs_get_no_gradient() -> None:
    layer = nn.Linear(4, 3)
    layer.weight.requires_grad_(False)
    with fast_linears(layer):
        layer(torch.ones(2, 4)).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    assert layer.bias.grad.tolist() == [2.0, 2.0, 2.0]


@pytest.mark.skipif(not kernels._available(), reason="this torch has no oneDNN")
def test_used_inside_only_and_for_plain_float32_layers_only() -> None:
    class Special(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).double(), Special(4, 4), nn.Linear(4, 4))
    replaced = lambda inputs: inputs  # noqa: E731
    model[3].forward = replaced
    with fast_linears(model):
        assert ["forward" in vars(layer) for layer in model] == [True, False, False, True]
        assert model[3].forward is replaced
    assert ["forward" in vars(layer) for layer in model] == [False, False, False, True]


def test_undone_after_an_error() -> None:
    layer = nn.Linear(4, 4)
    with pytest.raises(RuntimeError), torch.inference_mode(), fast_linears(layer):
        layer(torch.zeros(1, 5))
    assert "forward" not in vars(layer)
    layer(torch.zeros(1, 4)).sum().backward()  # and it learns as before
    assert layer.weight.grad is not None


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="asks glibc what is in use")
def test_kernels_of_shapes_long_gone_are_given_up() -> None:
    """In a process of its own, where no kernel was made before. One takes a quarter of a MB in each of two caches."""
    program = """
import ctypes, torch
from nsr.models.fast.kernels import KEPT_KERNELS, fast_linears
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena a b c d e f used free g".split()]
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Info
layer = torch.nn.Linear(16, 16)
used = []
with fast_linears(layer), torch.inference_mode():
    for count in range(KEPT_KERNELS + 100):
        layer(torch.zeros(count + 1, 16))
        used.append(mallinfo().used)
print((used[-1] - used[-100]) / 1e6, (used[-100] - used[0]) / 1e6)
"""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("CACHE_CAPACITY")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    after, before = map(float, done.stdout.split())
    assert before > 20 or before < 1  # kernels are kept, if this machine makes any
    assert after < 3
