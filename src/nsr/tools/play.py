"""A model's attempts at one puzzle, shown with their verdicts."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from nsr.config import BaselineConfig, PlayConfig
from nsr.evaluation.diversity import canonical_equation
from nsr.rollout.engine import Completion, SamplingParams
from nsr.rollout.rollout import RolloutGroup, rollout
from nsr.rollout.setup import build_sampler, check_setup
from nsr.runs.progress import printable
from nsr.tasks.countdown.expression import evaluate, parse
from nsr.tasks.countdown.grader import Verdict, extract_answer
from nsr.tasks.countdown.puzzle import Puzzle
from nsr.tasks.countdown.solver import solve

SHOWN_CHARACTERS = 4000

STYLES = {
    Verdict.CORRECT: "bold green",
    Verdict.WRONG_VALUE: "yellow",
    Verdict.WRONG_NUMBERS: "magenta",
    Verdict.DIVISION_BY_ZERO: "magenta",
    Verdict.MALFORMED: "red",
    Verdict.NO_ANSWER: "red",
}


def play(config: PlayConfig, console: Console | None = None) -> None:
    """Sample attempts at the puzzle of `config` and print them, with a summary.

    Raises:
        ValueError: no such puzzle, device or model.
    """
    console = console or Console(highlight=False)
    puzzle = Puzzle(numbers=config.numbers, target=config.target)
    run = BaselineConfig(
        model_id=config.model_id,
        device=config.device,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        seed=config.seed,
        thinking=config.thinking,
    )
    sampler = build_sampler(run, check_setup(run, [puzzle]))
    params = SamplingParams(
        temperature=config.temperature, max_tokens=config.max_tokens, seed=config.seed, purpose="play"
    )
    (group,) = rollout(sampler.engine, sampler.encode, [puzzle], params, config.num_samples)
    show(group, console)


def show(group: RolloutGroup, console: Console) -> None:
    """Print every attempt of `group` under its verdict, and a summary.

    What the model wrote is untrusted: nothing in it is taken as markup or reaches the terminal as a control code, and
    of a long text the start is shown.
    """
    for number, (completion, verdict) in enumerate(zip(group.completions, group.verdicts, strict=True), start=1):
        _print(Text(f"attempt {number}: {_verdict(group.puzzle, completion, verdict)}", STYLES[verdict]), console)
        _print(_shown(completion.text), console)
    console.print()
    _print(Text(_summary(group)), console)


def _verdict(puzzle: Puzzle, completion: Completion, verdict: Verdict) -> str:
    words = verdict.value.replace("_", " ")
    if verdict is Verdict.WRONG_VALUE:
        value = evaluate(parse(extract_answer(completion.text) or ""))
        words = f"{words}, {value} instead of {puzzle.target}"
    return f"{words} ({len(completion.token_ids)} tokens{', cut off' if completion.truncated else ''})"


def _shown(text: str) -> Text:
    shown = printable(text[:SHOWN_CHARACTERS])
    left_out = len(text) - SHOWN_CHARACTERS
    return shown.append(f" ... and {left_out:,} more characters", "dim") if left_out > 0 else shown


def _summary(group: RolloutGroup) -> str:
    solutions = len(solve(group.puzzle))
    if not solutions:
        return f"{group.puzzle.key} has no solution: no attempt can be right."
    right = [
        canonical_equation(completion.text)
        for completion, verdict in zip(group.completions, group.verdicts, strict=True)
        if verdict is Verdict.CORRECT
    ]
    found = f"{len(right)} of {len(group.verdicts)} attempts are right"
    equations = f"{len(set(right))} of {solutions} solution{'s' if solutions > 1 else ''} found"
    return f"{found}; {equations} (nsr solve shows all)."


def _print(text: Text, console: Console) -> None:
    """Print `text` as it is, with an escape for every character that the output's encoding does not have."""
    plain = text.plain.encode(console.encoding, "backslashreplace").decode(console.encoding)
    console.print(text if plain == text.plain else Text(plain, text.style), soft_wrap=True)
