"""The settings of every command: frozen records, presets, and checks of ranges.

Settings are checked when they are made: each error is one sentence that names the flag, what was given, what is
allowed and what to do. What needs a look outside (is there a GPU, is the folder free) is checked later.
Standard library only, so that `nsr --help` is quick. The text under a field is its help on the command line.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeVar, get_args

Thinking = Literal["default", "off"]
EngineName = Literal["auto", "local", "vllm"]
LossType = Literal["standard", "length_normalized", "token_mean"]
Advantage = Literal["none", "group"]
NormalizeOver = Literal["all", "kept"]
OptimizerName = Literal["auto", "adamw", "adamw8bit"]

MIN_TOKENS = 4
"""Shortest response in tokens: the end token is out of the support before."""

HUB_DATA = "justinphan3110/Countdown-Tasks-3to4"
_RUN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]{0,99}")
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")
_MAX_SEED = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What a measurement of a model needs: the model, the puzzles, and how to sample."""

    command: ClassVar[str] = ""

    model_id: str = "Qwen/Qwen3-1.7B"
    """Model: a hub id, a local folder, or `tiny` (ships with nsr)."""

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
    """What samples: `local` (the policy itself) or `auto`, which takes it too; `vllm` is not in this version yet."""

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
        _check_text("model_id", self.model_id, "the name of a model, such as `tiny`")
        _check_text("data", self.data, "a source of puzzles, such as `synthetic`")
        _check_text("output_dir", self.output_dir, "a folder, such as `./output`")
        _check_at_least("max_tokens", self.max_tokens, MIN_TOKENS)
        _check_temperature("temperature", self.temperature)
        _check_seed(self.seed)
        _check_device(self.device)
        _check_choice("engine", self.engine, get_args(EngineName))
        _check_choice("thinking", self.thinking, get_args(Thinking))
        _check_range("gpu_mem_util", self.gpu_mem_util, above=0.0, at_most=1.0)
        _check_at_least("eval_puzzles", self.eval_puzzles, 1)
        _check_at_least("eval_samples", self.eval_samples, 1)
        if self.eval_temperature is not None:
            _check_temperature("eval_temperature", self.eval_temperature)
        if self.exp_name is not None:
            _check_run_name(self.exp_name)

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
    """Microbatches a step; divides --rollout_batch_size. More of them need less memory and change no gradient."""

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

    eval_every: int = 10
    """Steps between evaluations; 0 evaluates before the first step and after the last only."""

    save_every: int | None = None
    """Steps between checkpoints; 0 saves at the end only; by default what suits the model's size."""

    keep: int = 1
    """Number of checkpoints that are kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_text("objective", self.objective, "the name of an objective, such as `NSR`")
        _check_at_least("n_train_steps", self.n_train_steps, 1)
        _check_range("lr", self.lr, above=0.0, at_most=1.0)
        for flag in ("rollout_batch_size", "group_size", "grad_acc_steps", "updates_per_rollout", "keep"):
            _check_at_least(flag, getattr(self, flag), 1)
        _check_divides("group_size", self.group_size, "--rollout_batch_size", self.rollout_batch_size)
        _check_divides("grad_acc_steps", self.grad_acc_steps, "--rollout_batch_size", self.rollout_batch_size)
        num_groups = self.rollout_batch_size // self.group_size
        _check_divides("updates_per_rollout", self.updates_per_rollout, "the number of groups", num_groups)
        if not 0.0 <= self.lambda_psr <= 1.0:
            raise ValueError(_sentence("lambda_psr", self.lambda_psr, "between 0 and 1", "the study uses 0.1"))
        _check_range("clip_range", self.clip_range, above=0.0, below=1.0)
        _check_choice("loss_type", self.loss_type, get_args(LossType))
        if self.advantage is not None:
            _check_choice("advantage", self.advantage, get_args(Advantage))
        _check_choice("normalize_over", self.normalize_over, get_args(NormalizeOver))
        _check_choice("optimizer", self.optimizer, get_args(OptimizerName))
        _check_at_least("eval_every", self.eval_every, 0)
        if self.save_every is not None:
            _check_at_least("save_every", self.save_every, 0)

    @property
    def puzzles_per_step(self) -> int:
        """Number of groups in a rollout batch: `rollout_batch_size / group_size`."""
        return self.rollout_batch_size // self.group_size

    def _default_name(self) -> str:
        weight = f"_lambda{self.lambda_psr:g}" if self.objective == "W_REINFORCE" else ""
        return f"{self.objective}{weight}_{self.max_tokens}"


@dataclass(frozen=True, kw_only=True)
class WarmstartConfig:
    """Teach a model the format and some arithmetic from the solver's traces, before any reinforcement."""

    model_id: str = "tiny"
    """Model to start from: a hub id, a local folder, or `tiny`."""

    from_scratch: bool = False
    """Start from random weights of the embedded model's architecture; --model_id is not used then."""

    out: str = "./output/warmstart"
    """Folder that the trained model and its record are written to."""

    n_train_steps: int = 400
    """Number of optimizer steps."""

    batch_size: int = 128
    """Traces an optimizer step."""

    lr: float = 3e-3
    """Highest learning rate: 3e-3 suits the embedded model from scratch with Muon, 1e-4 a pretrained one."""

    optimizer: Literal["muon", "adamw"] = "muon"
    """`muon` for the matrices inside the layers and AdamW for the rest, or AdamW for all."""

    failed_attempts: int = 3
    """Most failed attempts in a trace, before the one that works; each number from 0 to this is as likely."""

    max_tokens: int = 160
    """Longest trace in tokens; longer ones are left out."""

    exclude: tuple[str, ...] = ()
    """Files of puzzles (.parquet, .jsonl) that no trace may use, such as those of an evaluation."""

    data: str = "synthetic"
    """Source of the puzzles of the evaluation at the end; no trace uses these."""

    eval_puzzles: int = 256
    """Number of puzzles of the evaluation at the end."""

    eval_samples: int = 16
    """Samples a puzzle of that evaluation, at temperature 1."""

    save_every: int = 0
    """Steps between copies of the model, written to `step_000500` and so on in --out; 0 keeps the last only."""

    bfloat16: bool = True
    """Compute in bfloat16 (weights and optimizer stay in float32)."""

    compile: bool = False
    """Compile the model first: half a minute, then about a quarter faster on a CPU."""

    device: str = "cpu"
    """`cuda`, `cuda:N` or `cpu`."""

    seed: int = 42
    """Seed of weights and traces."""

    def __post_init__(self) -> None:
        _check_text("model_id", self.model_id, "the name of a model, such as `tiny`")
        _check_text("out", self.out, "a folder, such as `./output/warmstart`")
        _check_text("data", self.data, "a source of puzzles, such as `synthetic`")
        for flag in ("n_train_steps", "batch_size", "eval_puzzles", "eval_samples"):
            _check_at_least(flag, getattr(self, flag), 1)
        _check_range("lr", self.lr, above=0.0, at_most=1.0)
        _check_choice("optimizer", self.optimizer, ("muon", "adamw"))
        _check_at_least("failed_attempts", self.failed_attempts, 0)
        _check_at_least("save_every", self.save_every, 0)
        _check_at_least("max_tokens", self.max_tokens, MIN_TOKENS)
        _check_device(self.device)
        _check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """Run a named list of runs, one after the other."""

    name: str
    """`study` (the paper's comparison), `tiny` (the same on the embedded model) or `lambda` (a sweep of it)."""

    seeds: int = 1
    """Number of seeds: every run of the list is made with each of them."""

    seed: int = 42
    """First seed; the others follow."""

    output_dir: str = "./output"
    """Where the suite's folder lies."""

    dry_run: bool = False
    """Print the commands and run none."""

    def __post_init__(self) -> None:
        _check_text("output_dir", self.output_dir, "a folder, such as `./output`")
        _check_at_least("seeds", self.seeds, 1)
        _check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Show or write the puzzles of a source, with statistics."""

    data: str = "synthetic"
    """Puzzles: `synthetic`, e.g. `synthetic:3`, a .parquet or .jsonl file, two as TRAIN,EVAL, or a hub data set."""

    count: int = 10
    """Number of puzzles."""

    split: Literal["train", "evaluation"] = "train"
    """Which of the two disjoint splits to show."""

    seed: int = 42
    """Seed of the generator and of the split."""

    out: str | None = None
    """File to write them to, .parquet or .jsonl; by default they are printed."""

    def __post_init__(self) -> None:
        _check_text("data", self.data, "a source of puzzles, such as `synthetic`")
        _check_at_least("count", self.count, 1)
        _check_choice("split", self.split, ("train", "evaluation"))
        _check_seed(self.seed)
        if self.out is not None and Path(self.out).suffix not in (".parquet", ".jsonl"):
            raise ValueError(_sentence("out", self.out, "a .parquet or .jsonl file", "give it such an ending"))


@dataclass(frozen=True, kw_only=True)
class SolveConfig:
    """Show every solution of a puzzle."""

    numbers: tuple[int, ...]
    """The numbers of the puzzle."""

    target: int
    """What they must make."""


@dataclass(frozen=True, kw_only=True)
class PlayConfig:
    """Show a model's attempts at a puzzle, with their verdicts."""

    numbers: tuple[int, ...]
    """The numbers of the puzzle."""

    target: int
    """What they must make."""

    model_id: str = "tiny"
    """Model: a hub id, a local folder, or `tiny` (ships with nsr)."""

    num_samples: int = 4
    """Number of attempts."""

    max_tokens: int = 256
    """Longest response in tokens."""

    temperature: float = 0.7
    """Sampling temperature."""

    thinking: Thinking = "default"
    """Thinking mode of the model's chat template: as it comes, or `off`."""

    device: str = "cpu"
    """`cuda`, `cuda:N` or `cpu`."""

    seed: int = 42
    """Seed of the samples."""

    def __post_init__(self) -> None:
        _check_text("model_id", self.model_id, "the name of a model, such as `tiny`")
        _check_at_least("num_samples", self.num_samples, 1)
        _check_at_least("max_tokens", self.max_tokens, MIN_TOKENS)
        _check_temperature("temperature", self.temperature)
        _check_choice("thinking", self.thinking, get_args(Thinking))
        _check_device(self.device)
        _check_seed(self.seed)


PRESETS: dict[str, dict[str, object]] = {
    "tiny": {
        "model_id": "tiny",
        "device": "cpu",
        "data": "synthetic",
        # A mean over each sample's tokens would punish short mistakes most: the model would learn not to stop.
        "loss_type": "length_normalized",
        "max_tokens": 160,
        "temperature": 1.0,
        "eval_puzzles": 256,
        "eval_samples": 8,
        "output_dir": "./output",
        "n_train_steps": 40,
        "lr": 3e-5,
        "rollout_batch_size": 128,
        "group_size": 8,
        "grad_acc_steps": 4,
        "eval_every": 20,
    },
}
"""Settings by the name of a preset. They take the place of the defaults; a flag that is given wins over them."""

_Config = TypeVar("_Config", bound=RunConfig)

_UNCOMPARED = frozenset(
    {"output_dir", "exp_name", "resume", "n_train_steps", "save_every", "keep", "gpu_mem_util", "resolved"}
)


def with_preset(config_type: type[_Config], preset: str | None) -> _Config:
    """The defaults of `config_type` with a preset in their place, fields that it does not have left out.

    Raises ValueError for a name that is not in `PRESETS`.
    """
    if preset is None:
        return config_type()
    _check_choice("preset", preset, tuple(PRESETS))
    names = {field.name for field in dataclasses.fields(config_type)}
    values = {name: value for name, value in PRESETS[preset].items() if name in names}
    return dataclasses.replace(config_type(), **values)


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
    and what is kept of it. A setting that one side does not know is `unset` there.
    """
    names = sorted((old.keys() | new.keys()) - _UNCOMPARED, key=lambda name: (name != "command", name))
    pairs = [(name, old.get(name, "unset"), new.get(name, "unset")) for name in names]
    return [f"{name} {before} -> {after}" for name, before, after in pairs if before != after]


def _sentence(flag: str, given: object, allowed: str, advice: str) -> str:
    return f"--{flag} is {given!r} but must be {allowed}: {advice}."


def _check_text(flag: str, value: str, meaning: str) -> None:
    if not value.strip() or "\0" in value:
        raise ValueError(_sentence(flag, value, meaning, "give a name"))


def _check_at_least(flag: str, value: int, lowest: int) -> None:
    if value < lowest:
        raise ValueError(_sentence(flag, value, f"at least {lowest}", f"use {lowest} or more"))


def _check_range(
    flag: str, value: float, *, above: float, at_most: float | None = None, below: float | None = None
) -> None:
    allowed = f"above {above:g}"
    inside = math.isfinite(value) and value > above
    if at_most is not None:
        allowed, inside = f"{allowed} and at most {at_most:g}", inside and value <= at_most
    if below is not None:
        allowed, inside = f"{allowed} and below {below:g}", inside and value < below
    if not inside:
        raise ValueError(_sentence(flag, value, allowed, "choose a value in this range"))


def _check_temperature(flag: str, value: float) -> None:
    if not 0.0 < value <= 2.0:
        advice = "0.7 is the study's; `nsr baseline` measures greedy accuracy beside it"
        raise ValueError(_sentence(flag, value, "above 0 and at most 2", advice))


def _check_divides(flag: str, value: int, whole: str, total: int) -> None:
    if total % value:
        divisors = [n for n in range(1, total + 1) if total % n == 0]
        nearest = sorted(divisors, key=lambda n: (abs(n - value), n))[:3]
        advice = "use one of " + ", ".join(str(n) for n in sorted(nearest))
        raise ValueError(_sentence(flag, value, f"a divisor of {whole}, {total}", advice))


def _check_choice(flag: str, value: str, allowed: Iterable[str]) -> None:
    names = tuple(allowed)
    if value not in names:
        raise ValueError(_sentence(flag, value, "one of " + ", ".join(names), "choose one of them"))


def _check_seed(seed: int) -> None:
    if not 0 <= seed <= _MAX_SEED:
        raise ValueError(_sentence("seed", seed, f"between 0 and {_MAX_SEED}", "choose a number in this range"))


def _check_device(device: str) -> None:
    if not _DEVICE.fullmatch(device):
        raise ValueError(_sentence("device", device, "`cuda`, `cuda:N` or `cpu`", "use `cpu` where there is no GPU"))


def _check_run_name(name: str) -> None:
    if not _RUN_NAME.fullmatch(name):
        allowed = "a plain folder name of letters, digits and _.=+- (at most 100, no dot or hyphen first)"
        raise ValueError(_sentence("exp_name", name, allowed, "choose where it lies with --output_dir"))
