"""What `nsr explain` found, in the terminal: a table a token, and in words what its numbers say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from nsr.errors import UserError
from nsr.report.explain_figure import explain_figure, percent, quoted, weights_line
from nsr.runs.files import read_json
from nsr.runs.progress import printable

_SHOWN_TEXT = 2000
_SHOWN_TOKEN = 16
_SHOWN_CONTEXT = 36
_NOTE = (
    "Gradient of w log pi(sampled) by each logit, w (1[v = sampled] - pi(v)) / T: what the update asks of it "
    "(+ raises, - lowers). This is what is trained, checked against autograd. The paper writes the gradient of "
    "pi(sampled) itself: these numbers times the probability of the sampled token (paper_gradients in explain.json)."
)


def show_explanation(path: Path, console: Console | None = None) -> None:
    """Print what an explain.json holds, and draw its figure beside it (.png and .svg).

    Raises:
        ValueError: the file holds something else than it should.
    """
    console = console or Console(highlight=False)
    record = read_json(path)
    try:
        shown = explanation(record)
        figures = explain_figure(record, path)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} holds no explanation of this version of nsr ({error!r}): make it again.") from error
    for part in shown:
        _print(part, console)
    _print(printable(f"\nfigure   {figures[0]}\nnumbers  {path}"), console, soft_wrap=True)


def explanation(record: Mapping[str, Any]) -> list[RenderableType]:
    """The parts to print one after the other, for a terminal of 80 columns."""
    right = sum(verdict == "correct" for verdict in record["verdicts"])
    parts: list[RenderableType] = [
        printable(
            f"{record['model_id']} on {record['puzzle']}: {right} of {len(record['verdicts'])} samples are right "
            f"(temperature {record['temperature']:g})."
        )
    ]
    kinds = {sample["kind"] for sample in record["samples"]}
    parts += [Text(f"No sample is {kind}: none can be shown.") for kind in ("right", "wrong") if kind not in kinds]
    for sample in record["samples"]:
        parts += [Text(), Text(f"{sample['kind']} sample ({sample['verdict'].replace('_', ' ')})", "bold")]
        parts += [printable(sample["text"][:_SHOWN_TEXT]), Text(weights_line(sample), "dim")]
        parts += [_table(token, record["objectives"]) for token in sample["tokens"]]
        parts += [printable(f"-> {sentence}") for sentence in findings(sample)]
    return [*parts, Text(), Text(_NOTE, "dim")]


def findings(sample: Mapping[str, Any]) -> Iterator[str]:
    """What the numbers of a sample's tokens say, in words. Every claim is checked on the numbers first."""
    tokens: Sequence[Mapping[str, Any]] = sample["tokens"]
    for sign, verb, rest in ((1.0, "raise", "lower"), (-1.0, "lower", "raise")):
        names = [name for name, weight in sample["weights"].items() if weight * sign > 0]
        if not names:
            continue
        held = all(_moves(token, name, sign) for token in tokens for name in names)
        if not held:
            yield f"{_and(names)}: the directions differ from token to token, see the tables."
            continue
        name = min(names, key=lambda name: abs(math.log(abs(sample["weights"][name]))))  # the weight nearest to 1
        token = max(tokens, key=lambda token: abs(token["candidates"][0]["gradients"][name]))
        proportional = all(_in_proportion(token, name) for token in tokens for name in names)
        how = " in proportion to its probability" if proportional else ""
        s = "s" if len(names) == 1 else ""
        yield (
            f"{_and(names)} {verb}{s} the sampled token and {rest}{s} every other{how}. {name} at token "
            f"{token['position']}: {', '.join(_change(bar, name) for bar in token['candidates'][:2])}, "
            f"the {token['tail']['ids']:,} ids of the tail ({percent(token['tail']['probability'])}) "
            f"{_number(token['tail']['gradients'][name])} together."
        )
    nothing = [name for name, weight in sample["weights"].items() if not weight]
    if nothing:
        yield f"{_and(nothing)} learn{'s' if len(nothing) == 1 else ''} nothing from it: weight 0."


def _change(bar: Mapping[str, Any], name: str) -> str:
    gradient = _number(bar["gradients"][name])
    return f"{quoted(bar['text'], _SHOWN_TOKEN)} ({percent(bar['probability'])}) {gradient}"


def _moves(token: Mapping[str, Any], name: str, sign: float) -> bool:
    """Whether the sampled token's gradient has the sign, and no other's has."""
    sampled, *others = [bar["gradients"][name] * sign for bar in (*token["candidates"], token["tail"])]
    return sampled >= 0 and all(other <= 0 for other in others)


def _in_proportion(token: Mapping[str, Any], name: str) -> bool:
    """Whether the gradients of all but the sampled token are the same multiple of their probabilities."""
    others = [*token["candidates"][1:], token["tail"]]
    total = math.fsum(bar["probability"] for bar in others)
    factor = math.fsum(bar["gradients"][name] for bar in others) / total if total else 0.0
    return all(
        math.isclose(bar["gradients"][name], factor * bar["probability"], rel_tol=1e-6, abs_tol=1e-12) for bar in others
    )


def _table(token: Mapping[str, Any], objectives: Sequence[str]) -> RenderableType:
    title = f"token {token['position']}, after {quoted(token['before'], _SHOWN_CONTEXT)}"
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column(f"entropy {token['entropy']:.2f}", header_style="dim", no_wrap=True)
    for name in ("prob", *objectives):
        table.add_column(name, justify="right")
    for number, bar in enumerate(token["candidates"]):
        label = printable(quoted(bar["text"], _SHOWN_TOKEN) + ("  sampled" if number == 0 else ""))
        table.add_row(label, *_numbers(bar, objectives), style="bold" if number == 0 else "")
    table.add_row(f"tail, {token['tail']['ids']:,} ids", *_numbers(token["tail"], objectives))
    return Group(Text(), printable(title), table)


def _numbers(bar: Mapping[str, Any], objectives: Sequence[str]) -> list[str]:
    gradients = [bar["gradients"][name] for name in objectives]
    return [percent(bar["probability"]), *map(_number, gradients)]


def _number(value: float) -> str:
    """A gradient with its sign, tiny ones with one digit: "+0.3802", "-3e-05", "0"."""
    if value == 0:
        return "0"
    return f"{value:+.4f}" if abs(value) >= 0.00005 else f"{value:+.0e}"


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _print(part: RenderableType, console: Console, *, soft_wrap: bool = False) -> None:
    """Print with an escape for every character that the output's encoding does not have."""
    with console.capture() as capture:
        console.print(part, soft_wrap=soft_wrap)
    text = capture.get()
    console.file.write(text.encode(console.encoding, "backslashreplace").decode(console.encoding))
