"""What `nsr explain` shows: words that follow from the numbers, tables of 80 columns, a figure; hostile text."""

from __future__ import annotations

import copy
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nsr.report.explain import findings, show_explanation
from nsr.report.explain_figure import explain_figure, percent, quoted, weights_line
from nsr.report.figures import METHOD_COLORS

OBJECTIVES = ("RLVR", "PSR", "NSR", "W_REINFORCE")
HOSTILE = "[bold red]x[/] $\\frac{1}{2}$ \x1b[2J\u202e \ud800 漢 🎲 <script>&\n\t"


def token(texts: tuple[str, ...], probabilities: tuple[float, ...], weights: dict[str, float]) -> dict[str, Any]:
    """A token whose first text was sampled; the last probability is the tail's."""

    def bar(probability: float, sampled: bool) -> dict[str, Any]:
        gradients = {name: weight * (sampled - probability) for name, weight in weights.items()}
        return {"probability": probability, "gradients": gradients}

    bars = [bar(probability, number == 0) for number, probability in enumerate(probabilities)]
    candidates = [{"token_id": 7, "text": text, **one} for text, one in zip(texts, bars[:-1], strict=True)]
    before = f"<think>{texts[0] * 3}"
    return {
        "position": 12,
        "before": before,
        "entropy": 1.25,
        "candidates": candidates,
        "tail": {"ids": 1234, **bars[-1]},
    }


def sample(kind: str, text: str = "4") -> dict[str, Any]:
    weights = dict(zip(OBJECTIVES, (1.29, 1.0, 0.0, 0.1) if kind == "right" else (-0.77, 0.0, -1.0, -1.0), strict=True))
    tokens = [
        token((text, "5", "\n"), (0.5, 0.3, 0.15, 0.05), weights),
        token((text, "5", " "), (0.25, 0.5, 0.2, 0.05), weights),
    ]
    verdict = "correct" if kind == "right" else "wrong_value"
    return {
        "kind": kind,
        "sample": 0,
        "verdict": verdict,
        "text": f"<think>{text}</think>",
        "weights": weights,
        "tokens": tokens,
    }


def record(*samples: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_id": "tiny",
        "puzzle": "1,2,3=6",
        "temperature": 1.0,
        "objectives": list(OBJECTIVES),
        "verdicts": ["correct", "wrong_value"],
        "samples": list(samples),
    }


def shown(tmp_path: Path, value: object, encoding: str = "utf-8", **options: Any) -> str:
    path = tmp_path / "explain.json"
    path.write_bytes(json.dumps(value).encode())
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    show_explanation(path, Console(file=file, **options))
    file.seek(0)
    return file.read()


def test_words_follow_from_the_numbers() -> None:
    assert list(findings(sample("right"))) == [
        # At the second token the sampled one moves most: 1 - 0.25.
        "RLVR, PSR and W_REINFORCE raise the sampled token and lower every other in proportion to its probability. "
        'PSR at token 12: "4" (25%) +0.7500, "5" (50%) -0.5000, the 1,234 ids of the tail (5.0%) -0.0500 together.',
        "NSR learns nothing from it: weight 0.",
    ]
    assert list(findings(sample("wrong"))) == [
        "RLVR, NSR and W_REINFORCE lower the sampled token and raise every other in proportion to its probability. "
        'NSR at token 12: "4" (25%) -0.7500, "5" (50%) +0.5000, the 1,234 ids of the tail (5.0%) +0.0500 together.',
        "PSR learns nothing from it: weight 0.",
    ]


def test_what_the_numbers_do_not_say_is_not_claimed() -> None:
    one = sample("wrong")
    one["tokens"][1]["candidates"][1]["gradients"]["NSR"] *= 1.01
    assert not any("in proportion" in sentence for sentence in findings(one))
    one["tokens"][1]["candidates"][1]["gradients"]["NSR"] *= -1
    assert "the directions differ" in next(findings(one))


def test_the_table_fits_into_80_columns(tmp_path: Path) -> None:
    text = shown(tmp_path, record(sample("right"), sample("wrong")), width=80)
    lines = text.splitlines()
    assert max(map(len, lines[:-2])) <= 80
    assert "tiny on 1,2,3=6: 1 of 2 samples are right (temperature 1)." in text
    first = lines.index('token 12, after "<think>444"')
    assert lines[first + 1].split() == ["entropy", "1.25", "prob", *OBJECTIVES]
    assert lines[first + 2].split() == ['"4"', "sampled", "50%", "+0.6450", "+0.5000", "0", "+0.0500"]
    assert lines[first + 4].split() == ['"\\n"', "15%", "-0.1935", "-0.1500", "0", "-0.0150"]
    assert lines[first + 5].split() == ["tail,", "1,234", "ids", "5.0%", "-0.0645", "-0.0500", "0", "-0.0050"]
    assert {path.name for path in tmp_path.iterdir()} == {"explain.json", "explain.png", "explain.svg"}


def test_a_kind_that_is_missing_is_said(tmp_path: Path) -> None:
    assert "No sample is right: none can be shown." in shown(tmp_path, record(sample("wrong")))


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("terminal", [False, True])
def test_hostile_text_is_harmless(terminal: bool, encoding: str, tmp_path: Path) -> None:
    text = shown(
        tmp_path, record(sample("right", HOSTILE), sample("wrong", "x" * 100_000)), encoding, force_terminal=terminal
    )
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text) if terminal else text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", plain)
    assert r"[bold red]x[/] $\frac{1}{2}$ \x1b[2J\u202e \ud800" in plain
    assert len(text) < 20_000
    svg = (tmp_path / "explain.svg").read_text()
    assert "<script" not in svg


def test_the_figure_repeats_itself_and_shows_each_objective_in_its_colour(tmp_path: Path) -> None:
    whole = record(sample("right"), sample("wrong"))
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        written.append([path.read_bytes() for path in explain_figure(whole, tmp_path / name / "explain.json")])
    assert written[0] == written[1]
    svg = written[0][1].decode()
    assert all(METHOD_COLORS[name] in svg for name in OBJECTIVES)
    other = copy.deepcopy(whole)
    other["samples"][1]["tokens"][0]["candidates"][0]["gradients"]["NSR"] = -0.1
    assert explain_figure(other, tmp_path / "explain.json")[1].read_bytes() != written[0][1]


def test_draws_one_token_of_one_sample(tmp_path: Path) -> None:
    one = sample("wrong")
    one["tokens"] = one["tokens"][:1]
    for path in explain_figure(record(one), tmp_path / "explain.json"):
        assert path.stat().st_size > 1000


@pytest.mark.parametrize("broken", [{}, {"samples": [{}]}, {"verdicts": 3}])
def test_another_file_is_told_in_one_sentence(broken: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no explanation of this version of nsr"):
        shown(tmp_path, broken)


def test_text_in_quotes() -> None:
    assert quoted("\n", 9) == r'"\n"'
    assert quoted('a"\\', 9) == r'"a\"\\"'
    assert quoted("abcdef", 3) == '..."def"'
    assert quoted("abc", 3) == '"abc"'
    # An escape is whole or not there.
    assert quoted("\x1b\x1b", 7) == r'..."\u001b"'
    assert quoted("漢", 9, lambda _: False) == r'"\u6f22"'


def test_shares_and_weights_as_text() -> None:
    assert [percent(share) for share in (1.0, 0.314, 0.0996, 0.0412, 0.0009, 0.0)] == [
        "100%",
        "31%",
        "10%",
        "4.1%",
        "<0.1%",
        "<0.1%",
    ]
    assert weights_line({"weights": {"PSR": 1.0, "NSR": 0.0}}) == "weight w: PSR +1; NSR 0 (learns nothing from it)"
    assert weights_line({"weights": {"RLVR": -math.pi}}) == "weight w: RLVR -3.1"
