"""Time of a training step of the embedded model, from the timings that a real run writes.

    python benchmarks/step.py            # 10 steps of 128 rollouts (16 puzzles x 8) of NSR

Prints median, smallest and largest of the steps after the first two, in which libraries prepare their kernels.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile

from nsr.config import TrainConfig, with_preset
from nsr.learning.trainer import train
from nsr.runs.folder import read_timings

WARM_UP = 2


def main(n_steps: int = 10) -> None:
    """Run `n_steps` steps in a folder that is deleted afterwards, and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(
            with_preset(TrainConfig, "tiny"),
            n_train_steps=n_steps + WARM_UP,
            eval_puzzles=1,
            eval_samples=1,
            eval_every=0,
            save_every=0,
            output_dir=folder,
        )
        timings = read_timings(train(config))
    for name in (
        "step_seconds",
        "sampling_seconds",
        "learning_seconds",
        "sampling_tokens_per_second",
        "learning_tokens_per_second",
    ):
        values = [float(record[name]) for record in timings[WARM_UP:]]
        print(f"{name:<28} median {statistics.median(values):9.1f}  from {min(values):9.1f} to {max(values):9.1f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
