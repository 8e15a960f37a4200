"""The closing words of a training run: what changed, what the intervals allow to say of it, and where to look next."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from nsr.errors import UserError
from nsr.evaluation.compare import finding, signed
from nsr.evaluation.evaluate import Evaluation, difference
from nsr.report.collect import no_signal
from nsr.report.figures import demo_figure
from nsr.report.run import RunRecord, read_run
from nsr.runs.progress import printable
from nsr.tasks.countdown.grader import Verdict


def summarize(path: Path, console: Console | None = None) -> None:
    """Print the summary of the training run in a folder and draw its figure there (figure.png, figure.svg).

    A run without an evaluation before and one after some training has no summary: then this says so and draws nothing.

    Raises:
        ValueError: `path` holds no run, or a file in it holds something else than it should.
    """
    run = read_run(path)
    try:
        _summarize(run, console or Console(highlight=False))
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"{path} holds what no run writes ({type(error).__name__}: {error}).") from error


def _summarize(run: RunRecord, console: Console) -> None:
    if len(run.evaluations) < 2 or run.evaluations[0].puzzles != run.evaluations[-1].puzzles:
        console.print(
            printable(f"{run.path} has no two evaluations of the same puzzles to compare yet."), soft_wrap=True
        )
        return
    for evaluation in run.evaluations:
        if type(evaluation.step) is not int:
            raise TypeError(f"an evaluation is at step {evaluation.step!r:.60}")
    demo_figure(run.evaluations, run.metrics, run.method, run.path / "figure")
    console.print(summary(run))


def summary(run: RunRecord) -> RenderableType:
    """What the first and the last evaluation of a run say together, for a terminal of 80 columns."""
    before, after = run.evaluations[0], run.evaluations[-1]
    last = before.pass_at_k[-1].k
    title = (
        f"{run.method}: {after.step - before.step} steps on {run.config['data']}, measured on {len(after.puzzles)} "
        f"other puzzles x {after.num_samples} samples at temperature {after.temperature:g}"
    )
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column()
    for name in ("before", "after", "change in points"):
        table.add_column(name, justify="right")
    for row in (*_intervals(before, after), *_verdicts(before, after), *_means(before, after)):
        table.add_row(*row)
    findings = [finding(difference(before, after, k), "accuracy" if k == 1 else f"pass@{k}") for k in sorted({1, last})]
    return Group(
        Text(),
        printable(title),
        Text(),
        table,
        Text(),
        *(printable(f"-> {sentence}") for sentence in findings),
        *(printable(f"! {sentence}") for sentence in _met(run)),
        Text("Brackets: 95% bootstrap intervals over puzzles; changes are paired by puzzle.", "dim"),
        Text(),
        printable(_next_steps(run)),
    )


def _intervals(before: Evaluation, after: Evaluation) -> list[tuple[str, ...]]:
    """Accuracy and every further point of the pass@k curve."""
    return [
        (
            "accuracy" if old.k == 1 else f"pass@{old.k}",
            str(old.value),
            str(new.value),
            difference(before, after, old.k).points(unit=""),
        )
        for old, new in zip(before.pass_at_k, after.pass_at_k, strict=True)
    ]


def _verdicts(before: Evaluation, after: Evaluation) -> list[tuple[str, ...]]:
    """Shares of what was wrong with samples, the most frequent fault before the training first."""
    pairs = [(name, share, after.verdicts[name]) for name, share in before.verdicts.items()]
    return [
        (name.replace("_", " "), f"{100 * old:.1f}%", f"{100 * new:.1f}%", signed(100 * (new - old)))
        for name, old, new in sorted(pairs, key=lambda pair: -pair[1])
        if (old or new) and name != Verdict.CORRECT.value
    ]


def _means(before: Evaluation, after: Evaluation) -> list[tuple[str, ...]]:
    old, new = before.response_length, after.response_length
    rows = [("response length", f"{old:.1f}", f"{new:.1f}", f"{signed(new - old)} tokens")]
    old, new = before.entropy, after.entropy
    if old is not None and new is not None:
        rows.append(("token entropy", f"{old:.3f}", f"{new:.3f}", f"{signed(new - old, decimals=3)} nats"))
    return rows


def _met(run: RunRecord) -> list[str]:
    """What the run met on its way that the numbers must be read with."""
    collapses = [event for event in run.events if event.get("event") == "collapse"]
    told = [f"collapse at step {event['step']}: {event.get('reason')}." for event in collapses]
    without = no_signal(run.metrics)
    return [*told, without] if without else told


def _next_steps(run: RunRecord) -> str:
    return "\n".join(
        [
            f"figure       {run.path / 'figure.png'}",
            f"report       nsr report {run.path}",
            f"completions  {run.path / 'evaluations'}",
            f"curves       tensorboard --logdir {run.path / 'tensorboard'}",
            f"try it       nsr play 44 19 35 --target 98 --model_id {run.path / 'model'}",
        ]
    )
