"""What every engine takes and gives: requests and settings in, completions out. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from nsr.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FinishReason = Literal["stop", "end", "length"]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How completions are drawn. top_p is 1 and there is no top_k: the whole support is sampled.

    Raises:
        ValueError: a setting is out of its range.
    """

    temperature: float
    """Divides the logits. 0 is greedy: the most probable token, every time."""
    max_tokens: int
    """Most tokens of a completion."""
    min_tokens: int = 4
    """Fewest tokens of a completion: the end token is out of the support and the stop string does not stop before."""
    stop: str = "</answer>"
    """Text after which a completion ends, and which it keeps. Empty: none."""
    seed: int
    """Seed of the run."""
    purpose: str
    """What the completions are for ("train", "eval", "greedy", "play"): separate purposes draw separate streams."""
    step: int = 0
    """Training step, part of the random stream's key."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"temperature is {self.temperature}; give 0 (greedy) or a positive number.")
        if self.min_tokens < 0:
            raise UserError(f"min_tokens is {self.min_tokens}; give 0 or more.")
        if self.max_tokens < max(1, self.min_tokens):
            raise UserError(
                f"max_tokens is {self.max_tokens}; give at least {max(1, self.min_tokens)}, "
                f"since min_tokens is {self.min_tokens}."
            )


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt and how many completions of it are wanted."""

    key: str
    """The puzzle's canonical key; with the sample's index it names the random stream, so a request that is made twice
    gets the same completions twice."""
    prompt_ids: tuple[int, ...]
    num_samples: int

    def __post_init__(self) -> None:
        assert self.prompt_ids, "a prompt has at least one token"
        assert self.num_samples >= 1, f"num_samples is {self.num_samples}"


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One sampled response, as sampled: what is trained on is `token_ids`, never the text tokenized again."""

    token_ids: tuple[int, ...]
    """Sampled tokens, the end token among them if it was sampled."""
    text: str
    """`token_ids` decoded with special tokens skipped. After a stop it ends with the stop string."""
    log_probs_T: npt.NDArray[np.float32]
    """Log-probability of each token at the sampling temperature, over the support. 0 when greedy."""
    entropy: float | None
    """Mean over its tokens of the entropy (nats) of the distribution sampled from; None if the engine cannot tell."""
    finish_reason: FinishReason
    """"stop": the stop string; "end": an end token; "length": max_tokens reached without either."""

    @property
    def truncated(self) -> bool:
        """True if the completion was cut off at max_tokens."""
        return self.finish_reason == "length"


class Engine(Protocol):
    """Anything that turns requests into completions under the policy's weights as they are now."""

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        """Completions of each request, `num_samples` of them, in the order of the requests and of the samples."""
        ...

    def load_weights(self, policy: PreTrainedModel) -> None:
        """Take over the policy's weights: the next `generate` samples from them."""
        ...

    def release_memory(self) -> None:
        """Leave the memory of the device to the trainer, as far as possible, until the next `load_weights`."""
        ...
