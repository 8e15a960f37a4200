"""The formula of the useful operations: by hand, by counting pairs, and against what torch counts in a model."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.flops import learning_operations
from nsr.memory.estimate import ModelShape
from nsr.models.architecture import find_shape


def shape(hidden: int, heads: int, kv_heads: int, head_dim: int, intermediate: int, layers: int) -> ModelShape:
    config = Qwen3Config(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        vocab_size=5,
    )
    return ModelShape.from_config(config)


def test_by_hand() -> None:
    """h 2, q 4, k 2, i 3, one layer; a prompt of 2 tokens with 2 responses of 3."""
    small = shape(2, 2, 1, 2, 3, 1)
    layer = 2 * 2 * 4 + 2 * 2 * 2 + 3 * 2 * 3  # 42 weights
    positions = 2 + 2 * 2  # the prompt, and two tokens of each response
    predictions = 1 + 2 * 2
    pairs = (1 + 2) + 2 * (3 + 4)  # what each position sees
    expected = 6 * (positions * layer + predictions * 2 * 5 + pairs * 2 * 4)
    assert expected == 2628
    assert learning_operations(small, [2], 2, 3, vocabulary=5) == expected


def test_tiny_by_hand() -> None:
    """One prompt of 18 tokens with 8 responses of 96, as the embedded model has it, over its 103 words."""
    tiny, _ = find_shape("tiny")
    layer = 2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 640  # 688,128 weights
    positions, predictions = 18 + 8 * 95, 1 + 8 * 95
    pairs = 18 * 19 // 2 + 8 * sum(18 + t + 1 for t in range(95))
    expected = 6 * (positions * 6 * layer + predictions * 256 * 103 + pairs * 6 * 2 * 256)
    assert learning_operations(tiny, [18], 8, 96, vocabulary=103) == expected


def test_prompts_add_up_and_a_group_shares_its_prompt() -> None:
    small = shape(8, 2, 1, 4, 16, 3)

    def operations(prompts: list[int], group_size: int) -> int:
        return learning_operations(small, prompts, group_size, 7, vocabulary=11)

    assert operations([5, 9], 4) == operations([5], 4) + operations([9], 4)
    # Four responses apart compute the prompt, and what it predicts, three times more than four of a group.
    prompt_alone = learning_operations(small, [5], 0, 7, vocabulary=11)
    assert 4 * operations([5], 1) - operations([5], 4) == 3 * prompt_alone


def test_products_with_weights_are_those_that_torch_counts() -> None:
    """One response after its prompt in a model: forward and backward, attention left out on both sides."""
    prompt, response, words = 6, 5, 5
    config = Qwen3Config(
        hidden_size=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        intermediate_size=16,
        num_hidden_layers=3,
        vocab_size=words,
    )
    model = Qwen3ForCausalLM(config)
    ids = torch.zeros((1, prompt + response - 1), dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, logits_to_keep=response).logits.sum().backward()
    counts = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    counted = sum(count for op, count in counts.items() if op in {"aten.mm", "aten.addmm"})

    given = ModelShape.from_config(config)
    pairs = sum(range(1, prompt + response))
    attention = 6 * pairs * given.layers * 2 * given.q_width
    assert counted == learning_operations(given, [prompt], 1, response, vocabulary=words) - attention
