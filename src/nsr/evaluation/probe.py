"""A fixed set of the base policy's own samples, and what training does to the probability of their tokens.

The samples are drawn once, before the first step, on evaluation puzzles, and kept with what the base policy gave to
their tokens. At each evaluation the policy as it is now scores the same tokens. For right and for wrong samples apart
this tells what became of the sampled token, of the rest of the base's top 5, and of the tail: where the mass went.

The divergence from the base is over other samples: the first of each puzzle, right or wrong, since samples selected by
their verdict would bias it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from nsr.errors import UserError
from nsr.evaluation.scoring import response_distributions
from nsr.models.sampling_mask import Support
from nsr.rollout.engine import Engine, SamplingParams
from nsr.rollout.rollout import rollout
from nsr.tasks.countdown.puzzle import Puzzle

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Array = NDArray[np.float64]

NUM_PUZZLES = 64
"""Evaluation puzzles that the probe draws from, as far as there are so many."""
SAMPLES_A_PUZZLE = 4
SET_SIZE = 32
"""Most right samples, and most wrong ones, that are selected."""
TOP = 5
"""Ids with most probability that are looked at by name; all others are the tail."""
_NO_SAMPLE, _ADVICE = "a line of probe.jsonl.gz is no sample of a probe", "delete the file to go on without a probe"
_DECIMALS = 6  # of log-probs in the file, and in memory: a run that is taken up measures against the same base


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeSample:
    """A sample of the base policy, with what the base gave to its tokens: `T` tokens, `K` ids at the top of each."""

    puzzle: str
    """The puzzle's canonical key."""
    sample: int
    """0, 1, ... within the puzzle; with the key it names the random stream."""
    right: bool
    selected: bool
    """One of the right or wrong samples that are compared."""
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    log_probs_T: Array
    """Of the sampled tokens, in nats, at the sampling temperature and over the support."""
    top_ids_TK: NDArray[np.int64]
    """The ids with most probability, the largest first."""
    top_log_probs_TK: Array

    @property
    def unselected(self) -> bool:
        """Whether it is one of the samples that were kept whatever their verdict: the first of each puzzle."""
        return self.sample == 0

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` makes the same sample of them."""
        return {
            "puzzle": self.puzzle,
            "sample": self.sample,
            "right": self.right,
            "selected": self.selected,
            "prompt_ids": self.prompt_ids,
            "token_ids": self.token_ids,
            "log_probs": self.log_probs_T.tolist(),
            "top_ids": self.top_ids_TK.tolist(),
            "top_log_probs": self.top_log_probs_TK.tolist(),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ProbeSample:
        """The sample that `to_json` wrote. Raises ValueError where `record` is none."""
        try:
            made = cls(
                **{name: record[name] for name in ("puzzle", "sample", "right", "selected")},
                prompt_ids=tuple(record["prompt_ids"]),
                token_ids=tuple(record["token_ids"]),
                log_probs_T=np.array(record["log_probs"], dtype=np.float64),
                top_ids_TK=np.array(record["top_ids"], dtype=np.int64),
                top_log_probs_TK=np.array(record["top_log_probs"], dtype=np.float64),
            )
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise UserError(f"{_NO_SAMPLE} of this version of nsr ({error!r}): {_ADVICE}.") from error
        if made.log_probs_T.ndim != 1 or made.top_ids_TK.ndim != 2 or made.top_log_probs_TK.ndim != 2:
            raise UserError(f"{_NO_SAMPLE}, since its lists are nested otherwise: {_ADVICE}.")
        if not len(made.token_ids) == len(made.log_probs_T) == len(made.top_ids_TK) == len(made.top_log_probs_TK):
            raise UserError(f"{_NO_SAMPLE}, since its lists differ in length: {_ADVICE}.")
        if not made._is_sound():
            raise UserError(f"{_NO_SAMPLE}, since a value is none that a run writes: {_ADVICE}.")
        return made

    def _is_sound(self) -> bool:
        """Whether ids are ids and log-probs are numbers, with as many at the top of each token as there must be."""
        ids = (*self.prompt_ids, *self.token_ids)
        return (
            type(self.right) is type(self.selected) is bool
            and bool(self.prompt_ids and self.token_ids)
            and all(type(token_id) is int and token_id >= 0 for token_id in ids)
            and self.top_ids_TK.shape == self.top_log_probs_TK.shape
            and bool((self.top_ids_TK >= 0).all())
            and bool(np.isfinite(self.log_probs_T).all() and not np.isnan(self.top_log_probs_TK).any())
        )


def draw_probe(
    engine: Engine,
    encode: Callable[[Puzzle], tuple[int, ...]],
    model: PreTrainedModel,
    support: Support,
    puzzles: Sequence[Puzzle],
    *,
    temperature: float,
    max_tokens: int,
    seed: int,
) -> list[ProbeSample]:
    """Draw samples from the policy as it is, keep some, and score them.

    Kept are the first sample of each puzzle, and up to `SET_SIZE` right and `SET_SIZE` wrong ones, of as many different
    puzzles as can be (`spread`). The random streams are the probe's own, so a run samples the same with it or without.

    Args:
        engine: samples from `model`'s weights.
        encode: prompt of a puzzle as token ids.
        model: the policy before its first step.
        support: which ids it may sample.
        puzzles: those of the evaluation, which are never trained on; the first `NUM_PUZZLES` are used.
        temperature: of the samples and of all log-probs.
        max_tokens: longest response.
        seed: of the run.
    """
    params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed, purpose="probe")
    groups = rollout(engine, encode, puzzles[:NUM_PUZZLES], params, SAMPLES_A_PUZZLE)
    places = [(index, group) for index in range(SAMPLES_A_PUZZLE) for group in groups]
    right = [bool(group.rewards_G[index] > 0) for index, group in places]
    selected: set[int] = set()
    for kind in (True, False):
        of_kind = [number for number, one in enumerate(right) if one is kind]
        order = spread([places[number][1].puzzle.key for number in of_kind])
        selected.update(of_kind[number] for number in order[:SET_SIZE])
    samples: list[ProbeSample] = []
    for number, (index, group) in enumerate(places):
        if number in selected or index == 0:
            token_ids = group.completions[index].token_ids
            base = _base_of(model, support, group.prompt_ids, token_ids, temperature)
            samples.append(
                ProbeSample(
                    puzzle=group.puzzle.key,
                    sample=index,
                    right=right[number],
                    selected=number in selected,
                    prompt_ids=group.prompt_ids,
                    token_ids=token_ids,
                    log_probs_T=base[0],
                    top_ids_TK=base[1],
                    top_log_probs_TK=base[2],
                )
            )
    return samples


def spread(keys: Sequence[str]) -> list[int]:
    """An order in which each key comes once before any comes twice, otherwise as given."""
    seen: Counter[str] = Counter()
    ranks: list[int] = []
    for key in keys:
        ranks.append(seen[key])
        seen[key] += 1
    return sorted(range(len(keys)), key=lambda number: ranks[number])


def measure_probe(
    samples: Sequence[ProbeSample], model: PreTrainedModel, support: Support, temperature: float
) -> dict[str, Any]:
    """What the policy as it is now gives to the probe's tokens, beside what the base gave.

    Returns:
        "right" and "wrong": a record of each set of selected samples (see `_set_record`), None where it is empty.
        "kl_base": KL(base || policy) in nats a token, over the unselected samples. With r = policy / base it is the
        expectation under the base of r - 1 - log r at each position (the k3 estimate, http://joschu.net/blog/kl-approx.html):
        the base's top 5 ids are summed exactly, and the sampled token stands for all others, where it is one of them.
        So it is unbiased, never negative, and needs no whole distribution of the base.
    """
    tokens: dict[str, list[Array]] = {"right": [], "wrong": []}
    divergence: list[Array] = []
    for sample in samples:
        now_T, top_now_TK = _now(sample, model, support, temperature)
        if sample.selected:
            tokens["right" if sample.right else "wrong"].append(_masses(sample, now_T, top_now_TK))
        if sample.unselected:
            divergence.append(_divergence(sample, now_T, top_now_TK))
    return {
        **{name: _set_record(pairs) if pairs else None for name, pairs in tokens.items()},
        "kl_base": _mean(np.concatenate(divergence)),
    }


def _base_of(
    model: PreTrainedModel,
    support: Support,
    prompt_ids: tuple[int, ...],
    token_ids: tuple[int, ...],
    temperature: float,
) -> tuple[Array, NDArray[np.int64], Array]:
    """log_probs_T, top_ids_TK and top_log_probs_TK of a response, rounded as they are written."""
    count = min(TOP, support.vocab_size - len(support.end_token_ids))
    ids: list[NDArray[np.int64]] = []
    values: list[Array] = []
    for piece, log_probs_NV in response_distributions(model, support, prompt_ids, token_ids, temperature):
        sampled_N1 = torch.tensor(token_ids[piece], device=log_probs_NV.device).unsqueeze(-1)
        top_NK = log_probs_NV.topk(count, dim=-1).indices
        ids.append(top_NK.cpu().numpy())
        values.append(_gathered(log_probs_NV, torch.cat([sampled_N1, top_NK], dim=-1)))
    rounded = np.round(np.concatenate(values), _DECIMALS)
    return rounded[:, 0], np.concatenate(ids), rounded[:, 1:]


def _now(sample: ProbeSample, model: PreTrainedModel, support: Support, temperature: float) -> tuple[Array, Array]:
    """Log-probs of the sample's tokens [T] and of the base's top ids [T, K] under the policy, rounded as the base's."""
    wanted_TK = torch.from_numpy(np.column_stack([np.array(sample.token_ids), sample.top_ids_TK]))
    values = [
        _gathered(log_probs_NV, wanted_TK[piece].to(log_probs_NV.device))
        for piece, log_probs_NV in response_distributions(
            model, support, sample.prompt_ids, sample.token_ids, temperature
        )
    ]
    rounded = np.round(np.concatenate(values), _DECIMALS)
    return rounded[:, 0], rounded[:, 1:]


def _gathered(log_probs_NV: torch.Tensor, ids_NK: torch.Tensor) -> Array:
    return log_probs_NV.gather(-1, ids_NK).double().cpu().numpy()


def _split(sample: ProbeSample, log_probs_T: Array, top_log_probs_TK: Array) -> Array:
    """Mass [T, 3] on the sampled token, on the rest of the base's top, and on the tail."""
    sampled_T = np.exp(log_probs_T)
    others_TK = sample.top_ids_TK != np.array(sample.token_ids)[:, None]
    rest_T = np.where(others_TK, np.exp(top_log_probs_TK), 0.0).sum(axis=1)
    return np.stack([sampled_T, rest_T, np.maximum(1.0 - sampled_T - rest_T, 0.0)], axis=1)


def _masses(sample: ProbeSample, now_T: Array, top_now_TK: Array) -> Array:
    """[T, 8]: log-prob and the three masses of `_split`, under the base and then under the policy."""
    before_T3 = _split(sample, sample.log_probs_T, sample.top_log_probs_TK)
    return np.column_stack([sample.log_probs_T, before_T3, now_T, _split(sample, now_T, top_now_TK)])


def _set_record(masses: Sequence[Array]) -> dict[str, Any]:
    """Means over all tokens of a set of samples: log-prob (nats) and masses now, and their changes since the base."""
    names = ("log_prob", "sampled", "top", "tail")
    columns = np.concatenate(masses).T
    before, now = ([_mean(column) for column in half] for half in (columns[:4], columns[4:]))
    return {
        "samples": len(masses),
        "tokens": columns.shape[1],
        **dict(zip(names, now, strict=True)),
        **{f"{name}_change": new - old for name, old, new in zip(names, before, now, strict=True)},
    }


def _divergence(sample: ProbeSample, now_T: Array, top_now_TK: Array) -> Array:
    """An estimate of KL(base || policy) at each position, from the base's top ids and the sampled token."""
    in_top_T = (sample.top_ids_TK == np.array(sample.token_ids)[:, None]).any(axis=1)
    top_T = (np.exp(sample.top_log_probs_TK) * _k3(top_now_TK - sample.top_log_probs_TK)).sum(axis=1)
    return top_T + np.where(in_top_T, 0.0, _k3(now_T - sample.log_probs_T))


def _k3(log_ratio: Array) -> Array:
    return np.expm1(log_ratio) - log_ratio


def _mean(values: Array) -> float:
    return math.fsum(values.tolist()) / len(values)


def tracked(record: Mapping[str, Any]) -> dict[str, float]:
    """What trackers show of a record of `measure_probe`."""
    changes = {
        f"mechanism/{kind}_{name}": value
        for kind in ("right", "wrong")
        for name, value in (record[kind] or {}).items()
        if name.endswith("_change")
    }
    return {**changes, "mechanism/kl_base": record["kl_base"]}
