from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nsr.config import (
    PRESETS,
    BaselineConfig,
    DataConfig,
    PlayConfig,
    RunConfig,
    SuiteConfig,
    TrainConfig,
    WarmstartConfig,
    settings_diff,
    to_record,
    with_preset,
)

# The table of flags and defaults that the scripts promise.
PROMISED = {
    "model_id": "Qwen/Qwen3-1.7B",
    "objective": "NSR",
    "max_tokens": 256,
    "n_train_steps": 200,
    "lr": 3e-6,
    "seed": 42,
    "device": "cuda",
    "rollout_batch_size": 128,
    "group_size": 8,
    "grad_acc_steps": 16,
    "temperature": 0.7,
    "lambda_psr": 0.1,
    "clip_range": 0.2,
    "gpu_mem_util": 0.4,
    "eval_every": 10,
    "loss_type": "standard",
    "output_dir": "./output",
    "data": "justinphan3110/Countdown-Tasks-3to4",
    "eval_puzzles": 256,
    "eval_samples": 4,
    "eval_temperature": None,
    "advantage": None,
    "normalize_over": "all",
    "updates_per_rollout": 1,
    "resume": False,
    "optimizer": "auto",
    "engine": "auto",
    "thinking": "default",
}


def test_the_promised_defaults() -> None:
    config = TrainConfig()
    assert {name: getattr(config, name) for name in PROMISED} == PROMISED
    assert config.puzzles_per_step == 16


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (TrainConfig(), "NSR_256"),
        (TrainConfig(objective="PSR", max_tokens=1024), "PSR_1024"),
        (TrainConfig(objective="W_REINFORCE"), "W_REINFORCE_lambda0.1_256"),
        (TrainConfig(objective="W_REINFORCE", lambda_psr=1), "W_REINFORCE_lambda1_256"),
        (BaselineConfig(max_tokens=512), "baseline_512"),
        (TrainConfig(exp_name="mine"), "mine"),
    ],
)
def test_names_of_runs(config: RunConfig, name: str) -> None:
    assert config.run_name == name
    assert config.run_path == Path("output") / name


BAD = [
    ({"group_size": 7}, ["--group_size", "7", "divisor of --rollout_batch_size, 128", "8"]),
    ({"group_size": 0}, ["--group_size", "0", "at least 1"]),
    ({"group_size": -8}, ["--group_size", "-8", "at least 1"]),
    ({"grad_acc_steps": 12}, ["--grad_acc_steps", "12", "divisor of --rollout_batch_size, 128", "8, 16"]),
    ({"updates_per_rollout": 3}, ["--updates_per_rollout", "3", "divisor of the number of groups, 16", "2, 4"]),
    ({"lambda_psr": -0.1}, ["--lambda_psr", "-0.1", "between 0 and 1"]),
    ({"lambda_psr": 1.5}, ["--lambda_psr", "1.5", "between 0 and 1"]),
    ({"lambda_psr": float("nan")}, ["--lambda_psr", "nan", "between 0 and 1"]),
    ({"temperature": 0.0}, ["--temperature", "0.0", "above 0 and at most 2"]),
    ({"temperature": float("nan")}, ["--temperature", "nan"]),
    ({"temperature": 2.1}, ["--temperature", "2.1", "at most 2"]),
    ({"eval_temperature": -1.0}, ["--eval_temperature", "-1.0"]),
    ({"max_tokens": 3}, ["--max_tokens", "3", "at least 4"]),
    ({"n_train_steps": 0}, ["--n_train_steps", "0", "at least 1"]),
    ({"lr": 0.0}, ["--lr", "0.0", "above 0"]),
    ({"lr": float("inf")}, ["--lr", "inf", "at most 1"]),
    ({"clip_range": 1.0}, ["--clip_range", "1.0", "below 1"]),
    ({"gpu_mem_util": 1.1}, ["--gpu_mem_util", "1.1", "at most 1"]),
    ({"eval_every": -1}, ["--eval_every", "-1", "at least 0"]),
    ({"eval_puzzles": 0}, ["--eval_puzzles", "0"]),
    ({"eval_samples": 0}, ["--eval_samples", "0"]),
    ({"save_every": -1}, ["--save_every", "-1"]),
    ({"keep": 0}, ["--keep", "0"]),
    ({"seed": -1}, ["--seed", "-1", "4294967295"]),
    ({"device": "gpu"}, ["--device", "gpu", "cpu"]),
    ({"loss_type": "mean"}, ["--loss_type", "mean", "standard, length_normalized, token_mean"]),
    ({"advantage": "gruop"}, ["--advantage", "gruop", "none, group"]),
    ({"normalize_over": "some"}, ["--normalize_over", "all, kept"]),
    ({"optimizer": "sgd"}, ["--optimizer", "adamw8bit"]),
    ({"engine": "sglang"}, ["--engine", "vllm"]),
    ({"thinking": "on"}, ["--thinking", "default, off"]),
    ({"model_id": ""}, ["--model_id"]),
    ({"output_dir": " "}, ["--output_dir"]),
    ({"exp_name": "../elsewhere"}, ["--exp_name", "../elsewhere", "--output_dir"]),
    ({"exp_name": "a/b"}, ["--exp_name"]),
    ({"exp_name": "a\\b"}, ["--exp_name"]),
    ({"exp_name": ".."}, ["--exp_name"]),
    ({"exp_name": ".hidden"}, ["--exp_name"]),
    ({"exp_name": ""}, ["--exp_name"]),
    ({"exp_name": "a\n"}, ["--exp_name"]),
    ({"objective": "../elsewhere"}, ["--exp_name", "../elsewhere_256", "--output_dir"]),
    ({"objective": "A/B", "exp_name": "/tmp"}, ["--exp_name", "'/tmp'"]),
]


NO_NAMES = [
    ".",
    "..",
    "../a",
    "a/..",
    "a/../../b",
    "/a",
    "//a",
    "./a",
    "a/",
    "~",
    "~root",
    "-rf",
    "--resume",
    "a b",
    " a",
]
NO_NAMES += ["a\0b", "\0", "a\r", "\x1b[2J", "C:", "C:\\a", "a:b", "a|b", "$HOME", "`a`", "a;b", "a*", "%2e%2e", "a'b"]
NO_NAMES += ["\uff0fa", "a\u2215b", "\u2024\u2024", "\uff0e\uff0e", "\u202ea", "caf\u00e9", "\uff41", "\u0661"]
NO_NAMES += ["\ud800", "a" * 101]


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_names_that_lead_elsewhere(name: str) -> None:
    """Out of the output folder, to another file system's tricks, or into a shell's."""
    with pytest.raises(ValueError, match=r"^--exp_name is "):
        BaselineConfig(exp_name=name)


@given(st.text(max_size=8) | st.text(alphabet="aZ0_.=+-/\\~ \n\0", max_size=8))
@example("a..b")
@example("a...")
def test_a_run_lies_in_the_output_folder_whatever_its_name(name: str) -> None:
    try:
        config = TrainConfig(output_dir="/output", exp_name=name)
    except ValueError:
        return
    assert os.path.normpath(config.run_path) == f"/output/{name}"
    assert config.run_path.parent == Path("/output")


@pytest.mark.parametrize(("values", "parts"), BAD, ids=[str(values) for values, _ in BAD])
def test_bad_settings_are_refused_in_one_sentence(values: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        TrainConfig(**values)
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message
    assert message.endswith(".")
    assert ". " not in message


@pytest.mark.parametrize(
    "values",
    [
        {"group_size": 1},
        {"group_size": 128},
        {"grad_acc_steps": 128},
        {"lambda_psr": 0.0},
        {"lambda_psr": 1.0},
        {"temperature": 2.0},
        {"max_tokens": 4},
        {"eval_every": 0},
        {"save_every": 0},
        {"device": "cuda:1"},
        {"exp_name": "W_REINFORCE_lambda0.1_256"},
        {"seed": 0},
        {"updates_per_rollout": 16},
    ],
)
def test_the_ends_of_the_ranges_are_allowed(values: dict[str, Any]) -> None:
    TrainConfig(**values)


def test_the_other_commands_check_too() -> None:
    with pytest.raises(ValueError, match="--out"):
        DataConfig(out="puzzles.csv")
    with pytest.raises(ValueError, match="--seeds"):
        SuiteConfig(name="tiny", seeds=0)
    with pytest.raises(ValueError, match="--num_samples"):
        PlayConfig(numbers=(1, 2), target=3, num_samples=0)
    with pytest.raises(ValueError, match="--failed_attempts"):
        WarmstartConfig(failed_attempts=-1)


def test_evaluations_use_the_training_temperature_unless_told() -> None:
    assert TrainConfig(temperature=0.9).evaluation_temperature == 0.9
    assert TrainConfig(temperature=0.9, eval_temperature=0.3).evaluation_temperature == 0.3


def test_presets_are_complete_settings_for_every_command() -> None:
    for name in PRESETS:
        train, baseline = with_preset(TrainConfig, name), with_preset(BaselineConfig, name)
        assert PRESETS[name].keys() <= {field.name for field in dataclasses.fields(TrainConfig)}
        assert (train.model_id, train.device) == (baseline.model_id, baseline.device)
    assert with_preset(TrainConfig, "tiny").lr == 3e-5
    assert with_preset(TrainConfig, None) == TrainConfig()
    with pytest.raises(ValueError, match="--preset is 'huge' but must be one of tiny"):
        with_preset(TrainConfig, "huge")


def test_the_record_is_json_and_filled_in() -> None:
    record = to_record(TrainConfig(objective="W_REINFORCE"))
    assert json.loads(json.dumps(record)) == record
    assert record["exp_name"] == "W_REINFORCE_lambda0.1_256"
    assert record["eval_temperature"] == 0.7


def test_differences_are_listed_and_only_those_that_matter() -> None:
    old = to_record(TrainConfig())
    same = to_record(TrainConfig(output_dir="/elsewhere", exp_name="x", n_train_steps=300, resume=True, keep=3))
    other = to_record(TrainConfig(lr=2e-5, seed=1))
    assert settings_diff(old, same) == []
    assert settings_diff(old, other) == ["lr 3e-06 -> 2e-05", "seed 42 -> 1"]
    assert settings_diff(to_record(BaselineConfig()), old)[0] == "command baseline -> train"
    # A setting that the older version did not know which wrote the folder: no difference at its default.
    del old["lr"]
    assert settings_diff(old, to_record(TrainConfig())) == []
    assert settings_diff(old, to_record(TrainConfig(lr=1e-5))) == ["lr unset -> 1e-05"]
    # A setting that this version does not know is one: nobody can say what it did.
    old["top_k"] = 5
    assert settings_diff(old, to_record(TrainConfig())) == ["top_k 5 -> unset"]
    # A run may go on on another GPU, not on another kind of device.
    cuda, cpu = to_record(TrainConfig(device="cuda:1")), to_record(TrainConfig(device="cpu"))
    assert settings_diff(to_record(TrainConfig()), cuda) == []
    assert settings_diff(to_record(TrainConfig()), cpu) == ["device cuda -> cpu"]


def test_it_needs_the_standard_library_only() -> None:
    code = "import sys, nsr.config; print([m for m in ('torch', 'numpy', 'tyro', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
