"""The grader against texts made to fool it: the tricks that fooled others, by hand, and a stream of millions."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from itertools import islice
from typing import Any

import pytest
from hostile_comparison import compare, lines_run, slowest
from hostile_oracle import oracle, oracle_answer
from hostile_texts import KINDS, LONGEST_TEXT, hostile_texts

from nsr.tasks.countdown import expression, grader
from nsr.tasks.countdown.grader import Verdict, grade
from nsr.tasks.countdown.prompt import EXAMPLE, build_messages
from nsr.tasks.countdown.puzzle import Puzzle

RIGHT, MALFORMED, NUMBERS = Verdict.CORRECT, Verdict.MALFORMED, Verdict.WRONG_NUMBERS
VALUE, ZERO, NONE = Verdict.WRONG_VALUE, Verdict.DIVISION_BY_ZERO, Verdict.NO_ANSWER


def puzzle(*numbers: int, target: int) -> Puzzle:
    return Puzzle(numbers=numbers, target=target)


EIGHT = puzzle(5, 3, target=8)
PROMPT = build_messages(EIGHT, 256)[0]["content"]
TOWER = puzzle(9, 9, 9, 9, target=9999)

# What it is that other graders do, what a text makes of it, and the verdict it gets here.
TRICKS: list[tuple[str, Puzzle, str, Verdict]] = [
    # `eval` knows more than four operations, and the numbers still match.
    ("a power", puzzle(2, 3, target=8), "2**3", MALFORMED),
    ("a power as a caret", puzzle(2, 3, target=8), "2^3", MALFORMED),
    ("a power with a blank in it", puzzle(2, 3, target=8), "2* *3", MALFORMED),
    ("a quotient rounded down", puzzle(7, 2, target=3), "7//2", MALFORMED),
    ("a quotient rounded down twice", puzzle(7, 2, target=4), "-(-7//2)", MALFORMED),
    ("a remainder", puzzle(7, 4, target=3), "7%4", MALFORMED),
    ("bits", puzzle(5, 3, target=6), "5^3", MALFORMED),
    ("a shift", puzzle(5, 3, target=40), "5<<3", MALFORMED),
    ("a comparison that is one", puzzle(5, 3, target=1), "5>3", MALFORMED),
    ("a choice", puzzle(8, 3, target=8), "8 or 3", MALFORMED),
    ("the last of a tuple", EIGHT, "(5,3,5+3)[-1]", MALFORMED),
    ("a name given", EIGHT, "(x:=5)+3", MALFORMED),
    ("a program", EIGHT, "__import__('os').system('exit')or 8", MALFORMED),
    ("a call of a number", puzzle(5, 3, target=15), "5(3)", MALFORMED),
    ("brackets side by side", puzzle(5, 3, target=15), "(5)(3)", MALFORMED),
    ("an empty bracket", EIGHT, "5+3+()", MALFORMED),
    # It does not come back.
    ("a tower of powers", TOWER, "9**9**9**9", MALFORMED),
    ("a tower that is right as a product", puzzle(9, 9, 9, 9, target=6561), "9*9*9*9", RIGHT),
    ("an integer of half a thousand digits", EIGHT, "9" * 500, NUMBERS),
    ("an integer beyond what Python reads", EIGHT, "9" * 5000, MALFORMED),
    ("brackets beyond Python's parser", EIGHT, "(" * 300 + "5+3" + ")" * 300, MALFORMED),
    ("signs without end", EIGHT, "-" * 100_000 + "5+3", MALFORMED),
    # Digits found with `\d+`, whatever stands between them.
    ("digits joined across a point", puzzle(1, 5, 2, target=3), "1.5*2", MALFORMED),
    ("a point at the end", EIGHT, "5.+3", MALFORMED),
    ("a point in front", puzzle(5, 3, target=8), ".5+3", MALFORMED),
    ("digits joined across a blank", puzzle(1, 5, target=15), "1 5", MALFORMED),
    ("digits joined across a line", puzzle(1, 5, target=15), "1\n5", MALFORMED),
    ("digits joined across a comma", puzzle(1, 500, target=1500), "1,500", MALFORMED),
    ("digits joined across an underscore", puzzle(1, 5, target=15), "1_5", MALFORMED),
    ("digits joined across nothing seen", puzzle(1, 5, target=15), "1\u200b5", MALFORMED),
    ("digits joined", puzzle(1, 5, target=15), "15", NUMBERS),
    ("digits parted", puzzle(15, 3, target=18), "1+5+3*4", NUMBERS),
    ("an exponent", puzzle(5, 1, target=50), "5e1", MALFORMED),
    ("another base", puzzle(10, 3, target=19), "0x10+3", MALFORMED),
    ("a leading zero", EIGHT, "05+3", MALFORMED),
    ("leading zeros", EIGHT, "5+0003", MALFORMED),
    ("zeros alone", EIGHT, "5+3+00", MALFORMED),
    ("one zero too many", EIGHT, "5+3+0", NUMBERS),
    # Sides of an equation, and what stands beside the answer.
    ("an equation", EIGHT, "5+3=8", MALFORMED),
    ("an equation that is false", EIGHT, "5-3=8", MALFORMED),
    ("an equation the other way round", EIGHT, "8=5+3", MALFORMED),
    ("an equation of Python's", puzzle(5, 3, target=1), "5+3==8", MALFORMED),
    ("the target alone", EIGHT, "8", NUMBERS),
    ("a comment", EIGHT, "5+3 # = 8", MALFORMED),
    ("two candidates on two lines", EIGHT, "5+3\n5-3", MALFORMED),
    ("two candidates and a word", EIGHT, "5+3 or 5-3", MALFORMED),
    ("a full stop", EIGHT, "5+3.", MALFORMED),
    ("a list of numbers", EIGHT, "[5,3]", MALFORMED),
    ("markdown", EIGHT, "`5+3`", MALFORMED),
    ("a box of LaTeX", EIGHT, "\\boxed{5+3}", MALFORMED),
    ("dollars of LaTeX", EIGHT, "$5+3$", MALFORMED),
    ("words", EIGHT, "five plus three", MALFORMED),
    ("nothing", EIGHT, "", MALFORMED),
    # Numbers: each once, and no other.
    ("a number left out", puzzle(5, 3, 2, target=8), "5+3", NUMBERS),
    ("a number twice", puzzle(5, 3, target=13), "5+5+3", NUMBERS),
    ("a twin used once", puzzle(5, 5, 3, target=8), "5+3", NUMBERS),
    ("the right sum of the numbers, not the numbers", puzzle(4, 4, target=8), "5+3", NUMBERS),
    ("a number that does nothing", EIGHT, "5+3+7-7", NUMBERS),
    ("a one that does nothing", EIGHT, "(5+3)*1", NUMBERS),
    ("a sign does not make it another number", EIGHT, "5--3", RIGHT),
    ("an odd number of signs", EIGHT, "5---3", VALUE),
    ("a number negated that should not be", puzzle(5, 3, target=2), "5+-3", RIGHT),
    # Values: exact.
    ("a float says 23.999999999999996", puzzle(8, 3, 8, 3, target=24), "8/(3-8/3)", RIGHT),
    ("a float says 7.0", puzzle(7, 1, 9999, 9999, 9999, 9999, target=7), "7+1/9999/9999/9999/9999", VALUE),
    ("near enough for a tolerance", puzzle(8, 1, 9999, 9999, target=8), "8+1/9999/9999", VALUE),
    ("near enough for rounding", puzzle(25, 3, target=8), "25/3", VALUE),
    ("near enough for rounding down", puzzle(26, 3, target=8), "26/3", VALUE),
    ("the target with the other sign", EIGHT, "-5-3", VALUE),
    ("thirds", puzzle(1, 3, 1, 3, 1, 3, target=1), "1/3+1/3+1/3", RIGHT),
    # Division by zero: nowhere, also where it cancels out.
    ("by zero", puzzle(8, 5, 5, target=8), "8/(5-5)", ZERO),
    ("zero by zero", puzzle(5, 5, 5, 5, target=1), "(5-5)/(5-5)", ZERO),
    ("by zero below a line below a line", puzzle(8, 3, 5, 5, target=8), "8/(3/(5-5))", ZERO),
    ("by zero, times zero, beside the target", puzzle(8, 3, 5, 5, 5, 5, target=8), "8+(5-5)*3/(5-5)", ZERO),
    ("by minus zero", puzzle(8, 5, 5, target=8), "8/-(5-5)", ZERO),
    ("by a zero of fractions", puzzle(8, 1, 2, 2, 4, target=8), "8/(1/2-2/4)", ZERO),
    ("zero itself", puzzle(8, 5, 5, target=8), "8+5-5", RIGHT),
    ("zero by something", puzzle(8, 5, 5, 3, target=8), "8+(5-5)/3", RIGHT),
    # Characters that `int`, `\d`, `\s`, `isdigit` or a reader takes for others.
    ("full-width digits", EIGHT, "\uff15+\uff13", MALFORMED),
    ("Arabic-Indic digits", EIGHT, "\u0665+\u0663", MALFORMED),
    ("mathematical digits", EIGHT, "\U0001d7d3+\U0001d7d1", MALFORMED),
    ("a superscript", puzzle(5, 2, target=25), "5\u00b2", MALFORMED),
    ("a fraction in one character", puzzle(8, 1, 2, target=4), "8*\u00bd", MALFORMED),
    ("a Roman numeral", EIGHT, "5+\u2162", MALFORMED),
    ("a full-width plus", EIGHT, "5\uff0b3", MALFORMED),
    ("a minus sign", puzzle(5, 3, target=2), "5\u22123", MALFORMED),
    ("a dash", puzzle(5, 3, target=2), "5\u20133", MALFORMED),
    ("a cross", puzzle(5, 3, target=15), "5\u00d73", MALFORMED),
    ("a letter for a cross", puzzle(5, 3, target=15), "5x3", MALFORMED),
    ("a division sign", puzzle(6, 3, target=2), "6\u00f73", MALFORMED),
    ("a colon", puzzle(6, 3, target=2), "6:3", MALFORMED),
    ("full-width brackets", EIGHT, "\uff085+3\uff09", MALFORMED),
    ("other brackets", EIGHT, "[5+3]", MALFORMED),
    ("a blank that does not break", EIGHT, "5\u00a0+3", MALFORMED),
    ("a blank of no width", EIGHT, "5\u200b+3", MALFORMED),
    ("a byte order mark", EIGHT, "\ufeff5+3", MALFORMED),
    ("a mark that turns the direction of writing", puzzle(5, 3, target=2), "\u202e3-5", MALFORMED),
    ("a digit with a mark over it", EIGHT, "5\u0301+3", MALFORMED),
    ("a carriage return", EIGHT, "5+3\r\n", MALFORMED),
    ("a zero byte", EIGHT, "5+3\0", MALFORMED),
    ("half a character", EIGHT, "5+3\ud800", MALFORMED),
]

# The same for whole completions.
TAG_TRICKS: list[tuple[str, Puzzle, str, Verdict]] = [
    ("right, then wrong", EIGHT, "<answer>5+3</answer><answer>5-3</answer>", VALUE),
    ("wrong, then right", EIGHT, "<answer>5-3</answer><answer>5+3</answer>", RIGHT),
    ("right, then malformed", EIGHT, "<answer>5+3</answer><answer>eight</answer>", MALFORMED),
    ("right, then empty", EIGHT, "<answer>5+3</answer><answer></answer>", MALFORMED),
    ("right, then one that is cut short", EIGHT, "<answer>5+3</answer> or <answer>5-", RIGHT),
    ("right, then a closing tag", EIGHT, "<answer>5+3</answer></answer>", MALFORMED),
    ("right, then a wrong one without an opening tag", EIGHT, "<answer>5+3</answer>5-3</answer>", MALFORMED),
    ("right inside wrong", EIGHT, "<answer>5-3<answer>5+3</answer>", RIGHT),
    ("right inside wrong, both closed", EIGHT, "<answer>5-3<answer>5+3</answer></answer>", MALFORMED),
    ("wrong inside right", EIGHT, "<answer>5+3<answer>5-3</answer>", VALUE),
    ("every answer there is", puzzle(5, 3, target=2), "".join(f"<answer>5{o}3</answer>" for o in "-*/+"), VALUE),
    ("an answer while thinking", EIGHT, "<think><answer>5+3</answer></think>", RIGHT),
    ("an answer while thinking, then another", EIGHT, "<think><answer>5+3</answer></think><answer>5</answer>", NUMBERS),
    ("thinking within the answer", EIGHT, "<answer><think>5+3=8</think>5+3</answer>", MALFORMED),
    ("only thinking", EIGHT, "<think>5+3=8</think>", NONE),
    ("no tags", EIGHT, "5+3", NONE),
    ("never closed", EIGHT, "<answer>5+3", NONE),
    ("closed alone: the prompt's opening tag does not count", EIGHT, "5+3</answer>", NONE),
    ("closed with an opening tag", EIGHT, "<answer>5+3<answer>", NONE),
    ("closed first", EIGHT, "</answer>5+3<answer>", NONE),
    ("the other case", EIGHT, "<ANSWER>5+3</Answer>", RIGHT),
    ("a wrong answer in the other case comes last", EIGHT, "<answer>5+3</answer><ANSWER>5-3</ANSWER>", VALUE),
    ("a letter that folds", EIGHT, "<an\u017fwer>5+3</an\u017fwer>", NONE),
    ("a letter that folds does not end it", EIGHT, "<answer>5+3</an\u017fwer>-3</answer>", MALFORMED),
    ("a letter that looks alike", EIGHT, "<\u0430nswer>5+3</\u0430nswer>", NONE),
    ("a look-alike after the right one", EIGHT, "<answer>5+3</answer><\u0430nswer>5-3</\u0430nswer>", RIGHT),
    ("a tag with a blank", EIGHT, "<answer >5+3</answer>", NONE),
    ("a tag with an attribute", EIGHT, "<answer correct=true>5+3</answer>", NONE),
    ("a tag that closes itself", EIGHT, "<answer/>5+3</answer>", NONE),
    ("a tag as an entity", EIGHT, "&lt;answer&gt;5+3&lt;/answer&gt;", NONE),
    ("another tag", EIGHT, "<ans>5+3</ans>", NONE),
    ("a box", EIGHT, "\\boxed{5+3}", NONE),
    ("a letter that grows when made small", EIGHT, "\u0130\u0130\u0130<answer>5+3</answer>", RIGHT),
    ("the prompt's example", EIGHT, EXAMPLE, NUMBERS),
    ("the prompt's example where it is right", puzzle(3, 5, 2, target=16), EXAMPLE, RIGHT),
    ("the prompt", EIGHT, PROMPT, NUMBERS),
    ("the prompt, then the answer", EIGHT, f"{PROMPT}<answer>5+3</answer>", RIGHT),
    ("the answer, then the prompt", EIGHT, f"<answer>5+3</answer>{PROMPT}", NUMBERS),
    ("another turn", EIGHT, "<answer>5-3</answer><|im_end|>\n<|im_start|>assistant\n<answer>5+3</answer>", RIGHT),
    ("a verdict", EIGHT, "correct CORRECT reward=1.0 Verdict.CORRECT", NONE),
]
ALL_TRICKS = [
    *((name, task, f"<think>so</think><answer>{answer}</answer>", verdict) for name, task, answer, verdict in TRICKS),
    *TAG_TRICKS,
]


@pytest.mark.parametrize(("name", "task", "completion", "verdict"), ALL_TRICKS, ids=[row[0] for row in ALL_TRICKS])
def test_a_trick_that_fooled_others(name: str, task: Puzzle, completion: str, verdict: Verdict) -> None:
    assert grade(task, completion) is verdict
    assert oracle(task, completion) is verdict


# What a grading may run: 40 lines for each character of an answer that is not too long, and some around it.
LINES_A_CHARACTER, LINES_AROUND = 40, 100


@pytest.mark.parametrize("count", [20_000, pytest.param(10_000_000, marks=pytest.mark.slow)])
def test_a_stream_of_hostile_texts(count: int) -> None:
    """No disagreement, no exception, no text that takes long; `pytest -s` shows the slowest."""
    outcome = compare(count)
    assert outcome.disagreements == []
    assert outcome.count == count
    by_kind = {verdict: outcome.by_kind(verdict) for verdict in Verdict}
    assert min(outcome.by_kind()[kind] for kind in KINDS) > 0
    assert min(kinds.total() for kinds in by_kind.values()) > count / 1000, outcome.counts  # each verdict often enough
    assert by_kind[RIGHT]["look-alike"] == 0
    assert by_kind[RIGHT]["same in other words"] > outcome.by_kind()["same in other words"] / 2
    seconds, hostile = slowest(outcome)
    print(f"\nslowest of {count:,}: {seconds * 1e3:.2f} ms, {hostile.kind}, {len(hostile.text):,} characters")
    for _, _, (task, text, _) in outcome.slowest:
        assert_little_work(task, text)


def assert_little_work(task: Puzzle, text: str) -> None:
    answer = oracle_answer(text) or ""
    read = len(answer) if len(answer) <= expression.MAX_CHARACTERS else 0
    assert lines_run(task, text) <= LINES_AROUND + LINES_A_CHARACTER * read, ascii(text[:1000])


LONG = {
    "a chain": "1+" * 249 + "1",
    "a chain of signs": "-" * 499 + "1",
    "products in sums in brackets": "1+1*-(" * 50 + "1" + ")" * 50,
    "brackets side by side": "+".join(["(1)"] * 125),
    "brackets never closed": "(" * 50 + "1",
    "digits": "9" * 500,
    "blanks": "5" + " " * 498 + "3",
    "blanks without end": " " * LONGEST_TEXT,
    "brackets without end": "(" * LONGEST_TEXT,
    "digits without end": "9" * LONGEST_TEXT,
    "opening tags": "<answer>" * (LONGEST_TEXT // 8),
}


@pytest.mark.parametrize("answer", LONG.values(), ids=LONG)
def test_the_work_is_bounded_by_the_length_of_the_answer(answer: str) -> None:
    assert_little_work(EIGHT, f"<answer>{answer}</answer>")


@pytest.mark.parametrize("filler", ["<", "<answer>", "</answer>", "<answer></answer>", "</answer", "x", "x\ud800"])
def test_tags_take_as_many_lines_whatever_the_length(filler: str) -> None:
    short, long = (f"{filler * times}<answer>5+3</answer>" for times in (1, LONGEST_TEXT // len(filler)))
    assert lines_run(EIGHT, short) == lines_run(EIGHT, long)


def test_nothing_is_evaluated_but_the_numbers_of_the_puzzle(monkeypatch: pytest.MonkeyPatch) -> None:
    """So no value grows: six numbers below 10,000 make at most 24 digits above the line and as many below."""
    evaluated: list[list[int]] = []

    def watched(node: expression.Node) -> Fraction:
        evaluated.append(sorted(expression.literals(node)))
        return expression.evaluate(node)

    monkeypatch.setattr(grader, "evaluate", watched)
    before = 0
    for task, text, _ in islice(hostile_texts(1), 5_000):
        verdict = grade(task, text)
        assert (len(evaluated) > before) == (verdict in (VALUE, ZERO, RIGHT))
        assert evaluated[before:] in ([], [sorted(task.numbers)])
        before = len(evaluated)
    assert before > 500


def test_the_answer_is_the_one_that_others_find() -> None:
    """Character for character, by three ways of searching."""
    for _, text, _ in islice(hostile_texts(2), 5_000):
        assert grader.extract_answer(text) == oracle_answer(text) == extractor()(text), ascii(text[:1000])


def test_the_stream_is_the_same_again() -> None:
    again = [list(islice(hostile_texts(7), 500)) for _ in range(2)]
    assert again[0] == again[1] != list(islice(hostile_texts(8), 500))


def without_zero(node: expression.Node) -> Fraction:
    try:
        return expression.evaluate(node)
    except ZeroDivisionError:
        return Fraction(0)


def extractor(
    opening: str = "(?s:.*)(<answer>)",
    closing: str = "(?s:.*)(</answer>)",
    flags: re.RegexFlag = re.ASCII | re.IGNORECASE,
) -> Callable[[str], str | None]:
    """Another way to find the answer, right as it is."""

    def extract(completion: str) -> str | None:
        closed = re.compile(closing, flags).match(completion)
        opened = closed and re.compile(opening, flags).match(completion, 0, closed.start(1))
        return completion[opened.end(1) : closed.start(1)] if closed and opened else None

    return extract


BROKEN: dict[str, tuple[Any, str, Any]] = {
    "the first closing tag": (grader, "extract_answer", extractor(closing="(?s:.*?)(</answer>)")),
    "the first opening tag": (grader, "extract_answer", extractor(opening="(?s:.*?)(<answer>)")),
    "any closing tag": (grader, "extract_answer", extractor(closing="(?s:.*)(</)")),
    "tags in one case": (grader, "extract_answer", extractor(flags=re.ASCII)),
    "tags that fold": (grader, "extract_answer", extractor(flags=re.IGNORECASE)),
    "tags with blanks": (grader, "extract_answer", extractor(opening=r"(?s:.*)(<\s*answer\s*>)")),
    "digits of every script": (expression, "_TOKEN", re.compile(r"[ \t\n]*(\d+|[-+*/()])")),
    "blanks of every kind": (expression, "_TOKEN", re.compile(r"\s*([0-9]+|[-+*/()])")),
    "leading zeros": (expression, "_TOKEN", re.compile(r"[ \t\n]*0*([0-9]+|[-+*/()])")),
    "a character more": (expression, "MAX_CHARACTERS", 501),
    "a character less": (expression, "MAX_CHARACTERS", 499),
    "a bracket more": (expression, "MAX_DEPTH", 51),
    "a bracket less": (expression, "MAX_DEPTH", 49),
    "numbers as a set": (grader, "literals", lambda node: list(set(expression.literals(node)))),
    "any zero as a value": (grader, "evaluate", without_zero),
    "the size of the value": (grader, "evaluate", lambda node: abs(expression.evaluate(node))),
    "rounding": (grader, "evaluate", lambda node: round(expression.evaluate(node))),
}


@pytest.mark.parametrize(("module", "name", "broken"), BROKEN.values(), ids=BROKEN)
def test_a_grader_with_one_fault_is_found_out(
    module: Any, name: str, broken: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which shows that the stream goes where the faults are, and that the oracle does not follow the grader there."""
    monkeypatch.setattr(module, name, broken)
    assert any(grade(task, text) is not oracle(task, text) for task, text, _ in islice(hostile_texts(0), 30_000))
