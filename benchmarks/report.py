"""How long a report of 100 runs with 1 million samples takes, and how large it is. The runs are made up.

python benchmarks/report.py [RUNS] [SAMPLES A RUN]
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nsr.config import ReportConfig, TrainConfig, to_record
from nsr.evaluation.evaluate import Evaluation, Tally
from nsr.evaluation.samples import SampleRow
from nsr.report.report import report
from nsr.runs.files import append_line, to_json, write_gzip_lines, write_json
from nsr.tasks.countdown.puzzle import Puzzle, generate
from nsr.tasks.countdown.solver import solve

METHODS: tuple[tuple[str, float], ...] = (
    *((name, 0.1) for name in ("RLVR", "PSR", "NSR", "SHUFFLED", "RLOO")),
    *(("W_REINFORCE", weight) for weight in (0.0, 0.05, 0.1, 0.3, 1.0)),
)
STEPS, NUM_SAMPLES = 200, 32


def main(num_runs: int = 100, num_samples: int = 10_000) -> None:
    """Make up the runs, report them, and print what it took."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        rows = sum(make_run(Path(folder), number, num_samples) for number in range(num_runs))
        print(f"made up {num_runs} runs with {rows:,} samples in {time.perf_counter() - start:.0f} s")
        start, cpu = time.perf_counter(), time.process_time()
        page = report(ReportConfig(folders=(folder,)))
        took, used = time.perf_counter() - start, time.process_time() - cpu
        print(f"report: {took:.1f} s, of which {used:.1f} s of one core; {page.stat().st_size / 1e6:.1f} MB")
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


def make_run(folder: Path, number: int, num_samples: int) -> int:
    """Make up the folder of a run with two evaluations; returns the number of its samples."""
    seed, method = divmod(number, len(METHODS))
    objective, weight = METHODS[method]
    config = TrainConfig(
        objective=objective,
        lambda_psr=weight,
        seed=seed,
        n_train_steps=STEPS,
        eval_every=STEPS,
        data="synthetic",
        output_dir=str(folder),
        exp_name=f"{objective}_{weight:g}_seed{seed}",
    )
    path = config.run_path
    (path / "evaluations").mkdir(parents=True)
    write_json(path / "config.json", to_record(config))
    write_json(path / "environment.json", {"cpu": "made up"})
    rng = np.random.default_rng([seed, method])
    write_lines(path / "metrics.jsonl", [{"step": step, **_metrics(rng)} for step in range(1, STEPS + 1)])
    write_lines(path / "timings.jsonl", [{"step": step, "step_seconds": 1.0} for step in range(1, STEPS + 1)])
    puzzles = generate(num_samples // (2 * NUM_SAMPLES), seed=seed)
    for step in (0, STEPS):
        _write_evaluation(path, puzzles, step, rng)
        change = {name: float(rng.normal() * step / STEPS) for name in ("log_prob_change", "sampled_change")}
        record = {**change, "top_change": 0.0, "tail_change": 0.0}
        mechanism = {"step": step, "right": record, "wrong": record, "kl_base": abs(change["log_prob_change"])}
        append_line(path / "mechanism.jsonl", mechanism)
    write_json(path / "done.json", {"step": STEPS})
    return 2 * len(puzzles) * NUM_SAMPLES


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Write all lines at once: a run would have them on the disk one by one."""
    path.write_text("".join(to_json(record) + "\n" for record in records))


def _metrics(rng: np.random.Generator) -> dict[str, float]:
    verdicts = rng.dirichlet(np.ones(6))
    names = ("correct", "no_answer", "malformed", "wrong_numbers", "division_by_zero", "wrong_value")
    groups = rng.dirichlet(np.ones(3))
    return {
        "correct_ratio": float(verdicts[0]),
        "entropy": float(rng.uniform(0.2, 0.5)),
        "response_length": float(rng.uniform(80, 120)),
        **{
            f"groups_{name}": float(value)
            for name, value in zip(("all_right", "mixed", "all_wrong"), groups, strict=True)
        },
        **{f"verdict_{name}": float(value) for name, value in zip(names, verdicts, strict=True)},
    }


def _write_evaluation(path: Path, puzzles: list[Puzzle], step: int, rng: np.random.Generator) -> None:
    tally = Tally(puzzles, NUM_SAMPLES)
    rows = list(map(tally.add, _rows(puzzles, rng)))
    measures: dict[str, Any] = tally.measures(with_coverage=False)
    evaluation = Evaluation(step=step, temperature=0.7, max_tokens=256, seed=0, greedy_accuracy=None, **measures)
    file = path / "evaluations" / f"step_{step:06d}.json"
    write_gzip_lines(file.with_suffix(".samples.jsonl.gz"), rows)
    write_json(file, evaluation.to_json())


def _rows(puzzles: list[Puzzle], rng: np.random.Generator) -> Iterator[SampleRow]:
    for puzzle in puzzles:
        equations = solve(puzzle)
        chance = rng.beta(0.6, 1.0)
        for sample in range(NUM_SAMPLES):
            right = rng.random() < chance
            digits = "".join(map(str, rng.integers(10, size=160)))
            yield {
                "puzzle": puzzle.key,
                "sample": sample,
                "text": f"<think>{digits}</think><answer>{equations[0]}</answer>",
                "tokens": 180,
                "verdict": "correct" if right else "wrong_value",
                "equation": equations[int(rng.integers(len(equations)))] if right else None,
                "log_prob": -0.2,
                "entropy": 0.3,
                "truncated": False,
            }


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
