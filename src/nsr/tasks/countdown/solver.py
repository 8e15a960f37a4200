"""All canonical equations of a puzzle, each once.

One table for each subset of the numbers, built from smaller subsets: terms (a number, or a product of two factors or
more), signed sums of terms, and products with factors above and below the line. Values are integer pairs, since
`Fraction` at every step takes twice the time; for the whole set only what hits the target is kept.
"""

from __future__ import annotations

from typing import NamedTuple

from nsr.tasks.countdown.expression import canonical, parse
from nsr.tasks.countdown.puzzle import Puzzle


class _Entry(NamedTuple):
    """An expression over one subset: value = numerator / denominator, denominator above zero."""

    numerator: int
    denominator: int
    text: str


def solve(puzzle: Puzzle) -> list[str]:
    """Every canonical equation of `puzzle` (see `expression.canonical`), sorted; empty if there is none.

    Work grows steeply with the count of numbers: 70 expressions for 3, 1,200 for 4, 27,000 for 5, 800,000 for 6.
    """
    tables = _Tables(puzzle.numbers)
    return sorted({canonical(parse(text)) for text in tables.hits(puzzle.target)})


class _Tables:
    """Tables by subset, a bit mask over the positions of `numbers`.

    terms: non-negative values. sums: signed sums of one term or more. factors: what may stand in a product beside
    others. products: (above, below) texts of one factor or more; `below` alone is allowed, since more factors may join.
    """

    def __init__(self, numbers: tuple[int, ...]) -> None:
        self.full = (1 << len(numbers)) - 1
        self.terms: list[list[_Entry]] = [[] for _ in range(self.full + 1)]
        self.sums: list[list[_Entry]] = [[] for _ in range(self.full + 1)]
        self.factors: list[list[_Entry]] = [[] for _ in range(self.full + 1)]
        self.products: list[list[tuple[int, int, str, str]]] = [[] for _ in range(self.full + 1)]
        for position, number in enumerate(numbers):
            self._add_term(1 << position, _Entry(number, 1, str(number)))
            self.factors[1 << position] = [self.terms[1 << position][0]]
            self.products[1 << position] = _above_and_below(self.factors[1 << position])
        for subset in range(1, self.full):  # smaller subsets are smaller numbers
            if subset & (subset - 1):
                self._fill(subset)

    def _fill(self, subset: int) -> None:
        for above_n, below_n, above, below in self._joined_products(subset):
            self.products[subset].append((above_n, below_n, above, below))
            if above:
                self._add_term(subset, _Entry(above_n, below_n, above + below))
        true_sums = self._joined_sums(subset)
        self.sums[subset] += true_sums
        # One of the two orientations of a sum is enough inside a product: the sign is pulled out.
        self.factors[subset] = [
            _Entry(numerator, denominator, f"({text})") for numerator, denominator, text in true_sums if numerator >= 0
        ]
        self.products[subset] += _above_and_below(self.factors[subset])

    def _add_term(self, subset: int, term: _Entry) -> None:
        self.terms[subset].append(term)
        self.sums[subset].append(_Entry(term.numerator, term.denominator, f"+{term.text}"))
        self.sums[subset].append(_Entry(-term.numerator, term.denominator, f"-{term.text}"))

    def _joined_sums(self, subset: int) -> list[_Entry]:
        """Signed sums of two terms or more over `subset`."""
        joined: list[_Entry] = []
        for block, rest in _splits(subset):
            for n1, d1, text1 in self.terms[block]:
                for n2, d2, text2 in self.sums[rest]:
                    denominator = d1 * d2
                    joined.append(_Entry(n1 * d2 + n2 * d1, denominator, f"+{text1}{text2}"))
                    joined.append(_Entry(n2 * d1 - n1 * d2, denominator, f"-{text1}{text2}"))
        return joined

    def _joined_products(self, subset: int) -> list[tuple[int, int, str, str]]:
        """Products of two factors or more over `subset`, those with nothing above the line included."""
        joined: list[tuple[int, int, str, str]] = []
        for block, rest in _splits(subset):
            for n1, d1, text1 in self.factors[block]:
                for n2, d2, above, below in self.products[rest]:
                    joined.append((n1 * n2, d1 * d2, f"{above}*{text1}" if above else text1, below))
                    if n1:
                        joined.append((d1 * n2, n1 * d2, above, f"{below}/{text1}"))
        return joined

    def hits(self, target: int) -> list[str]:
        """Texts over all numbers whose value is `target`; the same canonical equation may come more than once."""
        found: list[str] = []
        for block, rest in _splits(self.full):
            for n1, d1, text1 in self.terms[block]:
                for n2, d2, text2 in self.sums[rest]:
                    left, right, goal = n1 * d2, n2 * d1, target * d1 * d2
                    if right + left == goal:
                        found.append(f"+{text1}{text2}")
                    elif right - left == goal:
                        found.append(f"-{text1}{text2}")
            for n1, d1, text1 in self.factors[block]:
                for n2, d2, above, below in self.products[rest]:
                    if n1 * n2 == target * d1 * d2:
                        found.append(f"{above}*{text1}{below}" if above else text1 + below)
                    if n1 and above and d1 * n2 == target * n1 * d2:
                        found.append(f"{above}{below}/{text1}")
        return found


def _above_and_below(factors: list[_Entry]) -> list[tuple[int, int, str, str]]:
    """Each factor alone, above the line and (unless it is zero) below it."""
    above = [(numerator, denominator, text, "") for numerator, denominator, text in factors]
    below = [(denominator, numerator, "", f"/{text}") for numerator, denominator, text in factors if numerator]
    return above + below


def _splits(subset: int) -> list[tuple[int, int]]:
    """Ways to part `subset` into a block that holds its lowest member and a non-empty rest."""
    lowest = subset & -subset
    others = subset ^ lowest
    splits: list[tuple[int, int]] = []
    rest = others
    while rest:
        splits.append((subset ^ rest, rest))
        rest = (rest - 1) & others
    return splits
