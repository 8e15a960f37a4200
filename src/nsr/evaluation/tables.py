"""Evaluations for a terminal of 80 columns: one in full, several side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nsr.evaluation.methods import Comparison, differences_to_first
from nsr.evaluation.pass_at_k import is_rough, k_values
from nsr.evaluation.record import Evaluation, PassAtK
from nsr.runs.progress import printable

SIGNIFICANT = 0.05
"""An adjusted p-value below it is called a difference."""

_COLUMNS = 3
_OTHERS = ("greedy", "entropy", "tokens", "cut off", "distinct in 4", "found")


def evaluation_table(evaluation: Evaluation, title: str) -> RenderableType:
    """What an evaluation found, for a terminal of 80 columns. Shares with their 95% intervals over puzzles."""
    kinds = [(split.name, split.num_puzzles, split.pass_at_k) for split in evaluation.splits]
    # A split that holds all puzzles says nothing new.
    kinds = [kind for kind in kinds if kind[1] < len(evaluation.puzzles)]
    columns = [("all", len(evaluation.puzzles), evaluation.pass_at_k), *kinds]
    curves = [_curves(columns[first : first + _COLUMNS]) for first in range(0, len(columns), _COLUMNS)]
    measures = Table.grid(padding=(0, 2, 0, 0))
    for label, text in _measures(evaluation):
        measures.add_row(label, text)
    note = Text("In brackets: 95% intervals over puzzles. ~ rough: k is above half the samples of a puzzle.", "dim")
    spaced = [part for table in curves for part in (table, Text())]
    return Group(Text(), printable(title), *spaced, measures, Text(), note)


def comparison_tables(labels: Sequence[str], evaluations: Sequence[Evaluation]) -> RenderableType:
    """Several evaluations of the same puzzles side by side, and how each differs from the first, for 80 columns.

    Raises:
        ValueError: they are not of the same puzzles, or not of as many samples.
    """
    first = evaluations[0]
    ks = shown_k(first.num_samples)
    comparisons = differences_to_first(evaluations, ks)
    shares, changes, others = (Table(box=None, padding=(0, 1), pad_edge=False) for _ in range(3))
    heads = [_curve_label(point) for point in first.pass_at_k if point.k in ks]
    for table, title, names in ((shares, "", heads), (changes, "change in points", heads), (others, "", _OTHERS)):
        table.add_column(title)
        for name in names:
            table.add_column(name, justify="right")
    for label, evaluation in zip(labels, evaluations, strict=True):
        curve = {point.k: str(point.value) for point in evaluation.pass_at_k}
        shares.add_row(printable(label), *(curve[k] for k in ks))
        others.add_row(printable(label), *_other_measures(evaluation))
    for label, row in zip(labels[1:], comparisons, strict=True):
        changes.add_row(printable(label), *map(_change, row))
    count = sum(map(len, comparisons))
    note = "In brackets: 95% bootstrap intervals over puzzles. ~ rough: k is above half the samples of a puzzle."
    holm = (
        f"Changes are to {labels[0]}, paired by puzzle. p: two-sided, after Holm's correction for the {count} changes "
    )
    holm += f"read here; * below {SIGNIFICANT:g}. Where there is no *, no difference may be claimed."
    title = f"{len(first.puzzles)} puzzles x {first.num_samples} samples"
    return Group(
        Text(), Text(title), shares, Text(), others, Text(), changes, Text(), Text(note, "dim"), printable(holm)
    )


def shown_k(num_samples: int) -> list[int]:
    """The k of a short table: 1, the largest that is not rough, and one half way between."""
    usable = [k for k in k_values(num_samples) if not is_rough(k, num_samples)] or [1]
    return sorted({1, usable[len(usable) // 2], usable[-1]})


def _change(comparison: Comparison) -> str:
    p = comparison.adjusted
    mark = " *" if p < SIGNIFICANT else ""
    return (
        f"{comparison.difference.points(unit='')}\np {p:.4f}{mark}"
        if p >= 0.00005
        else f"{comparison.difference.points(unit='')}\np < 0.0001{mark}"
    )


def _other_measures(evaluation: Evaluation) -> list[str]:
    distinct, entropy = evaluation.distinct_correct.mean, evaluation.entropy
    greedy = evaluation.greedy_accuracy
    return [
        "-" if greedy is None else f"{100 * greedy.estimate:.1f}%",
        "-" if entropy is None else f"{entropy:.3f}",
        f"{evaluation.response_length:.1f}",
        f"{100 * evaluation.truncated:.1f}%",
        "-" if distinct is None else f"{distinct:.2f}",
        _percent(evaluation.coverage) or "-",
    ]


def _curves(columns: Sequence[tuple[str, int, tuple[PassAtK, ...]]]) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("puzzles")
    for name, count, _ in columns:
        table.add_column(f"{name} ({count})", justify="right")
    for row in zip(*(curve for _, _, curve in columns), strict=True):
        table.add_row(_curve_label(row[0]), *(str(point.value) for point in row))
    return table


def _curve_label(point: PassAtK) -> str:
    label = "accuracy, pass@1" if point.k == 1 else f"pass@{point.k}"
    return f"{label} ~" if point.rough and point.k > 1 else label


def _measures(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Label and text of every measure that is known, beside the curves."""
    distinct = evaluation.distinct_correct
    shares = sorted(evaluation.verdicts.items(), key=lambda item: -item[1])
    rows = [
        ("greedy accuracy", None if evaluation.greedy_accuracy is None else str(evaluation.greedy_accuracy)),
        ("verdicts", ", ".join(f"{name.replace('_', ' ')} {_percent(share)}" for name, share in shares)),
        ("accuracy if well-formed", _percent(evaluation.well_formed_accuracy)),
        ("cut off at max_tokens", _percent(evaluation.truncated)),
        ("response length", f"{evaluation.response_length:.1f} tokens"),
        ("entropy of a token", None if evaluation.entropy is None else f"{evaluation.entropy:.3f} nats"),
        (
            f"distinct in {distinct.num_draws} right",
            None if distinct.mean is None else f"{distinct.mean:.2f} equations ({distinct.num_puzzles} puzzles)",
        ),
        ("solutions found", _percent(evaluation.coverage)),
    ]
    return [(label, text) for label, text in rows if text is not None]


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f}%"
