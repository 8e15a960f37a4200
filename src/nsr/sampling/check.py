"""Does the lean decoder compute what the model's own forward computes? Asked once an engine, with a few tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from nsr.models.lean import LeanDecoder
from nsr.sampling.engine import Request
from nsr.sampling.nodes import Nodes
from nsr.sampling.steps import LeanSteps, ModelSteps

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
"""Largest deviation that is rounding. In float64 models too norms and rotations are computed in float32."""
HALF_TOLERANCE = 0.1
"""The same in the 16-bit types."""


def deviation(model: PreTrainedModel, decoder: LeanDecoder, vocab_size: int) -> float:
    """Mean |difference| of the lean decoder's logits from the model's, relative to how far these are spread.

    Two prompts of different lengths and two more tokens of each. nan where the logits are not finite.
    """
    ids = [int(token) for token in np.linspace(0, vocab_size - 1, 9)]
    requests = [
        Request(key=str(n), prompt_ids=tuple(part), num_samples=1) for n, part in enumerate((ids[:4], ids[4:5]))
    ]
    paths = [ModelSteps(model, requests, 2, 4), LeanSteps(model, requests, 2, 4, decoder)]
    expected, found = (_logits(steps, requests, ids[5:], vocab_size) for steps in paths)
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
