from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nsr.evaluation.evaluate import Evaluation
from nsr.report.figures import METHOD_COLORS, OTHER_COLOR, demo_figure, method_color, running_mean

METRICS = [{"step": step, "correct_ratio": 0.1 + 0.01 * step, "entropy": 0.5 + 0.005 * step} for step in range(1, 21)]


def test_the_same_input_gives_the_same_bytes(before: Evaluation, after: Evaluation, tmp_path: Path) -> None:
    written = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        paths = demo_figure([before, after], METRICS, "NSR", tmp_path / name / "figure.pdf")
        assert [path.name for path in paths] == ["figure.png", "figure.svg"]
        written.append([path.read_bytes() for path in paths])
    assert written[0] == written[1]
    png, svg = written[0]
    assert png.startswith(b"\x89PNG")
    assert b"<svg" in svg
    assert not re.search(rb"20\d\d-\d\d-\d\d|dc:date|Software|tEXt", png + svg)


def test_shows_the_data(before: Evaluation, after: Evaluation, tmp_path: Path) -> None:
    one = demo_figure([before, after], METRICS, "NSR", tmp_path / "one")
    other = demo_figure([before, after], METRICS[:10], "NSR", tmp_path / "other")
    third = demo_figure([before, before], METRICS, "NSR", tmp_path / "third")
    assert len({paths[1].read_bytes() for paths in (one, other, third)}) == 3


def test_a_method_keeps_its_colour(before: Evaluation, after: Evaluation, tmp_path: Path) -> None:
    for method in ("NSR", "PSR"):
        _, svg = demo_figure([before, after], METRICS, method, tmp_path / method)
        text = svg.read_text()
        assert METHOD_COLORS[method] in text
        assert METHOD_COLORS["base"] in text
        assert METHOD_COLORS["PSR" if method == "NSR" else "NSR"] not in text
    assert method_color("MINE") == OTHER_COLOR


def test_colours_can_be_told_apart_in_grey_or_by_hue() -> None:
    assert {"base", "RLVR", "PSR", "NSR", "W_REINFORCE", "SHUFFLED", "RLOO"} <= set(METHOD_COLORS)
    assert len({*METHOD_COLORS.values(), OTHER_COLOR}) == len(METHOD_COLORS) + 1


@pytest.mark.parametrize("metrics", [[], METRICS[:1], [{"step": 1, "correct_ratio": 0.2}]])
def test_draws_what_there_is(
    make_evaluation: Callable[..., Evaluation], metrics: list[dict[str, float]], tmp_path: Path
) -> None:
    """One sample a puzzle, an engine that knows no entropy, a run of one step or none: no error and no warning."""
    evaluations = [make_evaluation(step, [1, 0] * 20, num_samples=1, entropy=None) for step in (0, 1)]
    for path in demo_figure(evaluations, metrics, "NSR", tmp_path / "figure"):
        assert path.stat().st_size > 1000


def test_running_mean_by_hand() -> None:
    values = np.array([1.0, 2.0, 6.0, 4.0])
    np.testing.assert_allclose(running_mean(values, 3), [1.5, 3.0, 4.0, 5.0])
    np.testing.assert_allclose(running_mean(values, 1), values)
    np.testing.assert_allclose(running_mean(values[:1], 5), [1.0])
    np.testing.assert_allclose(running_mean(values[:2], 5), [1.5, 1.5])
