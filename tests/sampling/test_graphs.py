"""Recording and replaying, with a recorder that notes instead of recording."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from nsr.sampling import graphs
from nsr.sampling.graphs import Recorded


class Noted:
    """In a recorder's place: a recording calls the function again. `wrong` is done beside it in every replay."""

    def __init__(self, error: str = "", wrong: Callable[[], object] = lambda: None) -> None:
        self.works, self.recordings, self.replays, self.reasons = True, 0, 0, list[str]()
        self._error, self._wrong, self._work = error, wrong, lambda: None

    def record(self, work: Callable[[], None]) -> Any:
        self.recordings += 1
        if self._error:
            raise RuntimeError(self._error)
        recorder = self

        class Graph:
            def replay(self) -> None:
                recorder.replays += 1
                work()
                recorder._wrong()

        return Graph()

    def give_up(self, reason: str) -> None:
        self.works = False
        self.reasons.append(reason)


@pytest.fixture
def state() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros((), dtype=torch.int64), torch.zeros(3)


def adds(state: tuple[torch.Tensor, torch.Tensor]) -> Callable[[int], None]:
    def add(number: int) -> None:
        state[0].add_(number)
        state[1].add_(0.5 * number)

    return add


def test_a_shape_is_called_recorded_and_replayed(state) -> None:
    recorder: Any = Noted()
    recorded, function = Recorded(state, recorder), adds(state)
    seen = []
    for number in (2, 2, 2, 5, 2, 5, 5):
        recorded(function, number)
        seen.append((int(state[0]), recorder.recordings, recorder.replays))
    # the second 2 is recorded and replayed once, the later ones are replayed; 5 likewise
    assert seen == [(2, 0, 0), (4, 1, 1), (6, 1, 2), (11, 1, 2), (13, 1, 3), (18, 2, 4), (23, 2, 5)]
    assert state[1].tolist() == [11.5] * 3
    assert not recorder.reasons


@pytest.mark.parametrize("fault", ["raises", "computes something else"])
def test_what_goes_wrong_is_called_as_it_is_from_there_on(state, fault: str) -> None:
    recorder: Any = Noted("not now\nand more") if fault == "raises" else Noted(wrong=lambda: state[1].mul_(3.0))
    recorded, function = Recorded(state, recorder), adds(state)
    for number in (2, 2, 2, 5, 5):
        recorded(function, number)
    assert (int(state[0]), state[1].tolist()) == (16, [8.0] * 3)
    assert recorder.recordings == 1
    assert recorder.reasons == ["not now" if fault == "raises" else "replayed, they compute something else"]


def test_numbers_that_are_none_are_no_fault_of_the_recording(state) -> None:
    recorder: Any = Noted()
    recorded = Recorded(state, recorder)
    for _ in range(3):
        recorded(lambda: state[1].fill_(torch.nan))
    assert recorder.works
    assert recorder.replays == 2


def test_without_a_recorder_everything_is_called(state) -> None:
    recorded, function = Recorded(state, None), adds(state)
    with recorded.stream():
        for _ in range(3):
            recorded(function, 1)
    assert int(state[0]) == 3


def test_giving_up_is_said_once_for_the_process(caplog) -> None:
    recorder = object.__new__(graphs.Recorder)
    recorder.works = True
    with caplog.at_level(logging.WARNING):
        recorder.give_up("it waits")
    assert not recorder.works
    assert [record.getMessage() for record in caplog.records] == [
        "Sampling takes its steps one by one, without CUDA graphs: it waits."
    ]
