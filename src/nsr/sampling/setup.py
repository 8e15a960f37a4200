"""Everything that sampling from a model on a set of puzzles needs, made from the settings of a run and checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import AutoConfig

from nsr.config import MIN_TOKENS, RunConfig
from nsr.models.catalog import LoadedPolicy, load_policy, prompt_encoder
from nsr.runs.preflight import check_context, check_device
from nsr.sampling.engine import Engine
from nsr.sampling.local import LocalEngine
from nsr.sampling.support import Support
from nsr.task.data import Splits
from nsr.task.puzzle import Puzzle


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A policy, the engine that samples from it, and how a puzzle becomes a prompt."""

    policy: LoadedPolicy
    engine: Engine
    support: Support
    encode: Callable[[Puzzle], tuple[int, ...]]
    prompt_tokens: int
    """Length of the longest prompt."""
