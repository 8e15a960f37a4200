"""`nsr eval` from its words to its settings."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from nsr.cli import main
from nsr.cli.arguments import parse_eval
from nsr.config import EvalConfig


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[EvalConfig]:
    """The settings that the command would be run with."""
    module = ModuleType("nsr.evaluation.run_eval")
    configs: list[EvalConfig] = []
    module.run_eval = configs.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nsr.evaluation.run_eval", module)
    return configs


def test_models_temperatures_and_preset(seen: list[EvalConfig]) -> None:
    words = ["tiny", "output/NSR_96", "--preset", "tiny", "--temperatures", "0.7,1.0,1.3", "--num_samples", "16"]
    assert main(["eval", *words]) == 0
    (config,) = seen
    assert config.models == ("tiny", "output/NSR_96")
    assert config.temperatures == (0.7, 1.0, 1.3)
    assert (config.num_samples, config.data, config.device, config.max_tokens) == (16, "synthetic", "cpu", 96)
    assert parse_eval(["x"]) == EvalConfig(models=("x",))
    assert parse_eval(["x", "--preset=tiny"]).temperatures == (1.0,)
    assert parse_eval(["x", "--preset=tiny", "--temperatures=0.5"]).temperatures == (0.5,)
    assert parse_eval(["x", "--preset=tiny"]).num_samples == 64


def test_the_runs_are_complete_settings() -> None:
    config = EvalConfig(models=("tiny",), num_samples=8, exp_name="mine", resume=True, seed=3, data="synthetic:3")
    run = config.run("a/b", "b", 1.25)
    assert run.run_path == Path("output/mine/b_T1.25")
    assert (run.command, run.model_id, run.eval_samples, run.evaluation_temperature) == ("eval", "a/b", 8, 1.25)
    assert (run.resume, run.seed, run.data) == (True, 3, "synthetic:3")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["a model or --from_samples", "neither"]),
        (["tiny", "--from_samples", "output"], ["--from_samples", "both"]),
        (["tiny", "tiny"], ["'tiny'", "twice"]),
        (["tiny", "--temperatures", "0"], ["--temperatures", "0.0", "above 0"]),
        (["tiny", "--temperatures", "1,1.0"], ["--temperatures", "each once"]),
        (["tiny", "--num_samples", "0"], ["--num_samples", "at least 1"]),
        (["tiny", "--exp_name", "../x"], ["--exp_name", "--output_dir"]),
        (["tiny", "--max_tokens", "2"], ["--max_tokens", "at least 4"]),
        (["tiny", "--preset", "huge"], ["--preset", "'huge'"]),
        (["--from_samples", "nowhere"], ["nowhere", "holds no samples"]),
    ],
)
def test_bad_input_ends_in_one_sentence(
    words: list[str], parts: list[str], seen: list[EvalConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert all(part in err for part in parts), err
    assert seen == []


def test_temperatures_that_are_no_numbers(seen: list[EvalConfig], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "tiny", "--temperatures", "warm"]) == 2
    assert "--temperatures" in capsys.readouterr().err
    assert seen == []


def test_samples_that_disagree_end_in_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("nsr.evaluation.from_samples")
    module.run_from_samples = lambda sources: sources == ("good",)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nsr.evaluation.from_samples", module)
    assert main(["eval", "--from_samples", "good"]) == 0
    assert main(["eval", "--from_samples", "bad"]) == 1
