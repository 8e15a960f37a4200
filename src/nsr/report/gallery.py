"""Which figures a report has, and what each of them shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from nsr.evaluation.evaluate import Evaluation
from nsr.report.collect import number
from nsr.report.drawing import Plot
from nsr.report.methods import Arm, Method
from nsr.report.panels import (
    Looks,
    Panel,
    change_at_k_panel,
    divergence_panel,
    evaluation_panel,
    forest_panel,
    frontier_panel,
    mass_panel,
    mechanism_panel,
    metric_panel,
    pass_at_k_panel,
    strip_panel,
    verdicts_panel,
)
from nsr.report.results import SectionResult
from nsr.report.series import metric_curve, smoothed_over
from nsr.report.theme import VERDICT_COLORS

MOST_VERDICT_PANELS = 12
"""Methods whose verdicts are drawn; of more the first ones, which is said."""

Coverage = Mapping[int, float]
"""Share of all solutions that the samples of an evaluation found, by the `id` of the evaluation."""


def plots(result: SectionResult, looks: Looks, coverage: Coverage, suffix: str = "") -> dict[str, Plot | str]:
    """The figures of a section by topic, in the order of the page, or the sentence that says why one is left out."""
    makers: Mapping[str, Callable[[], Plot | str]] = {
        "passk": lambda: _pass_at_k(result, looks, suffix),
        "changes": lambda: _changes(result, looks, suffix),
        "frontier": lambda: _frontier(result, looks, suffix),
        "training": lambda: _training(result, looks, suffix),
        "verdicts": lambda: _verdicts(result, suffix),
        "mechanism": lambda: _mechanism(result, looks, suffix),
        "diversity": lambda: _diversity(result, looks, coverage, suffix),
    }
    return {name: make() for name, make in makers.items()}


def _methods(arms: Sequence[Arm]) -> tuple[Method, ...]:
    return tuple(arm.method for arm in arms)


def _learned(result: SectionResult) -> tuple[Arm, ...]:
    """The arms that were trained: the base at another temperature was not."""
    return tuple(arm for arm in result.section.trained if not arm.method.is_base)


def _pass_at_k(result: SectionResult, looks: Looks, suffix: str) -> Plot:
    panels = [Panel(title="pass@k", draw=pass_at_k_panel(result, looks), height=3.0)]
    caption = (
        "Left, the share of puzzles that at least one of k samples solves, with 95% intervals over seeds and puzzles; "
        "a hollow point is rough, since k is above half the samples of a puzzle."
    )
    if any(row.changes for row in result.rows):
        panels.append(Panel(title="change from base", draw=change_at_k_panel(result, looks), height=3.0))
        caption += (
            " Right, the change from the base on the same puzzles, which is what tells methods apart: the bands on the "
            "left overlap also where a change is clear. Each interval stands for its k alone."
        )
    return Plot(
        name=f"passk{suffix}",
        title="pass@k",
        caption=caption,
        panels=tuple(panels),
        methods=_methods(result.section.arms),
    )


def _changes(result: SectionResult, looks: Looks, suffix: str) -> Plot | str:
    rows = [row for row in result.rows if row.changes]
    if not rows:
        return "No run has a base to compare with, so there are no changes to draw."
    height = 0.75 + 0.27 * len(rows)
    panels = tuple(
        Panel(
            title="accuracy" if k == 1 else f"pass@{k}",
            draw=forest_panel(result, k, looks),
            height=height,
        )
        for k in result.ks
    )
    caption = (
        "Change from the base with its 95% interval, paired by puzzle. Filled: it may be claimed, also after Holm's "
        "correction over all changes of this report. Hollow: it may not."
    )
    return Plot(name=f"changes{suffix}", title="Change from base", caption=caption, panels=panels)


def _frontier(result: SectionResult, looks: Looks, suffix: str) -> Plot | str:
    if result.top_k == 1:
        return "There is one sample a puzzle, so there is no frontier of accuracy against pass@k."
    if not _learned(result):
        return "No run was trained, so there is no frontier of accuracy against pass@k."
    k = result.top_k
    panels = [Panel(title=f"accuracy and pass@{k}", draw=frontier_panel(result, looks), height=3.0)]
    caption = (
        f"Every evaluation of every run: small points on the way, a large one at the end, a ring for the base. Up is "
        f"more puzzles within reach of {k} samples, right is more samples right."
    )
    if _has_mechanism(result):
        panels += [
            Panel(title="accuracy and distance", draw=divergence_panel(result, 1, looks), height=3.0),
            Panel(title=f"pass@{k} and distance", draw=divergence_panel(result, k, looks), height=3.0),
        ]
        caption += " Beside it the same evaluations against how far the policy went from its base."
    else:
        caption += " No run has mechanism.jsonl, so the distance from the base is not known."
    return Plot(
        name=f"frontier{suffix}",
        title="Frontier",
        caption=caption,
        panels=tuple(panels),
        columns=3,
        methods=_methods(result.section.arms),
    )


def _training(result: SectionResult, looks: Looks, suffix: str) -> Plot | str:
    arms = _learned(result)
    if not any(member.run.metrics for arm in arms for member in arm.members):
        return "No run has training metrics, so there are no training curves."
    panels = [
        Panel(title=title, draw=metric_panel(arms, name, looks, unit=unit, percent=not unit), height=2.5)
        for name, title, unit in (
            ("correct_ratio", "accuracy of rollouts", ""),
            ("entropy", "entropy of a token", "nats"),
            ("response_length", "response length", "tokens"),
            ("groups_all_right", "groups all right", ""),
            ("groups_mixed", "groups with both", ""),
            ("groups_all_wrong", "groups all wrong", ""),
        )
        if any(not metric_curve(arm, name).is_empty for arm in arms)
    ]
    longest = max(len(metric_curve(arm, "correct_ratio").steps) for arm in arms)
    over = smoothed_over(longest)
    how = f" (running means over {over} steps)" if over > 1 else ""
    caption = (
        f"Thick, the mean over seeds{how}; thin, each seed. Every step has other puzzles, so single steps are noisy. "
        "Groups are the samples of one puzzle: from those all right or all wrong RLVR learns nothing."
    )
    return Plot(
        name=f"training{suffix}",
        title="Training",
        caption=caption,
        panels=tuple(panels),
        columns=3,
        methods=_methods(arms),
    )


def _verdicts(result: SectionResult, suffix: str) -> Plot | str:
    arms = [
        arm
        for arm in _learned(result)
        if all(not metric_curve(arm, f"verdict_{name}").is_empty for name in VERDICT_COLORS)
    ]
    if not arms:
        return "No run has training metrics, so there are no shares of verdicts."
    shown = arms[:MOST_VERDICT_PANELS]
    panels = tuple(Panel(title=arm.method.label, draw=verdicts_panel(arm), height=2.1) for arm in shown)
    caption = "What became of the rollouts of each training step, mean over seeds."
    if len(shown) < len(arms):
        caption += f" The first {len(shown)} of {len(arms)} methods."
    return Plot(name=f"verdicts{suffix}", title="Verdicts", caption=caption, panels=panels, verdicts=True, columns=3)


def _has_mechanism(result: SectionResult) -> bool:
    return any(member.run.mechanism for arm in _learned(result) for member in arm.members)


def _mechanism(result: SectionResult, looks: Looks, suffix: str) -> Plot | str:
    arms = [arm for arm in _learned(result) if any(member.run.mechanism for member in arm.members)]
    if not arms:
        return "No run has mechanism.jsonl, so the mechanism is left out."
    panels: list[Panel] = []
    for kind in ("right", "wrong"):
        panels += [
            Panel(
                title=f"{kind} samples: log-probability",
                draw=mechanism_panel(arms, (kind, "log_prob_change"), looks, unit="change in nats a token"),
                height=2.5,
            ),
            Panel(title=f"{kind} samples: where the mass went", draw=mass_panel(arms, kind, looks), height=2.5),
        ]
    caption = (
        "On a fixed set of right and of wrong samples of the base: how the log-probability of their tokens changed, "
        "and by the last evaluation how much probability moved at each position to the sampled token, to the rest of "
        "the base's five likeliest, and to all others."
    )
    return Plot(
        name=f"mechanism{suffix}", title="Mechanism", caption=caption, panels=tuple(panels), methods=_methods(arms)
    )


def _diversity(result: SectionResult, looks: Looks, coverage: Coverage, suffix: str) -> Plot | str:
    arms = _learned(result)
    panels: list[Panel] = []
    caption = ""
    draws = {member.evaluation.distinct_correct.num_draws for arm in result.section.arms for member in arm.members}
    if any(member.evaluation.distinct_correct.mean is not None for arm in arms for member in arm.members):
        shown = f"among {draws.pop()} right samples" if len(draws) == 1 else "among right samples"
        panels.append(
            Panel(
                title="distinct right equations",
                draw=evaluation_panel(arms, "distinct_correct", looks, unit=shown),
                height=2.8,
            )
        )
        caption += (
            "How many different equations to expect among a fixed number of right samples of a puzzle, so that being "
            "right more often is no advantage. "
        )
    strip = list(_coverage_rows(result, coverage))
    if strip:
        panels.append(
            Panel(
                title="solutions found",
                draw=strip_panel(strip, looks, "share of all solutions of a puzzle"),
                height=max(2.8, 0.75 + 0.27 * len(strip)),
            )
        )
        n = min(arm.num_samples for arm in result.section.arms)
        caption += (
            f"The share of all solutions of a puzzle that at least one of its samples found (about {n} samples each), "
            "a dot a seed; hollow, before the training."
        )
    if any(evaluation.entropy is not None for arm in arms for m in arm.members for evaluation in m.run.evaluations):
        panels.append(
            Panel(
                title="entropy at the evaluations",
                draw=evaluation_panel(arms, "entropy", looks, unit="nats a token"),
                height=2.8,
            )
        )
    if not panels:
        return "No evaluation has enough right samples of a puzzle, so diversity is left out."
    return Plot(
        name=f"diversity{suffix}",
        title="Diversity",
        caption=caption.strip(),
        panels=tuple(panels),
        columns=3,
        methods=_methods(result.section.arms),
    )


def _coverage_rows(result: SectionResult, coverage: Coverage) -> Iterator[tuple[Arm, list[tuple[float, bool]]]]:
    def share(evaluation: Evaluation | None) -> float | None:
        if evaluation is None:
            return None
        return coverage.get(id(evaluation), number(evaluation.coverage))

    for arm in result.section.arms:
        found: list[tuple[float, bool]] = []
        for member in arm.members:
            if not arm.method.is_base and (value := share(member.base)) is not None:
                found.append((value, False))
            if (value := share(member.evaluation)) is not None:
                found.append((value, True))
        if found:
            yield arm, found
