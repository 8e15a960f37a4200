"""Verdicts worked out by hand, and what the tags mean."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nsr.tasks.countdown.expression import MAX_CHARACTERS, MAX_DEPTH
from nsr.tasks.countdown.grader import Verdict, extract_answer, grade
from nsr.tasks.countdown.puzzle import Puzzle

EIGHT = Puzzle(numbers=(5, 3), target=8)

CORRECT = [
    "5+3",
    "3+5",
    "5 + 3",
    " 5\t+\n3 ",
    "\n\n5+3\n",
    "(5+3)",
    "((((5))))+(3)",
    "5--3",
    "5 - - 3",
    "5-(-3)",
    "+5+3",
    "+5++3",
    "5+-+-3",
    "--5+3",
    "-(-5-3)",
    "-((-5)+(-3))",
    "(" * MAX_DEPTH + "5" + ")" * MAX_DEPTH + "+3",
    "5+3" + " " * (MAX_CHARACTERS - 3),
    "-" * (MAX_CHARACTERS - 4) + "5+3",  # an even number of signs
]

MALFORMED = [
    "",
    " ",
    "\n",
    "5+3=8",
    "8=5+3",
    "5 + 3 = 8",
    "5==3",
    "2**3",
    "2* *3",
    "7//2",
    "7/ /2",
    "9**9**9**9",
    "1.5*2",
    "5.+3",
    ".5+3",
    "5+3.",
    "5,3",
    "5+3,",
    "(5,3)",
    "05+3",
    "5+03",
    "00",
    "5+00",
    "5 3",
    "5\n3",
    "1 5+3",
    "5(3)",
    "(5)(3)",
    "5(+3)3",
    "()",
    "5+()",
    "5+",
    "+",
    "-",
    "*5+3",
    "/5+3",
    "5*/3",
    "5+*3",
    "(5+3",
    "5+3)",
    ")5+3(",
    "5%3",
    "5&3",
    "5^3",
    "5|3",
    "~5",
    "5<<3",
    "5<3",
    "5:=3",
    "5;3",
    "5+3;",
    "5#3",
    "5+3 # eight",
    "5e3",
    "0x5+3",
    "0b1+3",
    "5_0+3",
    "5j",
    "x",
    "5+x",
    "five+3",
    "int(5)+3",
    "True+5",
    "__import__('os').system('true')",
    "[5]+3",
    "{5}",
    "'5'+3",
    "5\\\n+3",
    "$5+3$",
    "\\boxed{5+3}",
    "`5+3`",
    "<b>5+3</b>",
    "5+3\r",
    "5\v+3",
    "5\f+3",
    "5\x00+3",
    "\ufeff5+3",
    "5\u00a0+3",  # no-break space
    "5\u2003+3",  # em space
    "5\u200b+3",  # zero-width space
    "5\u2028+3",  # line separator
    "\uff15+\uff13",  # full-width digits
    "\u0665+\u0663",  # Arabic-Indic digits
    "\u00b2+3",  # superscript two
    "5\u22123",  # minus sign
    "5\u20133",  # en dash
    "5\u00d73",  # multiplication sign
    "5\u00f73",  # division sign
    "5\u22153",  # division slash
    "5\u22173",  # asterisk operator
    "5\uff0b3",  # full-width plus
    "\uff085+3\uff09",  # full-width brackets
    "5+3\ud800",  # a lone surrogate
    "(" * (MAX_DEPTH + 1) + "5" + ")" * (MAX_DEPTH + 1) + "+3",
    "(" * 249 + "5+3" + ")" * 248,
    "5+3" + " " * (MAX_CHARACTERS - 2),
    " " * (MAX_CHARACTERS - 2) + "5+3",
    "1" * (MAX_CHARACTERS + 1),
    "5" + "+3" * 250,
    "(" * 100_000,
    "-" * 100_000 + "5",
    "9" * 100_000,
]

WRONG_NUMBERS = [
    "5",
    "8",
    "53",
    "5+5",
    "5+3+0",
    "5+3+5-5",
    "5+3*1",
    "15+3",
    "5/0",
    "0/0",
    "4+4",
    "0",
    "9" * MAX_CHARACTERS,
]

WRONG_VALUE = ["5-3", "3-5", "5*3", "5/3", "3/5", "-5-3", "-(5+3)"]


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [(answer, Verdict.CORRECT) for answer in CORRECT]
    + [(answer, Verdict.MALFORMED) for answer in MALFORMED]
    + [(answer, Verdict.WRONG_NUMBERS) for answer in WRONG_NUMBERS]
    + [(answer, Verdict.WRONG_VALUE) for answer in WRONG_VALUE],
    ids=lambda value: ascii(value)[:40] if isinstance(value, str) else value.value,
)
def test_verdict_on_an_answer(answer: str, verdict: Verdict) -> None:
    assert grade(EIGHT, f"<think>5 and 3</think><answer>{answer}</answer>") is verdict


@pytest.mark.parametrize(
    ("numbers", "target", "answer", "verdict"),
    [
        ((44, 19, 35), 98, "44 + 35 + 19", Verdict.CORRECT),
        ((8, 3, 8, 3), 24, "8/(3-8/3)", Verdict.CORRECT),
        ((1, 3, 1, 3, 1, 3), 1, "1/3+1/3+1/3", Verdict.CORRECT),
        ((3, 3, 2), 8, "3*3-2+1-1", Verdict.WRONG_NUMBERS),
        ((3, 3, 2), 7, "3*3-2", Verdict.CORRECT),
        ((3, 3, 2), 1, "3-2", Verdict.WRONG_NUMBERS),  # each number, not each value
        ((3, 2), 1, "3-2", Verdict.CORRECT),
        ((5, 5, 3), 8, "3/(5-5)", Verdict.DIVISION_BY_ZERO),
        ((5, 5, 3), 8, "(5-5)/(5-5)", Verdict.WRONG_NUMBERS),  # the numbers come before the value
        ((5, 5, 3, 2), 2, "2+3*(5/(5-5))-2", Verdict.WRONG_NUMBERS),
        ((5, 5, 3, 2), 2, "2*3/(5-5)", Verdict.DIVISION_BY_ZERO),
        ((5, 5, 3, 7), 7, "7+(5-5)/3", Verdict.CORRECT),
        ((5, 5, 3, 7), 7, "7/(3/(5-5))", Verdict.DIVISION_BY_ZERO),  # not 7 * (5-5) / 3
        # 7 + 9999**-4 is 7.0 in floating point, and 7 it is not.
        ((7, 1, 9999, 9999, 9999, 9999), 7, "7+1/9999/9999/9999/9999", Verdict.WRONG_VALUE),
        ((7, 1, 9999, 9999, 9999, 9999), 7, "7*1*9999/9999*9999/9999", Verdict.CORRECT),
    ],
)
def test_verdict_on_numbers_and_value(numbers: tuple[int, ...], target: int, answer: str, verdict: Verdict) -> None:
    assert grade(Puzzle(numbers=numbers, target=target), f"<answer>{answer}</answer>") is verdict


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<answer>5+3</answer>", "5+3"),
        ("<answer></answer>", ""),
        ("before <answer>5+3</answer> after", "5+3"),
        ("<answer>5+3</answer> or rather <answer>5-3</answer>", "5-3"),
        ("<answer>5-3</answer> or rather <answer>5+3</answer>", "5+3"),
        ("<answer>5-3<answer>5+3</answer>", "5+3"),
        ("<answer>5+3</answer>5-3</answer>", "5+3</answer>5-3"),
        ("<answer>5-3<answer>5+3</answer></answer>", "5+3</answer>"),
        ("<answer>5+3</answer><answer>", "5+3"),
        ("<answer>5+3</answer><answer>5-3", "5+3"),
        ("</answer><answer>5+3</answer>", "5+3"),
        ("<think><answer>5+3</answer></think>", "5+3"),
        ("<ANSWER>5+3</ANSWER>", "5+3"),
        ("<Answer>5+3</aNSWEr>", "5+3"),
        ("<answer>5-3</answer><ANSWER>5+3</ANSWER>", "5+3"),
        ("\u0130\u0130\u0130<answer>5+3</answer>\u0130", "5+3"),  # lower() would lengthen it
        ("\ud800<answer>5+3</answer>\udfff", "5+3"),
        ("\x00<answer>5+3</answer>\x00", "5+3"),
        ("", None),
        ("5+3", None),
        ("<answer>5+3", None),
        ("5+3</answer>", None),
        ("</answer>5+3<answer>", None),
        ("<answer>5+3<answer>", None),
        ("<answer>5+3<\\answer>", None),
        ("<answer>5+3</answer", None),
        ("<answer>5+3< /answer>", None),
        ("<answer>5+3</ answer>", None),
        ("<answer >5+3</answer>", None),
        ("< answer>5+3</answer>", None),
        ("<answer x>5+3</answer>", None),
        ("<answer/>5+3</answer>", None),
        ("<answers>5+3</answers>", None),
        ("&lt;answer&gt;5+3&lt;/answer&gt;", None),
        ("[answer]5+3[/answer]", None),
        ("<an\u017fwer>5+3</an\u017fwer>", None),  # long s folds to s
        ("<answer>5+3</an\u017fwer>", None),
        ("<an\u017fwer>5+3</answer>", None),
        ("<AN\u017fWER>5+3</answer>", None),
        ("<\u0430nswer>5+3</\u0430nswer>", None),  # Cyrillic a
        ("\uff1canswer\uff1e5+3\uff1c/answer\uff1e", None),  # full-width brackets
        ("\u2039answer\u203a5+3\u2039/answer\u203a", None),
        ("<ans\u00adwer>5+3</answer>", None),  # soft hyphen
        ("<answer\x00>5+3</answer>", None),
    ],
    ids=ascii,
)
def test_extract_answer(completion: str, answer: str | None) -> None:
    assert extract_answer(completion) == answer
    assert (grade(EIGHT, completion) is Verdict.NO_ANSWER) == (answer is None)


def test_reward() -> None:
    assert {verdict: verdict.reward for verdict in Verdict} == {
        Verdict.NO_ANSWER: -1.0,
        Verdict.MALFORMED: -1.0,
        Verdict.WRONG_NUMBERS: -1.0,
        Verdict.DIVISION_BY_ZERO: -1.0,
        Verdict.WRONG_VALUE: -1.0,
        Verdict.CORRECT: 1.0,
    }
    assert [verdict.value for verdict in Verdict] == [
        "no_answer",
        "malformed",
        "wrong_numbers",
        "division_by_zero",
        "wrong_value",
        "correct",
    ]


@pytest.mark.parametrize(
    ("completion", "verdict"),
    [
        ("<" * 10_000_000, Verdict.NO_ANSWER),
        ("<answer>" * 1_250_000, Verdict.NO_ANSWER),
        ("</answer>" * 1_100_000, Verdict.NO_ANSWER),
        ("<answer>" * 600_000 + "</answer>" * 500_000, Verdict.MALFORMED),
        ("<answer>" + "(" * 10_000_000 + "</answer>", Verdict.MALFORMED),
        ("<answer>" + "1" * 10_000_000 + "</answer>", Verdict.MALFORMED),
        ("\ud800" * 10_000_000 + "<answer>5+3</answer>", Verdict.CORRECT),
        ("<answer>5+3</answer>" * 500_000, Verdict.CORRECT),
    ],
    ids=range(8),
)
def test_ten_megabytes(completion: str, verdict: Verdict) -> None:
    assert grade(EIGHT, completion) is verdict


_TAG_PARTS = ["<answer>", "</answer>", "<ANSWER>", "</Answer>", "<", "answer", "/", ">", "<an\u017fwer>", "\u0130", " "]


@settings(max_examples=300)
@given(st.lists(st.sampled_from([*_TAG_PARTS, "5+3", "5-3", "\ud800", "x"]), max_size=30).map("".join))
@example("<answer></answer></answer>")
def test_extract_answer_agrees_with_a_search_from_the_end(completion: str) -> None:
    assert extract_answer(completion) == searched_from_the_end(completion)


def searched_from_the_end(completion: str) -> str | None:
    """The same in other words: ASCII letters made small, then two searches from the end."""
    small = completion.translate({letter: letter + 32 for letter in range(ord("A"), ord("Z") + 1)})
    close = small.rfind("</answer>")
    start = small.rfind("<answer>", 0, max(close, 0))
    return None if start < 0 else completion[start + len("<answer>") : close]


@settings(max_examples=300)
@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_no_text_makes_it_raise(text: str) -> None:
    assert isinstance(grade(EIGHT, text), Verdict)
    assert grade(EIGHT, f"<answer>{text}</answer>") is not Verdict.NO_ANSWER


@pytest.mark.slow
def test_a_million_fuzzed_completions() -> None:
    """Never raises, and the answer is the one found by the search from the end."""
    rng = random.Random(0)
    parts = [*_TAG_PARTS, *"0123456789+-*/() \t\n=.,x\x00\ud800", "5+3", "(5+3)", "5--3", "**", "9" * 300, "(" * 51]
    verdicts: set[Verdict] = set()
    for _ in range(1_000_000):
        body = "".join(rng.choices(parts, k=rng.randrange(12)))
        completion = body if rng.random() < 0.3 else f"<answer>{body}</answer>"
        verdict = grade(EIGHT, completion)
        verdicts.add(verdict)
        answer = searched_from_the_end(completion)
        assert extract_answer(completion) == answer, ascii(completion)
        assert (verdict is Verdict.NO_ANSWER) == (answer is None), ascii(completion)
    assert verdicts == set(Verdict) - {Verdict.DIVISION_BY_ZERO}  # two different numbers never make a zero
