"""Run folders that were not run: small, quick, and with numbers that are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nsr.config import BaselineConfig, RunConfig, TrainConfig, to_record
from nsr.evaluation.evaluate import Evaluation, Tally
from nsr.runs.files import write_gzip_lines, write_json
from nsr.tasks.countdown.puzzle import Puzzle, generate
from nsr.tasks.countdown.solver import solve

NUM_PUZZLES, NUM_SAMPLES, STEPS = 24, 8, 4
COMMON: dict[str, Any] = {"model_id": "tiny", "data": "synthetic", "max_tokens": 64, "eval_puzzles": NUM_PUZZLES}


def puzzles_of(seed: int, count: int = NUM_PUZZLES) -> list[Puzzle]:
    return generate(count, seed=seed)


def sample_rows(puzzles: Sequence[Puzzle], num_correct: Sequence[int], text: str = "") -> list[dict[str, Any]]:
    rows = []
    for puzzle, count in zip(puzzles, num_correct, strict=True):
        equation = solve(puzzle)[0]
        for sample in range(NUM_SAMPLES):
            right = sample < count
            answer = equation if right else puzzle.numbers[0]
            rows.append(
                {
                    "puzzle": puzzle.key,
                    "sample": sample,
                    "text": text or f"<think>{sample}</think><answer>{answer}</answer>",
                    "tokens": 10,
                    "verdict": "correct" if right else "wrong_value" if sample % 2 else "no_answer",
                    "equation": equation if right else None,
                    "log_prob": -1.0,
                    "entropy": 0.5,
                    "truncated": False,
                }
            )
    return rows


def write_evaluation(
    path: Path, step: int, puzzles: Sequence[Puzzle], num_correct: Sequence[int], config: RunConfig, text: str = ""
) -> None:
    rows = sample_rows(puzzles, num_correct, text)
    tally = Tally(puzzles, NUM_SAMPLES)
    for row in rows:
        tally.add(row)  # type: ignore[arg-type]
    evaluation = Evaluation(
        step=step,
        temperature=config.evaluation_temperature,
        max_tokens=config.max_tokens,
        seed=config.seed,
        greedy_accuracy=None,
        **tally.measures(with_coverage=False),
    )
    file = path / "evaluations" / f"step_{step:06d}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, evaluation.to_json())
    write_gzip_lines(file.with_suffix(".samples.jsonl.gz"), rows)


def write_lines(path: Path, records: Sequence[object]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def train_run(
    folder: Path,
    objective: str = "NSR",
    seed: int = 42,
    *,
    before: int | Sequence[int] = 2,
    after: int | Sequence[int] = 4,
    steps: Sequence[int] = (0, 2, STEPS),
    text: str = "",
    name: str | None = None,
    mechanism: bool = True,
    **settings: Any,
) -> Path:
    """A training run: `before` right samples of each puzzle at step 0, `after` at the others."""
    config = TrainConfig(
        objective=objective,
        seed=seed,
        n_train_steps=STEPS,
        eval_every=2,
        eval_samples=NUM_SAMPLES,
        output_dir=str(folder),
        exp_name=name or f"{objective}_seed{seed}",
        **{**COMMON, **settings},
    )
    path = _start(config)
    shares = {"correct": 0.25, "no_answer": 0.25, "malformed": 0.0, "wrong_numbers": 0.0, "division_by_zero": 0.0}
    write_lines(
        path / "metrics.jsonl",
        [
            {
                "step": step,
                "correct_ratio": 0.2 + 0.01 * step,
                "entropy": 0.5,
                "response_length": 20.0 + step,
                "groups_all_right": 0.1,
                "groups_mixed": 0.6,
                "groups_all_wrong": 0.3,
                **{f"verdict_{key}": value for key, value in {**shares, "wrong_value": 0.5}.items()},
            }
            for step in range(1, STEPS + 1)
        ],
    )
    write_lines(path / "timings.jsonl", [{"step": step, "step_seconds": 1.5} for step in range(1, STEPS + 1)])
    if mechanism:
        write_lines(
            path / "mechanism.jsonl",
            [
                {
                    "step": step,
                    **{
                        kind: {f"{key}_change": -0.01 * step for key in ("log_prob", "sampled", "top", "tail")}
                        for kind in ("right", "wrong")
                    },
                    "kl_base": 0.002 * step,
                }
                for step in steps
            ],
        )
    puzzles = puzzles_of(seed)
    for step in steps:
        counts = before if step == 0 else after
        num_correct = [counts] * len(puzzles) if isinstance(counts, int) else list(counts)
        write_evaluation(path, step, puzzles, num_correct, config, text)
    write_json(path / "done.json", {"step": STEPS})
    return path


def baseline_run(folder: Path, seed: int = 42, *, right: int | Sequence[int] = 2, **settings: Any) -> Path:
    config = BaselineConfig(
        seed=seed,
        eval_samples=NUM_SAMPLES,
        output_dir=str(folder),
        **{"exp_name": f"baseline_seed{seed}", **COMMON, **settings},
    )
    path = _start(config)
    puzzles = puzzles_of(seed)
    num_correct = [right] * len(puzzles) if isinstance(right, int) else list(right)
    write_evaluation(path, 0, puzzles, num_correct, config)
    write_json(path / "done.json", {"step": 0})
    return path


def _start(config: RunConfig) -> Path:
    path = config.run_path
    path.mkdir(parents=True)
    write_json(path / "config.json", {**to_record(config), "resolved": {}})
    write_json(path / "environment.json", {"packages": {"torch": "1"}, "cpu": "a machine", "memory": 10**9, "gpus": []})
    return path
