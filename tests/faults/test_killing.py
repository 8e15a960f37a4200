"""A run that is killed at random moments and resumed ends as one that was left alone, to the last byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from forked import Trainer
from killing import kill


def test_ten_kills(trainer: Trainer, tmp_path: Path) -> None:
    outcome = kill(trainer, tmp_path, 10, seed=1)
    assert outcome.kills == 10
    assert outcome.rounds >= 1
    assert max(outcome.lost) <= 3  # it saves every second step; the third is the one that was not yet saved


@pytest.mark.slow
def test_a_hundred_kills(trainer: Trainer, tmp_path: Path) -> None:
    outcome = kill(trainer, tmp_path, 100, seed=0)
    assert outcome.kills == 100
    assert {"start-up", "sampling", "learning", "evaluating", "saving"} <= outcome.phases.keys()
    assert outcome.half_written >= 5
