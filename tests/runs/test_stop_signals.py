from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from nsr.runs.signals import Interrupted, StopSignals


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """Where the tests run in the background, ctrl-C is ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_it_at_once_or_is_held(number: signal.Signals, code: int) -> None:
    with StopSignals() as stop:
        with pytest.raises(Interrupted) as caught:
            os.kill(os.getpid(), number)
        assert caught.value.exit_code == code
    with StopSignals() as stop, stop.hold():
        os.kill(os.getpid(), number)
        assert stop.requested == number
        with pytest.raises(Interrupted), stop.release():
            pytest.fail("what came before is heard here")
    assert signal.getsignal(number) == signal.SIG_DFL


def test_within_hold_it_can_be_released() -> None:
    with StopSignals() as stop, stop.hold():
        with pytest.raises(Interrupted), stop.release():
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == signal.SIGTERM


def test_what_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested is None


def test_elsewhere_than_in_the_main_thread_it_takes_none() -> None:
    def enter() -> None:
        with StopSignals() as stop:
            taken.append(signal.getsignal(signal.SIGTERM) == stop._note)

    taken: list[bool] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert taken == [False]


def test_a_second_one_ends_the_process() -> None:
    code = """
import os, signal
from nsr.runs.signals import StopSignals
signal.signal(signal.SIGINT, signal.default_int_handler)
with StopSignals() as stop, stop.hold():
    os.kill(os.getpid(), signal.SIGINT)
    print("held", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("still there")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (-signal.SIGINT, "held\n")
    assert "SIGINT: the step under way is finished and saved" in result.stderr
    assert "Traceback" not in result.stderr


def test_release_outside_of_hold_holds_nothing_afterwards() -> None:
    with StopSignals() as stop:
        with stop.release():
            pass
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
