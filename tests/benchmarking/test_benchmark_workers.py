"""Workers and the talk with them, with a model so small that it takes seconds: TRL and vLLM are not needed."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from micro_model import save_micro_model

from benchmarks import compare, driver, machine, ours, step_profile, theirs, worker
from benchmarks.parts import Part, memory_rows
from benchmarks.work import RANDOM, WORKS, Work, load, messages, puzzles_of, random_folder, random_prompt
from nsr.models.registry import prompt_encoder
from nsr.tasks.countdown.puzzle import Puzzle
from nsr.training.optimizer import build_optimizer


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = save_micro_model(tmp_path_factory.mktemp("micro"))
    return Work(model=str(folder), prompts=2, group_size=3, tokens=8, dtype="float32", grad_acc_steps=2)


class PretendTurns(worker.Turns):
    """So many turns without a driver; what would be sent is kept."""

    def __init__(self, turns: int) -> None:
        super().__init__(orders=None, replies=None, device="cpu")  # type: ignore[arg-type]
        self.left = turns
        self.said: list[dict[str, Any]] = []

    def begin(self) -> bool:
        self.left -= 1
        self._started = 0.0
        return self.left >= 0

    def say(self, message: dict[str, Any]) -> None:
        self.said.append(message)


@pytest.mark.parametrize("contender", [ours.sample_local, theirs.sample_generate, ours.learn, ours.step])
def test_each_takes_its_turns_and_counts_all_tokens(contender: worker.Contender, work: Work) -> None:
    turns = PretendTurns(2)
    contender(work, turns)
    ready, *reports = turns.said
    assert ready == {"ready": True}
    assert [report["tokens"] for report in reports] == [2 * 3 * 8] * 2
    assert all(report["peak"] >= report["before"] > 0 for report in reports)


def test_a_step_samples_full_lengths_and_learns_from_every_sample(work: Work) -> None:
    subject = load(work)
    before = {name: weight.clone() for name, weight in subject.policy.model.state_dict().items()}
    groups = ours.rollout(
        ours.local_engine(work, subject), subject.encode, subject.puzzles, ours.sampling_params(work, 1), 3
    )
    assert {len(completion.token_ids) for group in groups for completion in group.completions} == {8}
    batch = ours.batch_of(work, subject, groups)
    assert batch.num_rows == 6
    optimizer = build_optimizer(subject.policy.model, lr=1e-3, kind="adamw")
    assert ours.learn_from(work, subject, optimizer, groups)["samples_kept"] == 6
    assert any(not torch.equal(weight, before[name]) for name, weight in subject.policy.model.state_dict().items())


def test_responses_end_by_themselves_only_where_they_are_to(work: Work) -> None:
    assert load(work).support.end_token_ids == ()
    as_in_a_run = dataclasses.replace(work, ends=True)
    assert load(as_in_a_run).support.end_token_ids == (1,)
    assert ours.sampling_params(as_in_a_run, 1).stop == "</answer>"
    turns = PretendTurns(1)
    ours.step_as_in_a_run(dataclasses.replace(work, tokens=64), turns)
    assert 0 < turns.said[1]["tokens"] < 2 * 3 * 64


def test_prompts_are_nsrs_own_or_the_same_in_fewer_words(work: Work) -> None:
    puzzle = Puzzle(numbers=(44, 19, 35), target=98)
    subject = load(work)
    assert subject.puzzles == puzzles_of(work)
    assert subject.encode(puzzle) == prompt_encoder(subject.policy.tokenizer, work.tokens)(puzzle)
    assert messages(dataclasses.replace(work, short_prompts=True), puzzle) == [
        {
            "role": "user",
            "content": "Using the numbers 44, 19, 35, write an expression that equals 98. The operations are + - * / "
            "and parentheses; use each number exactly once. Your whole response may take at most 8 tokens.",
        }
    ]


def test_the_profile_covers_the_step_and_leaves_nsr_as_it_was(work: Work) -> None:
    places = [place for each in step_profile.PLACES.values() for place in each]
    originals = [function(place) for place in places]
    turns = PretendTurns(2)
    ours.profile(work, turns)
    found = {name.removeprefix("in "): value for name, value in turns.said[-1].items() if name.startswith("in ")}
    assert set(found) <= {*step_profile.PLACES, step_profile.REST}
    assert set(step_profile.PLACES) <= set(found), "every part of a step has taken some time"
    assert [function(place) for place in places] == originals


def function(place: str) -> Any:
    found = step_profile.find(place)
    assert found is not None, f"{place} is no more: benchmarks/step_profile.py names it"
    return getattr(*found)


def test_time_is_that_of_the_innermost_name() -> None:
    times = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 21.0, 28.0])
    clock = step_profile.Clock(lambda: next(times))
    with clock.inside("outer"), clock.inside("inner"):
        pass
    with clock.inside("outer"):
        assert clock.read() == {step_profile.REST: 1.0 + 5.0, "outer": 2.0 + 4.0 + 6.0, "inner": 3.0}
    assert clock.seconds == {"outer": 7.0}


def test_the_machines_measures_are_of_the_size_that_they_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SIZES", {"cpu": (64,)})
    monkeypatch.setattr(machine, "COPIED", {"cpu": 1 << 20})
    monkeypatch.setattr(machine, "SECONDS", 0.0)
    monkeypatch.setattr(machine, "quickest", lambda function, device: (function(), 0.5)[1])
    found = machine.measures("cpu")
    assert found["matmul_float32"] == found["matmul_bfloat16"] == 2 * 64**3 / 0.5
    assert found["copy_float32"] == found["copy_bfloat16"] == 2 * (1 << 20) / 0.5


def test_one_command_lets_workers_take_turns_and_writes_everything(
    work: Work, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that cannot start, end too early or give up hold up nobody."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    monkeypatch.setitem(compare.WORKS, work.model, work)
    places = {"local": "local", "dies": "pretend_contenders:dies", "fails": "no.such.module:f"}
    places |= {"sleeps": "pretend_contenders:sleeps", "gives_up": "pretend_contenders:gives_up"}
    contenders = [driver.Contender(name=name, worker=place, work=work) for name, place in places.items()]
    monkeypatch.setitem(compare.PARTS, "sampling", Part(contenders=lambda _: contenders, rows=memory_rows))
    file = tmp_path / "all.json"
    words = ["--model", work.model, "--only", "sampling", "--rounds", "2", "--patience", "60", "--json", str(file)]
    compare.main(compare.read_arguments(words))
    shown = capsys.readouterr()
    assert "commit" in shown.out and "peak memory, local" in shown.out
    told = [line.strip() for line in shown.err.splitlines()[1:]]
    assert told[:5] == [
        "local: ready",
        "dies: ready",
        "fails: ModuleNotFoundError: No module named 'no'",
        "sleeps: ready",
        "gives_up: ready",
    ]
    assert "dies: the worker has ended: its last words" in told[6]
    turns = [line.split(":")[0] for line in told[5:]]
    assert turns == [
        *("warm-up, local", "warm-up, dies", "warm-up, sleeps", "warm-up, gives_up"),
        *("round 1, local", "round 1, sleeps", "round 2, local", "round 2, sleeps"),
    ]
    (outcomes,) = json.loads(file.read_text("utf-8"))["parts"].values()
    assert [len(outcome["rounds"]) for outcome in outcomes] == [2, 0, 0, 2, 0]
    assert {report["tokens"] for report in outcomes[0]["rounds"]} == {48}
    assert all(report["idle_cpu"] < 0.5 for outcome in outcomes for report in outcome["rounds"])


def test_what_is_not_installed_is_said(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "CONTENDERS", {"other": ("no.such.module:f", "no_such_package")})
    turns = PretendTurns(1)
    worker.take_part("other", work, turns)
    assert turns.said == [{"missing": "no_such_package"}]
    assert driver.trouble_of(turns.said[0]) == "not installed"


def test_random_weights_have_the_shape_and_a_tokenizer_of_as_many_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the shape of Qwen3-1.7B, its vocabulary and one layer of it."""
    from transformers import AutoConfig, AutoTokenizer

    folder = random_folder("qwen3-1.7b")
    config = AutoConfig.from_pretrained(folder)
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (2048, 28, 151936)
    assert len(AutoTokenizer.from_pretrained(folder)) == 151936
    assert set(RANDOM) <= set(WORKS)


def test_prompts_for_random_weights_are_the_puzzles_own() -> None:
    first, second = puzzles_of(WORKS["qwen3-1.7b"])[:2]
    assert len(random_prompt(112, 1000, first)) == 112
    assert random_prompt(112, 1000, first) == random_prompt(112, 1000, first) != random_prompt(112, 1000, second)
    assert set(random_prompt(112, 10, first)) <= set(range(10))


def test_the_gpu_script_asks_for_what_there_is() -> None:
    text = (Path(compare.__file__).parent / "gpu.sh").read_text("utf-8")
    command = text.partition("-m benchmarks ")[2].replace("\\\n", " ").partition("${")[0]
    settings = compare.read_arguments(command.split())
    assert settings.model == ("qwen3-1.7b",)
    assert settings.within + settings.patience < 600 - 30, "all of it in less than 10 minutes: they take seconds to end"


def test_a_round_that_the_deadline_cuts_off_does_not_count(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    contenders = [driver.Contender(name=name, worker="local", work=work) for name in ("first", "second")]
    taken: list[str] = []

    class Taking:
        def __init__(self, contender: driver.Contender) -> None:
            self.name = contender.name

        def __enter__(self) -> Taking:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def answer(self, _: float) -> dict[str, Any]:
            return {"ready": True}

        def repetition(self, _: float) -> dict[str, Any]:
            taken.append(self.name)
            return {"seconds": 1.0}

    class Time:
        def perf_counter(self) -> float:
            return 10.0 if len(taken) >= 3 else 0.0

    monkeypatch.setattr(driver, "_Worker", Taking)
    monkeypatch.setattr(driver, "time", Time())
    said: list[str] = []
    outcomes = driver.compete(contenders, rounds=5, deadline=5.0, say=said.append)
    assert taken == ["first", "second", "first"]
    assert [outcome.rounds for outcome in outcomes] == [[], []]
    assert [outcome.trouble for outcome in outcomes] == ["no time left"] * 2
    assert said[-1] == "no time left"
