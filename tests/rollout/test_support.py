"""The support is the same for the sampler and the trainer, and leaves out what cannot be sampled."""

from __future__ import annotations

import pytest
import torch

from nsr.models.sampling_mask import Support

OUT = float("-inf")
SUPPORT = Support(vocab_size=5, end_token_ids=(1, 3), min_tokens=2)


def test_mask_sets_padding_and_early_end_tokens_to_minus_infinity() -> None:
    masked = SUPPORT.mask_(torch.arange(14.0).reshape(2, 7), torch.tensor([1, 2]))
    assert masked.tolist() == [[0.0, OUT, 2.0, OUT, 4.0, OUT, OUT], [7.0, 8.0, 9.0, 10.0, 11.0, OUT, OUT]]


def test_mask_works_in_place_and_with_one_position_for_all_rows() -> None:
    logits_BV = torch.zeros(3, 7)
    assert SUPPORT.mask_(logits_BV, 0) is logits_BV
    assert logits_BV.tolist() == [[0.0, OUT, 0.0, OUT, 0.0, OUT, OUT]] * 3


@pytest.mark.parametrize("vocab_size", [4, 6, 7])
def test_sampler_and_trainer_agree_at_every_position(vocab_size: int) -> None:
    support = Support(vocab_size=vocab_size, end_token_ids=(0, 3), min_tokens=3)
    logits_BTV = torch.randn(2, 6, 7)
    index_BT = torch.tensor([[0, 1, 2, 3, 4, 5], [2, 3, 4, 0, 1, 9]])
    for_trainer = support.mask_logits(logits_BTV, index_BT)
    for t in range(6):
        assert torch.equal(for_trainer[:, t], support.mask_(logits_BTV[:, t].clone(), index_BT[:, t]))


def test_trainer_mask_leaves_its_input_and_passes_gradients_inside_only() -> None:
    logits_BTV = torch.zeros(1, 3, 7, requires_grad=True)
    log_probs = SUPPORT.mask_logits(logits_BTV, torch.tensor([[0, 1, 2]])).log_softmax(dim=-1)
    log_probs[..., 2].sum().backward()
    assert logits_BTV.eq(0).all()
    third, fifth = 1 / 3, 1 / 5  # of the probability, while the end tokens are out and after
    early = [-third, 0.0, 1 - third, 0.0, -third, 0.0, 0.0]
    late = [-fifth, -fifth, 1 - fifth, -fifth, -fifth, 0.0, 0.0]
    assert logits_BTV.grad is not None
    torch.testing.assert_close(logits_BTV.grad[0], torch.tensor([early, early, late]))


def test_support_of_a_model_joins_end_tokens_of_generation_config_and_tokenizer(tokenizer, small_model) -> None:
    model = small_model(len(tokenizer) + 6)
    model.generation_config.eos_token_id = [4, len(tokenizer) + 2]  # the second is no token
    support = Support.of(model, tokenizer, 4)
    assert support == Support(vocab_size=len(tokenizer), end_token_ids=(1, 4), min_tokens=4)
    model.generation_config.eos_token_id = None
    assert Support.of(model, tokenizer, 4).end_token_ids == (1,)
