"""Sequences in one row, every prompt once: the layout by hand, and the values and gradients of each sequence alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
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

from nsr.models.fast import packing as packed
from nsr.models.fast.packing import pack, packed_attention, packed_hidden, why_not_packed
from nsr.training.step import recompute_activations

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
PROMPTS = [torch.tensor([5, 6, 7, 8, 9]), torch.tensor([3, 4]), torch.tensor([11, 12, 13])]
RESPONSES = [torch.tensor(ids) for ids in ([20, 21, 22, 23], [24], [25, 26], [27, 28, 29], [30, 31, 32, 33, 34, 35])]
PROMPT_OF = [0, 0, 1, 1, 2]


def models() -> dict[str, PreTrainedModel]:
    torch.manual_seed(0)
    return {
        "llama": LlamaForCausalLM(LlamaConfig(**SIZES)),
        "llama, as many key heads as query heads": LlamaForCausalLM(LlamaConfig(**SIZES | {"num_key_value_heads": 4})),
        "qwen2": Qwen2ForCausalLM(Qwen2Config(**SIZES)),
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True)),
        "mistral": MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    }


MODELS = {name: model.double().eval() for name, model in models().items()}


def test_the_layout_worked_out_by_hand() -> None:
    packing = pack(
        [torch.tensor([10, 11]), torch.tensor([12])],
        [torch.tensor([1, 2, 3]), torch.tensor([4]), torch.tensor([5, 6])],
        [0, 0, 1],
    )
    # prompts, then the responses without their last token: nothing is predicted from it
    assert packing.tokens_1N.tolist() == [[10, 11, 12, 1, 2, 5]]
    assert packing.positions_1N.tolist() == [[0, 1, 0, 2, 3, 1]]
    assert packing.prompts_PT.tolist() == [[0, 1], [2, 0]]
    assert packing.responses_BR.tolist() == [[3, 4], [0, 0], [5, 0]]
    assert packing.prompt_of_B.tolist() == [0, 0, 1]
    # 1 and 4 are predicted by 11, the last token of their prompt; 5 by 12
    assert packing.predicting_M.tolist() == [1, 3, 4, 1, 2, 5]
    assert packing.unpadded_N.tolist() == [0, 1, 2, 4 + 0, 4 + 1, 4 + 4]
    visible = packing.visible_B1RS[:, 0].int().tolist()
    assert visible[0] == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert visible[2] == [[1, 0, 1, 0], [1, 0, 1, 1]]  # its prompt has one token


def of_each_alone(model: Any) -> torch.Tensor:
    """Logits that predict the response tokens, sequence by sequence."""
    parts: list[torch.Tensor] = []
    for response, of in zip(RESPONSES, PROMPT_OF, strict=True):
        logits_TV = model(input_ids=torch.cat([PROMPTS[of], response])[None]).logits[0]
        parts.append(logits_TV[len(PROMPTS[of]) - 1 : -1])
    return torch.cat(parts)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """In the L2 norm. The layers' norms compute in float32 whatever the model's type, so it is no smaller than that."""
    return float(((actual - expected).norm() / expected.norm()).detach())


def gradients(model: PreTrainedModel, logits_MV: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    generator = torch.Generator().manual_seed(1)
    (logits_MV * torch.randn(logits_MV.shape, generator=generator, dtype=logits_MV.dtype)).sum().backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_are_those_of_each_sequence_alone(name: str) -> None:
    model: Any = MODELS[name]
    expected = of_each_alone(model)
    actual = model.get_output_embeddings()(packed_hidden(model, pack(PROMPTS, RESPONSES, PROMPT_OF)))
    assert relative_error(actual, expected) < 1e-6
    assert relative_error(gradients(model, actual), gradients(model, expected)) < 1e-6
    assert why_not_packed(model) is None


def test_every_prompt_is_computed_once_and_no_padding() -> None:
    model: Any = MODELS["qwen3"]
    seen: list[int] = []
    handle = model.model.layers[0].mlp.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[:2]))
    packed_hidden(model, pack(PROMPTS, RESPONSES, PROMPT_OF))
    handle.remove()
    assert seen == [(1, 5 + 2 + 3 + sum(len(response) - 1 for response in RESPONSES))]


def test_masks_are_made_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.Size] = []
    real: Any = packed._additive

    def counted(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        made.append(visible.shape)
        return real(visible, dtype)

    monkeypatch.setattr(packed, "_additive", counted)
    packing = pack(PROMPTS, RESPONSES, PROMPT_OF)
    for _ in range(2):
        packed_hidden(MODELS["qwen3"], packing)  # two layers; two query heads share a key head
    assert made == [(1, 1, 2 * 5, 5), (5, 1, 2 * 5, 5 + 5)]


def test_responses_of_one_token_have_nothing_but_their_prompts() -> None:
    model: Any = MODELS["llama"]
    packing = pack(PROMPTS[:2], [torch.tensor([7]), torch.tensor([8])], [1, 0])
    actual = model.get_output_embeddings()(packed_hidden(model, packing))
    expected = [model(input_ids=PROMPTS[of][None]).logits[0, -1] for of in (1, 0)]
    assert relative_error(actual, torch.stack(expected)) < 1e-6


def test_layers_that_are_computed_again_give_the_same_gradient() -> None:
    model: Any = MODELS["qwen2"]
    packing = pack(PROMPTS, RESPONSES, PROMPT_OF)
    expected = gradients(model, packed_hidden(model, packing))
    again: Any = Qwen2ForCausalLM(Qwen2Config(**SIZES)).double()
    again.load_state_dict(model.state_dict())
    recompute_activations(again)
    again.train()
    with packed_attention(again):
        assert relative_error(gradients(again, packed_hidden(again, packing)), expected) < 1e-6


def test_the_models_own_attention_is_back_afterwards() -> None:
    model: Any = MODELS["llama"]
    before = model.config._attn_implementation
    packed_hidden(model, pack(PROMPTS, RESPONSES, PROMPT_OF))
    assert model.config._attn_implementation == before


def test_models_that_see_less_than_everything_before_are_not_packed() -> None:
    sliding = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=3)).eval()
    assert "do not take packed sequences" in str(why_not_packed(sliding))
    mixed = Qwen3ForCausalLM(
        Qwen3Config(**SIZES, head_dim=8, layer_types=["full_attention", "sliding_attention"], sliding_window=3)
    ).eval()
    assert "not all of the model's layers" in str(why_not_packed(mixed))
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_layer=1, n_head=2, n_positions=64)).eval()
    assert why_not_packed(gpt2) is None  # learned positions are positions too


def test_a_wrong_mask_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = packed.pack

    def broken(*arguments: Any) -> Any:
        packing = real(*arguments)
        packing.visible_B1RS[:] = True  # a token sees those after it
        return packing

    monkeypatch.setattr(packed, "pack", broken)
    assert why_not_packed(MODELS["qwen3"]) == "packed, the model computes something else"


@pytest.mark.parametrize("training", [True, False])
def test_trying_it_out_leaves_the_model_as_it_was(training: bool) -> None:
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8, attention_dropout=0.5)).train(training)
    assert why_not_packed(model) is None
    assert model.training is training
