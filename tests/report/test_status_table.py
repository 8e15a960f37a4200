from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from nsr.report.status import RunStatus, State
from nsr.report.status_table import BRIEF, FULL, StatusTable, choose_rows, status_line

LONG = "W_REINFORCE_lambda0.1_1024_seed42"
RUN = RunStatus(
    name=LONG,
    state="running",
    step=120,
    total=200,
    accuracy=0.3125,
    low=0.28,
    high=0.345,
    evaluated=100,
    remaining=3725.4,
    step_seconds=12.34,
    reward=-0.375,
    entropy=0.5713,
    length=84.4,
)


def show(table: StatusTable, width: int, height: int = 50) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, height=height).print(table)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def of_state(*states: State) -> list[RunStatus]:
    return [RunStatus(name=f"run{index}", state=state) for index, state in enumerate(states)]


def test_all_columns_where_there_is_room() -> None:
    heads, row = show(StatusTable([RUN], FULL), width=200)
    assert " ".join(heads.split()) == "run state step accuracy 95% interval ETA s/step reward entropy length"
    assert row.split() == [
        LONG, "running", "120/200", "31.2%", "[28.0,", "34.5]", "at", "100", "1:02:05", "12.3", "-0.375", "0.571", "84",
    ]  # fmt: skip


@pytest.mark.parametrize("columns", [BRIEF, FULL])
def test_at_80_columns_the_longest_names_of_a_study_and_what_matters_fit(columns: tuple[object, ...]) -> None:
    interrupted = RunStatus(name=LONG, state="interrupted", step=200, total=200, accuracy=0.5, remaining=86399)
    lines = show(StatusTable([interrupted], columns), width=80)  # type: ignore[arg-type]
    assert lines[0].split() == ["run", "state", "step", "accuracy", "ETA"]
    assert lines[1].split() == [LONG, "interrupted", "200/200", "~50.0%", "23:59:59"]


def test_columns_are_left_out_from_the_last_and_it_says_so() -> None:
    seen = 10
    for width in range(140, 75, -3):
        lines = show(StatusTable([RUN], FULL), width=width)
        assert max(len(line) for line in lines) <= width
        assert LONG in lines[1]
        hidden = lines[2].partition("shows: ")[2].rstrip(".").split(", ") if len(lines) > 2 else []
        assert hidden == ["95% interval", "s/step", "reward", "entropy", "length"][5 - len(hidden) :]
        assert len(hidden) >= 10 - seen
        seen = 10 - len(hidden)
    assert seen == 5


def test_where_it_is_narrower_still_the_names_give_way() -> None:
    line = show(StatusTable([RUN], BRIEF), width=60)[1]
    assert line.split()[1:] == ["running", "120/200", "31.2%", "1:02:05"]
    assert line.startswith("W_REINFORCE_lambda0.1")
    assert "…" in line


def test_nothing_in_a_name_reaches_the_terminal() -> None:
    evil = RunStatus(name="\x1b[2J[red]x[/red]\n", state="complete")
    lines = show(StatusTable([evil], BRIEF), width=80)
    assert "\x1b" not in "".join(lines)
    assert "\\x1b[2J[red]x[/red]" in lines[1]
    assert "\x1b" not in status_line(evil)


def test_a_live_table_fits_its_terminal_and_counts_what_it_leaves_out() -> None:
    statuses = of_state(*["complete"] * 20, "failed", "running", *["waiting"] * 20)
    table = StatusTable(statuses, BRIEF, [Text("a note")], live=True)
    for height in (4, 5, 6, 12, 24, 43):
        lines = show(table, width=80, height=height)
        assert len(lines) <= height
        assert lines[-1] == "a note"
    lines = show(table, width=80, height=8)
    assert [line.split()[0] for line in lines[1:-2]] == ["run20", "run21", "run22", "run23", "run24"]
    assert lines[-2] == "and 17 waiting, 20 complete; a taller terminal shows them"
    assert len(show(table, width=80, height=44)) == 44
    assert "taller" not in "".join(show(table, width=80, height=44))
    assert len(show(StatusTable(statuses, BRIEF), width=80, height=8)) == 43  # printed, it can be scrolled


def test_running_and_failed_runs_are_shown_first() -> None:
    statuses = of_state("complete", "complete", "interrupted", "waiting", "waiting", "running", "failed")
    orders = [[status.name for status in choose_rows(statuses, room)[0]] for room in range(8)]
    assert orders == [
        [],
        ["run5"],
        ["run5", "run6"],
        ["run2", "run5", "run6"],
        ["run2", "run3", "run5", "run6"],
        ["run2", "run3", "run4", "run5", "run6"],
        ["run1", "run2", "run3", "run4", "run5", "run6"],  # of the complete ones the last
        [f"run{index}" for index in range(7)],
    ]


def test_a_line() -> None:
    assert status_line(RUN) == f"{LONG}  running  120/200  31.2%  ETA 1:02:05"
    assert status_line(RunStatus(name="base", state="failed")) == "base  failed"
