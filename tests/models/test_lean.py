"""The lean decoder against the model's own forward, family by family, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from nsr.models.fast.decode_model import LeanDecoder, misfit
from nsr.models.fast.kernels import JoinedLinear

SIZES: dict[str, Any] = {
    "vocab_size": 90, "hidden_size": 48, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.3,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama, biases": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "llama, scaled rotation": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=LLAMA3)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    "qwen3, scaled rotation": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, rope_parameters=YARN)),
}
TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-4}


def made(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model none of whose weights is a special value: norms and biases are off 1 and 0."""
    torch.manual_seed(0)
    model = FAMILIES[family]()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("norm.weight", "bias")):
                weight.add_(torch.rand_like(weight) - 0.3)
    return model.to(dtype).eval()


def token_by_token(model: PreTrainedModel, ids_BT: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Logits [B, T, vocab_size] by the lean decoder, with attention written down plainly."""
    decoder = LeanDecoder(model, vocab_size)
    kept: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def attend(layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        kept.setdefault(layer, []).append((keys, values))
        all_keys, all_values = (torch.stack(tensors, dim=2) for tensors in zip(*kept[layer], strict=True))
        scores = torch.einsum("bkqd,bktd->bkqt", queries.double(), all_keys.double()) * decoder.scale
        output = torch.einsum("bkqt,bktd->bkqd", scores.softmax(dim=-1), all_values.double())
        return output.flatten(1).to(queries.dtype)

    with torch.inference_mode():
        steps = [
            decoder.step(tokens_B, torch.full_like(tokens_B, position), attend)
            for position, tokens_B in enumerate(ids_BT.unbind(dim=1))
        ]
    return torch.stack(steps, dim=1)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_models_own_forward(family: str, dtype: torch.dtype) -> None:
    model = made(family, dtype)
    assert misfit(model) is None
    ids_BT = torch.randint(0, 90, (3, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(ids_BT).logits[..., :77]
    found = token_by_token(model, ids_BT, 77)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert expected.float().std() > 1  # a difference would be seen
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCES[dtype])


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_it_is_no_further_from_the_truth_than_the_models_own_forward(family: str) -> None:
    model = made(family, torch.bfloat16)
    ids_BT = torch.randint(0, 90, (8, 24), generator=torch.Generator().manual_seed(1))
    found = token_by_token(model, ids_BT, 90)
    with torch.no_grad():
        own, truth = model(ids_BT).logits, model.double()(ids_BT).logits
    assert found.dtype == torch.bfloat16
    errors = [(logits - truth).abs().mean() for logits in (found, own)]
    assert errors[0] < 1.1 * errors[1] < 0.1


def test_weights_are_those_of_the_moment_it_is_made() -> None:
    model = made("llama")
    ids_BT = torch.tensor([[3, 4, 5]])
    before = token_by_token(model, ids_BT, 90)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(-1)
    after = token_by_token(model, ids_BT, 90)
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(after, model(ids_BT).logits.detach(), rtol=1e-4, atol=1e-4)


# What is refused


def other_type() -> PreTrainedModel:
    return GraniteForCausalLM(GraniteConfig(**SIZES, embedding_multiplier=3.0))  # the same modules, another forward


def subclass() -> PreTrainedModel:
    class Mine(LlamaForCausalLM):
        pass

    return Mine(LlamaConfig(**SIZES))


def sliding() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4))


def some_sliding() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=2))


def other_activation() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="gelu"))


def with_an_adapter() -> PreTrainedModel:
    class Adapted(nn.Linear):
        pass

    model = made("llama")
    model.model.layers[1].self_attn.k_proj = Adapted(48, 16)
    return model


def with_a_hook() -> PreTrainedModel:
    model = made("llama")
    model.model.layers[2].mlp.register_forward_hook(lambda _module, _inputs, output: output * 2)
    return model


def with_a_forward_of_its_own() -> PreTrainedModel:
    model = made("qwen3")
    model.model.norm.forward = lambda hidden: hidden
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (other_type, "GraniteForCausalLM is not"),
        (subclass, "Mine is not"),
        (sliding, "sliding"),
        (some_sliding, "sliding"),
        (other_activation, "gelu"),
        (with_an_adapter, "linear layers"),
        (with_a_hook, r"forward of model\.layers\.2\.mlp was changed"),
        (with_a_forward_of_its_own, r"forward of model\.norm was changed"),
    ],
)
def test_what_it_would_get_wrong_is_a_misfit(make: Callable[[], PreTrainedModel], reason: str) -> None:
    problem = misfit(make())
    assert problem is not None
    assert __import__("re").search(reason, problem)


# Joined layers


@pytest.mark.parametrize("dtype", [*TOLERANCES, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_a_joined_layer_gives_its_layers_outputs_side_by_side(dtype: torch.dtype, rows: int) -> None:
    layers = [nn.Linear(24, 10, bias=bias).to(dtype) for bias in (True, False, True)]
    inputs = torch.randn(rows, 24, dtype=dtype)
    with torch.inference_mode():
        found = JoinedLinear(*layers)(inputs)
        expected = torch.cat([layer(inputs) for layer in layers], dim=-1)
        torch.testing.assert_close(found, expected, rtol=1e-5 if dtype.itemsize > 2 else 0.02, atol=1e-6)


@pytest.mark.parametrize("dtype", [*TOLERANCES, torch.bfloat16])
def test_the_first_rows_of_a_layer(dtype: torch.dtype) -> None:
    layer = nn.Linear(24, 10, bias=True).to(dtype)
    inputs = torch.randn(5, 24, dtype=dtype)
    with torch.inference_mode():
        found = JoinedLinear(layer, rows=7)(inputs)
        torch.testing.assert_close(found, layer(inputs)[:, :7], rtol=1e-5 if dtype.itemsize > 2 else 0.02, atol=1e-6)


def test_without_onednn_the_layers_own_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nsr.models.fast.kernels._available", lambda: False)
    layer = nn.Linear(4, 3)
    joined = JoinedLinear(layer, layer)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(math.pi)
    found = joined(torch.ones(2, 4))
    torch.testing.assert_close(found, torch.full((2, 6), 4 + math.pi))
