from __future__ import annotations

import io
import itertools

import pytest
from rich.console import Console

from nsr.runs.progress import RunProgress, StepStatus, printable


def status(step: int, entropy: float | None = 0.5713) -> StepStatus:
    return StepStatus(
        step=step,
        seconds=4.21,
        accuracy=0.3125,
        reward=-0.375,
        entropy=entropy,
        length=84.4,
        right=0.0625,
        mixed=0.6875,
        wrong=0.25,
    )


def test_plain_lines_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    clock = itertools.count(start=0, step=10).__next__
    with RunProgress(4, console=Console(file=out), clock=clock) as progress:
        progress.say("evaluated [red]everything[/red]")
        progress.step(status(1))
        progress.step(status(2, entropy=None))
    assert out.getvalue().splitlines() == [
        "evaluated [red]everything[/red]",
        # Ten seconds since the start for one step: three more take thirty.
        "step 1/4  4.2 s  accuracy 31.2%  reward -0.375  entropy 0.571  length 84  "
        "groups right 6% mixed 69% wrong 25%  ETA 0:00:30",
        "step 2/4  4.2 s  accuracy 31.2%  reward -0.375  entropy ?  length 84  "
        "groups right 6% mixed 69% wrong 25%  ETA 0:00:20",
    ]


def test_the_time_that_remains_counts_the_steps_of_this_start_only() -> None:
    out = io.StringIO()
    clock = itertools.count(start=0, step=10).__next__
    with RunProgress(100, done=90, console=Console(file=out), clock=clock) as progress:
        progress.step(status(91))
    assert "ETA 0:01:30" in out.getvalue()


def test_an_evaluation_says_a_line_at_each_quarter() -> None:
    out = io.StringIO()
    with RunProgress(console=Console(file=out)) as progress, progress.evaluation("evaluation", 100) as advance:
        for _ in range(10):
            advance(10)
    assert out.getvalue().splitlines() == [f"evaluation: {count}/100 samples" for count in (30, 50, 80, 100)]


def test_a_live_bar_in_a_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, _environ={"TERM": "xterm-256color"})
    with RunProgress(4, console=console) as progress:
        with progress.evaluation("evaluation", 8) as advance:
            advance(3)
            progress.say("a line above")
        progress.step(status(3))
    text = out.getvalue()
    assert "a line above\n" in text
    assert "3/8" in text
    assert "3/4" in text
    assert "accuracy 31.2%" in text
    assert "\x1b[?25l" in text  # the cursor is hidden while it is live
    assert text.rstrip("\n").endswith("\x1b[?25h")  # and shown again


def test_a_dumb_terminal_gets_lines() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, _environ={"TERM": "dumb"})
    with RunProgress(4, console=console) as progress:
        progress.step(status(1))
    assert out.getvalue().startswith("step 1/4")
    assert "\x1b" not in out.getvalue()


def test_the_bar_goes_away_at_an_error() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, _environ={"TERM": "xterm"})
    with pytest.raises(KeyboardInterrupt), RunProgress(4, console=console):
        raise KeyboardInterrupt
    assert out.getvalue().rstrip("\n").endswith("\x1b[?25h")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<think>44 + 19\n\t= 63</think>", "<think>44 + 19\n\t= 63</think>"),
        ("[bold red]a[/] :smile:", "[bold red]a[/] :smile:"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\rb\x08\x9b", "a\\rb\\x08\\x9b"),
        ("x\u202ey\u2028z", "x\\u202ey\\u2028z"),
        ("\ud800", "\\ud800"),
        ("é 数 ÷", "é 数 ÷"),
    ],
)
def test_text_from_outside_controls_nothing(text: str, shown: str) -> None:
    assert printable(text).plain == shown
    out = io.StringIO()
    Console(file=out, force_terminal=True, width=80).print(printable(text))
    assert out.getvalue() == shown.expandtabs(8) + "\n"
