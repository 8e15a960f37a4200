"""Does the lean decoder compute what the model's own forward computes? Asked once an engine, with a few tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from nsr.models.lean import LeanDecoder
from nsr.sampling.engine import Request, SamplingParams
from nsr.sampling.rows import Rows
from nsr.sampling.steps import LeanSteps, ModelSteps

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
"""Largest deviation that is rounding. In float64 models too norms and rotations are computed in float32."""
HALF_TOLERANCE = 0.1
"""The same in the 16-bit types."""
_PARAMS = SamplingParams(temperature=0, max_tokens=4, seed=0, purpose="check")


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
    rows = Rows(len(requests), _PARAMS)
    for index, request in enumerate(requests):
        rows.add(index, 0, key=request.key, prompt_length=len(request.prompt_ids))
    logits = [steps.enter([(index, 1) for index in range(len(requests))], rows)]
    nothing, no_rows = np.zeros(len(requests)), np.empty(0, dtype=np.int64)
    for first in range(0, len(following), len(requests)):
        rows.append(np.array(following[first : first + len(requests)]), nothing, nothing)
        steps.leave(rows, no_rows, no_rows)
        logits.append(steps.decode(rows))
    return torch.cat([part[:, :vocab_size] for part in logits]).double()
