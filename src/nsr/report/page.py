"""The report as one HTML page and as Markdown: templates filled in, everything from outside escaped."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import jinja2
from markupsafe import Markup

from nsr import __version__
from nsr.evaluation.compare import Interval, signed
from nsr.report.categories import KindTable
from nsr.report.drawing import Plot, inline, swatch
from nsr.report.findings import findings, headline, measure_name, notes, reading
from nsr.report.methods import Method, plain
from nsr.report.panels import mark
from nsr.report.results import Row, SectionResult
from nsr.report.run import RunRecord
from nsr.report.sample_viewer import SampleBook
from nsr.report.setup import environment, settings
from nsr.report.theme import VERDICT_COLORS, Look, css_variables, page_color

TOPICS = {
    "passk": "pass@k",
    "changes": "Changes",
    "frontier": "Frontier",
    "training": "Training",
    "verdicts": "Verdicts",
    "mechanism": "Mechanism",
    "diversity": "Diversity",
}
"""Topics of figures in the order of the page, with their headings."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a report says, before it has a form."""

    runs: tuple[RunRecord, ...]
    results: tuple[SectionResult, ...]
    looks: Mapping[Method, Look]
    plots: tuple[Mapping[str, Plot | str], ...]
    """Of each section, by topic."""
    kinds: tuple[KindTable | None, ...]
    """Of each section."""
    book: SampleBook
    problems: tuple[str, ...]


def to_html(report: Report) -> str:
    """The page: one file that needs nothing else."""
    script = _source("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    light, dark = css_variables()
    swatches = [swatch(look, f"swatch-{mark(method)}") for method, look in report.looks.items()]
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            **_facts(report),
            style=Markup(_source("report.css")),  # noqa: S704  nsr's own
            script=Markup(script),  # noqa: S704  nsr's own
            script_hash=digest,
            light=light,
            dark=dark,
            swatches=swatches,
            panels={
                id(plot): inline(plot) for plots in report.plots for plot in plots.values() if isinstance(plot, Plot)
            },
            identity=id,
            book=report.book,
            settings=settings(report.runs),
            environment=environment(report.runs),
        )
    )


def to_markdown(report: Report) -> str:
    """The results, the findings and what is missing, for a repository or a chat."""
    return _environment().get_template("results.md.jinja").render(**_facts(report))


def _facts(report: Report) -> dict[str, object]:
    return {
        "version": __version__,
        "runs": report.runs,
        "results": report.results,
        "plots": report.plots,
        "topics": TOPICS,
        "headline": headline(report.results),
        "findings": [findings(result) for result in report.results],
        "kinds": report.kinds,
        "notes": notes(report.results),
        "overview": _overview(report.results),
        "reading": reading(report.results),
        "problems": report.problems,
        "title": _title(report),
        "facts": _strip(report),
        "tops": sorted({result.top_k for result in report.results if result.top_k > 1}),
        "verdicts": [(name.replace("_", " "), color) for name, color in VERDICT_COLORS.items()],
    }


def _title(report: Report) -> str:
    models = list(dict.fromkeys(plain(result.section.settings["model_id"]) for result in report.results))
    if not models:
        return "No results yet"
    return f"What training did to {models[0]}" if len(models) == 1 else f"What training did to {len(models)} models"


def _overview(results: Sequence[SectionResult]) -> list[tuple[bool, list[tuple[Method, list[Row | None]]]]]:
    """Where there are several sections: every method with its row in each, for accuracy and for the large k."""
    if len(results) < 2:
        return []
    rows = [{row.arm.method: row for row in result.rows} for result in results]
    methods = sorted({method for of_section in rows for method in of_section}, key=lambda method: method.index)
    table = [(method, [of_section.get(method) for of_section in rows]) for method in methods]
    return [(large, table) for large in (False, True) if not large or any(result.top_k > 1 for result in results)]


def _strip(report: Report) -> list[tuple[str, str]]:
    """A few facts about the report as a whole: name and value."""
    arms = [arm for result in report.results for arm in result.section.arms]
    if not arms:
        return [("runs", str(len(report.runs)))]
    evaluations = [member.evaluation for arm in arms for member in arm.members]

    def span(values: Sequence[float]) -> str:
        low, high = min(values), max(values)
        return f"{low:g}" if low == high else f"{low:g} to {high:g}"

    trained = [arm for arm in arms if not arm.method.is_base]
    data = dict.fromkeys(plain(result.section.settings["data"]) for result in report.results)
    return [
        ("runs", str(len(report.runs))),
        ("seeds", span([len(arm.members) for arm in trained or arms])),
        *([("training steps", span([arm.step for arm in trained]))] if trained else []),
        ("puzzles", f"{span([len(evaluation.puzzles) for evaluation in evaluations])} of {', '.join(data)}"),
        ("samples a puzzle", span([evaluation.num_samples for evaluation in evaluations])),
        ("temperature", span([result.section.temperature for result in report.results])),
    ]


def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("nsr.report"),
        autoescape=jinja2.select_autoescape(["html.jinja"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {
        "percent": _percent,
        "points": _points,
        "ends": _ends,
        "plain": plain,
        "measure": measure_name,
        "md": markdown_text,
        "ink": page_color,
        "mark": mark,
    }
    made.tests["plot"] = _is_plot
    return made


def _is_plot(value: object) -> bool:
    return isinstance(value, Plot)


def _source(name: str) -> str:
    return (resources.files("nsr.report") / "templates" / name).read_text("utf-8")


def _percent(value: Interval) -> str:
    return f"{100 * value.estimate:.1f}%"


def _points(value: Interval) -> str:
    return signed(100 * value.estimate)


def _ends(value: Interval, with_sign: bool = False) -> str:
    ends = (100 * value.low, 100 * value.high)
    return "[" + ", ".join(signed(end) if with_sign else f"{end:.1f}" for end in ends) + "]"


_MARKUP = re.compile(r"[\\`*{}<>|#~$&]|(?<![^\W_])_|_(?![^\W_])|(?<=\])[(\[:]|!(?=\[)")
"""What Markdown could read as more than a character; `_` within a word and brackets alone are none."""


def markdown_text(text: object) -> str:
    """Text that Markdown shows as it is, in a table too."""
    return _MARKUP.sub(lambda match: f"\\{match[0]}", str(text).replace("\n", " "))
