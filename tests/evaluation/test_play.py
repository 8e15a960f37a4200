from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from nsr.config import PlayConfig
from nsr.models.embedded import build_tiny_model, build_tiny_tokenizer
from nsr.rollout.engine import Completion
from nsr.rollout.rollout import RolloutGroup
from nsr.tasks.countdown.grader import Verdict, grade
from nsr.tasks.countdown.puzzle import Puzzle
from nsr.tools import play as play_module
from nsr.tools.play import SHOWN_CHARACTERS, play, show

PUZZLE = Puzzle(numbers=(44, 19, 35), target=98)


def group(*texts: str, puzzle: Puzzle = PUZZLE) -> RolloutGroup:
    completions = tuple(
        Completion(
            token_ids=tuple(range(10)),
            text=text,
            log_probs_T=np.zeros(10, dtype=np.float32),
            entropy=None,
            finish_reason="stop" if text.endswith("</answer>") else "length",
        )
        for text in texts
    )
    verdicts = tuple(grade(puzzle, text) for text in texts)
    return RolloutGroup(puzzle=puzzle, prompt_ids=(1,), completions=completions, verdicts=verdicts)


def shown(rollouts: RolloutGroup, **options: object) -> str:
    console = Console(file=io.StringIO(), width=80, **options)  # type: ignore[arg-type]
    show(rollouts, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_attempts_with_their_verdicts_and_a_summary() -> None:
    text = shown(
        group(
            "<answer>44+19+35</answer>",
            "<answer>19+44+35</answer>",
            "<answer>44+19-35</answer>",
            "<answer>44+19</answer>",
            "<think>44",
        )
    )
    assert re.findall(r"attempt \d: (.*)", text) == [
        "correct (10 tokens)",
        "correct (10 tokens)",
        "wrong value, 28 instead of 98 (10 tokens)",
        "wrong numbers (10 tokens)",
        "no answer (10 tokens, cut off)",
    ]
    assert "2 of 5 attempts are right; 1 of 1 solution found" in text
    assert "<answer>44+19+35</answer>" in text  # tags are text, not markup


def test_every_verdict_has_its_colour() -> None:
    assert set(play_module.STYLES) == set(Verdict)
    text = shown(group("<answer>44+19+35</answer>", "<think>"), force_terminal=True, color_system="standard")
    assert "\x1b[1;32mattempt 1: correct" in text
    assert "\x1b[31mattempt 2: no answer" in text


def test_an_unsolvable_puzzle_is_said_after_the_attempts() -> None:
    puzzle = Puzzle(numbers=(1, 1, 2), target=99)
    text = shown(group("<answer>1+1+2</answer>", puzzle=puzzle))
    assert "attempt 1: wrong value, 4 instead of 99" in text
    assert "1,1,2=99 has no solution: no attempt can be right." in text


@pytest.mark.parametrize("terminal", [False, True])
def test_hostile_text_is_harmless(terminal: bool) -> None:
    hostile = (
        "[bold red]x[/] [/nothing] :boom: \x1b[2J\x1b]0;title\x07 \r\x08 \u202eright\u202c \ud800 \x9b31m <script>"
    )
    text = shown(group(hostile), force_terminal=terminal, color_system="standard" if terminal else None)
    without_styles = re.sub(r"\x1b\[[0-9;]*m", "", text) if terminal else text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", without_styles)
    assert r"[bold red]x[/] [/nothing] :boom: \x1b[2J\x1b]0;title\x07 \r\x08 \u202eright\u202c \ud800 \x9b31m" in text
    assert "<script>" in text


def test_of_a_long_line_the_start_is_shown() -> None:
    text = shown(group("x" * 100_000))
    assert len(text) < SHOWN_CHARACTERS + 1000
    assert f"and {100_000 - SHOWN_CHARACTERS:,} more characters" in text


def test_an_output_that_cannot_write_a_character_gets_its_escape() -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii", write_through=True), width=80)
    show(group("é 漢 🎲"), console)
    assert rb"\xe9 \u6f22 \U0001f3b2" in raw.getvalue()


def test_plays_with_a_model(tmp_path: Path) -> None:
    tokenizer = build_tiny_tokenizer()
    build_tiny_model(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = PlayConfig(numbers=(44, 19, 35), target=98, model_id=str(tmp_path), num_samples=2, max_tokens=6)
    texts = []
    for _ in range(2):
        console = Console(file=io.StringIO(), width=80)
        play(config, console)
        texts.append(console.file.getvalue())  # type: ignore[attr-defined]
    assert len(re.findall(r"attempt \d: ", texts[0])) == 2
    assert "attempts are right" in texts[0]
    assert texts[0] == texts[1]
