"""Gated MLPs that keep less: the same values and gradients as the model's own, and what is left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from nsr.models.gated import lean_mlps
from nsr.models.kernels import fast_linears

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


def test_what_computes_something_else_is_left_alone() -> None:
    gelu = model_of(LlamaConfig(**SIZES, hidden_act="gelu"), torch.float32)
    biased = model_of(LlamaConfig(**SIZES, mlp_bias=True), torch.float32)
    hooked = model_of(CONFIGS["qwen3"], torch.float32)
    hooked.model.layers[0].mlp.down_proj.register_forward_hook(lambda *_: None)
    with lean_mlps(gelu), lean_mlps(biased), lean_mlps(hooked):
        assert not any("forward" in vars(module) for model in (gelu, biased) for module in model.modules())
        changed = [layer for layer in hooked.model.layers if "forward" in vars(layer.mlp)]
        assert changed == [hooked.model.layers[1]]


def test_frozen_weights_get_no_gradient() -> None:
    model = model_of(CONFIGS["llama"], torch.float32)
    for name, weight in model.named_parameters():
        weight.requires_grad = "gate_proj" in name
    with lean_mlps(model):
        model(input_ids=IDS, use_cache=False).logits.sum().backward()
    assert all((weight.grad is not None) == weight.requires_grad for weight in model.parameters())
