"""Contenders that need no model: what can go wrong with a worker."""

from __future__ import annotations

import sys
import time

from benchmarks.work import Work
from benchmarks.worker import Turns


def sleeps(work: Work, turns: Turns) -> None:
    """Takes its turns."""
    turns.before_model()
    turns.ready()
    while turns.begin():
        print("what a library prints is no reply")
        time.sleep(0.01)
        turns.end(tokens=work.response_tokens)


def dies(work: Work, turns: Turns) -> None:
    """Ends in its first turn, without an exception."""
    turns.ready()
    turns.begin()
    sys.exit("its last words")


def gives_up(work: Work, turns: Turns) -> None:
    """Says something that is wrong in its first turn."""
    turns.ready()
    turns.begin()
    turns.say({"error": "it gave up"})
