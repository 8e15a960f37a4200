"""Batch -> a better policy: forward, loss, backward, step.

The trainer's distribution must be the sampler's: same temperature, same support, and no dropout. So the model stays in
evaluation mode, with gradients; were dropout on, rho would not be 1 where nothing has changed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nsr.algorithms.surrogates import clipped_surrogate, is_clipped, reduce_tokens
from nsr.models.fast.attention import without_cudnn_attention
from nsr.models.fast.gated_mlp import lean_mlps
from nsr.models.fast.kernels import fast_linears
from nsr.models.fast.norms import fast_norms
from nsr.models.fast.packing import packed_attention
from nsr.training.batch import Batch, microbatches, packs
from nsr.training.log_probs import can_pack, policy_log_probs, with_old_log_probs
from nsr.training.optimizer import PolicyOptimizer
from nsr.training.spikes import FaultyBatch, RefusedUpdate, check_gradient, check_step

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from nsr.models.sampling_mask import Support


_LARGEST_LOG = 50.0  # of an importance weight: beyond it the batch is lost anyway, and squares stay finite


def update(
    model: PreTrainedModel,
    support: Support,
    optimizer: PolicyOptimizer,
    batches: Sequence[Batch],
    *,
    temperature: float,
    clip_range: float,
    grad_acc_steps: int,
    max_grad_norm: float = 1.0,
    history: Sequence[float] = (),
    exact: bool = False,
) -> dict[str, float]:
    """Train the model on a rollout batch: one optimizer step a mini-batch, none for one without signal.

    Args:
        model: the policy, trained in place. It is left in evaluation mode.
        support: which ids the sampler could sample.
        optimizer: of the model's parameters.
        batches: the mini-batches of the rollout batch. With one, pi_old is the policy itself and rho is 1; with
            several, pi_old is scored once before the first step.
        temperature: that of the sampler.
        clip_range: eps of the clipped surrogate.
        grad_acc_steps: a microbatch has at most as many tokens as (rollouts of all batches) / grad_acc_steps of the
            longest rows that are allowed.
        max_grad_norm: gradients are scaled to this L2 norm at most.
        history: the gradient norms of the steps before, for `check_gradient`.
        exact: compute every prompt with every response, by the model's own layers; see `policy_log_probs`.

    Returns:
        samples_kept: rollouts with a weight. updates_without_signal: mini-batches that had none, for which there was no
        step. signal: 1 if there is any such rollout, else 0: then model and optimizer are untouched, and nothing more
        is reported. Means over the optimizer steps: loss (the objective times -1), grad_norm (L2, before clipping),
        update_norm (see `PolicyOptimizer.step`). Means over the response tokens of the kept rollouts, each as it was
        when it was trained on: kl_to_rollout (k3 estimate of KL(sampler || trainer), nats), clip_fraction (tokens whose
        gradient the clip takes away), entropy_kept (nats). How far the sampler's log-probs are from the policy's before
        the first step: logprob_diff_mean and logprob_diff_max (|difference| of a token, nats), effective_sample_size
        (of the kept rollouts under the weights pi / pi_sampler, as a share: 1 is no mismatch).

    Raises:
        RefusedUpdate: loss, gradient or step must not be taken, as `nsr.training.spikes` has it; before the step.
    """
    max_rows = max(1, sum(batch.num_rollouts for batch in batches) // grad_acc_steps)
    exact = exact or not can_pack(model)
    cut = microbatches if exact else packs
    plan = [cut(batch.to(model.device), max_rows) for batch in batches if not batch.is_empty]
    samples_kept = float(sum(batch.num_rows for batch in batches))
    without_signal = float(sum(batch.is_empty for batch in batches))
    if not plan:
        return {"samples_kept": 0.0, "signal": 0.0, "updates_without_signal": without_signal}
    sums, largest = torch.zeros(6, dtype=torch.float64), 0.0
    steps: list[tuple[float, float, float]] = []
    with _scoring(model), contextlib.nullcontext() if exact else _fast(model):
        if len(plan) > 1:
            plan = [[with_old_log_probs(model, support, part, temperature, exact) for part in parts] for parts in plan]
        for index, parts in enumerate(plan):
            optimizer.zero_grad()
            loss = 0.0
            for part in parts:
                loss_part, sums_part, largest_part = _backward(model, support, part, temperature, clip_range, exact)
                loss += loss_part
                sums += sums_part
                largest = max(largest, largest_part)
            grad_norm = optimizer.clip_grad_norm(max_grad_norm)
            try:
                check_gradient(loss, grad_norm, history, max_grad_norm=max_grad_norm)
                check_step(*optimizer.proposed_norms())
            except RefusedUpdate as refused:
                optimizer.zero_grad()
                kept = [number for number, batch in enumerate(batches) if not batch.is_empty]
                log_probs = tuple(_log_probs_if_any(model, support, part, temperature, exact) for part in parts)
                numbers = {"loss": loss, "grad_norm": grad_norm}
                refused.batch = FaultyBatch(index=kept[index], rows=tuple(parts), log_probs=log_probs, numbers=numbers)
                raise
            steps.append((loss, grad_norm, optimizer.step()))
    loss, grad_norm, update_norm = (math.fsum(column) / len(steps) for column in zip(*steps, strict=True))
    tokens = sum(int(batch.response_mask_BT.sum()) for batch in batches)
    kl, clipped, entropy, difference = (sums[:4] / tokens).tolist()
    importance, squared = sums[4:].tolist()
    return {
        "loss": loss,
        "grad_norm": grad_norm,
        "update_norm": update_norm,
        "kl_to_rollout": kl,
        "clip_fraction": clipped,
        "entropy_kept": entropy,
        "logprob_diff_mean": difference,
        "logprob_diff_max": largest,
        "effective_sample_size": importance**2 / squared / samples_kept,
        "samples_kept": samples_kept,
        "signal": 1.0,
        "updates_without_signal": without_signal,
    }


def recompute_activations(model: PreTrainedModel) -> None:
    """Let layers recompute their activations in the backward pass: about a third more work, a fraction of the memory.

    `update` knows how to keep dropout off meanwhile.
    """
    # transformers 5 has renamed it
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


@torch.no_grad()
def _log_probs_if_any(
    model: PreTrainedModel, support: Support, batch: Batch, temperature: float, exact: bool
) -> Tensor:
    """The model's log-probs; NaN where a model that is broken enough to fail has none."""
    try:
        return policy_log_probs(model, support, batch, temperature, exact=exact)[0]
    except (RuntimeError, ValueError):
        return torch.full_like(batch.sampler_log_probs_BT, math.nan)


def _backward(
    model: PreTrainedModel, support: Support, batch: Batch, temperature: float, clip_range: float, exact: bool
) -> tuple[float, Tensor, float]:
    """Add a microbatch's gradient.

    Returns its part of the loss; sums over its tokens (KL, clipped, entropy, |difference of log-probs|) and over its
    rows (importance weights, their squares); the largest difference.
    """
    log_probs_BT, entropy_BT = policy_log_probs(model, support, batch, temperature, exact=exact)
    now_BT = log_probs_BT.detach()
    old_BT = now_BT if batch.old_log_probs_BT is None else batch.old_log_probs_BT
    objective = reduce_tokens(
        clipped_surrogate(log_probs_BT, old_BT, batch.weights_B, clip_range),
        batch.response_mask_BT,
        batch.loss_type,
        denominator=batch.denominator,
        max_tokens=batch.max_tokens,
    )
    (-objective).backward()
    mask_BT = batch.response_mask_BT
    log_ratio_BT = now_BT - batch.sampler_log_probs_BT
    kl_BT = torch.expm1(log_ratio_BT) - log_ratio_BT  # k3: never negative, http://joschu.net/blog/kl-approx.html
    clipped_BT = is_clipped(now_BT, old_BT, batch.weights_B, clip_range)
    mismatch_BT = torch.where(mask_BT, old_BT - batch.sampler_log_probs_BT, 0.0)
    log_importance_B = mismatch_BT.double().sum(dim=1).clamp(-_LARGEST_LOG, _LARGEST_LOG)
    sums = torch.stack(
        [values_BT[mask_BT].double().sum() for values_BT in (kl_BT, clipped_BT, entropy_BT, mismatch_BT.abs())]
        + [(power * log_importance_B).exp().sum() for power in (1, 2)]
    )
    return -objective.item(), sums.cpu(), mismatch_BT.abs().max().item()


@contextlib.contextmanager
def _fast(model: PreTrainedModel) -> Generator[None]:
    """Packed sequences, in the backward pass too, the quicker kernels, and less that is kept.

    `lean_mlps` comes before `fast_linears`: it leaves alone what has another forward already.
    """
    with packed_attention(model), without_cudnn_attention(), lean_mlps(model), fast_linears(model), fast_norms(model):
        yield


@contextlib.contextmanager
def _scoring(model: PreTrainedModel) -> Generator[None]:
    """No dropout. Layers that recompute do so in training mode alone: they are put in it, not their parts."""
    model.eval()
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
    try:
        yield
    finally:
        model.eval()  # the sampler's cache does not go with recomputation
