"""A small policy and rollouts for it, shared by the tests of batch, optimizer and update."""

from __future__ import annotations

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from nsr.algorithms.objectives import objective_weights
from nsr.models.sampling_mask import Support
from nsr.rollout.engine import Completion
from nsr.rollout.rollout import RolloutGroup, rewards
from nsr.tasks.countdown.grader import Verdict
from nsr.tasks.countdown.puzzle import Puzzle

VOCAB_SIZE = 37
PADDED_VOCAB_SIZE = 40
END, PAD = 1, 2
SUPPORT = Support(vocab_size=VOCAB_SIZE, end_token_ids=(END,), min_tokens=4)
MAX_TOKENS = 12
BATCH = {"loss_type": "standard", "normalize_over": "all", "max_tokens": MAX_TOKENS, "pad_token_id": PAD}
UPDATE = {"temperature": 0.7, "clip_range": 0.2, "grad_acc_steps": 1, "exact": False}


def small_policy(dtype=torch.float32, **settings):
    """A Qwen3 of 20 thousand parameters whose logits are not flat and whose output is wider than its vocabulary."""
    defaults = {
        "vocab_size": PADDED_VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "pad_token_id": None,
        "initializer_range": 0.3,
    }
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**{**defaults, **settings})).to(dtype).eval()


def completion(token_ids, log_probs=None):
    log_probs_T = np.full(len(token_ids), -1.0) if log_probs is None else np.asarray(log_probs)
    return Completion(
        token_ids=tuple(token_ids),
        text="",
        log_probs_T=log_probs_T.astype(np.float32),
        entropy=None,
        finish_reason="length",
    )


def group(prompt_ids, completions, right):
    """A group whose samples are right (1) or wrong (0)."""
    return RolloutGroup(
        puzzle=Puzzle(numbers=(1, 2, 3), target=6),
        prompt_ids=tuple(prompt_ids),
        completions=tuple(completions),
        verdicts=tuple(Verdict.CORRECT if one else Verdict.WRONG_VALUE for one in right),
    )


def random_groups(num_groups=4, group_size=8, seed=0):
    """Prompts of 2 to 7 tokens, responses of 1 to 12 inside the support; one group all wrong, one all right."""
    rng = np.random.default_rng(seed)
    groups = []
    for index in range(num_groups):
        right = rng.integers(2, size=group_size)
        if index < 2:
            right[:] = index
        responses = [rng.integers(3, VOCAB_SIZE, size=rng.integers(1, MAX_TOKENS + 1)) for _ in right]
        prompt = rng.integers(3, VOCAB_SIZE, size=rng.integers(2, 8))
        groups.append(group(prompt.tolist(), [completion(response.tolist()) for response in responses], right))
    return groups


def weights_of(name, groups, **settings):
    return objective_weights(name, rewards(groups), **settings)


class GradientSpy:
    """In an optimizer's place: keeps each step's gradients as they are before clipping; `change` is its step."""

    def __init__(self, model, change=None):
        self.model = model
        self.change = change
        self.steps = []

    def zero_grad(self):
        self.model.zero_grad(set_to_none=True)

    def clip_grad_norm(self, _max_norm):
        self.steps.append({name: weight.grad.clone() for name, weight in self.model.named_parameters()})
        return 1.0

    def proposed_norms(self):
        return 0.0, 1.0

    def step(self):
        if self.change is not None:
            with torch.no_grad():
                self.change(self.model)
        return 0.0


def flat(gradients):
    """All gradients as one float64 vector."""
    return torch.cat([gradient.double().flatten() for gradient in gradients.values()])


def relative_error(actual, expected):
    """L2 norm of the difference over that of what was expected."""
    return float((actual - expected).norm() / expected.norm())
