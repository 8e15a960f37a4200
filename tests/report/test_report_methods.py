from __future__ import annotations

import json
from pathlib import Path

from pretend_runs import baseline_run, train_run

from nsr.report.collect import collect
from nsr.report.methods import Section, arrange


def sections_of(folder: Path) -> tuple[list[Section], list[str]]:
    return arrange(collect([folder]).runs)


def labels(section: Section) -> list[str]:
    return [arm.method.label for arm in section.arms]


def test_seeds_of_one_method_are_grouped_and_methods_have_an_order(tmp_path: Path) -> None:
    for seed in (42, 43):
        train_run(tmp_path, "NSR", seed)
    train_run(tmp_path, "RLVR")
    train_run(tmp_path, "ZETA")  # registered by somebody
    train_run(tmp_path, "W_REINFORCE", lambda_psr=0.3, name="w3")
    train_run(tmp_path, "W_REINFORCE", lambda_psr=0.1, name="w1")
    train_run(tmp_path, "SHUFFLED", lambda_psr=0.7, grad_acc_steps=2, keep=3)  # what does not count for it
    (section,), problems = sections_of(tmp_path)
    assert problems == []
    assert labels(section) == [
        "base", "RLVR", "NSR", "W-REINFORCE, λ 0.1", "W-REINFORCE, λ 0.3", "SHUFFLED", "ZETA, λ 0.1",
    ]  # fmt: skip
    by_label = dict(zip(labels(section), section.arms, strict=True))
    assert [member.run.seed for member in by_label["NSR"].members] == [42, 43]
    assert [arm.method.index for arm in section.arms] == list(range(7))
    assert [by_label[f"W-REINFORCE, λ {weight}"].method.variant for weight in (0.1, 0.3)] == [0, 1]


def test_a_method_is_named_by_whatever_else_differs(tmp_path: Path) -> None:
    train_run(tmp_path, "NSR")
    train_run(tmp_path, "NSR", lr=1e-4, name="fast")
    train_run(tmp_path, "PSR", loss_type="token_mean")
    (section,), _ = sections_of(tmp_path)
    assert labels(section) == [
        "base",
        "PSR, loss type token_mean, lr 3e-06",
        "NSR, loss type standard, lr 3e-06",
        "NSR, loss type standard, lr 0.0001",
    ]


def test_lengths_are_sections(tmp_path: Path) -> None:
    for length in (256, 64, 1024):
        train_run(tmp_path, "NSR", max_tokens=length, name=f"n{length}")
    sections, _ = sections_of(tmp_path)
    assert [section.title for section in sections] == ["max tokens 64", "max tokens 256", "max tokens 1024"]
    assert [labels(section) for section in sections] == [["base", "NSR"]] * 3
    assert len({section.arms[1].method for section in sections}) == 1  # one method, one colour


def test_a_run_without_a_step_0_takes_the_baseline_as_its_base(tmp_path: Path) -> None:
    train_run(tmp_path, "NSR", steps=(2, 4))
    train_run(tmp_path, "PSR", 43, steps=(2, 4))
    baseline_run(tmp_path, right=3)
    (section,), problems = sections_of(tmp_path)
    psr, nsr = section.trained
    assert nsr.members[0].base is not None
    assert nsr.members[0].base.num_correct == (3,) * 24
    assert psr.members[0].base is None  # the baseline is of seed 42, so of other puzzles
    assert problems == ["PSR_seed43: there is no evaluation of its base, so no difference to it is computed."]


def test_the_base_at_other_temperatures_is_told_apart_and_compared(tmp_path: Path) -> None:
    train_run(tmp_path, "NSR", temperature=1.0)
    for temperature in (0.7, 1.2):
        baseline_run(tmp_path, temperature=temperature, exp_name=f"base_{temperature}")
    (section,), _ = sections_of(tmp_path)
    assert labels(section) == ["base", "base, T 0.7", "base, T 1.2", "NSR"]
    assert section.temperature == 1.0
    assert section.base is section.arms[0]
    assert section.arms[2].members[0].base is section.arms[0].members[0].evaluation


def test_seeds_are_compared_at_the_last_step_that_all_have(tmp_path: Path) -> None:
    train_run(tmp_path, "NSR", 42)
    train_run(tmp_path, "NSR", 43, steps=(0, 2))
    train_run(tmp_path, "PSR", 43, steps=(0,))  # nothing was learned yet
    (section,), problems = sections_of(tmp_path)
    assert labels(section) == ["base", "NSR"]
    assert section.arms[1].step == 2
    assert problems == [
        "NSR_seed43: there is no evaluation at step 4, so all seeds of its method are compared at step 2."
    ]


def test_the_same_run_twice_counts_once(tmp_path: Path) -> None:
    train_run(tmp_path, "NSR")
    train_run(tmp_path, "NSR", name="NSR_seed42_again")
    (section,), problems = sections_of(tmp_path)
    assert len(section.arms[1].members) == 1
    assert problems == ["NSR_seed42_again: it repeats NSR_seed42 (same settings and seed), so it is left out."]


def eval_run(
    folder: Path, name: str, resolved: dict[str, object], *, step: int, right: int, **settings: object
) -> None:
    """What `nsr eval` leaves: one model at one temperature."""
    path = baseline_run(folder, right=right, exp_name=name, **settings)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "command": "eval", "resolved": resolved}))
    for file in list((path / "evaluations").iterdir()):
        file.rename(file.with_name(file.name.replace("000000", f"{step:06d}")))
    evaluation = path / "evaluations" / f"step_{step:06d}.json"
    evaluation.write_text(json.dumps({**json.loads(evaluation.read_text()), "step": step}))


def test_folders_of_eval(tmp_path: Path) -> None:
    train_run(tmp_path, "NSR", temperature=1.0)
    for temperature in (1.0, 1.2):
        base = {"model": "tiny", "step": 0, "training": None}
        eval_run(tmp_path / "eval", f"tiny_T{temperature}", base, step=0, right=2, temperature=temperature)
    training = {"exp_name": "NSR_seed42", "objective": "NSR", "lambda_psr": 0.1, "data": "synthetic", "seed": 42}
    trained = {"model": "runs/NSR_seed42", "step": 4, "training": training}
    model = {"model_id": "runs/NSR_seed42/model", "temperature": 1.2}
    eval_run(tmp_path / "eval", "NSR_T1.2", trained, step=4, right=4, **model)
    (section,), problems = sections_of(tmp_path)
    assert problems == []
    assert labels(section) == ["base", "base, T 1.2", "NSR", "NSR_seed42 at step 4, T 1.2"]
    assert section.base is section.arms[0]
    assert section.arms[0].members[0].run.name == "eval/tiny_T1.0"  # a run without training before one's first step
    last = section.arms[3]
    assert last.method.objective == "NSR"
    assert last.members[0].base is section.arms[0].members[0].evaluation


def test_a_base_that_is_not_the_base_of_a_run_is_told(tmp_path: Path) -> None:
    baseline_run(tmp_path, right=3)
    train_run(tmp_path, "NSR", before=2)
    train_run(tmp_path, "PSR", before=3)
    (section,), problems = sections_of(tmp_path)
    assert problems == [
        "NSR_seed42: at step 0 it is not the model that baseline_seed42 measured (another version, machine or "
        "engine?), so it is compared with its own step 0 alone."
    ]
    bases = [arm.members[0].base for arm in section.trained]
    assert [base and base.num_correct[0] for base in bases] == [3, 2]
