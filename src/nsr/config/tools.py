"""The settings of the commands beside runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from nsr.config.checks import (
    check_at_least,
    check_choice,
    check_device,
    check_range,
    check_seed,
    check_temperature,
    check_text,
    sentence,
)
from nsr.config.run import MIN_TOKENS, Thinking
from nsr.errors import UserError


@dataclass(frozen=True, kw_only=True)
class WarmstartConfig:
    """Teach a model the format and some arithmetic from the solver's traces, before any reinforcement."""

    model_id: str = "tiny"
    """Model to start from: a hub id, a local folder, `tiny` or `smollm2-135m`."""

    from_scratch: bool = False
    """Start from random weights of the embedded model's architecture; --model_id is not used then."""

    out: str = "./output/warmstart"
    """Folder that the trained model and its record are written to."""

    n_train_steps: int = 600
    """Number of optimizer steps."""

    batch_size: int = 128
    """Traces an optimizer step."""

    lr: float = 3e-3
    """Highest learning rate: 3e-3 suits the embedded model from scratch with Muon, 1e-4 a pretrained one."""

    optimizer: Literal["muon", "adamw"] = "muon"
    """`muon` for the matrices inside the layers and AdamW for the rest, or AdamW for all."""

    failed_attempts: int = 8
    """Most failed attempts in a trace, before the one that works; each number from 0 to this is as likely."""

    max_tokens: int = 256
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
        check_text("model_id", self.model_id, "the name of a model, such as `tiny`")
        check_text("out", self.out, "a folder, such as `./output/warmstart`")
        check_text("data", self.data, "a source of puzzles, such as `synthetic`")
        for flag in ("n_train_steps", "batch_size", "eval_puzzles", "eval_samples"):
            check_at_least(flag, getattr(self, flag), 1)
        check_range("lr", self.lr, above=0.0, at_most=1.0)
        check_choice("optimizer", self.optimizer, ("muon", "adamw"))
        check_at_least("failed_attempts", self.failed_attempts, 0)
        check_at_least("save_every", self.save_every, 0)
        check_at_least("max_tokens", self.max_tokens, MIN_TOKENS)
        check_device(self.device)
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """Run a named list of runs, each in a process of its own. Flags after a bare `--` are those of the runs."""

    name: str
    """`study` (the paper's comparison), `tiny` (the same on the embedded model) or `lambda` (a sweep of it)."""

    seeds: int = 1
    """Number of seeds: every run of the list is made with each of them."""

    seed: int = 42
    """First seed; the others follow."""

    output_dir: str = "./output"
    """Where the suite's folder lies."""

    jobs: int = 1
    """Runs at a time: they share the CPU threads, and take the GPUs in turn where there are several."""

    only: str | None = None
    """A part of the list, with commas between: names of runs without their seed, or how they begin."""

    dry_run: bool = False
    """Print the commands and run none."""

    def __post_init__(self) -> None:
        check_text("output_dir", self.output_dir, "a folder, such as `./output`")
        check_at_least("seeds", self.seeds, 1)
        check_at_least("jobs", self.jobs, 1)
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """Show the runs below some folders while they go, until ctrl-C. Nothing is written."""

    folders: tuple[str, ...] = ("./output",)
    """Folders of runs, or folders that hold them at any depth."""

    once: bool = False
    """Print the table once and end, as where there is no terminal."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Show what runs found: one page, a table and figures, made from their folders."""

    folders: tuple[str, ...]
    """Folders of runs, or folders that hold some."""

    out: str | None = None
    """Folder to write to; by default the one given, or the one that all of them lie in."""

    def __post_init__(self) -> None:
        for folder in (*self.folders, *filter(None, [self.out])):
            check_text("out" if folder == self.out else "folders", folder, "a folder, such as `./output`")
        if not self.folders:
            raise UserError(sentence("folders", self.folders, "at least one folder", "give `./output`"))


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write the model of a training run to a folder of its own, with a card that says what it is."""

    run: str
    """Folder of the run."""

    out: str
    """Folder to make."""

    checkpoint: Literal["newest", "best"] | None = None
    """Take a checkpoint in place of the final model: the newest, or the one with the highest measured accuracy."""

    def __post_init__(self) -> None:
        check_text("run", self.run, "the folder of a run, such as `output/demo`")
        check_text("out", self.out, "a new folder, such as `./my_model`")
        if self.checkpoint is not None:
            check_choice("checkpoint", self.checkpoint, ("newest", "best"))


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
        check_text("data", self.data, "a source of puzzles, such as `synthetic`")
        check_at_least("count", self.count, 1)
        check_choice("split", self.split, ("train", "evaluation"))
        check_seed(self.seed)
        if self.out is not None and Path(self.out).suffix not in (".parquet", ".jsonl"):
            raise UserError(sentence("out", self.out, "a .parquet or .jsonl file", "give it such an ending"))


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
    """Model: a hub id, a local folder, `tiny` (ships with nsr), or `smollm2-135m` (offline, from a package)."""

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
        check_text("model_id", self.model_id, "the name of a model, such as `tiny`")
        check_at_least("num_samples", self.num_samples, 1)
        check_at_least("max_tokens", self.max_tokens, MIN_TOKENS)
        check_temperature("temperature", self.temperature)
        check_choice("thinking", self.thinking, get_args(Thinking))
        check_device(self.device)
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """Show what each objective asks of the logits, at tokens of a real rollout: as a table, a figure and JSON."""

    numbers: tuple[int, ...] = ()
    """The numbers of the puzzle; by default the first puzzle of --data that the model solves sometimes, not always."""

    target: int | None = None
    """What they must make."""

    data: str = "synthetic"
    """Where the puzzle is looked for if no numbers are given: a source, as for `nsr data`."""

    model_id: str = "tiny"
    """Model: a hub id, a local folder, `tiny` (ships with nsr), or `smollm2-135m` (offline, from a package)."""

    objectives: tuple[str, ...] = ("RLVR", "PSR", "NSR", "W_REINFORCE")
    """Objectives to compare."""

    lambda_psr: float = 0.1
    """Weight of right samples, W_REINFORCE only."""

    group_size: int = 8
    """Samples of the puzzle; one right and one wrong sample of them are shown."""

    num_tokens: int = 3
    """Tokens shown of each sample: those drawn with the most entropy."""

    positions: tuple[int, ...] = ()
    """Tokens shown of each sample, by their index from 0, in place of those with the most entropy."""

    alternatives: int = 4
    """Most probable ids shown beside the one sampled; all others are the tail."""

    max_tokens: int = 160
    """Longest response in tokens."""

    temperature: float = 1.0
    """Sampling temperature."""

    thinking: Thinking = "default"
    """Thinking mode of the model's chat template: as it comes, or `off`."""

    device: str = "cpu"
    """`cuda`, `cuda:N` or `cpu`."""

    seed: int = 42
    """Seed of the samples, and of the puzzles where none is given."""

    out: str = "./output/explain"
    """Folder for explain.json, explain.png and explain.svg; what an earlier call left there is replaced."""

    def __post_init__(self) -> None:
        if bool(self.numbers) != (self.target is not None):
            raise UserError("--target and the numbers go together: give both, or neither.")
        check_text("data", self.data, "a source of puzzles, such as `synthetic`")
        check_text("model_id", self.model_id, "the name of a model, such as `tiny`")
        check_text("out", self.out, "a folder, such as `./output/explain`")
        if not self.objectives:
            raise UserError("--objectives names none: give at least one, such as NSR.")
        if not 0.0 <= self.lambda_psr <= 1.0:
            raise UserError(sentence("lambda_psr", self.lambda_psr, "between 0 and 1", "the study uses 0.1"))
        check_at_least("group_size", self.group_size, 2)
        check_at_least("num_tokens", self.num_tokens, 1)
        for position in self.positions:
            check_at_least("positions", position, 0)
        check_at_least("alternatives", self.alternatives, 1)
        check_at_least("max_tokens", self.max_tokens, MIN_TOKENS)
        check_temperature("temperature", self.temperature)
        check_choice("thinking", self.thinking, get_args(Thinking))
        check_device(self.device)
        check_seed(self.seed)
