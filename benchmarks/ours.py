"""nsr's part: sampling by both engines, learning, and a whole step as `nsr.training.loop` takes it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.flops import learning_operations
from benchmarks.step_profile import Clock, timed
from benchmarks.work import LEARNING_RATE, MAX_GRAD_NORM, TEMPERATURE, Subject, Work, load
from benchmarks.worker import Turns
from nsr.algorithms.objectives import objective_weights
from nsr.memory.estimate import ModelShape, sampling_batch
from nsr.models.registry import special_token_ids
from nsr.rollout.engine import Engine, Request, SamplingParams
from nsr.rollout.native.engine import LocalEngine
from nsr.rollout.rollout import RolloutGroup, rewards, rollout
from nsr.training.batch import Batch, build_batch
from nsr.training.optimizer import PolicyOptimizer, build_optimizer
from nsr.training.step import update

OBJECTIVE = "W_REINFORCE"
"""Right and wrong samples both have a weight: every sample is learned from, whatever the model answers."""


def sample_local(work: Work, turns: Turns) -> None:
    """The local engine."""
    turns.before_model()
    subject = load(work)
    _sample(work, turns, subject, local_engine(work, subject))


def sample_vllm(work: Work, turns: Turns) -> None:
    """vLLM as nsr's engine."""
    turns.before_model()
    subject = load(work)
    _sample(work, turns, subject, vllm_engine(work, subject))


def _sample(work: Work, turns: Turns, subject: Subject, engine: Engine) -> None:
    requests = [
        Request(key=puzzle.key, prompt_ids=subject.encode(puzzle), num_samples=work.group_size)
        for puzzle in subject.puzzles
    ]
    turns.ready()
    step = 0
    while turns.begin():
        step += 1
        groups = engine.generate(requests, sampling_params(work, step))
        turns.end(tokens=sum(len(completion.token_ids) for group in groups for completion in group))
        engine.release_memory()
        engine.load_weights(subject.policy.model)  # as between two steps: nothing computed from the weights is kept


def learn(work: Work, turns: Turns) -> None:
    """Learning from the same rollouts, over and over."""
    turns.before_model()
    subject = load(work)
    engine = local_engine(work, subject)
    groups = rollout(engine, subject.encode, subject.puzzles, sampling_params(work, 1), work.group_size)
    engine.release_memory()
    optimizer = build_optimizer(subject.policy.model, lr=LEARNING_RATE, kind="adamw")
    prompt_lengths = [len(ids) for ids in subject.prompt_ids()]
    shape = ModelShape.from_config(subject.policy.model.config.get_text_config())
    operations = learning_operations(
        shape, prompt_lengths, work.group_size, work.tokens, vocabulary=subject.support.vocab_size
    )
    turns.ready()
    while turns.begin():
        learn_from(work, subject, optimizer, groups)
        turns.end(tokens=work.response_tokens, operations=operations)


def step(work: Work, turns: Turns) -> None:
    """A whole step with the local engine."""
    turns.before_model()
    subject = load(work)
    _steps(work, turns, subject, local_engine(work, subject))


def step_as_in_a_run(work: Work, turns: Turns) -> None:
    """A whole step whose responses end by themselves."""
    step(dataclasses.replace(work, ends=True), turns)


def profile(work: Work, turns: Turns) -> None:
    """A whole step with the local engine; each turn reports where its time went, as "in NAME"."""
    turns.before_model()
    subject = load(work)
    engine = local_engine(work, subject)
    optimizer = build_optimizer(subject.policy.model, lr=LEARNING_RATE, kind="adamw")
    clock = Clock(_now_on(work.device))
    turns.ready()
    number = 0
    with timed(clock):
        while turns.begin():
            number += 1
            clock.read()
            measures = take_step(work, subject, engine, optimizer, number)
            turns.end(**measures, **{f"in {name}": value for name, value in clock.read().items()})


def _now_on(device: str) -> Callable[[], float]:
    if not device.startswith("cuda"):
        return time.perf_counter

    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return now


def step_vllm(work: Work, turns: Turns) -> None:
    """A whole step with vLLM as engine."""
    turns.before_model()
    subject = load(work)
    _steps(work, turns, subject, vllm_engine(work, subject))


def _steps(work: Work, turns: Turns, subject: Subject, engine: Engine) -> None:
    optimizer = build_optimizer(subject.policy.model, lr=LEARNING_RATE, kind="adamw")
    turns.ready()
    number = 0
    while turns.begin():
        number += 1
        turns.end(**take_step(work, subject, engine, optimizer, number))


def take_step(
    work: Work, subject: Subject, engine: Engine, optimizer: PolicyOptimizer, number: int
) -> dict[str, float]:
    """A step as `nsr.training.loop` takes it; returns its sampled tokens, and the seconds of its two halves."""
    start = time.perf_counter()
    groups = rollout(engine, subject.encode, subject.puzzles, sampling_params(work, number), work.group_size)
    sampled = time.perf_counter()
    engine.release_memory()
    learn_from(work, subject, optimizer, groups)
    engine.load_weights(subject.policy.model)
    return {
        "tokens": sum(len(completion.token_ids) for group in groups for completion in group.completions),
        "sampling_seconds": sampled - start,
        "learning_seconds": time.perf_counter() - sampled,
    }


def learn_from(
    work: Work, subject: Subject, optimizer: PolicyOptimizer, groups: Sequence[RolloutGroup]
) -> dict[str, float]:
    """One update with the rollouts; returns what `update` reports."""
    return update(
        subject.policy.model,
        subject.support,
        optimizer,
        [batch_of(work, subject, groups)],
        temperature=TEMPERATURE,
        clip_range=0.2,
        grad_acc_steps=work.grad_acc_steps,
        max_grad_norm=MAX_GRAD_NORM,
        exact=work.exact,
    )


def batch_of(work: Work, subject: Subject, groups: Sequence[RolloutGroup]) -> Batch:
    """The rollouts as the one mini-batch of a step."""
    weights_PG = objective_weights(OBJECTIVE, rewards(groups), rng=np.random.default_rng(0))
    _, pad_token_id = special_token_ids(subject.policy.tokenizer)
    return build_batch(
        groups,
        weights_PG,
        loss_type="standard",
        normalize_over="all",
        max_tokens=work.tokens,
        pad_token_id=pad_token_id,
    )


def sampling_params(work: Work, step: int) -> SamplingParams:
    """Exactly `work.tokens` tokens, without a stop string and, for vLLM, with no end before; or as in a run."""
    length = {} if work.ends else {"min_tokens": work.tokens, "stop": ""}
    settings: dict[str, Any] = {"temperature": TEMPERATURE, "max_tokens": work.tokens, "seed": 0, **length}
    return SamplingParams(**settings, purpose="benchmark", step=step)


def local_engine(work: Work, subject: Subject) -> LocalEngine:
    """The policy itself as engine, as `nsr.rollout.setup` makes it."""
    policy = subject.policy
    rows = sampling_batch(
        ModelShape.from_config(policy.model.config.get_text_config()),
        max(len(ids) for ids in subject.prompt_ids()) + work.tokens,
        policy.model.dtype.itemsize,
        on_cpu=not work.exact and not work.device.startswith("cuda"),
    )
    return LocalEngine(policy.model, policy.tokenizer, subject.support, max_batch_size=rows, exact=work.exact)


def vllm_engine(work: Work, subject: Subject) -> Engine:
    """vLLM as engine, as `nsr.rollout.setup` makes it."""
    from nsr.rollout.vllm import VLLMEngine

    prompts = subject.prompt_ids()
    return VLLMEngine(
        subject.policy.model,
        subject.policy.tokenizer,
        subject.support,
        model=subject.source,
        max_model_len=max(map(len, prompts)) + work.tokens,
        tested_prompt=prompts[0],
    )
