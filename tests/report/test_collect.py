from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pretend_runs import baseline_run, train_run

from nsr.report.collect import collect, number
from nsr.report.methods import arrange
from nsr.report.page import to_html, to_markdown
from nsr.report.report import build


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with nothing wrong."""
    folder = tmp_path_factory.mktemp("whole")
    train_run(folder, "NSR")
    train_run(folder, "PSR")
    baseline_run(folder)
    return folder


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_runs_are_found_at_any_depth_and_named_below_what_they_share(whole: Path, tmp_path: Path) -> None:
    deep = tmp_path / "deep" / "a"
    shutil.copytree(whole, deep)
    (tmp_path / "deep" / "b" / "model").mkdir(parents=True)
    (tmp_path / "deep" / "b" / "model" / "config.json").write_text('{"model_type": "qwen3"}')  # a model, no run
    found = collect([tmp_path])
    assert [run.name for run in found.runs] == ["NSR_seed42", "PSR_seed42", "baseline_seed42"]
    assert found.problems == ()
    again = collect([deep / "NSR_seed42", deep, deep / "NSR_seed42" / ".." / "NSR_seed42"])
    assert [run.name for run in again.runs] == ["NSR_seed42", "PSR_seed42", "baseline_seed42"]
    assert [run.name for run in collect([deep / "NSR_seed42"]).runs] == ["NSR_seed42"]


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no run: give the folder of a run, or one that holds some\."):
        collect([tmp_path])
    with pytest.raises(ValueError, match="nowhere is no folder"):
        collect([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("config.json", "config.json is missing, so the run is left out, since its settings are not known."),
        ("environment.json", "environment.json is missing, so what it ran on is not known."),
        ("metrics.jsonl", "metrics.jsonl is missing, so its training curves are left out."),
        ("timings.jsonl", "timings.jsonl has no record of 4 of 4 steps."),
        ("done.json", "it is not complete, with 4 of 4 steps so far."),
        ("evaluations/step_000002.json", "the evaluation at step 2 is missing; its samples alone are left out."),
        (
            "evaluations/step_000002.samples.jsonl.gz",
            "the samples of the evaluation at step 2 are missing, so none of them is shown.",
        ),
    ],
)
def test_a_file_that_is_missing_is_told_in_one_sentence(file: str, told: str, whole: Path, tmp_path: Path) -> None:
    folder = copy_of(whole, tmp_path)
    (folder / "NSR_seed42" / file).unlink()
    found = collect([folder])
    assert found.problems == (f"NSR_seed42: {told}",)
    assert ("NSR_seed42" in {run.name for run in found.runs}) == (file != "config.json")
    assert "PSR_seed42" in {run.name for run in found.runs}


def test_an_evaluation_that_is_gone_with_its_samples_is_missed(whole: Path, tmp_path: Path) -> None:
    folder = copy_of(whole, tmp_path)
    for path in (folder / "NSR_seed42" / "evaluations").glob("step_000002*"):
        path.unlink()
    assert collect([folder]).problems == ("NSR_seed42: there is no evaluation at step 2.",)


def test_mechanism_may_be_absent(whole: Path, tmp_path: Path) -> None:
    folder = copy_of(whole, tmp_path)
    (folder / "NSR_seed42" / "mechanism.jsonl").unlink()
    assert collect([folder]).problems == ()


def test_metrics_that_are_cut_off_or_garbled_cost_those_lines_alone(whole: Path, tmp_path: Path) -> None:
    folder = copy_of(whole, tmp_path)
    path = folder / "NSR_seed42" / "metrics.jsonl"
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    found = collect([folder])
    assert found.problems == (
        "NSR_seed42: metrics.jsonl ends in the middle of a line, which is left out.",
        "NSR_seed42: metrics.jsonl has no record of 1 of 4 steps.",
    )
    assert [record["step"] for record in found.runs[0].metrics] == [1, 2, 3]
    lines = data.splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{]\n" + b"[1]\n" + lines[3])
    found = collect([folder])
    assert found.problems == (
        "NSR_seed42: metrics.jsonl has no record of a step in line 2, 3, which is left out.",
        "NSR_seed42: metrics.jsonl has no record of 2 of 4 steps.",
    )
    assert [record["step"] for record in found.runs[0].metrics] == [1, 4]


def test_an_evaluation_of_another_puzzle_set_is_told_and_left_out(whole: Path, tmp_path: Path) -> None:
    folder = copy_of(whole, tmp_path)
    path = folder / "NSR_seed42" / "evaluations" / "step_000002.json"
    record = json.loads(path.read_text())
    first, *rest = record["num_correct"].items()
    record["num_correct"] = {"1,2,3=6": first[1], **dict(rest)}
    path.write_text(json.dumps(record))
    runs = collect([folder]).runs
    sections, problems = arrange(runs)
    assert problems == [
        "NSR_seed42: the evaluation at step 2 is of another puzzle set than the others of seed 42 (23 of 24 puzzles in "
        "common), so it is left out."
    ]
    (nsr,) = [arm for arm in sections[0].arms if arm.method.objective == "NSR"]
    assert [evaluation.step for evaluation in nsr.members[0].run.evaluations] == [0, 4]
    assert nsr.step == 4


def nothing(data: bytes) -> bytes:
    return b""


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def noise(data: bytes) -> bytes:
    return bytes((byte * 7 + place * 31) % 256 for place, byte in enumerate(data))


def other_json(data: bytes) -> bytes:
    return b'{"step": "x", "num_correct": 3, "command": 7, "a": [[[]]]}\n'


def deep_json(data: bytes) -> bytes:
    return b"[" * 100_000


def wrong_types(data: bytes) -> bytes:
    """The right names with values of other types."""
    text = gzip.decompress(data).decode() if data[:2] == b"\x1f\x8b" else data.decode()
    for old, new in ((": 0", ": [0]"), (": 1", ": null"), (": 2", ': "2"'), ('"correct"', "NaN"), (": 4", ": 1e999")):
        text = text.replace(old, new)
    return gzip.compress(text.encode()) if data[:2] == b"\x1f\x8b" else text.encode()


UNREAD = ("environment.json", "step_000000.samples.jsonl.gz", "step_000002.samples.jsonl.gz")
"""Files in which anything goes, and samples of which none is shown: those of the base are the baseline's."""


@pytest.mark.parametrize("garble", [nothing, half, noise, other_json, deep_json, wrong_types])
def test_whatever_happens_to_a_file_there_is_a_report(
    garble: Callable[[bytes], bytes], whole: Path, tmp_path: Path
) -> None:
    """Each file of a run in turn. The report names the run, and holds the results of the others."""
    folder = copy_of(whole, tmp_path)
    victim = folder / "NSR_seed42"
    files = sorted(path for path in victim.rglob("*") if path.is_file() and path.name != "done.json")
    assert len(files) == 11
    for path in files:
        data = path.read_bytes()
        path.write_bytes(garble(data))
        made = build([folder])
        if path.name not in UNREAD:
            assert any(problem.startswith("NSR_seed42: ") for problem in made.problems), path
        assert all(problem.endswith(".") for problem in made.problems)
        assert any(arm.method.label == "PSR" for result in made.results for arm in result.section.arms), path
        path.write_bytes(data)
    assert build([folder]).problems == ()


@pytest.mark.parametrize("garble", [half, wrong_types])
def test_all_files_garbled_at_once_still_give_a_page(
    garble: Callable[[bytes], bytes], whole: Path, tmp_path: Path
) -> None:
    folder = copy_of(whole, tmp_path)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "config.json":
            path.write_bytes(garble(path.read_bytes()))
    made = build([folder])
    assert "<h1>" in to_html(made)
    assert to_markdown(made).startswith("# ")


def test_numbers() -> None:
    assert number(3) == 3.0
    assert number(0.5) == 0.5
    assert [number(value) for value in (True, None, "3", float("nan"), float("inf"), 10**400, [1])] == [None] * 7


def test_what_a_run_met_is_told(whole: Path, tmp_path: Path) -> None:
    folder = copy_of(whole, tmp_path)
    run = folder / "NSR_seed42"
    events = [
        {"step": 3, "event": "collapse", "kind": "accuracy", "reason": "accuracy <b>1%</b>\x1b[2J"},
        {"step": 3, "event": "collapse", "kind": "entropy", "reason": "entropy 3"},
        {"step": 3, "event": "stopped", "reason": "accuracy"},
        {"step": 4, "event": "another", "reason": 3},
    ]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [{**record, "updates_without_signal": float(record["step"] > 2)} for record in records]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = build([folder])
    assert made.problems == (
        "NSR_seed42: collapse at step 3: accuracy <b>1%</b>\\x1b[2J.",
        "NSR_seed42: collapse at step 3: entropy 3.",
        "NSR_seed42: --stop_on_collapse ended it after step 3.",
        "NSR_seed42: 2 of 4 steps had updates without signal, 2 in all: no sample had a weight.",
    )
    page = to_html(made)
    assert "collapse at step 3: accuracy &lt;b&gt;1%&lt;/b&gt;" in page
    assert "\x1b" not in page
    assert "collapse at step 3: entropy 3." in to_markdown(made)
