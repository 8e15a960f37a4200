"""rewards_PG -> weights_PG: all that tells one objective from another. numpy only.

A weight multiplies the log-probability of a sampled response: above 0 the response is made likelier, below 0 less
likely, at 0 it teaches nothing. `P` puzzles, `G` samples in a group; a group is a row.

To add an objective, register a function from rewards to weights; its name then works everywhere a name is taken:

    @objective("HALVED")
    def halved(rewards_PG: Rewards, setting: Setting) -> Weights:
        \"\"\"Learn from all samples, half as much from the right ones.\"\"\"
        values_PG = setting.normalize(rewards_PG)
        return np.where(rewards_PG > 0, 0.5 * values_PG, values_PG)

`setting.normalize` is the group-normalized advantage or nothing, as `advantage` says. Normalize first and filter after:
what is left of a group once it is filtered has no contrast, and normalizing it makes every weight 0.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from nsr.config import Advantage
from nsr.errors import UserError

Rewards: TypeAlias = npt.NDArray[np.float64]
"""[P, G], each +1 (right) or -1 (wrong)."""
Weights: TypeAlias = npt.NDArray[np.float64]
"""[P, G], any sign."""
Weigh: TypeAlias = Callable[["Rewards", "Setting"], Weights]
"""From rewards to weights: what an objective is."""

EPSILON = 1e-4
"""Added to a group's standard deviation, as in the paper's code."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What an objective is given beside the rewards."""

    normalize: Callable[[Rewards], Weights]
    """`group_advantage`, or the rewards unchanged."""
    lambda_psr: float
    """Weight of right samples, between 0 and 1 (W_REINFORCE)."""
    generator: np.random.Generator | None
    """Random numbers, if the caller gave any; objectives ask for `rng`."""

    @property
    def rng(self) -> np.random.Generator:
        """Random numbers; ValueError if the caller gave none."""
        if self.generator is None:
            raise UserError("this objective draws random numbers: give rng, such as np.random.default_rng(seed).")
        return self.generator


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A registered objective."""

    name: str
    advantage: Advantage
    """What `normalize` does where the caller does not say."""
    weigh: Weigh

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (self.weigh.__doc__ or "").strip().partition("\n")[0]


OBJECTIVES: dict[str, Objective] = {}
"""Every registered objective by its name."""


def objective(name: str, *, advantage: Advantage = "none") -> Callable[[Weigh], Weigh]:
    """Register the decorated function as an objective. ValueError if the name is taken.

    Args:
        name: what it is called in settings, in capitals.
        advantage: what `setting.normalize` does by default: "group" is the group-normalized advantage, "none" nothing.
    """
    if name in OBJECTIVES:
        raise UserError(f"an objective named {name!r} is already registered; choose another name.")

    def register(weigh: Weigh) -> Weigh:
        OBJECTIVES[name] = Objective(name=name, advantage=advantage, weigh=weigh)
        return weigh

    return register


def find_objective(name: str) -> Objective:
    """The objective of that name. ValueError, with the nearest name, if there is none."""
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    nearest = difflib.get_close_matches(name.upper(), OBJECTIVES, n=1, cutoff=0.0)[0]
    raise UserError(f"objective is {name!r} but must be one of {', '.join(OBJECTIVES)}: did you mean {nearest}?")


def objective_weights(
    name: str,
    rewards_PG: npt.ArrayLike,
    lambda_psr: float = 0.1,
    advantage: Advantage | None = None,
    rng: np.random.Generator | None = None,
) -> Weights:
    """Weights of all samples of a rollout batch under an objective (arXiv 2506.01347, sections 2 and 5).

    Args:
        name: a name in `OBJECTIVES`.
        rewards_PG: [P, G], +1 for a right sample and -1 for a wrong one.
        lambda_psr: weight of right samples under W_REINFORCE, between 0 and 1.
        advantage: "group" takes the group-normalized advantage in place of the rewards, "none" does not; None is the
            objective's own default ("group" for RLVR and SHUFFLED, else "none"). Signs are always those of the rewards.
        rng: random numbers, for objectives that draw some (SHUFFLED).

    Returns:
        weights_PG: float64 [P, G].

    Raises:
        ValueError: an unknown name, rewards of another shape or value, lambda out of range, or random numbers missing.
    """
    chosen = find_objective(name)
    rewards_PG = _checked_rewards(rewards_PG)
    if not 0.0 <= lambda_psr <= 1.0:
        raise UserError(f"lambda_psr is {lambda_psr} but must be between 0 and 1: the study uses 0.1.")
    advantage = chosen.advantage if advantage is None else advantage
    if advantage not in get_args(Advantage):
        raise UserError(f"advantage is {advantage!r} but must be 'none', 'group' or None (the objective's default).")
    normalize = group_advantage if advantage == "group" else _unchanged
    weights_PG = chosen.weigh(rewards_PG, Setting(normalize=normalize, lambda_psr=lambda_psr, generator=rng))
    assert weights_PG.shape == rewards_PG.shape, (name, weights_PG.shape, rewards_PG.shape)
    assert np.isfinite(weights_PG).all(), name
    return weights_PG


def group_advantage(rewards_PG: npt.ArrayLike) -> Weights:
    """(r - group mean) / (group std + 1e-4), population std: 0 throughout a group that is all right or all wrong."""
    rewards_PG = np.asarray(rewards_PG, dtype=np.float64)
    centred_PG = rewards_PG - rewards_PG.mean(axis=1, keepdims=True)
    return centred_PG / (rewards_PG.std(axis=1, keepdims=True) + EPSILON)


def has_signal(weights_PG: npt.ArrayLike) -> bool:
    """True if any weight is not 0. Without signal there is nothing to learn from, and no step to take."""
    return bool(np.any(np.asarray(weights_PG) != 0.0))


@objective("RLVR", advantage="group")
def rlvr(rewards_PG: Rewards, setting: Setting) -> Weights:
    """Learn from right and wrong samples by their advantage within the group."""
    return setting.normalize(rewards_PG)


@objective("PSR")
def psr(rewards_PG: Rewards, setting: Setting) -> Weights:
    """Learn from right samples alone."""
    return np.where(rewards_PG > 0, setting.normalize(rewards_PG), 0.0)


@objective("NSR")
def nsr(rewards_PG: Rewards, setting: Setting) -> Weights:
    """Learn from wrong samples alone."""
    return np.where(rewards_PG < 0, setting.normalize(rewards_PG), 0.0)


@objective("W_REINFORCE")
def w_reinforce(rewards_PG: Rewards, setting: Setting) -> Weights:
    """Learn from wrong samples in full and from right samples lambda times as much."""
    values_PG = setting.normalize(rewards_PG)
    return np.where(rewards_PG > 0, setting.lambda_psr * values_PG, values_PG)


@objective("SHUFFLED", advantage="group")
def shuffled(rewards_PG: Rewards, setting: Setting) -> Weights:
    """Control: RLVR on rewards permuted over the whole batch, so that labels tell nothing."""
    return setting.normalize(setting.rng.permutation(rewards_PG.ravel()).reshape(rewards_PG.shape))


@objective("RLOO")
def rloo(rewards_PG: Rewards, setting: Setting) -> Weights:
    """Learn from right and wrong samples by their distance to the mean of the group's others (arXiv 2402.14740)."""
    values_PG = setting.normalize(rewards_PG)
    others = values_PG.shape[1] - 1
    if others == 0:
        raise UserError("RLOO compares a sample with the others of its group; give groups of at least 2 samples.")
    return values_PG - (values_PG.sum(axis=1, keepdims=True) - values_PG) / others


def _unchanged(rewards_PG: Rewards) -> Weights:
    return rewards_PG.copy()


def _checked_rewards(given: npt.ArrayLike) -> Rewards:
    rewards_PG = np.asarray(given, dtype=np.float64)
    if rewards_PG.ndim != 2 or rewards_PG.size == 0:
        raise UserError(f"rewards have shape {rewards_PG.shape} but must be [puzzles, samples], at least one of each.")
    strange = rewards_PG[np.abs(rewards_PG) != 1.0]  # NaN is not 1 either
    if strange.size:
        raise UserError(f"a reward is {strange[0]:g} but must be +1 (right) or -1 (wrong).")
    return rewards_PG
