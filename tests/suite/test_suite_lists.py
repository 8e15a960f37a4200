from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from nsr.cli import main
from nsr.cli.arguments import parse_changes, parse_run
from nsr.config import BaselineConfig, SuiteConfig, TrainConfig
from nsr.suite import SUITES, build_suite, to_words
from nsr.tasks.countdown.data import load_splits
from nsr.training.loop import puzzles_of_step


def names(name: str, seeds: int = 1) -> list[str]:
    return [run.run_name for run in build_suite(SuiteConfig(name=name, seeds=seeds))]


def test_the_study() -> None:
    assert names("study") == [
        "baseline_256_seed42",
        "baseline_512_seed42",
        "baseline_1024_seed42",
        "NSR_256_seed42",
        "NSR_512_seed42",
        "NSR_1024_seed42",
        "PSR_256_seed42",
        "PSR_512_seed42",
        "PSR_1024_seed42",
        "W_REINFORCE_lambda0.1_256_seed42",
        "W_REINFORCE_lambda0.1_512_seed42",
        "W_REINFORCE_lambda0.1_1024_seed42",
        "W_REINFORCE_lambda0.3_256_seed42",
        "W_REINFORCE_lambda0.3_512_seed42",
        "RLVR_256_seed42",
        "RLVR_512_seed42",
        "RLVR_1024_seed42",
    ]
    assert {run.model_id for run in build_suite(SuiteConfig(name="study"))} == {"Qwen/Qwen3-1.7B"}


def test_tiny_with_paired_seeds() -> None:
    kinds = ["baseline", "RLVR", "PSR", "NSR", "W_REINFORCE_lambda0.1", "W_REINFORCE_lambda0.3", "SHUFFLED"]
    assert names("tiny", seeds=2) == [f"{kind}_96_seed{seed}" for seed in (42, 43) for kind in kinds]
    runs = build_suite(SuiteConfig(name="tiny", seed=7, output_dir="out"))
    assert {(run.model_id, run.device, run.seed, run.output_dir) for run in runs} == {("tiny", "cpu", 7, "out/tiny")}


def test_the_sweep_over_lambda() -> None:
    weights = [run.lambda_psr for run in build_suite(SuiteConfig(name="lambda")) if isinstance(run, TrainConfig)]
    assert weights == [0.0, 0.05, 0.1, 0.3, 1.0]
    assert len(set(names("lambda"))) == 5


@pytest.mark.parametrize("name", SUITES)
def test_the_command_line_of_each_run_gives_its_settings(name: str) -> None:
    for run in build_suite(SuiteConfig(name=name, seeds=2)):
        command, *flags = to_words(run)
        config_type = TrainConfig if command == "train" else BaselineConfig
        assert parse_run(config_type, flags) == run
        assert run.resume


def test_an_unknown_suite(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suite", "stdy"]) == 2
    assert capsys.readouterr().err.startswith("error: the suite is 'stdy' but must be one of study, tiny, lambda")


def test_a_dry_run_prints_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suite", "tiny", "--dry_run", "--output_dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    words = shlex.split(lines[3])
    assert words[:2] == ["nsr", "train"]
    assert parse_run(TrainConfig, words[2:]).run_path == tmp_path / "tiny" / "NSR_96_seed42"
    assert list(tmp_path.iterdir()) == []


def test_other_flags_reach_the_runs_that_have_them(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["suite", "tiny", "--dry_run", "--", "--n_train_steps", "2", "--eval-puzzles=4", "--max_tokens=64"]
    assert main(words) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    baseline = parse_run(BaselineConfig, lines[0][2:])
    assert (baseline.eval_puzzles, baseline.run_name) == (4, "baseline_64_seed42")
    trained = [parse_run(TrainConfig, line[2:]) for line in lines[1:]]
    assert {(run.n_train_steps, run.eval_puzzles, run.max_tokens) for run in trained} == {(2, 4, 64)}
    assert {(run.lr, run.model_id) for run in trained} == {(3e-5, "tiny")}  # the others stay as the list has them


def test_a_change_that_says_what_the_default_would_be_counts() -> None:
    assert parse_changes(["--lr", "3e-6", "--eval_every=0"]) == {"lr": 3e-6, "eval_every": 0}
    assert parse_changes([]) == {}
    changed = build_suite(SuiteConfig(name="tiny"), parse_changes(["--lr", "3e-6"]))[1]
    assert isinstance(changed, TrainConfig)
    assert changed.lr == 3e-6


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--seed", "1"], "--seed stands after the `--` but a suite sets it for its runs"),
        (["--resume"], "--resume stands after"),
        (["--preset", "tiny"], "--preset stands after"),
        (["--objective", "NSR"], "--objective makes several runs of the suite the same, NSR_96"),
        (["--group_size", "7"], "--group_size is 7 but must be a divisor of --rollout_batch_size, 128"),
    ],
)
def test_changes_that_no_suite_can_take(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suite", "tiny", "--dry_run", "--", *flags]) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_changes_are_checked_against_the_runs_not_the_defaults() -> None:
    # 8 samples in 16 microbatches, the default, cannot be; in the 4 of this list they can.
    runs = build_suite(SuiteConfig(name="tiny"), parse_changes(["--rollout_batch_size", "8"]))
    assert {run.grad_acc_steps for run in runs if isinstance(run, TrainConfig)} == {4}


def test_a_part_of_a_suite(capsys: pytest.CaptureFixture[str]) -> None:
    def part(only: str) -> list[str]:
        return [run.run_name for run in build_suite(SuiteConfig(name="tiny", only=only))]

    assert part("PSR,baseline") == ["baseline_96_seed42", "PSR_96_seed42"]  # in the order of the list
    assert part("W_REINFORCE") == ["W_REINFORCE_lambda0.1_96_seed42", "W_REINFORCE_lambda0.3_96_seed42"]
    assert part("W_REINFORCE_lambda0.3_96") == ["W_REINFORCE_lambda0.3_96_seed42"]
    assert main(["suite", "tiny", "--only", "NSR,PS"]) == 2
    assert "--only names 'PS' but the suite holds baseline_96, RLVR_96" in capsys.readouterr().err


@pytest.mark.parametrize("name", SUITES)
def test_the_same_seed_means_the_same_puzzles_for_every_run(name: str) -> None:
    """By the functions that a run takes its puzzles from, with the arguments that `train` and `run_baseline` give."""
    seen: dict[int, set[tuple[object, ...]]] = {42: set(), 43: set()}
    changes = {"n_train_steps": 3, "eval_puzzles": 8, "data": "synthetic"}
    for run in build_suite(SuiteConfig(name=name, seeds=2), changes):
        steps = run.n_train_steps * run.puzzles_per_step if isinstance(run, TrainConfig) else None
        splits = load_splits(run.data, eval_puzzles=run.eval_puzzles, seed=run.seed, train_puzzles=steps)
        trained: list[object] = []
        if isinstance(run, TrainConfig):
            for step in (1, 2, 3):
                trained += puzzles_of_step(splits.train, step, run.puzzles_per_step, run.seed)
            assert len({puzzle.key for puzzle in trained}) == 48  # type: ignore[attr-defined]
        seen[run.seed].add((*splits.evaluation, *trained))
    for puzzles in seen.values():
        # A baseline's evaluation puzzles are those of the trained runs.
        assert len({sequence[:8] for sequence in puzzles}) == 1
        assert len({sequence for sequence in puzzles if len(sequence) > 8}) == 1
    assert seen[42].isdisjoint(seen[43])
