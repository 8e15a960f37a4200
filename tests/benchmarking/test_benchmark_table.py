"""Rows and ratios of the benchmark's table."""

from __future__ import annotations

import pytest

from benchmarks.driver import Contender, Outcome
from benchmarks.parts import PARTS
from benchmarks.table import Row, markdown, number, rates, ratios
from benchmarks.work import WORKS, Work

WORK = WORKS["smollm2-135m"]


def outcome(worker: str, trouble: str = "", work: Work = WORK, **measures: list[float]) -> Outcome:
    rounds = [dict(zip(measures, values, strict=True)) for values in zip(*measures.values(), strict=True)]
    return Outcome(contender=Contender(name=worker, worker=worker, work=work), rounds=rounds, trouble=trouble)


def row(rows: list[Row], what: str) -> Row:
    (found,) = (row for row in rows if what in row.what)
    return found


def test_ratios_are_taken_within_a_round() -> None:
    """Everything takes twice as long in the second round: each ratio is 3, and no mixture of rounds."""
    assert ratios([30.0, 60.0], [10.0, 20.0]) == [3.0, 3.0]
    assert ratios([30.0, 60.0], [10.0]) == [3.0], "a round that one has not finished does not count"
    assert rates(outcome("local", tokens=[100.0, 100.0], seconds=[1.0, 4.0])) == [100.0, 25.0]


def test_a_step_is_compared_with_the_quickest_of_the_others() -> None:
    memory = {"peak": [2.0e9, 3.0e9], "before": [1.0e9, 1.0e9]}
    ours = outcome("step", seconds=[10.0, 20.0], sampling_seconds=[4.0, 8.0], learning_seconds=[6.0, 12.0], **memory)
    slow = outcome("trl", seconds=[50.0, 99.0], peak=[9e9, 9e9], before=[1e9, 1e9])
    quick = outcome("trl_autocast", seconds=[40.0, 60.0], peak=[4e9, 4e9], before=[1e9, 1e9])
    rows = PARTS["step"].rows("step", [ours, slow, quick])
    speed = row(rows, "trl_autocast / nsr")
    assert speed.values == (4.0, 3.0)
    assert (speed.target, speed.goal) == ("3.5", "6")
    assert row(rows, "peak memory, nsr /").values == (0.5, 0.75)
    assert row(rows, "less what each held").values == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert row(rows, "step: sampling").values == (4.0, 8.0)


def test_learning_is_measured_by_the_peak_of_its_own_round_and_type() -> None:
    machine = outcome("machine", matmul_bfloat16=[100.0, 50.0], matmul_float32=[1.0, 1.0])
    learn = outcome("learn", tokens=[8.0, 8.0], seconds=[2.0, 4.0], operations=[100.0, 100.0], peak=[1.0, 1.0])
    rows = PARTS["learning"].rows("learning", [machine, learn])
    assert row(rows, "share").values == (50.0, 50.0)
    assert row(rows, "response tokens").values == (4.0, 2.0)


def test_growth_is_a_samples_time_beside_that_of_the_smallest_step() -> None:
    contenders = PARTS["growth"].contenders(WORKS["tiny"])
    assert [contender.work.samples for contender in contenders] == [32, 64, 128, 256, 512]
    assert contenders[0].work.tokens == WORKS["tiny"].tokens
    outcomes = [
        Outcome(contender=contender, rounds=[{"seconds": seconds}])
        for contender, seconds in zip(contenders, (1.0, 1.5, 4.0, 8.0, 32.0), strict=True)
    ]
    rows = PARTS["growth"].rows("growth", outcomes)
    assert [row.values[0] for row in rows if row.unit == "x"] == [0.75, 1.0, 1.0, 2.0]


def test_what_is_missing_is_said_where_its_numbers_would_stand() -> None:
    local = outcome("local", tokens=[8.0], seconds=[2.0], peak=[1e9], before=[1e8])
    rows = PARTS["sampling"].rows(
        "sampling",
        [
            local,
            outcome("vllm", "not installed"),
            outcome("generate", "RuntimeError: no"),
            outcome("vllm_alone", "not installed"),
        ],
    )
    text = markdown(rows)
    assert row(rows, "local engine / vllm_alone").cells()[1] == "not installed"
    assert row(rows, "local engine / generate").cells()[1] == "RuntimeError: no"
    assert text.count("not installed") == 3
    assert "| 4.00 |" in " ".join(text.split())


def test_the_table_is_markdown_that_lines_up() -> None:
    rows = [
        Row(part="a", what="x", unit="s", values=(3.0, 1.0, 2.0), target="1"),
        Row(part="a", what="a longer name", unit="GB/s", values=(1234.5,)),
        Row(part="b", what="y | z", unit="s", note="an error |\n of two parts"),
    ]
    lines = markdown(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert set(lines[1]) == set("|-: ")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in cells] == ["what", cells[1][0], "**a**", "x", "a longer name", "**b**", *[cells[-1][0]]]
    assert cells[3][1:6] == ["2.00", "1.00", "3.00", "s", "1"]
    assert cells[4][1:5] == ["1,234", "1,234", "1,234", "GB/s"]


def test_numbers_have_three_digits_that_count() -> None:
    shown = {0.0: "0", 0.1234: "0.123", 1.234: "1.23", 12.34: "12.3", 99.99: "100", 12345.6: "12,346"}
    assert {value: number(value) for value in shown} == shown
