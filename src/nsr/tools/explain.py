"""What each objective asks of the logits at tokens of a real rollout, written as explain.json.

A group is sampled and graded as in training, every objective weighs it, and at chosen tokens of one right and one wrong
sample the gradient by the logits is worked out twice: by the formula of `nsr.evaluation.mechanism`, and by autograd
through the very loss that is trained. The two must agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nsr.algorithms.objectives import objective_weights
from nsr.algorithms.surrogates import clipped_surrogate, response_log_probs
from nsr.config import BaselineConfig, ExplainConfig
from nsr.errors import UserError
from nsr.evaluation.mechanism import check_gradient, gradient_by_autograd, logit_gradient, probability_gradient
from nsr.evaluation.scoring import response_distributions, response_logits
from nsr.rollout.engine import SamplingParams
from nsr.rollout.rollout import RolloutGroup, rollout
from nsr.rollout.setup import Sampler, build_sampler, check_setup
from nsr.runs.files import write_json
from nsr.tasks.countdown.data import load_splits
from nsr.tasks.countdown.puzzle import Puzzle

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLIP_RANGE = 0.2
LOOKED_AT = 32
"""Puzzles among which one is looked for that has right and wrong samples."""
_AT_A_TIME = 8
_CONTEXT = 40  # characters of the response that are kept from before a token


def explain(config: ExplainConfig) -> Path:
    """Sample, weigh and differentiate as `config` says; returns the file explain.json in its folder.

    Raises:
        ValueError: a setting that does not fit the machine, the model, the data or the samples.
        GradientMismatch: the formula is not the gradient of what is trained.
    """
    out = Path(config.out)
    if blocker := next((path for path in (out, *out.parents) if path.exists() and not path.is_dir()), None):
        raise UserError(f"--out: {blocker} is a file, not a folder: choose another.")
    run = BaselineConfig(
        model_id=config.model_id,
        data=config.data,
        device=config.device,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        seed=config.seed,
        thinking=config.thinking,
    )
    if config.target is not None:
        puzzles: Sequence[Puzzle] = [Puzzle(numbers=config.numbers, target=config.target)]
    else:
        splits = load_splits(config.data, eval_puzzles=LOOKED_AT, seed=config.seed, train_puzzles=0)
        puzzles = splits.evaluation
    sampler = build_sampler(run, check_setup(run, puzzles))
    group = _mixed_group(config, sampler, puzzles)
    record = {
        "model_id": config.model_id,
        "puzzle": group.puzzle.key,
        "temperature": config.temperature,
        "max_tokens": config.max_tokens,
        "seed": config.seed,
        "lambda_psr": config.lambda_psr,
        "objectives": list(config.objectives),
        "verdicts": [verdict.value for verdict in group.verdicts],
        "tokens_by": "position" if config.positions else "entropy",
        "samples": list(_samples(config, sampler, group)),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "explain.json", record)
    return out / "explain.json"


def _mixed_group(config: ExplainConfig, sampler: Sampler, puzzles: Sequence[Puzzle]) -> RolloutGroup:
    """The first group with right and wrong samples, or that of the first puzzle if there is none."""
    params = SamplingParams(
        temperature=config.temperature, max_tokens=config.max_tokens, seed=config.seed, purpose="explain"
    )
    first: RolloutGroup | None = None
    for start in range(0, len(puzzles), _AT_A_TIME):
        chunk = puzzles[start : start + _AT_A_TIME]
        for group in rollout(sampler.engine, sampler.encode, chunk, params, config.group_size):
            first = first or group
            if len(set(group.rewards_G.tolist())) > 1:
                return group
    assert first is not None, "there is at least one puzzle"
    return first


def _samples(config: ExplainConfig, sampler: Sampler, group: RolloutGroup) -> Iterator[dict[str, Any]]:
    """The first right and the first wrong sample, each with its weights and the tokens chosen from it."""
    rewards_PG = group.rewards_G[None]
    weights = {
        name: objective_weights(
            name, rewards_PG, lambda_psr=config.lambda_psr, rng=np.random.default_rng([config.seed])
        )[0]
        for name in config.objectives
    }
    for kind, reward in (("right", 1.0), ("wrong", -1.0)):
        of_kind = np.flatnonzero(group.rewards_G == reward).tolist()
        if not of_kind:
            continue
        index = of_kind[0]
        completion = group.completions[index]
        weight_of = {name: float(weights_G[index]) for name, weights_G in weights.items()}
        yield {
            "kind": kind,
            "sample": index,
            "verdict": group.verdicts[index].value,
            "text": completion.text,
            "num_tokens": len(completion.token_ids),
            "weights": weight_of,
            "tokens": _tokens(config, sampler, group.prompt_ids, completion.token_ids, weight_of),
        }


def _tokens(
    config: ExplainConfig,
    sampler: Sampler,
    prompt_ids: tuple[int, ...],
    token_ids: tuple[int, ...],
    weights: dict[str, float],
) -> list[dict[str, Any]]:
    """What is known of each chosen token: what it was drawn from, and each objective's gradients there."""
    model, support = sampler.policy.model, sampler.support
    entropy_T = torch.cat(
        [
            torch.special.entr(log_probs_NV.exp()).sum(dim=-1).cpu()
            for _, log_probs_NV in response_distributions(model, support, prompt_ids, token_ids, config.temperature)
        ]
    )
    chosen = _positions(config, entropy_T)
    index_N = torch.tensor(chosen, device=model.device)
    logits_NV = response_logits(model, prompt_ids, token_ids)[index_N].float()
    tokens_N = torch.tensor(token_ids, device=model.device)[index_N]
    masked_NV = support.mask_(logits_NV.clone(), index_N)
    log_probs_NV = torch.log_softmax(masked_NV.double() / config.temperature, dim=-1)
    gradients = {name: _gradients(config, sampler, logits_NV, index_N, tokens_N, w) for name, w in weights.items()}
    return [
        {
            "position": position,
            "before": sampler.policy.tokenizer.decode(list(token_ids[:position]))[-_CONTEXT:],
            "entropy": float(entropy_T[position]),
            **_candidates(
                config,
                sampler,
                log_probs_NV[row],
                token_ids[position],
                {name: (trained[row], paper[row]) for name, (trained, paper) in gradients.items()},
            ),
        }
        for row, position in enumerate(chosen)
    ]


def _positions(config: ExplainConfig, entropy_T: Tensor) -> list[int]:
    """Indices of the tokens to show, in their order: those asked for, or those drawn with the most entropy."""
    if not config.positions:
        order = torch.argsort(entropy_T, descending=True, stable=True)
        return sorted(order[: config.num_tokens].tolist())
    if max(config.positions) >= len(entropy_T):
        raise UserError(
            f"--positions has {max(config.positions)} but a sample shown has {len(entropy_T)} tokens: "
            f"give indices from 0 to {len(entropy_T) - 1}."
        )
    return sorted(set(config.positions))


def _gradients(
    config: ExplainConfig, sampler: Sampler, logits_NV: Tensor, index_N: Tensor, tokens_N: Tensor, weight: float
) -> tuple[Tensor, Tensor]:
    """Gradients [N, V] of what is trained, and of the paper's own form, each checked against autograd."""
    weights_N = torch.full_like(tokens_N, weight, dtype=torch.float64)

    def log_probs(raw_NV: Tensor) -> Tensor:
        masked_NV = sampler.support.mask_logits(raw_NV.unsqueeze(0), index_N.unsqueeze(0))
        return response_log_probs(masked_NV, tokens_N.unsqueeze(0), config.temperature).squeeze(0)

    def trained(raw_NV: Tensor) -> Tensor:
        # one token a row, so that each has its own weight; rho is 1, as with one update a rollout batch
        log_probs_N1 = log_probs(raw_NV).unsqueeze(1)
        return clipped_surrogate(log_probs_N1, log_probs_N1.detach(), weights_N.float(), CLIP_RANGE).squeeze(1)

    def paper(raw_NV: Tensor) -> Tensor:
        return weights_N * log_probs(raw_NV).exp()

    masked_NV = sampler.support.mask_(logits_NV.clone(), index_N)
    largest_N = weights_N.abs() / config.temperature
    found: list[Tensor] = []
    for formula, objective in ((logit_gradient, trained), (probability_gradient, paper)):
        gradient_NV = formula(masked_NV, tokens_N, weights_N, config.temperature)
        check_gradient(gradient_NV, gradient_by_autograd(objective, logits_NV), largest_N)
        found.append(gradient_NV)
    return found[0], found[1]


def _candidates(
    config: ExplainConfig,
    sampler: Sampler,
    log_probs_V: Tensor,
    sampled: int,
    gradients: dict[str, tuple[Tensor, Tensor]],
) -> dict[str, Any]:
    """The sampled id, the most probable others, and the sum over all ids that are left."""
    others_V = log_probs_V.clone()
    others_V[sampled] = -math.inf
    count = min(config.alternatives, int(others_V.isfinite().sum()))
    shown = [sampled, *others_V.topk(count).indices.tolist()]
    tail_V = log_probs_V.isfinite()
    tail_V[shown] = False

    def record(probability: float, of: Any) -> dict[str, Any]:
        return {
            "probability": probability,
            "gradients": {name: float(trained[of].sum()) for name, (trained, _) in gradients.items()},
            "paper_gradients": {name: float(paper[of].sum()) for name, (_, paper) in gradients.items()},
        }

    probs_V = log_probs_V.exp()
    return {
        "candidates": [
            {
                "token_id": token_id,
                "text": _token_text(sampler.policy.tokenizer, token_id),
                **record(float(probs_V[token_id]), token_id),
            }
            for token_id in shown
        ],
        "tail": {"ids": int(tail_V.sum()), **record(float(probs_V[tail_V].sum()), tail_V)},
    }


def _token_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """The text of an id, or the tokenizer's own name of it where it is but a part of a character."""
    text = str(tokenizer.decode([token_id]))
    return str(tokenizer.convert_ids_to_tokens(token_id)) if "\ufffd" in text else text
