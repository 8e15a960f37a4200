"""`nsr report`: run folders -> report.html, RESULTS.md and figures. The same folders give the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nsr.config import ReportConfig
from nsr.errors import UserError
from nsr.report.categories import Kinds
from nsr.report.collect import collect, common_folder
from nsr.report.drawing import Plot, write_files
from nsr.report.findings import headline, measure_name
from nsr.report.gallery import plots
from nsr.report.methods import arrange
from nsr.report.page import Report, to_html, to_markdown
from nsr.report.results import SectionResult, results
from nsr.report.sample_viewer import read_samples
from nsr.report.theme import looks
from nsr.runs.files import write_atomic
from nsr.runs.progress import printable

MOST_SECTIONS_DRAWN = 8
"""Sections that get figures; of more the first ones, which is said."""
_MOST_PROBLEMS_SHOWN = 12
_MOST_NAMED = 3


def report(config: ReportConfig, console: Console | None = None) -> Path:
    """Make the report of the runs in the folders of `config`; returns the page.

    What is wrong with a run is told in one sentence, in the report and in the terminal; the rest is reported.

    Raises:
        ValueError: a folder is not there, none holds a run, or --out cannot be written to.
    """
    console = console or Console(highlight=False)
    folders = [Path(folder) for folder in config.folders]
    out = _folder_for(config, folders)
    made = build(folders)
    drawn = [plot for of_section in made.plots for plot in of_section.values() if isinstance(plot, Plot)]
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for plot in drawn:
        write_files(plot, made.looks, out / "figures")
    write_atomic(out / "RESULTS.md", to_markdown(made).encode(errors="backslashreplace"))
    page = out / "report.html"
    write_atomic(page, to_html(made).encode(errors="backslashreplace"))
    _tell(console, made, page)
    return page


def build(folders: list[Path]) -> Report:
    """Read the runs in `folders` and compute all that a report says of them."""
    collection = collect(folders)
    sections, problems = arrange(collection.runs)
    found = tuple(results(sections))
    methods = sorted({arm.method for section in sections for arm in section.arms}, key=lambda method: method.index)
    looks_of = looks(methods)
    book = read_samples(sections)
    problems = [*collection.problems, *problems, *book.problems]
    if len(found) > MOST_SECTIONS_DRAWN:
        problems.append(f"Figures are drawn for the first {MOST_SECTIONS_DRAWN} of {len(found)} groups of runs.")
    suffixes = [f"-{number}" if len(found) > 1 else "" for number in range(1, len(found) + 1)]
    drawn = tuple(
        plots(result, looks_of, book.coverage, suffix)
        for result, suffix in zip(found[:MOST_SECTIONS_DRAWN], suffixes, strict=False)
    )
    kinds = Kinds()
    return Report(
        runs=collection.runs,
        results=found,
        looks=looks_of,
        plots=drawn,
        kinds=tuple(kinds.table(section) for section in sections),
        book=book,
        problems=tuple(merged(problems)),
    )


def merged(problems: Sequence[str]) -> list[str]:
    """Sentences about runs, where several runs have the same one: "A, B and 98 more runs: ..."."""
    names: dict[str, list[str]] = {}
    for problem in dict.fromkeys(problems):
        name, colon, sentence = problem.partition(": ")
        names.setdefault(sentence if colon else problem, []).append(name if colon else "")
    told: list[str] = []
    for sentence, those in names.items():
        if those == [""]:
            told.append(sentence)
        elif len(those) <= _MOST_NAMED:
            told += [f"{name}: {sentence}" for name in those]
        else:
            told.append(f"{', '.join(those[: _MOST_NAMED - 1])} and {len(those) - _MOST_NAMED + 1} more: {sentence}")
    return told


def _folder_for(config: ReportConfig, folders: list[Path]) -> Path:
    """Where the report goes: --out, the one folder that was given, or the one that all of them lie in."""
    if config.out is not None:
        out = Path(config.out)
    elif len(folders) == 1:
        out = folders[0]
    else:
        out = common_folder(folders)
    figures = out / "figures"
    for path in (figures, *(figures.iterdir() if figures.is_dir() else ())):
        if path.is_symlink():
            raise UserError(f"{path} is a link, and the report is written into one folder alone: delete it.")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out is {str(out)!r}, which is a file: give the folder to write to.")
    return out


def _tell(console: Console, made: Report, page: Path) -> None:
    for result in made.results:
        console.print()
        if result.section.title:
            console.print(printable(result.section.title))
        console.print(_table(result))
    console.print()
    console.print(printable(headline(made.results)))
    for sentence in made.problems[:_MOST_PROBLEMS_SHOWN]:
        console.print(printable(f"! {sentence}"), soft_wrap=True)
    if len(made.problems) > _MOST_PROBLEMS_SHOWN:
        console.print(f"! and {len(made.problems) - _MOST_PROBLEMS_SHOWN} more, all in the report")
    console.print(printable(f"\n{page}"), soft_wrap=True)


def _table(result: SectionResult) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("method")
    for k in result.ks:
        table.add_column(measure_name(k), justify="right")
        table.add_column("change", justify="right")
    for row in result.rows:
        cells = [printable(row.arm.method.label)]
        for k in result.ks:
            change = row.change(k)
            cells.append(printable(f"{100 * row.at(k).estimate:.1f}%"))
            cells.append(printable(change.value.points(unit="") if change else ""))
        table.add_row(*cells)
    return table
