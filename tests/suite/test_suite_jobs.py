from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nsr.runs.environment import cores
from nsr.suite.jobs import Interruption, Job, ending, environment, visible_gpus


def test_one_job_has_everything_as_it_is() -> None:
    given = environment({"OMP_NUM_THREADS": "6", "HOME": "/h", "FORCE_COLOR": "1"}, slot=0, jobs=1, gpus=["0", "1"])
    assert given == {"OMP_NUM_THREADS": "6", "HOME": "/h", "PYTHONUNBUFFERED": "1"}


@pytest.mark.parametrize(
    ("base", "jobs", "share"),
    [({"OMP_NUM_THREADS": "8"}, 2, 4), ({"OMP_NUM_THREADS": "8"}, 3, 2), ({"OMP_NUM_THREADS": "2"}, 5, 1)],
)
def test_threads_are_divided(base: dict[str, str], jobs: int, share: int) -> None:
    for slot in range(jobs):
        given = environment(base, slot=slot, jobs=jobs, gpus=[])
        assert given["OMP_NUM_THREADS"] == given["MKL_NUM_THREADS"] == str(share)
        assert "CUDA_VISIBLE_DEVICES" not in given


def test_all_cores_are_divided_where_no_number_is_set() -> None:
    for base in ({}, {"OMP_NUM_THREADS": ""}, {"OMP_NUM_THREADS": "many"}, {"OMP_NUM_THREADS": "0"}):
        assert environment(base, slot=0, jobs=2, gpus=[])["OMP_NUM_THREADS"] == str(max(1, cores() // 2))


def test_gpus_are_taken_in_turn() -> None:
    def given(slot: int, jobs: int, gpus: list[str]) -> str | None:
        return environment({}, slot=slot, jobs=jobs, gpus=gpus).get("CUDA_VISIBLE_DEVICES")

    assert [given(slot, 4, ["2", "5", "7"]) for slot in range(4)] == ["2", "5", "7", "2"]
    assert given(0, 2, ["0"]) is None
    assert given(0, 1, ["0", "1"]) is None


def test_the_gpus_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-5")
    assert visible_gpus() == ["3", "GPU-5"]


def test_how_a_process_ended_in_words() -> None:
    assert [ending(code) for code in (2, -9, -15)] == ["exit code 2", "ended by SIGKILL", "ended by SIGTERM"]
    assert ending(-200) == "ended by signal 200"


def last_words(folder: Path, before: bytes, text: bytes) -> list[str]:
    log = folder / "log"
    log.write_bytes(before + text)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return Job(process=process, log=log, log_start=len(before)).last_words()


def test_last_words_are_of_this_start_few_and_harmless(tmp_path: Path) -> None:
    assert last_words(tmp_path, b"an earlier error\n", b"\none\n\n\x1b[2Jtwo\xff\n") == ["one", "\\x1b[2Jtwo\ufffd"]
    assert last_words(tmp_path, b"an earlier error\n", b"") == []
    many = b"".join(b"line %d\n" % number for number in range(5000))
    assert last_words(tmp_path, b"", many) == [f"line {number}" for number in range(4994, 5000)]
    # The sentence of the command line alone, without what libraries said before it.
    assert last_words(tmp_path, b"", b"a warning\nanother\nerror: no such file.\n") == ["error: no such file."]
    (long,) = last_words(tmp_path, b"", b"x" * 100_000)
    assert long == "x" * 400


def test_what_is_ignored_stays_ignored() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = (signal.default_int_handler, signal.SIG_DFL, signal.SIG_IGN)
    before = [signal.signal(number, handler) for number, handler in zip(numbers, handlers, strict=True)]
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interruption.count == 0
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            assert interruption.count == 2
        assert tuple(signal.getsignal(number) for number in numbers) == handlers
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
