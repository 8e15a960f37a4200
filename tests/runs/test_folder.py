from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nsr.config import BaselineConfig, TrainConfig
from nsr.runs.files import CannotWrite, read_gzip_lines
from nsr.runs.folder import (
    RunFolder,
    check_folder,
    evaluation_paths,
    is_complete,
    is_held,
    read_config,
    read_evaluation,
    read_mechanism,
    read_metrics,
    read_probe,
    read_samples,
    read_timings,
    run_state,
    samples_path,
)

ENVIRONMENT = {"python": "3.11"}


def settings(tmp_path: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(output_dir=str(tmp_path / "output"), **changes)


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


def test_a_new_run_is_described(tmp_path: Path) -> None:
    config = settings(tmp_path)
    assert check_folder(config) == "new"
    assert names(tmp_path) == set()
    with RunFolder.open(config, environment=ENVIRONMENT, resolved={"optimizer": "adamw"}) as folder:
        assert folder.path == tmp_path / "output" / "NSR_256"
        assert names(folder.path) == {"config.json", "environment.json", "lock"}
        record = read_config(folder.path)
        assert (record["lr"], record["exp_name"], record["command"]) == (3e-6, "NSR_256", "train")
        assert record["resolved"] == {"optimizer": "adamw"}
        assert json.loads((folder.path / "environment.json").read_text()) == ENVIRONMENT


def test_an_interrupted_run_needs_resume(tmp_path: Path) -> None:
    RunFolder.open(settings(tmp_path), environment=ENVIRONMENT, resolved={"optimizer": "adamw"}).close()
    with pytest.raises(ValueError, match=r"holds an interrupted run with these settings: add --resume to go on"):
        check_folder(settings(tmp_path))
    # What a run resolved for itself is no difference, nor is where it stops.
    resumed = settings(tmp_path, resume=True, n_train_steps=300, keep=2)
    assert check_folder(resumed) == "interrupted"
    with RunFolder.open(resumed, environment=ENVIRONMENT) as folder:
        assert read_config(folder.path)["n_train_steps"] == 300


def test_a_folder_with_another_run_is_refused_with_the_differences(tmp_path: Path) -> None:
    config = settings(tmp_path, exp_name="mine")
    RunFolder.open(config, environment=ENVIRONMENT).close()
    for resume in (False, True):
        other = settings(tmp_path, exp_name="mine", lr=2e-5, seed=1, resume=resume)
        with pytest.raises(ValueError, match=r"holds another run \(lr 3e-06 -> 2e-05, seed 42 -> 1\): choose another"):
            RunFolder.open(other, environment=ENVIRONMENT)
    baseline = BaselineConfig(output_dir=config.output_dir, exp_name="mine", resume=True)
    with pytest.raises(ValueError, match=r"another run \(command train -> baseline, .* and \d+ more\)"):
        check_folder(baseline)
    assert read_config(config.run_path)["lr"] == 3e-6


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    config = settings(tmp_path)
    config.run_path.mkdir(parents=True)
    assert run_state(config) == "new"
    (config.run_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds files but no run"):
        check_folder(settings(tmp_path, resume=True))


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "output").touch()
    with pytest.raises(ValueError, match=r"--output_dir: .*output is a file"):
        check_folder(settings(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="cannot be written to"):
        check_folder(settings(tmp_path))


def test_a_complete_run_is_left_as_it_is(tmp_path: Path) -> None:
    config = settings(tmp_path, n_train_steps=10)
    with RunFolder.open(config, environment=ENVIRONMENT) as folder:
        assert not is_complete(folder.path)
        folder.mark_complete(10, {"accuracy": 0.25})
    assert json.loads((folder.path / "done.json").read_text()) == {"step": 10, "accuracy": 0.25}
    with pytest.raises(ValueError, match="holds a complete run with these settings: add --resume to leave it"):
        check_folder(config)
    again = settings(tmp_path, n_train_steps=10, resume=True)
    assert check_folder(again) == "complete"
    assert check_folder(settings(tmp_path, n_train_steps=9, resume=True)) == "complete"
    with pytest.raises(ValueError, match="complete run"):
        RunFolder.open(again, environment=ENVIRONMENT)
    assert is_complete(folder.path, 10)

    further = settings(tmp_path, n_train_steps=11, resume=True)
    assert check_folder(further) == "interrupted"
    RunFolder.open(further, environment=ENVIRONMENT).close()
    assert not is_complete(folder.path, 10)


def test_environments_of_earlier_starts_are_kept_where_they_differ(tmp_path: Path) -> None:
    config = settings(tmp_path, resume=True)
    for version in ("3.10", "3.10", "3.11", "3.12", "3.12"):
        RunFolder.open(config, environment={"python": version}).close()
    record = json.loads((config.run_path / "environment.json").read_text())
    assert record == {"python": "3.12", "earlier": [{"python": "3.10"}, {"python": "3.11"}]}


HOLD = """
import sys
from nsr.config import TrainConfig
from nsr.runs.folder import RunFolder
folder = RunFolder.open(TrainConfig(output_dir=sys.argv[1], resume=len(sys.argv) > 2), environment={})
print("held", flush=True)
sys.stdin.read()
"""


def hold(config: TrainConfig) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, config.output_dir]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_two_processes_cannot_hold_one_folder(tmp_path: Path) -> None:
    config, resumed = settings(tmp_path), settings(tmp_path, resume=True)
    process = hold(config)
    try:
        in_use = rf"NSR_256 is in use by process {process.pid}: wait for its end, or choose another --exp_name\."
        for attempt in (config, resumed):
            with pytest.raises(ValueError, match=in_use):
                check_folder(attempt)
        # The second look at the lock is what decides: also a process that passed the first look is refused.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("nsr.runs.folder._refuse_if_held", lambda _: None)
            with pytest.raises(ValueError, match=in_use):
                RunFolder.open(resumed, environment=ENVIRONMENT)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    # A process that was killed holds nothing.
    with RunFolder.open(resumed, environment=ENVIRONMENT) as folder:
        assert (folder.path / "lock").read_text() == str(os.getpid())
    assert (folder.path / "lock").read_text() == ""


def test_of_many_processes_at_once_one_gets_the_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "output"), "resume"]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(4)]
    # A process says "held" or ends; none lets go before all have said so.
    lines = [process.stdout.readline() for process in processes if process.stdout]
    errors = [process.communicate()[1] for process in processes]
    assert sorted(lines) == ["", "", "", "held\n"]
    assert sum("is in use by process" in error for error in errors) == 3


def test_what_a_killed_start_leaves_is_no_run(tmp_path: Path) -> None:
    config = settings(tmp_path)
    config.run_path.mkdir(parents=True)
    (config.run_path / "lock").touch()
    (config.run_path / ".config.json.12.tmp").touch()
    assert check_folder(config) == "new"


def evaluation(accuracy: float) -> dict[str, object]:
    return {"accuracy": {"estimate": accuracy}}


def test_a_run_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    config = settings(tmp_path, resume=True)
    with RunFolder.open(config, environment=ENVIRONMENT) as folder:
        folder.write_evaluation(0, evaluation(0.1), [{"text": "a"}])
        for step in range(1, 5):
            folder.append_metrics({"step": step, "loss": step / 2})
            folder.append_timings({"step": step, "seconds": 1.5})
        folder.write_evaluation(2, evaluation(0.2), [{"text": "b"}])
        folder.write_evaluation(4, evaluation(0.3), [{"text": "c"}])
        folder.write_probe([{"sample": 0}, {"sample": 1}])
        for step in (0, 2, 4):
            folder.append_mechanism({"step": step, "kl_base": step / 4})
        metrics = folder.path / "metrics.jsonl"
        before = metrics.read_bytes()
    with metrics.open("ab") as file:
        file.write(b'{"step": 5, "lo')
    assert len(read_metrics(folder.path)) == 4

    with RunFolder.open(config, environment=ENVIRONMENT) as folder:
        folder.truncate_after(2)
        assert metrics.read_bytes() == b"".join(before.splitlines(keepends=True)[:2])
        assert [record["step"] for record in read_timings(folder.path)] == [1, 2]
        assert list(evaluation_paths(folder.path)) == [0, 2]
        assert read_mechanism(folder.path) == [{"step": 0, "kl_base": 0.0}, {"step": 2, "kl_base": 0.5}]
        assert read_probe(folder.path) == [{"sample": 0}, {"sample": 1}]
        assert names(folder.path / "evaluations") == {
            "step_000000.json",
            "step_000000.samples.jsonl.gz",
            "step_000002.json",
            "step_000002.samples.jsonl.gz",
        }
        folder.append_metrics({"step": 3, "loss": 1.5})
        folder.append_metrics({"step": 4, "loss": 2.0})
    # The same steps again give the same bytes.
    assert metrics.read_bytes() == before
    assert read_evaluation(folder.path, 2) == evaluation(0.2)
    assert read_samples(folder.path, 2) == [{"text": "b"}]


def test_a_new_probe_drops_what_was_measured_on_another(tmp_path: Path) -> None:
    with RunFolder.open(settings(tmp_path), environment=ENVIRONMENT) as folder:
        assert read_probe(folder.path) is None
        assert read_mechanism(folder.path) == []
        folder.write_probe([{"sample": 0}])
        folder.append_mechanism({"step": 0})
        folder.write_probe([{"sample": 0}])
        assert read_mechanism(folder.path) == []


@pytest.mark.parametrize("damage", [b"no gzip", b"\x1f\x8b", None])
def test_a_damaged_probe_is_named(damage: bytes | None, tmp_path: Path) -> None:
    with RunFolder.open(settings(tmp_path), environment=ENVIRONMENT) as folder:
        folder.write_probe([{"sample": index} for index in range(100)])
        file = folder.path / "probe.jsonl.gz"
        file.write_bytes(file.read_bytes()[:-12] if damage is None else damage)
        with pytest.raises(ValueError, match=r"probe\.jsonl\.gz cannot be read \(.*\): restore it, or delete it"):
            read_probe(folder.path)


def test_samples_are_kept_before_the_record(tmp_path: Path) -> None:
    with RunFolder.open(settings(tmp_path), environment=ENVIRONMENT) as folder:
        with folder.keep_samples(3) as keep, folder.keep_samples(3, greedy=True) as keep_greedy:
            keep({"text": "a"})
            keep_greedy({"text": "b"})
        assert evaluation_paths(folder.path) == {}
        folder.write_evaluation(3, evaluation(0.2))
        record = evaluation_paths(folder.path)[3]
        assert read_samples(folder.path, 3) == [{"text": "a"}]
        assert read_gzip_lines(samples_path(record, greedy=True)) == [{"text": "b"}]
        # An evaluation that is made again and interrupted leaves no record beside samples that are not its own.
        with pytest.raises(KeyboardInterrupt), folder.keep_samples(3):
            raise KeyboardInterrupt
        assert evaluation_paths(folder.path) == {}
        folder.write_evaluation(3, evaluation(0.2))
        folder.truncate_after(2)
        assert names(folder.path / "evaluations") == set()


def test_an_empty_run_can_be_truncated(tmp_path: Path) -> None:
    with RunFolder.open(settings(tmp_path), environment=ENVIRONMENT) as folder:
        folder.truncate_after(0)
        assert read_metrics(folder.path) == []
        assert evaluation_paths(folder.path) == {}


def test_who_asks_whether_a_run_is_held_keeps_none_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(tmp_path, resume=True)
    RunFolder.open(config, environment=ENVIRONMENT).close()
    path = config.run_path
    assert not is_held(path)
    assert not is_held(tmp_path / "nowhere")
    # The question takes a shared lock for a moment. Here that moment ends when the start has waited for it once.
    asking = os.open(path / "lock", os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)
    assert not is_held(path)  # two may ask at once
    monkeypatch.setattr("nsr.runs.folder.time.sleep", lambda _: fcntl.flock(asking, fcntl.LOCK_UN))
    with RunFolder.open(config, environment=ENVIRONMENT):
        assert is_held(path)
    os.close(asking)


BAD_NAMES = ("../x", "/x", "", ".", "..", ".x", "a/b", "a\nb", "a\n", "x" * 101, "é", "a\0", "a b", "-x")


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_name_leads_out_of_the_folder_of_runs(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--exp_name is .* choose where it lies with --output_dir"):
        settings(tmp_path, exp_name=name)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "a\ud800"])
def test_a_folder_that_no_message_could_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"--output_dir is .* without control characters"):
        TrainConfig(output_dir=name)


@pytest.mark.parametrize("name", [".", "../elsewhere", "a b/c", "läufe", "x" * 200])
def test_any_other_folder_may_hold_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with RunFolder.open(TrainConfig(output_dir=name), environment=ENVIRONMENT) as folder:
        assert folder.path.resolve() == (tmp_path / "here" / name / "NSR_256").resolve()
        assert read_config(folder.path)["output_dir"] == name


def test_a_name_that_is_too_long_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--output_dir: .* cannot be used \(File name too long\): choose another"):
        run_state(TrainConfig(output_dir=str(tmp_path / ("x" * 300))))


def test_a_link_out_of_the_folder_of_runs_is_refused(tmp_path: Path) -> None:
    config = settings(tmp_path)
    config.run_path.parent.mkdir()
    for target in (tmp_path / "elsewhere", tmp_path / "nowhere"):
        config.run_path.symlink_to(target)
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=r"NSR_256 is a link to .*(else|no)where, out of the folder of runs"):
            RunFolder.open(config, environment=ENVIRONMENT)
        config.run_path.unlink()
    assert names(tmp_path / "elsewhere") == set()
    # The folder of runs itself may be a link, as to a larger disk.
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with RunFolder.open(TrainConfig(output_dir=str(tmp_path / "link")), environment=ENVIRONMENT):
        assert names(tmp_path / "elsewhere") == {"NSR_256"}


def test_what_a_kill_left_is_cleared_away_before_the_run_goes_on(tmp_path: Path) -> None:
    with RunFolder.open(settings(tmp_path), environment=ENVIRONMENT) as folder:
        folder.write_evaluation(1, evaluation(0.5), [{"text": "a"}])
        folder.write_evaluation(2, evaluation(0.25), [{"text": "b"}])
        # Ended between samples and record, between the record that goes and its samples, and in the middle of a file.
        (folder.path / "evaluations" / "step_000002.json").unlink()
        (folder.path / "evaluations" / ".step_000003.samples.jsonl.gz.12.tmp").touch()
        (folder.path / ".metrics.jsonl.12.tmp").touch()
        folder.truncate_after(1)
        assert names(folder.path / "evaluations") == {"step_000001.json", "step_000001.samples.jsonl.gz"}
        assert names(folder.path) == {"config.json", "environment.json", "evaluations", "lock"}
        assert folder.accuracies() == {1: 0.5}
        for damaged in ("[]", '{"accuracy": 3}', "{", '{"accuracy": {"estimate": "x"}}'):
            (folder.path / "evaluations" / "step_000001.json").write_text(damaged)
            assert folder.accuracies() == {}


def test_a_line_that_the_disk_does_not_take_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunFolder.open(settings(tmp_path), environment=ENVIRONMENT) as folder:
        folder.append_metrics({"step": 1})
        before = (folder.path / "metrics.jsonl").read_bytes()
        write = os.write
        monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:4]))
        with pytest.raises(CannotWrite, match=r"metrics\.jsonl could not be written \(4 of 12 bytes .* make room"):
            folder.append_metrics({"step": 2})
        assert (folder.path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations", "checkpoints/step_000001", "lock", "model"])
def test_a_run_does_not_write_through_links(name: str, tmp_path: Path) -> None:
    config = settings(tmp_path, resume=True)
    RunFolder.open(config, environment=ENVIRONMENT).close()
    outside, link = tmp_path / "outside", config.run_path / name
    outside.mkdir()
    (outside / "mine").write_text("mine")
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(outside if "." not in name else outside / "mine")
    with pytest.raises(ValueError, match="is a link, and a run writes into its own folder alone"):
        RunFolder.open(config, environment=ENVIRONMENT)
    assert (outside / "mine").read_text() == "mine"
    assert names(outside) == {"mine"}


def test_a_lock_that_is_a_pipe_or_a_folder_is_told(tmp_path: Path) -> None:
    config = settings(tmp_path, resume=True)
    RunFolder.open(config, environment=ENVIRONMENT).close()
    lock = config.run_path / "lock"
    lock.unlink()
    lock.mkdir()
    with pytest.raises(ValueError, match=r"lock cannot be used as a lock \(Is a directory\)"):
        RunFolder.open(config, environment=ENVIRONMENT)
    lock.rmdir()
    os.mkfifo(lock)
    assert not is_held(config.run_path)  # and does not hang


def test_only_names_of_the_run_count_as_evaluations(tmp_path: Path) -> None:
    folder = tmp_path / "evaluations"
    folder.mkdir()
    for name in (
        "step_000010.json",
        "step_1000000.json",
        "step_000010 (copy).json",
        "step_000010_1.json",
        "step_7.json",
    ):
        (folder / name).write_text('{"accuracy": {"estimate": 0.5}}')
    (folder / "step_٠٠٠٠٢٠.json").write_text("{}")
    found = {10: folder / "step_000010.json", 1_000_000: folder / "step_1000000.json"}
    assert evaluation_paths(tmp_path) == found
