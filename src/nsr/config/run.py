"""The settings of a run: a measurement of a model, or its training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

from nsr.config.checks import (
    check_at_least,
    check_choice,
    check_device,
    check_divides,
    check_names,
    check_printable,
    check_range,
    check_run_name,
    check_seed,
    check_temperature,
    check_text,
    sentence,
)
from nsr.errors import UserError

Thinking = Literal["default", "off"]
EngineName = Literal["auto", "local", "vllm"]
Dtype = Literal["auto", "float32", "bfloat16"]
LossType = Literal["standard", "length_normalized", "token_mean"]
Advantage = Literal["none", "group"]
NormalizeOver = Literal["all", "kept"]
OptimizerName = Literal["auto", "adamw", "adamw8bit"]

MIN_TOKENS = 4
"""Shortest response in tokens: the end token is out of the support before."""

TRACKERS = ("tensorboard", "trackio", "wandb")
"""What `log_to` may name."""

HUB_DATA = "justinphan3110/Countdown-Tasks-3to4"

_UNCOMPARED = frozenset(
    {"output_dir", "exp_name", "resume", "n_train_steps", "save_every", "keep", "log_to", "gpu_mem_util", "resolved"}
    | {"gradient_checkpointing"}  # the same gradients
    | {"stop_on_collapse"}
)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What a measurement of a model needs: the model, the puzzles, and how to sample."""

    command: ClassVar[str] = ""

    model_id: str = "Qwen/Qwen3-1.7B"
    """Model: a hub id, a local folder, `tiny` (ships with nsr), or `smollm2-135m` (offline, from a package)."""

    data: str = HUB_DATA
    """Puzzles: a hub data set, a .parquet or .jsonl file, two as TRAIN,EVAL, `synthetic`, or e.g. `synthetic:3`."""

    max_tokens: int = 256
    """Longest response in tokens."""

    temperature: float = 0.7
    """Sampling temperature."""

    seed: int = 42
    """Seed of everything that is random."""

    device: str = "cuda"
    """`cuda`, `cuda:N` or `cpu`."""

    engine: EngineName = "auto"
    """What samples: `local` (the policy itself), `vllm`, or `auto` (vLLM on a GPU that has it, else local)."""

    dtype: Dtype = "auto"
    """Numbers the model computes in: `float32`, `bfloat16`, or `auto` (bfloat16 on a GPU, float32 on a CPU)."""

    exact: bool = False
    """Sample and learn the plain way, as `transformers` computes it, without the fast paths. Slower."""

    thinking: Thinking = "default"
    """Thinking mode of the model's chat template: as it comes, or `off`."""

    gpu_mem_util: float = 0.4
    """vLLM's share of the GPU memory; the local engine needs none set aside."""

    eval_puzzles: int = 256
    """Number of puzzles of an evaluation."""

    eval_samples: int = 4
    """Samples a puzzle of an evaluation: the n of pass@k."""

    eval_temperature: float | None = None
    """Temperature of an evaluation; by default --temperature."""

    output_dir: str = "./output"
    """Where the folders of runs lie."""

    exp_name: str | None = None
    """Name of the run's folder; by default made from objective, max_tokens and lambda."""

    resume: bool = False
    """Go on with the run in its folder: starts it where there is none, does nothing where it is complete."""

    def __post_init__(self) -> None:
        check_text("model_id", self.model_id, "the name of a model, such as `tiny`")
        check_text("data", self.data, "a source of puzzles, such as `synthetic`")
        check_text("output_dir", self.output_dir, "a folder, such as `./output`")
        check_printable("output_dir", self.output_dir)
        check_at_least("max_tokens", self.max_tokens, MIN_TOKENS)
        check_temperature("temperature", self.temperature)
        check_seed(self.seed)
        check_device(self.device)
        check_choice("engine", self.engine, get_args(EngineName))
        check_choice("dtype", self.dtype, get_args(Dtype))
        check_choice("thinking", self.thinking, get_args(Thinking))
        check_range("gpu_mem_util", self.gpu_mem_util, above=0.0, at_most=1.0)
        check_at_least("eval_puzzles", self.eval_puzzles, 1)
        check_at_least("eval_samples", self.eval_samples, 1)
        if self.eval_temperature is not None:
            check_temperature("eval_temperature", self.eval_temperature)
        if self.exp_name is not None:
            check_run_name(self.exp_name)

    @property
    def run_name(self) -> str:
        """Name of the run's folder: `exp_name`, or the name made from the settings."""
        return self.exp_name or self._default_name()

    @property
    def run_path(self) -> Path:
        """The run's folder, `output_dir/run_name`."""
        return Path(self.output_dir) / self.run_name

    @property
    def evaluation_temperature(self) -> float:
        """Temperature of an evaluation: `eval_temperature`, or the training one."""
        return self.temperature if self.eval_temperature is None else self.eval_temperature

    def _default_name(self) -> str:
        return f"baseline_{self.max_tokens}"


@dataclass(frozen=True, kw_only=True)
class BaselineConfig(RunConfig):
    """Evaluate a model as it is, without training."""

    command: ClassVar[str] = "baseline"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """Train a model with verifiable rewards, and evaluate it on the way."""

    command: ClassVar[str] = "train"

    objective: str = "NSR"
    """What is learned from: `RLVR`, `PSR`, `NSR`, `W_REINFORCE`, or another registered objective."""

    n_train_steps: int = 200
    """Number of training steps: one rollout batch each."""

    lr: float = 3e-6
    """Learning rate, constant."""

    rollout_batch_size: int = 128
    """Samples a step."""

    group_size: int = 8
    """Samples a prompt; divides --rollout_batch_size."""

    grad_acc_steps: int = 16
    """Microbatches a step, at most; divides --rollout_batch_size. More need less memory and change no gradient."""

    lambda_psr: float = 0.1
    """Weight of right samples, W_REINFORCE only: 0 is NSR, 1 weighs right and wrong alike."""

    clip_range: float = 0.2
    """The eps of the clipped surrogate."""

    loss_type: LossType = "standard"
    """How tokens are averaged: within sequences and then over them, over max_tokens, or over all tokens."""

    advantage: Advantage | None = None
    """Normalize rewards within a group first (`group`) or not (`none`); by default `group` for RLVR, else `none`."""

    normalize_over: NormalizeOver = "all"
    """What the loss is averaged over: all rollouts of the batch, or those with a non-zero weight."""

    updates_per_rollout: int = 1
    """Optimizer steps a rollout batch; divides the number of groups."""

    optimizer: OptimizerName = "auto"
    """`adamw` (float32 master weights), `adamw8bit` (stochastic rounding), or `auto` (the first if memory allows)."""

    gradient_checkpointing: bool = False
    """Keep only each layer's input and compute the rest again for the gradient: a third more work, far less memory."""

    eval_every: int = 10
    """Steps between evaluations; 0 evaluates before the first step and after the last only."""

    save_every: int | None = None
    """Steps between checkpoints; 0 saves at the end only; by default what suits the model's size."""

    keep: int = 1
    """Number of newest checkpoints that are kept; the best one by its evaluation stays beside them."""

    stop_on_collapse: bool = False
    """End the run, with a checkpoint, where it collapses; without the flag that is a warning."""

    log_to: str = "tensorboard"
    """Who else gets the metrics: `tensorboard`, `trackio`, `wandb`, with commas between, or `none`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_text("objective", self.objective, "the name of an objective, such as `NSR`")
        check_run_name(self.run_name)  # made from the objective, whatever that is
        check_at_least("n_train_steps", self.n_train_steps, 1)
        check_range("lr", self.lr, above=0.0, at_most=1.0)
        for flag in ("rollout_batch_size", "group_size", "grad_acc_steps", "updates_per_rollout", "keep"):
            check_at_least(flag, getattr(self, flag), 1)
        check_divides("group_size", self.group_size, "--rollout_batch_size", self.rollout_batch_size)
        check_divides("grad_acc_steps", self.grad_acc_steps, "--rollout_batch_size", self.rollout_batch_size)
        num_groups = self.rollout_batch_size // self.group_size
        check_divides("updates_per_rollout", self.updates_per_rollout, "the number of groups", num_groups)
        if not 0.0 <= self.lambda_psr <= 1.0:
            raise UserError(sentence("lambda_psr", self.lambda_psr, "between 0 and 1", "the study uses 0.1"))
        check_range("clip_range", self.clip_range, above=0.0, below=1.0)
        check_choice("loss_type", self.loss_type, get_args(LossType))
        if self.advantage is not None:
            check_choice("advantage", self.advantage, get_args(Advantage))
        check_choice("normalize_over", self.normalize_over, get_args(NormalizeOver))
        check_choice("optimizer", self.optimizer, get_args(OptimizerName))
        check_at_least("eval_every", self.eval_every, 0)
        if self.save_every is not None:
            check_at_least("save_every", self.save_every, 0)
        check_names("log_to", self.log_to, TRACKERS, "none")

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names in `log_to`."""
        return () if self.log_to == "none" else tuple(self.log_to.split(","))

    @property
    def puzzles_per_step(self) -> int:
        """Number of groups in a rollout batch: `rollout_batch_size / group_size`."""
        return self.rollout_batch_size // self.group_size

    def _default_name(self) -> str:
        weight = f"_lambda{self.lambda_psr:g}" if self.objective == "W_REINFORCE" else ""
        return f"{self.objective}{weight}_{self.max_tokens}"


def to_record(config: RunConfig) -> dict[str, object]:
    """The settings as plain values for config.json, with the name and the evaluation's temperature filled in."""
    return {
        "command": config.command,
        **dataclasses.asdict(config),
        "exp_name": config.run_name,
        "eval_temperature": config.evaluation_temperature,
    }


def settings_diff(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """The differences between two records of settings that make them two runs, each as `lr 3e-06 -> 2e-05`.

    The command first, then by name. Left out is what may change when a run goes on: where it lies, how long it goes on
    and what is kept of it. A setting that one side does not know is `unset` there; one that an older version did not
    know and that has its default now is no difference, so that a run can go on after nsr was brought up to date.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    known = old.keys() | {name for name in new if name not in defaults or new[name] != defaults[name]}
    names = sorted(known - _UNCOMPARED, key=lambda name: (name != "command", name))
    pairs = [(name, old.get(name, "unset"), new.get(name, "unset")) for name in names]
    return [f"{name} {before} -> {after}" for name, before, after in pairs if _kind(name, before) != _kind(name, after)]


def _kind(name: str, value: object) -> object:
    """What counts of a setting: of a device its kind, since a run may go on on another GPU of the same machine."""
    return str(value).partition(":")[0] if name == "device" else value


def compared_settings(config: RunConfig) -> dict[str, object]:
    """The settings of `to_record` that `settings_diff` compares: what the numbers of a run depend on."""
    return {name: value for name, value in to_record(config).items() if name not in _UNCOMPARED}
