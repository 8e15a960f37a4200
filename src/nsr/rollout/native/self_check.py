"""Does the lean decoder compute what the model's own forward computes? Asked once an engine, with a few tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from nsr.models.fast.attention import without_cudnn_attention
from nsr.models.fast.decode_model import LeanDecoder
from nsr.rollout.engine import Request
from nsr.rollout.native.blocks import COLUMNS, ColumnAttention, prefill, width_of
from nsr.rollout.native.prefix_groups import Nodes
from nsr.rollout.native.steps import LeanSteps, ModelSteps

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
"""Largest deviation that is rounding. In float64 models too norms and rotations are computed in float32."""
HALF_TOLERANCE = 0.1
"""The same in the 16-bit types."""


def deviation(model: PreTrainedModel, decoder: LeanDecoder, vocab_size: int, *, in_blocks: bool) -> float:
    """Mean |difference| of the lean decoder's logits from the model's, relative to how far these are spread.

    Two prompts of different lengths and two more tokens of each, with the attention that sampling will have. nan where
    the logits are not finite.
    """
    ids = [int(token) for token in np.linspace(0, vocab_size - 1, 9)]
    requests = [
        Request(key=str(n), prompt_ids=tuple(part), num_samples=1) for n, part in enumerate((ids[:4], ids[4:5]))
    ]
    expected = _logits(ModelSteps(model, requests, 2, 4), requests, ids[5:], vocab_size)
    if in_blocks:
        found = _logits_in_columns(model, decoder, requests, ids[5:])
    else:
        found = _logits(LeanSteps(model, requests, 2, 4, decoder), requests, ids[5:], vocab_size)
    return float((found - expected).abs().mean() / (expected - expected.mean(dim=-1, keepdim=True)).abs().mean())


def is_rounding(found: float, dtype: torch.dtype) -> bool:
    """Whether a deviation is no more than what rounding makes; that of logits that are not finite says nothing."""
    return not found > TOLERANCE.get(dtype, HALF_TOLERANCE)


def _logits(steps: ModelSteps, requests: list[Request], following: list[int], vocab_size: int) -> Tensor:
    nodes = Nodes(len(requests))
    node_B = np.concatenate([nodes.add(index, 1, len(request.prompt_ids)) for index, request in enumerate(requests)])
    logits = [steps.enter([(index, 1) for index in range(len(requests))], nodes)]
    for first in range(0, len(following), len(requests)):
        steps.advance(nodes, nodes.advance(node_B, np.array(following[first : first + len(requests)])))
        logits.append(steps.decode(nodes))
    return torch.cat([part[:, :vocab_size] for part in logits]).double()


def _logits_in_columns(
    model: PreTrainedModel, decoder: LeanDecoder, requests: list[Request], following: list[int]
) -> Tensor:
    """The same of what samples in blocks, in shapes that it has."""
    prompts, device = [request.prompt_ids for request in requests], decoder.device
    rows, width = len(requests), width_of(len(requests))
    idle = [0] * (width - rows)
    attention = ColumnAttention(decoder, width, COLUMNS)
    cached_B = torch.tensor([len(prompt) - 1 for prompt in prompts] + idle, device=device)
    logits: list[Tensor] = []
    with without_cudnn_attention():
        attention.place(prefill(model, [prompt[:-1] for prompt in prompts]), torch.arange(rows, device=device), 0)
        for first in range(-rows, len(following), rows):
            newest = [prompt[-1] for prompt in prompts] if first < 0 else following[first : first + rows]
            attention.begin(cached_B, COLUMNS)
            logits.append(decoder.step(torch.tensor(newest + idle, device=device), cached_B, attention)[:rows])
            cached_B = cached_B + 1
    return torch.cat(logits).double()
