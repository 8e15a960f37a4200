"""Recording and replaying, with a recorder that notes instead of recording."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch

from nsr.rollout.native import graphs
from nsr.rollout.native.graphs import Recorded


class Noted:
    """In a recorder's place: a recording calls the function again. `wrong` is done beside it in every replay."""

    def __init__(self, error: str = "", wrong: Callable[[], object] = lambda: None) -> None:
        self.works, self.recordings, self.replays, self.reasons = True, 0, 0, list[str]()
        self._error, self._wrong = error, wrong

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


def test_a_shape_without_room_is_called_as_it_is_and_others_are_recorded(state, monkeypatch) -> None:
    recorder: Any = Noted()
    recorded, function = Recorded(state, recorder), adds(state)
    record = recorder.record

    def full(work: Callable[[], None]) -> Any:
        if int(state[0]) < 6:
            raise torch.OutOfMemoryError("no room")
        return record(work)

    monkeypatch.setattr(recorder, "record", full)
    for number in (2, 2, 2, 5, 5, 5):
        recorded(function, number)
    assert int(state[0]) == 21
    assert (recorder.works, recorder.recordings, recorder.replays) == (True, 1, 2)


class FakeGraph:
    """Notes what is asked of it."""

    made: ClassVar[list[FakeGraph]] = []

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.made.append(self)

    def capture_begin(self, pool: object) -> None:
        self.asked.append(f"begin in {pool}")

    def capture_end(self) -> None:
        self.asked.append("end")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> graphs.Recorder:
    """A recorder of a device that is none."""
    FakeGraph.made.clear()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "the pool")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *_: None, raising=False)
    return graphs.Recorder(torch.device("cuda", 0))


def test_the_first_graph_is_kept_and_later_ones_are_not(recorder) -> None:
    done: list[int] = []
    for number in range(3):
        assert recorder.record(lambda n=number: done.append(n)) is FakeGraph.made[number]
    assert done == [0, 1, 2]
    assert recorder._kept == FakeGraph.made[:1]
    assert all(graph.asked == ["begin in the pool", "end"] for graph in FakeGraph.made)


@pytest.mark.parametrize("error", [RuntimeError("it waits"), KeyboardInterrupt()])
def test_a_failed_recording_ends_and_is_kept_and_says_its_own_reason(recorder, error: BaseException) -> None:
    def fails() -> None:
        raise error

    recorder.record(lambda: None)
    with pytest.raises(type(error)) as caught:
        recorder.record(fails)
    assert caught.value is error
    assert recorder._kept == FakeGraph.made
    assert FakeGraph.made[1].asked[-1] == "end"


def test_room_is_made_once(recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(1))

    def needs_room() -> None:
        if not given_back:
            raise torch.OutOfMemoryError("no room")

    assert recorder.record(needs_room) is FakeGraph.made[1]
    assert given_back == [1]

    def needs_more() -> None:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError):
        recorder.record(needs_more)
    assert given_back == [1, 1]


def test_giving_up_is_said_and_for_good(recorder, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        recorder.give_up("it waits")
    assert not recorder.works
    assert [record.getMessage() for record in caplog.records] == [
        "Sampling takes its steps one by one, without CUDA graphs: it waits."
    ]
