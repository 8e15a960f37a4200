"""Kill a training process again and again, resume it each time, and compare the end with a run that was left alone.

`python tests/faults/killing.py 100` kills 100 times and prints what was hit; the tests do the same with fewer.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from forked import Trainer

from nsr.runs.checkpoints import ASIDE, newest_checkpoint
from nsr.runs.folder import is_complete, read_metrics, read_timings

STEPS = 40
"""Of a run that is killed: enough for several kills."""

_DIFFERENT = ("config.json", "environment.json", "timings.jsonl", "lock")  # names, times and processes stand in them


@dataclass
class Outcome:
    """What the kills hit."""

    kills: int = 0
    rounds: int = 0
    """Runs that were killed until they were complete, and compared."""
    phases: Counter[str] = field(default_factory=Counter)
    half_written: int = 0
    """Kills that left a checkpoint half-written, or half-deleted."""
    lost: list[int] = field(default_factory=list)
    """Steps that each kill lost: those after the newest whole checkpoint."""
    seconds: float = 0.0
    whole_seconds: float = 0.0
    """Of the run that was left alone."""

    def __str__(self) -> str:
        phases = ", ".join(f"{name} {count}" for name, count in self.phases.most_common())
        return (
            f"{self.kills} kills ({phases}); {self.half_written} left a checkpoint half-written or half-deleted\n"
            f"{self.rounds} runs killed to their end and compared: identical to the one that was left alone\n"
            f"steps lost by a kill and made again: {sum(self.lost) / len(self.lost):.2f} on average, at most "
            f"{max(self.lost)}\n"
            f"{self.seconds:.0f} s in all; a run that is left alone takes {self.whole_seconds:.2f} s"
        )


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a run that must be the same again, by name; those that need not be by name alone."""
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    return {name: b"" if name in _DIFFERENT else file.read_bytes() for name, file in files.items()}


def assert_same(killed: Path, whole: Path) -> None:
    """The two runs left the same files with the same bytes, no step twice and none missing."""
    found, expected = contents(killed), contents(whole)
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    different = [name for name in expected if found[name] != expected[name]]
    assert not different, different
    steps = [record["step"] for record in read_metrics(whole)]
    assert steps == list(range(1, len(steps) + 1))
    assert [record["step"] for record in read_timings(killed)] == steps


def kill(
    trainer: Trainer, folder: Path, count: int, seed: int, progress: Callable[[Outcome], None] = lambda outcome: None
) -> Outcome:
    """Kill runs in `folder` until `count` processes are killed, and compare each run when it is complete."""
    rng = random.Random(seed)
    outcome = Outcome()
    log = folder / "log"
    started = time.perf_counter()
    assert trainer.run(trainer.words(folder / "whole", n_train_steps=STEPS), log) == 0, log.read_text()
    outcome.whole_seconds = time.perf_counter() - started
    while outcome.kills < count:
        output = folder / f"killed_{outcome.rounds}"
        words = [*trainer.words(output, n_train_steps=STEPS), "--resume"]
        while outcome.kills < count and _start_and_kill(trainer, words, log, output / "run", rng, outcome):
            pass
        assert trainer.run(words, log) == 0, log.read_text()
        assert_same(output / "run", folder / "whole" / "run")
        shutil.rmtree(output)
        outcome.rounds += 1
        outcome.seconds = time.perf_counter() - started
        progress(outcome)
    return outcome


def _start_and_kill(
    trainer: Trainer, words: list[str], log: Path, path: Path, rng: random.Random, outcome: Outcome
) -> bool:
    """Start the run and kill it at a random moment; False if it was complete before."""
    before = newest_checkpoint(path / "checkpoints")
    complete = is_complete(path)  # killed while it summed up
    said = log.stat().st_size
    pid = trainer.start(words, log)
    kind = rng.random()
    if kind < 0.2:  # while a checkpoint is written or an old one deleted, which are small parts of the time
        for _ in range(rng.randint(1, 6)):
            trainer.wait_for("saving")
            if trainer.ended(rng.uniform(0.0, 0.05)):
                break
    elif kind < 0.3:
        trainer.wait_for("deleting")
        trainer.ended(rng.uniform(0.0, 0.002))
    else:
        trainer.ended(rng.uniform(0.0, 0.5 * outcome.whole_seconds))
    if not trainer.ended(0.0):
        os.kill(pid, signal.SIGKILL)
    code, phase = trainer.code(), trainer.phase
    if code == 0:  # it was complete before, or just then
        return False
    assert code == -signal.SIGKILL, (code, log.read_text())
    after = newest_checkpoint(path / "checkpoints")
    # Whatever was saved is still there and whole, and it is where the run went on.
    assert before is None or (after is not None and after[0] >= before[0])
    assert "is passed over" not in log.read_text()
    if before is not None and phase != "start-up" and not complete:
        assert f"going on after step {before[0]}," in log.read_text()[said:]
    outcome.kills += 1
    outcome.phases[phase] += 1
    outcome.half_written += any((path / "checkpoints").glob(f"*{ASIDE}"))
    outcome.lost.append(len(read_metrics(path)) - (after[0] if after else 0))
    return True


def main() -> None:
    """Kill as often as the command line says."""
    count = int(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as name, Trainer(Path(name)) as trainer:
        kill(trainer, Path(name), count, seed, lambda outcome: print(outcome, flush=True))


if __name__ == "__main__":
    main()
