"""Gated MLPs that keep less: the same values and gradients as the model's own, and what is left alone."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

from nsr.models.fast.gated_mlp import lean_mlps
from nsr.models.fast.kernels import fast_linears

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 40,
}
CONFIGS: dict[str, Any] = {
    "qwen3": Qwen3Config(**SIZES),
    "llama": LlamaConfig(**SIZES),
}
IDS = torch.arange(24).view(2, 12)


def model_of(config: Any, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).to(dtype=dtype).eval()


def values(model: Any) -> list[Tensor]:
    """Logits and every gradient."""
    model.zero_grad()
    logits: Tensor = model(input_ids=IDS, use_cache=False).logits
    logits.float().square().sum().backward()
    return [logits.detach(), *(weight.grad.clone() for weight in model.parameters())]


def kept_bytes(model: Any) -> int:
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=IDS, use_cache=False)
    return sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", CONFIGS)
def test_values_and_gradients_are_the_models_own(kind: str, dtype: torch.dtype) -> None:
    model = model_of(CONFIGS[kind], dtype)
    expected = values(model)
    with lean_mlps(model):
        found = values(model)
    for ours, theirs in zip(found, expected, strict=True):
        if dtype == torch.float32:  # another library's product
            assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
        else:
            assert torch.equal(ours, theirs)
    assert not any("forward" in vars(module) for module in model.modules())


def test_half_of_an_mlp_is_not_kept() -> None:
    model = model_of(CONFIGS["qwen3"], torch.float32)
    before = kept_bytes(model)
    with lean_mlps(model), fast_linears(model):
        after = kept_bytes(model)
    assert before - after == 2 * IDS.numel() * 2 * SIZES["intermediate_size"] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_computes_something_else_is_left_alone(dtype: torch.dtype) -> None:
    gelu = model_of(LlamaConfig(**SIZES, hidden_act="gelu"), dtype)
    biased = model_of(LlamaConfig(**SIZES, mlp_bias=True), dtype)
    silent, broken, other = (model_of(CONFIGS["qwen3"], dtype) for _ in range(3))
    for layer in silent.model.layers:
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)  # whatever it computes, it gives 0
    for layer in broken.model.layers:
        layer.mlp.act_fn = None
    for layer in other.model.layers:
        layer.mlp.down_proj.forward = torch.relu
    plain = AutoModelForCausalLM.from_config(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=10))
    with lean_mlps(plain):  # its MLP has other parts
        assert not any("forward" in vars(module) for module in plain.modules())
    models = (gelu, biased, silent, broken, other)
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(lean_mlps(model))
        assert not any("forward" in vars(layer.mlp) for model in models for layer in model.model.layers)


@pytest.mark.parametrize("hook", ["forward_hook", "forward_pre_hook", "full_backward_hook"])
def test_a_layer_with_a_hook_is_left_alone(hook: str) -> None:
    hooked = model_of(CONFIGS["qwen3"], torch.float32)
    getattr(hooked.model.layers[0].mlp.down_proj, f"register_{hook}")(lambda *_: None)
    with lean_mlps(hooked):
        changed = [layer for layer in hooked.model.layers if "forward" in vars(layer.mlp)]
        assert changed == [hooked.model.layers[1]]


def test_frozen_weights_get_no_gradient() -> None:
    model = model_of(CONFIGS["llama"], torch.float32)
    for name, weight in model.named_parameters():
        weight.requires_grad = "gate_proj" in name
    with lean_mlps(model):
        model(input_ids=IDS, use_cache=False).logits.sum().backward()
    assert all((weight.grad is not None) == weight.requires_grad for weight in model.parameters())
