"""The training loop: rollout -> grade -> weigh -> update, and evaluations with the weights as they are now.

No line of it asks which objective runs. What a step does follows from the settings, the weights and the step's
number: puzzles come in a seeded order, and every random stream is keyed by seed and step, so a run that is resumed goes
on as if it had not been interrupted. A signal to end is heard after the step that is under way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import psutil
import torch

from nsr.algorithms.objectives import objective_weights
from nsr.config import TrainConfig
from nsr.errors import UserError
from nsr.evaluation.evaluate import evaluate
from nsr.evaluation.probe import ProbeSample, draw_probe, measure_probe, tracked
from nsr.memory.preflight import (
    Optimizer,
    available_memory,
    check_optimizer,
    checkpoint_bytes,
    choose_optimizer,
    plan_training,
    room_for_run,
    save_every,
    step_seconds,
    training_seconds,
)
from nsr.models.registry import special_token_ids
from nsr.rollout.engine import SamplingParams
from nsr.rollout.rollout import RolloutGroup, rewards, rollout
from nsr.rollout.setup import Sampler, build_sampler, check_setup
from nsr.runs.checkpoints import best_checkpoint, prune, remove_unfinished
from nsr.runs.environment import describe
from nsr.runs.folder import RunFolder, check_folder, evaluation_path, read_mechanism, read_probe
from nsr.runs.loggers import Trackers, check_trackers, tracker_makers
from nsr.runs.malloc_trim import trim
from nsr.runs.progress import RunProgress, StepStatus, printable
from nsr.runs.signals import Interrupted, StopSignals
from nsr.tasks.countdown.data import Splits, load_splits
from nsr.tasks.countdown.grader import Verdict
from nsr.tasks.countdown.puzzle import Puzzle
from nsr.training.batch import build_batch, split_updates
from nsr.training.checkpoint import load_optimizer, save_checkpoint, save_model, seed_everything
from nsr.training.clustered_errors import standard_errors
from nsr.training.health import Faults
from nsr.training.optimizer import PolicyOptimizer, build_optimizer
from nsr.training.out_of_memory import explains_shortage
from nsr.training.resume import Start, changed_environment, find_start, missing_lines, state_of
from nsr.training.spikes import RefusedUpdate
from nsr.training.step import recompute_activations, update

LARGEST_MISMATCH = 0.1
"""Mean |difference| of log-probs, nats a token, beyond which a step is warned about. bfloat16 makes 0.01 to 0.05."""
SMALLEST_SAMPLE = 0.5
"""Share of the effective sample size below which a step is warned about."""
TRIM_EVERY = 10
"""Steps between two times that free memory goes back to the system: seldom enough to cost next to nothing."""


@explains_shortage
def train(config: TrainConfig) -> Path:
    """Train and evaluate as `config` says; returns the run's folder.

    Raises:
        ValueError: a setting that does not fit the machine, the model, the data or the folder, and nothing is written
            then; or the GPU's memory ran out, and the last checkpoint is as it was.
        StoppedRun: a step must not be taken (RefusedUpdate), or the run has collapsed and settings say to stop then
            (CollapsedRun); the last checkpoint is as it was, or the run's state is saved.
        CannotWrite: the disk is full, or does not take it; the last checkpoint is as it was.
        Interrupted: the run was told to end by a signal; its last step is saved.
    """
    state = check_folder(config)
    if state == "complete":
        print(f"{config.run_path} is complete.")
        return config.run_path
    with StopSignals() as stop:
        return _train(config, find_start(config, interrupted=state == "interrupted"), stop)


def _train(config: TrainConfig, start: Start, stop: StopSignals) -> Path:
    check_trackers(config)
    splits = load_splits(
        config.data, eval_puzzles=config.eval_puzzles, seed=config.seed, train_puzzles=start.puzzles(config)
    )
    start.check_data(config, splits)
    source = str(start.checkpoint or config.model_id)
    setup = check_setup(
        dataclasses.replace(config, model_id=source),
        [*splits.train, *splits.evaluation],
        engine=start.resolved.get("engine"),
    )
    memory, disk = available_memory(config.device), room_for_run(config.run_path)
    earlier: Any = start.resolved.get("optimizer")
    kind: Optimizer = earlier if earlier in get_args(Optimizer) else choose_optimizer(config, setup, memory)
    check_optimizer(kind)
    plan = plan_training(config, setup, kind)
    plan.check(config, memory=memory, disk=disk)
    every = save_every(config, checkpoint_bytes(setup, kind))
    environment = describe()
    print(splits.description)
    print(plan.table(memory=memory, disk=disk))
    print(f"engine {setup.engine}: {setup.engine_reason}")
    print(f"optimizer {kind}; a checkpoint {f'every {every} steps' if every else 'at the end'}")
    lines = [*start.lines, changed_environment(config.run_path, environment)]
    print("\n".join(printable(line).plain for line in lines if line), flush=True)  # they hold what files say

    seed_everything(config.seed)
    sampler = build_sampler(config, setup, source)
    if config.gradient_checkpointing:
        recompute_activations(sampler.policy.model)
    optimizer = build_optimizer(sampler.policy.model, lr=config.lr, kind=kind)
    if start.checkpoint:
        load_optimizer(start.checkpoint, optimizer)
    resolved = {"engine": setup.engine, "optimizer": kind, "save_every": every, "data": splits.description}
    done = start.step
    with (
        RunFolder.open(config, environment=environment, resolved=resolved) as folder,
        Trackers(tracker_makers(config, folder, resumed_at=done)) as trackers,
        RunProgress(config.n_train_steps, done=done) as progress,
    ):
        folder.truncate_after(done)
        remove_unfinished(folder.checkpoints)
        if lost := missing_lines(folder, done):
            progress.say(lost)
        words = sampler.support.vocab_size
        probe = _make_probe(config, splits, sampler, folder) if done == 0 else _read_probe(folder, progress, words)
        faults = Faults(config, folder, progress.say)
        run = _Run(config, splits, sampler, optimizer, folder, trackers, progress, probe, stop, faults)
        run.go(done, save_every=every)
    return folder.path


@dataclass(frozen=True)
class _Run:
    """A run under way: what its steps use."""

    config: TrainConfig
    splits: Splits
    sampler: Sampler
    optimizer: PolicyOptimizer
    folder: RunFolder
    trackers: Trackers
    progress: RunProgress
    probe: Sequence[ProbeSample]
    stop: StopSignals
    faults: Faults

    def go(self, done: int, *, save_every: int) -> None:
        """Steps `done` + 1 to the last, each with what is due after it."""
        config = self.config
        if done == 0:
            seconds = self.evaluate(step=0)
            per_step = step_seconds(config, seconds_per_evaluation=seconds)
            total = training_seconds(config, done=0, seconds_per_step=per_step, seconds_per_evaluation=seconds)
            self.progress.say(f"estimated time of the training: {total / 60:.0f} minutes")
        elif self.evaluation_is_due(done) and not self.is_evaluated(done):
            self.evaluate(done)  # the run was told to end before it was made
        self.faults.stop_if_collapsed(done, self.save)
        with self.stop.hold():
            for step in range(done + 1, config.n_train_steps + 1):
                self.step(step)
                self.faults.stop_if_collapsed(step, self.save)
                if self.evaluation_is_due(step):
                    with contextlib.suppress(Interrupted):  # it is made when the run goes on
                        self.evaluate(step)
                told = self.stop.requested
                if told or step == config.n_train_steps or (save_every and step % save_every == 0):
                    path = self.save(step, config.keep)
                    if told:
                        raise Interrupted(told, f"Step {step} is finished and saved, in {path}.")
        save_model(self.folder.path / "model", self.sampler.policy.model, self.sampler.policy.tokenizer)
        accuracies = self.folder.accuracies()
        # Once more, for a process that was ended between its last save and this.
        prune(self.folder.checkpoints, config.n_train_steps, keep=config.keep, accuracies=accuracies)
        best = best_checkpoint(self.folder.checkpoints, accuracies)
        if best is not None:
            self.progress.say(f"best of the checkpoints by its evaluation: {best}")
        self.folder.mark_complete(config.n_train_steps)

    def evaluation_is_due(self, step: int) -> bool:
        """Whether there is an evaluation after `step`: at the end, and every `eval_every` steps."""
        every = self.config.eval_every
        return step == self.config.n_train_steps or bool(every and step % every == 0)

    def is_evaluated(self, step: int) -> bool:
        """Whether all that an evaluation after `step` leaves is there."""
        measured = not self.probe or any(record["step"] == step for record in read_mechanism(self.folder.path))
        return measured and evaluation_path(self.folder.path, step).exists()

    def save(self, step: int, keep: int) -> Path:
        """Save a checkpoint after `step`; the newest `keep` stay, and the best."""
        policy = self.sampler.policy
        return save_checkpoint(
            self.folder.checkpoints,
            step,
            policy.model,
            policy.tokenizer,
            self.optimizer,
            keep=keep,
            state=state_of(self.config, self.splits, step, self.optimizer.kind),
            accuracies=self.folder.accuracies(),
        )

    def step(self, step: int) -> None:
        """One training step; its metrics and timings are written before the next."""
        config, sampler = self.config, self.sampler
        start = time.perf_counter()
        params = SamplingParams(
            temperature=config.temperature, max_tokens=config.max_tokens, seed=config.seed, purpose="train", step=step
        )
        puzzles = puzzles_of_step(self.splits.train, step, config.puzzles_per_step, config.seed)
        groups = rollout(sampler.engine, sampler.encode, puzzles, params, config.group_size)
        sampled = time.perf_counter()

        rng = np.random.default_rng([config.seed, step])
        weights_PG = objective_weights(
            config.objective, rewards(groups), lambda_psr=config.lambda_psr, advantage=config.advantage, rng=rng
        )
        _, pad_token_id = special_token_ids(sampler.policy.tokenizer)
        parts = split_updates(groups, weights_PG, config.updates_per_rollout, rng)
        batches = [
            build_batch(
                part,
                part_weights_PG,
                loss_type=config.loss_type,
                normalize_over=config.normalize_over,
                max_tokens=config.max_tokens,
                pad_token_id=pad_token_id,
            )
            for part, part_weights_PG in parts
        ]
        sampler.engine.release_memory()
        try:
            learned = update(
                sampler.policy.model,
                sampler.support,
                self.optimizer,
                batches,
                temperature=config.temperature,
                clip_range=config.clip_range,
                grad_acc_steps=config.grad_acc_steps,
                history=self.faults.grad_norms,
                exact=config.exact,
            )
        except RefusedUpdate as refused:
            raise self.faults.explain(refused, step, [part for part, _ in parts]) from refused
        sampler.engine.load_weights(sampler.policy.model)
        end = time.perf_counter()

        if step % TRIM_EVERY == 0:
            trim()
        metrics = {"step": step, **rollout_metrics(groups), **learned}
        if mismatch := mismatch_warning(learned):
            self.progress.say(f"step {step}: {mismatch}")
        self.folder.append_metrics(metrics)
        sampled_tokens = sum(len(completion.token_ids) for group in groups for completion in group.completions)
        learned_tokens = sum(int(batch.response_mask_BT.sum()) for batch in batches)
        timings = {
            "step": step,
            "sampling_seconds": sampled - start,
            "learning_seconds": end - sampled,
            "step_seconds": end - start,
            "sampling_tokens_per_second": sampled_tokens / (sampled - start),
            "learning_tokens_per_second": learned_tokens / (end - sampled),
            **_memory(config.device),
        }
        self.folder.append_timings(timings)
        self.faults.note(metrics)
        self.trackers.log(step, metrics | timings)
        self.progress.step(
            StepStatus(
                step=step,
                seconds=end - start,
                accuracy=metrics["correct_ratio"],
                reward=metrics["reward_mean"],
                entropy=metrics.get("entropy"),
                length=metrics["response_length"],
                right=metrics["groups_all_right"],
                mixed=metrics["groups_mixed"],
                wrong=metrics["groups_all_wrong"],
            )
        )

    def evaluate(self, step: int) -> float:
        """Evaluate the weights as they are now, write it, show it; returns the seconds that it took."""
        config, sampler = self.config, self.sampler
        start = time.perf_counter()
        total = len(self.splits.evaluation) * config.eval_samples
        # It is broken off by a signal at once, since it can be made again.
        with (
            self.stop.release(),
            self.folder.keep_samples(step) as keep,
            self.progress.evaluation(f"evaluation at step {step}", total) as advance,
        ):
            result = evaluate(
                sampler.engine,
                sampler.encode,
                self.splits.evaluation,
                num_samples=config.eval_samples,
                temperature=config.evaluation_temperature,
                max_tokens=config.max_tokens,
                seed=config.seed,
                step=step,
                progress=advance,
                keep=keep,
            )
        self.folder.write_evaluation(step, result.to_json())
        shown = {f"evaluation/pass@{point.k}": point.value.estimate for point in result.pass_at_k}
        self.trackers.log(step, shown)
        self.progress.say(f"evaluation at step {step}: accuracy {result.accuracy}")
        if self.probe:
            found = measure_probe(self.probe, sampler.policy.model, sampler.support, config.temperature)
            self.folder.append_mechanism({"step": step, **found})
            self.trackers.log(step, tracked(found))
        return time.perf_counter() - start


def _make_probe(config: TrainConfig, splits: Splits, sampler: Sampler, folder: RunFolder) -> Sequence[ProbeSample]:
    probe = draw_probe(
        sampler.engine,
        sampler.encode,
        sampler.policy.model,
        sampler.support,
        splits.evaluation,
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        seed=config.seed,
    )
    folder.write_probe(sample.to_json() for sample in probe)
    return probe


def _read_probe(folder: RunFolder, progress: RunProgress, words: int) -> Sequence[ProbeSample]:
    """The probe of a run that is taken up. Empty where an older version began it: another base has no step 0 there."""
    records = read_probe(folder.path)
    if records is None:
        progress.say("This run began without a probe: mechanism.jsonl is left out.")
    probe = [ProbeSample.from_json(record) for record in records or ()]
    largest = max((max(*one.prompt_ids, *one.token_ids, int(one.top_ids_TK.max())) for one in probe), default=0)
    if largest >= words:
        raise UserError(
            f"probe.jsonl.gz has the token id {largest}, the model {words} words: delete the file to go on without it."
        )
    return probe


def puzzles_of_step(puzzles: Sequence[Puzzle], step: int, count: int, seed: int) -> list[Puzzle]:
    """The `count` puzzles of `step` (from 1): the split once an epoch, first in its own order, then in new seeded ones.

    It depends on seed and step alone: every objective, and a resumed run, sees the same puzzles in the same order.
    The first epoch keeps the split's order (which is seeded) so that a run of more steps begins like one of fewer.
    """
    chosen: list[Puzzle] = []
    for index in range((step - 1) * count, step * count):
        epoch, position = divmod(index, len(puzzles))
        chosen.append(puzzles[_order(len(puzzles), epoch, seed)[position]])
    return chosen


@functools.lru_cache(maxsize=2)
def _order(count: int, epoch: int, seed: int) -> list[int]:
    return np.random.default_rng([seed, epoch]).permutation(count).tolist() if epoch else list(range(count))


def rollout_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """What a rollout batch shows, over all its samples, those without weight among them. See docs/metrics.md."""
    completions = [completion for group in groups for completion in group.completions]
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    right_P = (rewards(groups) > 0).mean(axis=1)
    tokens = sum(len(completion.token_ids) for completion in completions)
    entropies = [(completion.entropy, len(completion.token_ids)) for completion in completions]
    metrics = {
        "reward_mean": float(rewards(groups).mean()),
        "correct_ratio": float(right_P.mean()),
        "response_length": tokens / len(completions),
        "truncation": sum(completion.truncated for completion in completions) / len(completions),
        "groups_all_right": float((right_P == 1).mean()),
        "groups_mixed": float(((right_P > 0) & (right_P < 1)).mean()),
        "groups_all_wrong": float((right_P == 0).mean()),
        **{f"verdict_{verdict.value}": verdicts.count(verdict) / len(verdicts) for verdict in Verdict},
        **standard_errors(groups),
    }
    if all(entropy is not None for entropy, _ in entropies):
        metrics["entropy"] = sum(entropy * length for entropy, length in entropies if entropy is not None) / tokens
    return metrics


def mismatch_warning(metrics: Mapping[str, float]) -> str | None:
    """What to say where the sampler's log-probs are too far from the policy's; None where they are near enough."""
    difference, share = metrics.get("logprob_diff_mean", 0.0), metrics.get("effective_sample_size", 1.0)
    if difference <= LARGEST_MISMATCH and share >= SMALLEST_SAMPLE:
        return None
    return (
        f"warning: the engine's log-probs are {difference:.2g} nats a token away from the policy's, and the effective "
        f"sample size is {share:.0%}: the gradient is off by that; see docs/metrics.md, or use --engine local."
    )


def _memory(device: str) -> dict[str, int]:
    memory = {"memory_bytes": psutil.Process().memory_info().rss}
    if device.startswith("cuda"):
        memory["gpu_peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return memory
