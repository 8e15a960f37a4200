"""Completions made to fool the grader: a stream that depends on its seed alone, and of which nothing is kept."""

from __future__ import annotations

import ast
import random
import re
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from hostile_oracle import value_of

from nsr.tasks.countdown.prompt import build_messages
from nsr.tasks.countdown.puzzle import Puzzle

LONGEST_TEXT = 1_000_000

BLANKS = [" ", "  ", "\t", "\n", " \n\t"]
# What looks like a character of the grammar, or stands for it elsewhere.
LOOK_ALIKES = {
    "+": ["\uff0b", "\ufe62", "\u2795", "\u207a", "&plus;", "plus"],
    "-": [*"\u2212\u2013\u2014\u2010\u2011\uff0d\ufe63\u2796\u00ad\u30fc", "minus"],
    "*": [*"\u00d7\u2217\u22c5\u00b7\u2022\uff0a\u2716xX", "**", "\\times ", "\\cdot "],
    "/": [*"\u00f7\u2215\u2044\uff0f\u29f8\u2797:\\%", "//", "\\div "],
    "(": [*"\uff08\u207d[{\u27e8\u2768", "\\left("],
    ")": [*"\uff09\u207e]}\u27e9\u2769", "\\right)"],
    " ": [*"\u00a0\u2003\u200b\u200d\u2060\u3000\ufeff\u2028\u0085\r\v\f\0"],
}
# The digit zero of other scripts; nine more follow each. All are digits to `str.isdigit`, `int` and `\d`.
ZEROS = [0x660, 0x6F0, 0x7C0, 0x966, 0x9E6, 0xE50, 0x17E0, 0x1810, 0xFF10, 0x104A0, 0x1D7CE, 0x1D7F6, 0x1FBF0]
SUPERSCRIPTS = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"  # `isdigit` but not `int`
TOKENS = [*"0123456789", *"++--**//(())", *" \t\n", "10", "44", "(1+2)", "05", "00", "**", "//", "()", "5(3)"]
STRANGE = [*"=.,;:_%^&|~!<>#@$'\"\\`[]{}?xeEjX", *"\0\r\ud800\udfff\u202e\u0301\U0001f600"]
TAGS = ["<answer>", "</answer>", "<ANSWER>", "</Answer>", "<aNSWEr>", "</ANSWER>"]
NO_TAGS = ["<an\u017fwer>", "</an\u017fwer>", "<\u0430nswer>", "</\u0430nswer>", "\uff1canswer\uff1e"]
NO_TAGS += ["\uff1c/answer\uff1e", "<ans\u00adwer>", "<answer\0>", "<\u200banswer>", "&lt;answer&gt;"]
NO_TAGS += ["<answer >", "< answer>", "</ answer>", "< /answer>", "</answer >", "<answer/>", "<answer\n>"]
NO_TAGS += ["<answer", "</answer", "answer>", "<answers>", "</answers>", "<answer x=1>", "<\\answer>"]
NO_TAGS += ["[answer]", "[/answer]", "<<answer>>", "<</answer>>", "<think>", "</think>", "\\boxed{"]
# {0} is a right answer, {1} the target.
AROUND = ["{0}={1}", "{1}={0}", "{0}=={1}", "{0} = {1}", "{0}", "x={0}", "{0};", "{0}.", "{0},", "({0},)", "[{0}]"]
AROUND += ["{{{0}}}", "${0}$", "\\boxed{{{0}}}", "`{0}`", "'{0}'", "{0} # {1}", "int({0})", "eval('{0}')"]
AROUND += ["lambda: {0}"]
AROUND += ["{0}\n{0}", "{0} or {0}", "{0}{0}", "({0})({0})", "{1}", "{1}*({0})/({0})", "{0}+0", "{0}*1", "{0}-0"]
AROUND += ["{0}e0", "0x{0}", "{0}**1", "{0}//1", "{0}/0", "0*({0})+{1}", "\\\n{0}", "{0}\\\n"]
AROUND += ["+{0}", "-({0})", "--({0})", "({0})*1"]


class Hostile(NamedTuple):
    """A completion with the puzzle that it answers, and the name of what made it."""

    puzzle: Puzzle
    text: str
    kind: str


def hostile_texts(seed: int) -> Iterator[Hostile]:
    """Without end, and the same for the same seed."""
    rng = random.Random(seed)
    pool = [_solved(rng) for _ in range(1000)]
    names, weights = zip(*((name, weight) for name, (_, weight) in KINDS.items()), strict=True)
    cumulative = [sum(weights[: i + 1]) for i in range(len(weights))]
    while True:
        for name in rng.choices(names, cum_weights=cumulative, k=1000):
            puzzle, right = rng.choice(pool)
            yield Hostile(puzzle, KINDS[name][0](rng, puzzle, right), name)


def _solved(rng: random.Random) -> tuple[Puzzle, str]:
    """A puzzle and a right answer. Numbers are often small or the same, so that zeros come up."""
    while True:
        top = rng.choice([3, 12, 99, 9999])
        numbers = [rng.randint(1, top) for _ in range(rng.randint(2, 6))]
        if rng.random() < 0.3:
            numbers[-1] = numbers[0]
        text = _expression(rng, numbers)
        try:
            value = value_of(ast.parse(text, mode="eval").body)
        except ZeroDivisionError:
            continue
        if value.denominator == 1 and 1 <= value <= 9999:
            return Puzzle(numbers=tuple(numbers), target=int(value)), text


def _expression(rng: random.Random, numbers: list[int]) -> str:
    if len(numbers) == 1:
        text = str(numbers[0])
    else:
        cut = rng.randrange(1, len(numbers))
        left, right = _expression(rng, numbers[:cut]), _expression(rng, numbers[cut:])
        text = f"{left}{rng.choice('+-*/')}{right}"
    draw = rng.random()
    return f"({text})" if draw < 0.35 else f"-{text}" if draw < 0.4 else text


def _answered(rng: random.Random, answer: str) -> str:
    """The answer in its tags, now and then after some thought or before something more."""
    draw = rng.random()
    if draw < 0.6:
        return f"<answer>{answer}</answer>"
    if draw < 0.8:
        return f"<think>{answer}</think><answer>{answer}</answer>"
    return f"{rng.choice(TAGS)}{answer}{rng.choice(TAGS)}{rng.choice(['', '', answer, '</s>', ' done'])}"


def _grammar(rng: random.Random, puzzle: Puzzle, right: str) -> str:
    """Another expression over the puzzle's numbers, or nearly those."""
    numbers = rng.sample(puzzle.numbers, len(puzzle.numbers))
    draw = rng.random()
    if draw < 0.1:
        numbers.append(rng.choice(numbers))
    elif draw < 0.2:
        numbers.append(rng.choice([0, 1, puzzle.target, 10 ** rng.randrange(30)]))
    elif draw < 0.3:
        numbers.pop()
    elif draw < 0.35:
        numbers[0] = int(str(numbers[0]) + str(numbers.pop()))
    return _answered(rng, _expression(rng, numbers))


def _zeros(rng: random.Random, puzzle: Puzzle, right: str) -> str:
    """The puzzle's numbers, with a difference that is zero where two of them allow it, and a quotient of it."""
    numbers = rng.sample(puzzle.numbers, len(puzzle.numbers))
    for number in numbers:
        if numbers.count(number) > 1:
            rest = [other for other in numbers if other != number] + [number] * (numbers.count(number) - 2)
            if rest:
                form = rng.choice(
                    ["{0}/({1}-{1})", "({1}-{1})/({0})", "{0}+{1}-{1}", "({0})/-(-{1}+{1})", "({0})*({1}-{1})"]
                )
                return _answered(rng, form.format(_expression(rng, rest), number))
    return _answered(rng, f"{_expression(rng, numbers)}/({numbers[0]}-{numbers[0]})")


def _mutated(rng: random.Random, puzzle: Puzzle, right: str) -> str:
    """A right answer with up to three characters dropped, added, changed, doubled or exchanged."""
    text = right
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(text) + 1)
        new = rng.choice(rng.choice([TOKENS, TOKENS, STRANGE, BLANKS]))
        head, tail = text[:place], text[place:]
        forms = [head + new + tail, head + new + tail[1:], head + tail[1:], head + tail[:1] + tail, tail + head]
        text = rng.choice(forms)
    return _answered(rng, text)


def _same_in_other_words(rng: random.Random, puzzle: Puzzle, right: str) -> str:
    """A right answer that stays right: blanks, brackets, pairs of signs."""
    text = "".join(part + rng.choice(["", "", *BLANKS]) for part in re.findall(r"\d+|.", right))
    for _ in range(rng.randrange(3)):
        text = rng.choice(["({})", " (\n{} )", "+({})", "--({})", "-(-({}))", "-+-({})"]).format(text)
    return _answered(rng, text)


def _soup(rng: random.Random, puzzle: Puzzle, right: str) -> str:
    tokens = [*TOKENS, *map(str, puzzle.numbers), *map(str, puzzle.numbers)]
    return _answered(rng, "".join(rng.choices(tokens, k=rng.randrange(14))))


def _noise(rng: random.Random, puzzle: Puzzle, right: str) -> str:
    """Random bytes by several readings, or random code points; with tags around it, or between parts of it."""
    data = rng.randbytes(rng.randrange(40))
    reading = rng.randrange(4)
    if reading == 0:
        text = data.decode("latin-1")
    elif reading == 1:
        text = data.decode("utf-8", "surrogateescape")
    elif reading == 2:
        text = "".join(chr(rng.randrange(sys.maxunicode + 1)) for _ in range(rng.randrange(12)))
    else:
        text = "".join(chr(byte & 0x7F) for byte in data)
    return rng.choice([text, f"<answer>{text}</answer>", f"{text}<answer>{right}</answer>{text}", f"<answer>{text}"])


def _nested(rng: random.Random, puzzle: Puzzle, right: str) -> str:
    """Brackets near and far beyond the limit, closed or nearly closed, with or without signs between them."""
    depth = rng.choice([10, 48, 49, 50, 51, 52, 99, 120, 249, rng.randrange(2000)])
    opener = rng.choice(["(", "(", "-(", "+(", "( ", "--(", "1*(", "(("])
    inner = rng.choice([right, right, "5", ""])
    return _answered(rng, opener * depth + inner + ")" * (depth + rng.choice([0, 0, 0, 0, -1, 1])))


def _huge(rng: random.Random, puzzle: Puzzle, right: str) -> str:
    """Integers of hundreds of digits, towers of powers, leading zeros, long chains, texts about as long as allowed."""
    number = str(rng.choice([9, 1, 5]) * 10 ** rng.choice([0, 18, 19, 63, 300, 490, 498, 499, 500, 700]))
    draw = rng.randrange(6)
    if draw == 0:
        text = f"{right}+{number}-{number}"
    elif draw == 1:
        text = rng.choice("*/").join([number[:40]] * rng.randrange(1, 14))
    elif draw == 2:
        text = "**".join(["9"] * rng.randrange(2, 9))
    elif draw == 3:
        text = right.replace(str(puzzle.numbers[0]), "0" * rng.randrange(1, 490) + str(puzzle.numbers[0]), 1)
    elif draw == 4:
        text = rng.choice("+-*/").join([str(rng.choice(puzzle.numbers))] * rng.randrange(1, 260))
    else:
        filler = rng.choice(["-", "+", "-+", "--", " ", "\n", "\t- "]) * 501
        text = filler[: max(0, rng.choice([30, 300, 499, 500, 501, 502]) - len(right))] + right
    return _answered(rng, text)


def _look_alike(rng: random.Random, puzzle: Puzzle, right: str) -> str:
    """One character of a right answer, or all of its kind, by one that looks like it."""
    place = rng.randrange(len(right))
    old = right[place]
    if old.isdigit():
        new = SUPERSCRIPTS[int(old)] if rng.random() < 0.1 else chr(rng.choice(ZEROS) + int(old))
    else:
        new = rng.choice(LOOK_ALIKES[old])
    if rng.random() < 0.2:
        old, new = "", rng.choice(LOOK_ALIKES[" "])
        return _answered(rng, right[:place] + new + right[place:])
    return _answered(rng, right.replace(old, new) if rng.random() < 0.5 else right[:place] + new + right[place + 1 :])


def _tagged(rng: random.Random, puzzle: Puzzle, right: str) -> str:
    """Tags in any order, some of them none, between right and wrong answers."""
    wrong = rng.choice([f"{right}+1", f"-({right})", "", "x", right[:-1], str(puzzle.target)])
    parts = [right, right, wrong, *rng.choices(TAGS, k=4), *rng.choices(NO_TAGS, k=rng.randrange(3))]
    rng.shuffle(parts)
    return "".join(parts[: rng.randrange(2, len(parts) + 1)])


def _cut_tags(rng: random.Random, puzzle: Puzzle, right: str) -> str:
    """A right answer in its tags, with a character of the tags changed."""
    text = f"<answer>{right}</answer>"
    place = rng.choice([*range(8), *range(len(text) - 9, len(text))])
    new = rng.choice(["", " ", "\0", text[place].upper(), text[place] * 2, "\u017f", "\u212a", "/", "<", ">", "\u0130"])
    return text[:place] + new + text[place + 1 :]


def _around(rng: random.Random, puzzle: Puzzle, right: str) -> str:
    """A right answer with what other graders strip, run or overlook."""
    return _answered(rng, rng.choice(AROUND).format(right, puzzle.target))


def _joined(rng: random.Random, puzzle: Puzzle, right: str) -> str:
    """Digits parted, or numbers joined, across a point, a blank or a comma."""
    join = rng.choice([".", " ", "\n", "\t", ",", "_", "'", "\u200b", "\u00a0", "e", "()", "\\"])
    if rng.random() < 0.5:
        place = rng.randrange(len(right) + 1)
        return _answered(rng, right[:place] + join + right[place:])
    return _answered(rng, re.sub(r"[-+*/]", lambda _: join, right, count=rng.choice([0, 1])))


def _echo(rng: random.Random, puzzle: Puzzle, right: str) -> str:
    """The prompt once more, with or without an answer, whole or cut."""
    prompt = build_messages(puzzle, 256)[0]["content"]
    answer = f"<answer>{right}</answer>"
    text = rng.choice([prompt, prompt + right, prompt + answer, answer + prompt])
    return text[rng.randrange(len(text)) :] if rng.random() < 0.5 else text[: rng.randrange(len(text) + 1)]


def _long(rng: random.Random, puzzle: Puzzle, right: str) -> str:
    """Up to a million characters, of what a search for tags or a parser might stumble over."""
    fillers = ["<", "<answer>", "</answer>", "<answer></answer>", "</answer", *"(-1 x", "\ud800", "x\u4e00"]
    filler = rng.choice(fillers)
    pad = filler * (int(10 ** rng.uniform(2.5, 6)) // len(filler))
    answer = f"<answer>{right}</answer>"
    forms = [pad, pad + answer, answer + pad, f"<answer>{pad}</answer>", f"<answer>{right}{pad}</answer>"]
    forms += [f"<answer>{pad}{right}</answer>", answer + pad + "</answer>", f"<answer>{pad}{answer}", f"{answer}{pad}>"]
    return rng.choice(forms)[:LONGEST_TEXT]


KINDS: dict[str, tuple[Callable[[random.Random, Puzzle, str], str], float]] = {
    "grammar": (_grammar, 14),
    "zeros": (_zeros, 2),
    "mutated": (_mutated, 20),
    "same in other words": (_same_in_other_words, 6),
    "soup": (_soup, 12),
    "noise": (_noise, 8),
    "nested": (_nested, 2),
    "huge": (_huge, 2),
    "look-alike": (_look_alike, 8),
    "tagged": (_tagged, 12),
    "cut tags": (_cut_tags, 5),
    "around": (_around, 5),
    "joined": (_joined, 4),
    "echo": (_echo, 1),
    "long": (_long, 0.01),
}
