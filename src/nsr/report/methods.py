"""Runs -> methods and sections: which runs are seeds of one method, and what each is compared with.

A section holds what can be compared: one model, one source of puzzles, one length. A method is an objective with lambda
and whatever else differs in how it learns; its runs are its seeds. The base of a run is its own evaluation before the
first step, or else that of a baseline on the same puzzles.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nsr.evaluation.evaluate import Evaluation
from nsr.report.collect import number
from nsr.report.run import RunRecord
from nsr.runs.progress import printable

BASE = "base"
ORDER = (BASE, "RLVR", "PSR", "NSR", "W_REINFORCE", "SHUFFLED", "RLOO")
"""Objectives in the order in which a report lists them; others follow by name."""
SECTION_SETTINGS: tuple[str, ...] = ("model_id", "data", "max_tokens", "thinking", "eval_puzzles")
_NOT_LEARNING = frozenset(
    {*SECTION_SETTINGS, "command", "objective", "lambda_psr", "seed", "output_dir", "exp_name", "resume", "resolved"}
    | {"device", "engine", "gpu_mem_util", "grad_acc_steps", "save_every", "keep", "eval_every", "log_to"}
    | {"eval_samples", "eval_temperature"}
)
"""Settings that do not change what a run learns, or that have a place of their own."""
_WITHOUT_LAMBDA = frozenset({"RLVR", "PSR", "NSR", "SHUFFLED", "RLOO"})
_LONGEST_LABEL = 60
_WEIGHTS = "weights of"  # in a method's key, in place of settings


@dataclass(frozen=True, kw_only=True)
class Method:
    """What is compared: how a model was trained, or that it was not."""

    label: str
    objective: str
    """Name of the objective; "base" for a model as it is."""
    index: int
    """Its place in the order of the report."""
    variant: int
    """0, 1, ... among the methods of the same objective."""

    @property
    def is_base(self) -> bool:
        """Whether nothing was trained."""
        return self.objective == BASE


@dataclass(frozen=True, kw_only=True)
class Member:
    """One seed of a method: the run and the evaluation that stands for it."""

    run: RunRecord
    evaluation: Evaluation
    base: Evaluation | None
    """What it is compared with, of the same puzzles; None for the base itself and where there is none."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A method within a section."""

    method: Method
    members: tuple[Member, ...]
    """One a seed, by seed."""

    @property
    def step(self) -> int:
        """Training steps behind its evaluations."""
        return self.members[0].evaluation.step

    @property
    def num_samples(self) -> int:
        """Samples a puzzle that all of its evaluations have."""
        return min(member.evaluation.num_samples for member in self.members)


@dataclass(frozen=True, kw_only=True)
class Section:
    """The arms that can be compared with each other."""

    title: str
    """What tells it from the other sections; empty where it is the only one."""
    settings: Mapping[str, Any]
    temperature: float
    """Of the evaluations, unless a method's label says another."""
    arms: tuple[Arm, ...]
    """The base first, where there is one."""

    @property
    def base(self) -> Arm | None:
        """The model before training, at the section's temperature."""
        first = self.arms[0]
        at_temperature = first.members[0].evaluation.temperature == self.temperature
        return first if first.method.is_base and at_temperature else None

    @property
    def trained(self) -> tuple[Arm, ...]:
        """All arms but the base."""
        return tuple(arm for arm in self.arms if arm is not self.base)


def arrange(runs: Sequence[RunRecord]) -> tuple[list[Section], list[str]]:
    """Sort runs into sections and methods. Returns the sections and one sentence for each thing that does not fit."""
    problems: list[str] = []
    models = {_hashable(run.config.get("exp_name")): run.config["model_id"] for run in runs if run.method != BASE}
    by_section: dict[tuple[Any, ...], list[RunRecord]] = {}
    for run in runs:
        if run.evaluations:
            by_section.setdefault(_section_key(run, models), []).append(run)
    keys = sorted(by_section, key=_sort_key)
    varying = [index for index in range(len(SECTION_SETTINGS)) if len({key[index] for key in keys}) > 1]
    drafts: list[tuple[str, dict[str, Any], float, dict[tuple[Any, ...], list[Member]]]] = []
    for key in keys:
        settings = dict(zip(SECTION_SETTINGS, key, strict=True))
        title = ", ".join(_words_of(SECTION_SETTINGS[index], key[index]) for index in varying)
        temperature, members = _members(by_section[key], problems)
        if members:
            drafts.append((title, settings, temperature, members))
    methods = _name_methods([(temperature, list(members)) for _, _, temperature, members in drafts])
    sections = [
        Section(
            title=title,
            settings=settings,
            temperature=temperature,
            arms=tuple(
                sorted(
                    (Arm(method=methods[_full_key(key, temperature)], members=tuple(members[key])) for key in members),
                    key=lambda arm: arm.method.index,
                )
            ),
        )
        for title, settings, temperature, members in drafts
    ]
    return sections, problems


def _section_key(run: RunRecord, models: Mapping[Any, str]) -> tuple[Any, ...]:
    """What a run can be compared by. Weights that `nsr eval` took from a run's folder belong to that run's model."""
    training = _training(run)
    settings = {**run.config}
    if training is not None:
        settings["model_id"] = training.get("model_id") or models.get(
            _hashable(training.get("exp_name")), settings["model_id"]
        )
    return tuple(_hashable(settings.get(name)) for name in SECTION_SETTINGS)


def _training(run: RunRecord) -> Mapping[str, Any] | None:
    """What config.json says of the training behind weights that `nsr eval` measured; None for a model as it came."""
    resolved = run.config.get("resolved")
    training = resolved.get("training") if isinstance(resolved, Mapping) else None
    return training if run.method == BASE and isinstance(training, Mapping) else None


def _sort_key(key: Iterable[Any]) -> tuple[tuple[bool, float, str], ...]:
    return tuple((isinstance(v, str), number(v) or 0.0, str(v)) for v in key)


def _words_of(name: str, value: object) -> str:
    return f"{name.replace('_', ' ')} {plain(value)}"


def plain(value: object) -> str:
    """A setting as short text without control characters: `1e-05`, `none`."""
    text = "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    text = printable(text.replace("\n", " ").replace("\t", " ")).plain
    return text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…"


def _members(runs: Sequence[RunRecord], problems: list[str]) -> tuple[float, dict[tuple[Any, ...], list[Member]]]:
    """The members of each method of a section by the method's key, and the section's temperature."""
    common = _common_puzzles(runs)
    kept = [_on_puzzles(run, common[run.seed], problems) for run in runs]
    runs = [run for run in kept if run is not None]
    if not runs:
        return 0.0, {}
    trained = [run for run in runs if run.method != BASE]
    temperature = _most_common([run.evaluations[0].temperature for run in trained or runs])
    bases = _bases(runs)
    members: dict[tuple[Any, ...], list[Member]] = {}
    for (_, at), (run, evaluation) in sorted(bases.items(), key=lambda item: item[0]):
        base = bases.get((run.seed, temperature))
        differs = at != temperature and base is not None and base[1].puzzles == evaluation.puzzles
        before = base[1] if differs and base is not None else None
        members.setdefault((BASE, at), []).append(Member(run=run, evaluation=evaluation, base=before))
    grouped: dict[tuple[Any, ...], dict[int, RunRecord]] = {}
    for run in trained:
        seeds = grouped.setdefault((*_learning_key(run), run.evaluations[-1].temperature), {})
        if run.seed in seeds:
            problems.append(
                f"{run.name}: it repeats {seeds[run.seed].name} (same settings and seed), so it is left out."
            )
        else:
            seeds[run.seed] = run
    for run in runs:
        if run.method == BASE and run.evaluation(0) is None:
            found = members.setdefault((*_weights_key(run), run.evaluations[-1].temperature), [])
            same = next((member.run.name for member in found if member.run.seed == run.seed), None)
            if same:
                problems.append(f"{run.name}: it repeats {same} (same weights and seed), so it is left out.")
            else:
                found.append(_measured(run, bases.get((run.seed, temperature)), problems))
    for key, seeds in grouped.items():
        found = _of_one_method([seeds[seed] for seed in sorted(seeds)], bases, problems)
        if found:
            members[key] = found
    return temperature, members


def _weights_key(run: RunRecord) -> tuple[Any, ...]:
    """The method of weights that `nsr eval` measured: they have the colour of their objective and their run's name."""
    training = _training(run) or {}
    name = plain(training.get("exp_name") or run.config["model_id"])
    weights = f"{name} at step {run.evaluations[-1].step}"
    return (str(training.get("objective") or "weights"), None, ((_WEIGHTS, weights),))


def _measured(run: RunRecord, base: tuple[RunRecord, Evaluation] | None, problems: list[str]) -> Member:
    evaluation = run.evaluations[-1]
    before = base[1] if base is not None and base[1].puzzles == evaluation.puzzles else None
    if before is None:
        problems.append(f"{run.name}: there is no evaluation of its base, so no difference to it is computed.")
    return Member(run=run, evaluation=evaluation, base=before)


def _common_puzzles(runs: Sequence[RunRecord]) -> dict[int, tuple[str, ...]]:
    """For each seed the puzzles that most of its evaluations are of."""
    counts: dict[int, Counter[tuple[str, ...]]] = {}
    for run in runs:
        counts.setdefault(run.seed, Counter()).update(evaluation.puzzles for evaluation in run.evaluations)
    return {seed: of_seed.most_common(1)[0][0] for seed, of_seed in counts.items()}


def _on_puzzles(run: RunRecord, common: tuple[str, ...], problems: list[str]) -> RunRecord | None:
    """The run with those evaluations alone that are of the puzzles common to its seed; None where there is none."""
    kept = [evaluation for evaluation in run.evaluations if evaluation.puzzles == common]
    dropped = [evaluation for evaluation in run.evaluations if evaluation.puzzles != common]
    if dropped:
        steps = ", ".join(str(evaluation.step) for evaluation in dropped)
        shared = len(set(dropped[0].puzzles) & set(common))
        problems.append(
            f"{run.name}: the evaluation at step {steps} is of another puzzle set than the others of seed {run.seed} "
            f"({shared} of {len(common)} puzzles in common), so it is left out."
        )
    return replace(run, evaluations=kept) if kept else None


def _bases(runs: Sequence[RunRecord]) -> dict[tuple[int, float], tuple[RunRecord, Evaluation]]:
    """The model before training, by seed and temperature: from a run without training, else from one's first step."""
    found: dict[tuple[int, float], tuple[RunRecord, Evaluation]] = {}
    for run in sorted(runs, key=lambda run: (run.method != BASE, run.config["command"] != "baseline", run.name)):
        evaluation = run.evaluation(0)
        if evaluation is not None:
            found.setdefault((run.seed, evaluation.temperature), (run, evaluation))
    return found


def _of_one_method(
    runs: Sequence[RunRecord], bases: Mapping[tuple[int, float], tuple[RunRecord, Evaluation]], problems: list[str]
) -> list[Member]:
    """The runs at the last step that all of them have an evaluation of; runs without training so far are left out."""
    runs = [run for run in runs if run.evaluations[-1].step > 0]
    if not runs:
        return []
    shared = set.intersection(*({evaluation.step for evaluation in run.evaluations} for run in runs)) - {0}
    last = max(run.evaluations[-1].step for run in runs)
    if not shared:
        names = ", ".join(run.name for run in runs)
        problems.append(f"{names}: these seeds have no evaluation at the same step, so the last of each stands for it.")
    elif max(shared) < last:
        behind = ", ".join(run.name for run in runs if run.evaluation(last) is None)
        problems.append(
            f"{behind}: there is no evaluation at step {last}, so all seeds of its method are compared at step "
            f"{max(shared)}."
        )
    members: list[Member] = []
    for run in runs:
        evaluation = (run.evaluation(max(shared)) if shared else None) or run.evaluations[-1]
        base = run.evaluation(0)
        other = bases.get((run.seed, evaluation.temperature))
        if base is None or base.temperature != evaluation.temperature:
            base = other[1] if other and other[1].puzzles == evaluation.puzzles else None
            if base is None:
                problems.append(f"{run.name}: there is no evaluation of its base, so no difference to it is computed.")
        elif other and _tells_apart(base, other[1]):
            problems.append(
                f"{run.name}: at step 0 it is not the model that {other[0].name} measured (another version, machine or "
                "engine?), so it is compared with its own step 0 alone."
            )
        members.append(Member(run=run, evaluation=evaluation, base=base))
    return members


def _tells_apart(one: Evaluation, other: Evaluation) -> bool:
    """Whether two evaluations with the same random streams found different things, as two models do."""
    same = (one.puzzles, one.num_samples, one.max_tokens) == (other.puzzles, other.num_samples, other.max_tokens)
    return same and one.num_correct != other.num_correct


def _learning_key(run: RunRecord) -> tuple[Any, ...]:
    """The objective, lambda where it counts, and all other settings of how a run learns."""
    weight = None if run.method in _WITHOUT_LAMBDA else run.config.get("lambda_psr")
    rest = sorted((name, _hashable(value)) for name, value in run.config.items() if name not in _NOT_LEARNING)
    return (run.method, weight, tuple(rest))


def _hashable(value: object) -> object:
    return value if isinstance(value, (str, int, float, type(None))) else str(value)


def _full_key(key: tuple[Any, ...], temperature: float) -> tuple[Any, ...]:
    """A method's key across sections: the temperature counts only where it is not its section's."""
    *rest, at = key
    return (*rest, None if at == temperature else at)


def _name_methods(drafts: Sequence[tuple[float, Sequence[tuple[Any, ...]]]]) -> dict[tuple[Any, ...], Method]:
    """A method for each key of all sections, in the order of the report, named by what differs among them."""
    keys = {_full_key(key, temperature) for temperature, members in drafts for key in members}
    values: dict[str, set[Any]] = {}
    for key in keys:
        if key[0] != BASE:
            for name, value in key[2]:
                values.setdefault(name, set()).add(value)
    differing = {name for name, found in values.items() if len(found) > 1}
    ordered = sorted(keys, key=lambda key: (_objective_rank(key[0]), _sort_key(_flat(key))))
    variants: Counter[str] = Counter()
    named: dict[tuple[Any, ...], Method] = {}
    for index, key in enumerate(ordered):
        label = _label(key, differing)
        named[key] = Method(label=label, objective=key[0], index=index, variant=variants[key[0]])
        variants[key[0]] += 1
    return named


def _objective_rank(objective: str) -> tuple[int, str]:
    return (ORDER.index(objective) if objective in ORDER else len(ORDER), objective)


def _flat(key: tuple[Any, ...]) -> list[Any]:
    """For sorting: the default temperature before others, then lambda, then the other settings in turn."""
    if key[0] == BASE:
        return [-1.0 if key[1] is None else key[1]]
    _, weight, rest, at = key
    return [0.0 if weight is None else weight, -1.0 if at is None else at, *(value for _, value in rest)]


def _label(key: tuple[Any, ...], differing: set[str]) -> str:
    if key[0] == BASE:
        return BASE if key[1] is None else f"{BASE}, T {key[1]:g}"
    objective, weight, rest, at = key
    parts = [plain(objective).replace("W_REINFORCE", "W-REINFORCE")]
    if weight is not None:
        parts.append(f"λ {plain(weight)}")
    parts += [_words_of(name, value) for name, value in rest if name in differing]
    parts = [value for name, value in rest if name == _WEIGHTS] or parts
    if at is not None:
        parts.append(f"T {at:g}")
    return ", ".join(parts)


def _most_common(values: Sequence[float]) -> float:
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))
