"""Workers take turns: a repetition each, round after round, so that what else the machine does meets them all alike."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.work import Work

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One that takes part."""

    name: str
    """How the table calls it."""
    worker: str
    """Its name in `benchmarks.worker`."""
    work: Work


@dataclass(kw_only=True)
class Outcome:
    """What came of a contender."""

    contender: Contender
    rounds: list[dict[str, float]] = field(default_factory=list)
    """What it reported in each round that counts; all contenders that lasted have the same number."""
    trouble: str = ""
    """Why it has no rounds, or no more."""

    def values(self, measure: str) -> list[float]:
        """One measure of every round; empty if it has none."""
        return [record[measure] for record in self.rounds if measure in record]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        contender = self.contender
        return {
            "name": contender.name,
            "worker": contender.worker,
            "work": dataclasses.asdict(contender.work),
            "rounds": self.rounds,
            "trouble": self.trouble,
        }


def compete(
    contenders: Sequence[Contender],
    *,
    rounds: int,
    seconds: float = float("inf"),
    deadline: float = float("inf"),
    patience: float = 3600.0,
    say: Callable[[str], None] = lambda _: None,
) -> list[Outcome]:
    """Let all start, and then take turns: a round that does not count, then `rounds` that do.

    Args:
        contenders: who takes part, in their order.
        rounds: how many count.
        seconds: once they are over no round begins, but there is one that counts.
        deadline: time of `time.perf_counter` after which no contender starts and nobody takes a turn; who is at it then
            has `patience` left. A round that is not whole does not count.
        patience: seconds after which a contender that does not answer is given up.
        say: is told how far it is.

    Returns:
        What came of each. One that fails is left out from there on.
    """
    outcomes = [Outcome(contender=contender) for contender in contenders]
    if time.perf_counter() > deadline:
        for outcome in outcomes:
            outcome.trouble = "no time left"
        return outcomes
    with contextlib.ExitStack() as stack:
        workers = _started(outcomes, stack, deadline, patience, say)
        begun = time.perf_counter()
        for number in range(rounds + 1):
            if number > 1 and time.perf_counter() - begun > seconds:
                say("no time for more rounds")
                break
            answers = _round(workers, "warm-up" if number == 0 else f"round {number}", deadline, patience, say)
            if answers is None:
                say("no time left")
                break
            for outcome, answer in answers if number > 0 else ():
                outcome.rounds.append(answer)
    for outcome in outcomes:
        if not outcome.rounds and not outcome.trouble:
            outcome.trouble = "no time left"
    return outcomes


def _round(
    workers: list[tuple[_Worker, Outcome]], name: str, deadline: float, patience: float, say: Callable[[str], None]
) -> list[tuple[Outcome, dict[str, Any]]] | None:
    """What each reported of its turn; those that failed are taken out. None if the deadline came before the end."""
    answers: list[tuple[Outcome, dict[str, Any]]] = []
    for worker, outcome in list(workers):
        if time.perf_counter() > deadline:
            return None
        answer = worker.repetition(patience)
        outcome.trouble = trouble_of(answer)
        if outcome.trouble:
            workers.remove((worker, outcome))
        else:
            answers.append((outcome, answer))
        state = outcome.trouble or f"{answer['seconds']:.2f} s"
        say(f"{name}, {outcome.contender.name}: {state}")
    return answers


def _started(
    outcomes: Sequence[Outcome],
    stack: contextlib.ExitStack,
    deadline: float,
    patience: float,
    say: Callable[[str], None],
) -> list[tuple[_Worker, Outcome]]:
    """Those that are ready, in their order; the outcomes of the others say why not."""
    # vLLM measures how much memory is free while it starts, so nobody may start beside it.
    alone = ["vllm" in outcome.contender.worker for outcome in outcomes]
    started = {
        index: stack.enter_context(_Worker(outcome.contender))
        for index, outcome in enumerate(outcomes)
        if not alone[index]
    }
    for index in sorted(range(len(outcomes)), key=alone.__getitem__):
        outcome, left = outcomes[index], deadline - time.perf_counter()
        if alone[index] and left > 0:
            started[index] = stack.enter_context(_Worker(outcome.contender))
        if index in started:
            outcome.trouble = trouble_of(started[index].answer(max(1.0, min(patience, left + patience))))
        else:
            outcome.trouble = "no time left"
        say(f"{outcome.contender.name}: {outcome.trouble or 'ready'}")
    return [(worker, outcomes[index]) for index, worker in sorted(started.items()) if not outcomes[index].trouble]


def trouble_of(answer: dict[str, Any]) -> str:
    """What a worker's answer says is wrong, empty if nothing."""
    if "missing" in answer:
        return "not installed"
    return str(answer.get("error", ""))


class _Worker:
    """A contender's process. As a context it ends with it."""

    def __init__(self, contender: Contender) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        work = json.dumps(dataclasses.asdict(contender.work))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", contender.worker, work],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self._unread = b""

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def repetition(self, seconds: float) -> dict[str, Any]:
        """Tell it to take its turn, and wait for what it reports, as `answer` does."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"go\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended: what it said at last is still to be read
        return self.answer(seconds)

    def answer(self, seconds: float) -> dict[str, Any]:
        """The next line that it writes; an "error" if it ends, or if none comes for so many seconds."""
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        deadline = time.monotonic() + seconds
        while b"\n" not in self._unread:
            readable, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                self._process.kill()
                return {"error": f"no answer for {seconds:.0f} seconds"}
            part = os.read(pipe, 1 << 16)
            if not part:
                return {"error": f"the worker has ended: {self._last_words()}"}
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)  # it writes them at its very end
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"
