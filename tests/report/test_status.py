from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from run_folders import baseline, make, training

from nsr.report.status import find_runs, planned_status, read_status
from nsr.runs.folder import RunFolder


def test_a_run_under_way(tmp_path: Path) -> None:
    with make(training(tmp_path), 23, evaluations=(0, 20)) as folder:
        os.utime(folder.path / "timings.jsonl", (1000.0, 1000.0))
        status = read_status(folder.path, now=1010.0)
    assert status is not None
    assert (status.name, status.state, status.step, status.total) == ("NSR", "running", 23, 40)
    assert (status.accuracy, status.low, status.high, status.evaluated) == (0.25, 0.2, 0.31, 20)
    # 17 steps of 3 s, and one evaluation of 10 x 4 samples x 50 tokens at 1000 a second, less the 10 s since.
    assert status.remaining == pytest.approx(17 * 3 + 2 - 10)
    # The last ten steps: 14 to 23.
    assert status.reward == pytest.approx(18.5 / 50 - 1)
    assert (status.step_seconds, status.entropy, status.length) == (3.0, 0.5, 60.0)


@pytest.mark.parametrize(
    ("steps", "evaluations", "changes", "ahead"),
    [
        (20, (0,), {}, 2),  # the evaluation after step 20 is still to be made
        (20, (0, 20), {}, 1),
        (39, (0, 20), {}, 1),
        (40, (0, 20, 40), {}, 0),
        (10, (0,), {"eval_every": 0}, 1),
        (10, (0,), {"eval_every": 15}, 3),  # after 15, 30, and 40, the last
        (33, (0, 15, 30), {"eval_every": 15}, 1),
        (10, (), {}, 0),  # nothing is known of how long one takes
    ],
)
def test_the_evaluations_ahead_are_counted(
    steps: int, evaluations: tuple[int, ...], changes: dict[str, int], ahead: int, tmp_path: Path
) -> None:
    with make(training(tmp_path, **changes), steps, evaluations=evaluations) as folder:
        written = (folder.path / "timings.jsonl").stat().st_mtime
        status = read_status(folder.path, now=written)
    assert status is not None
    assert status.remaining == pytest.approx((40 - steps) * 3 + ahead * 2)


def test_what_is_left_is_never_less_than_nothing(tmp_path: Path) -> None:
    with make(training(tmp_path), 39, evaluations=(0,)) as folder:
        status = read_status(folder.path, now=4e9)
    assert status is not None
    assert status.remaining == 0.0


def test_before_the_first_evaluation_accuracy_is_of_the_recent_steps(tmp_path: Path) -> None:
    with make(training(tmp_path), 12) as folder:
        status = read_status(folder.path)
    assert status is not None
    assert status.accuracy == pytest.approx((0.03 + 0.12) / 2)
    assert (status.low, status.high, status.evaluated) == (None, None, None)


def test_the_states(tmp_path: Path) -> None:
    def state(name: str, steps: int = 40) -> str | None:
        status = read_status(tmp_path / name)
        return status and status.state

    make(training(tmp_path, "stopped"), 3).close()
    make(training(tmp_path, "whole"), 40, complete=True).close()
    make(baseline(tmp_path), evaluations=(0,), complete=True).close()
    assert (state("stopped"), state("whole"), state("base")) == ("interrupted", "complete", "complete")
    # As a process leaves it that was killed: its number is still there, but nobody holds the lock.
    (tmp_path / "stopped" / "lock").write_text("1")
    assert state("stopped") == "interrupted"
    with RunFolder.open(training(tmp_path, "stopped"), environment={}):
        assert state("stopped") == "running"
    # A run that is asked for more steps than it went is not complete.
    make(training(tmp_path, "longer", n_train_steps=50), 40, complete=True).close()
    assert state("longer") == "interrupted"


def test_a_new_run_has_no_numbers(tmp_path: Path) -> None:
    with make(training(tmp_path)) as folder:
        status = read_status(folder.path, "shown")
    assert status == dataclasses.replace(planned_status(training(tmp_path), "running"), name="shown")
    assert planned_status(baseline(tmp_path)).total == 0


def test_half_a_last_line_is_left_out(tmp_path: Path) -> None:
    folder = make(training(tmp_path), 5)
    for name in ("metrics.jsonl", "timings.jsonl"):
        with (folder.path / name).open("ab") as file:
            file.write(b'{"step": 6, "corr')
    status = read_status(folder.path)
    folder.close()
    assert status is not None
    assert status.step == 5


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "{", r"config\.json is not JSON"),
        ("config.json", "[]", r"config\.json holds no JSON object"),
        ("metrics.jsonl", "{}\n", r"NSR holds what no run writes \(KeyError"),
        ("metrics.jsonl", "nonsense\n", r"metrics\.jsonl, near its end, is not JSON"),
        ("metrics.jsonl", '{"step": 1, "reward_mean": "high"}\n', "could not convert"),
        ("timings.jsonl", "3\n", r"timings\.jsonl, near its end, is no JSON object"),
        ("evaluations/step_000020.json", '{"accuracy": 3}', "holds what no run writes"),
        ("evaluations/step_000020.json", "", "is not JSON"),
        ("done.json", '{"step": null}', r"done\.json has None for a step"),
    ],
)
def test_broken_folders_are_told(name: str, content: str, said: str, tmp_path: Path) -> None:
    with make(training(tmp_path), 23, evaluations=(0, 20)) as folder:
        (folder.path / name).write_text(content)
        with pytest.raises(ValueError, match=said):
            read_status(folder.path)


def test_runs_are_found_at_any_depth_and_not_inside_each_other(tmp_path: Path) -> None:
    for output in (tmp_path / "b" / "deep", tmp_path / "a"):
        make(training(output)).close()
    inside = tmp_path / "a" / "NSR" / "model"
    inside.mkdir()
    (inside / "config.json").write_text("{}")
    (tmp_path / "b" / "logs").mkdir()
    (tmp_path / "b" / "back").symlink_to(tmp_path)
    elsewhere = tmp_path / "a" / "linked"
    elsewhere.symlink_to(tmp_path / "b" / "deep" / "NSR")
    assert list(find_runs(tmp_path)) == [tmp_path / "a" / "NSR", elsewhere]
    assert list(find_runs(tmp_path / "b")) == [
        tmp_path / "b" / "back" / "a" / "NSR",
        tmp_path / "b" / "back" / "a" / "linked",
    ]
    assert list(find_runs(tmp_path / "a" / "NSR")) == [tmp_path / "a" / "NSR"]
    assert list(find_runs(tmp_path / "nowhere")) == []


def test_a_models_folder_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"]}))
    assert read_status(tmp_path) is None


def test_the_work_does_not_grow_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with make(training(tmp_path, n_train_steps=10**6), 3) as folder:
        line = (folder.path / "metrics.jsonl").read_bytes().splitlines(keepends=True)[0]
        with (folder.path / "metrics.jsonl").open("ab") as file:
            file.write(line * 20_000)
        parsed: list[bytes] = []
        loads = json.loads
        monkeypatch.setattr(json, "loads", lambda text: parsed.append(text) or loads(text))
        status = read_status(folder.path)
    assert status is not None
    assert len(parsed) < 30
