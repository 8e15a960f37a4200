"""`make results`: every table and figure of docs/results, and the README's, from the files in docs/results/data."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nsr.evaluation.compare import Interval, signed
from study.choice import CHOICE_K
from study.figures import heating_figure, label, pass_at_k_figure, training_figure
from study.numbers import LARGE_K, NUM_RIGHT, SMALL_K, Call
from study.runs import BEST, EQUAL_RATE, RATES
from study.tables import FEW_K, Results

FOLDER = Path("docs/results")
BEGIN, END = "<!-- results: made by `make results` -->", "<!-- end of results -->"
_CALLS: dict[Call, str] = {"holds": "**holds**", "fails": "**fails**", "open": "open"}


def _percent(share: float, decimals: int = 1) -> str:
    return f"{100 * share:.{decimals}f}%"


def _plain(interval: Interval) -> str:
    return f"{interval.estimate:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _change(interval: Interval, decimals: int = 2) -> str:
    estimate, low, high = (signed(value, decimals) for value in interval)
    return f"{estimate} [{low}, {high}]"


def _row(cells: Iterable[object]) -> str:
    return " | ".join(map(str, cells))


_FILTERS: dict[str, Callable[..., str]] = {
    "percent": _percent,
    "points": Interval.points,
    "call": _CALLS.__getitem__,
    "row": _row,
    "plain": _plain,
    "change": _change,
}


def render(results: Results, template: str) -> str:
    """A template of `study/templates`, filled in."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - Markdown, from numbers of our own
    )
    environment.filters |= _FILTERS
    constants = {
        "BEST": SimpleNamespace(**BEST),
        "CHOICE_K": CHOICE_K,
        "EQUAL_RATE": EQUAL_RATE,
        "FEW_K": FEW_K,
        "LARGE_K": LARGE_K,
        "NUM_RIGHT": NUM_RIGHT,
        "RATES": RATES,
        "SMALL_K": SMALL_K,
    }
    return environment.get_template(template).render(r=results, label=label, **constants)


def with_block(readme: str, block: str) -> str:
    """The README's text with what lies between the marks replaced. Raises ValueError where a mark is missing."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the README has no {BEGIN!r} with {END!r} after it: put them where the results go.")
    return f"{before}{BEGIN}\n\n{block.strip()}\n\n{END}{after}"


def write(folder: Path, readme: Path) -> None:
    """Make everything again."""
    results = Results(folder / "data")
    (folder / "README.md").write_text(render(results, "results.md.j2"))
    readme.write_text(with_block(readme.read_text(), render(results, "readme.md.j2")))
    draw(results, folder)


def draw(results: Results, folder: Path) -> None:
    """Every figure, as PNG and SVG."""
    pass_at_k_figure(results.big, folder / "pass_at_k")
    training_figure(results.trainings, folder / "training")
    heating_figure(results.big, folder / "heating")


def main() -> int:
    """Read the data, write the rest."""
    parser = argparse.ArgumentParser(prog="python -m study.results", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the results lie, with their data")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="whose results table is replaced")
    given = parser.parse_args()
    try:
        write(given.folder, given.readme)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given.folder / 'README.md'}, its figures and {given.readme} are made again from {given.folder / 'data'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
