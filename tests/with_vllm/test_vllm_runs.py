"""Whole commands with rollouts from the real vLLM, as a user types them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models.random_qwen3 import build_folder

from nsr.evaluation.record import Evaluation
from nsr.models.registry import load_policy, prompt_encoder, resolve
from nsr.models.sampling_mask import Support
from nsr.rollout.vllm import VLLMEngine, log_probs
from nsr.runs.folder import read_config, read_evaluation, read_metrics, read_timings
from nsr.tasks.countdown.puzzle import Puzzle

pytestmark = pytest.mark.vllm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMMON = [
    "--device",
    DEVICE,
    "--dtype",
    "float32",
    "--engine",
    "vllm",
    "--data",
    "synthetic:3",
    "--max_tokens",
    "16",
    "--eval_puzzles",
    "4",
]
TRAINING = [
    *("--rollout_batch_size", "16", "--group_size", "4", "--grad_acc_steps", "2", "--eval_every", "2"),
    *("--eval_samples", "2", "--lr", "1e-3", "--log_to", "none", "--exp_name", "run", "--save_every", "1"),
]


def nsr(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "nsr", *words], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_training_resumed_measured_and_exported(tied: bool, tmp_path: Path) -> None:
    build_folder(tmp_path / "base", tied=tied, hidden=64)
    train = ["train", "--model_id", "base", "--thinking", "off", *COMMON, *TRAINING]
    first = nsr(*train, "--n_train_steps", "2", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "engine vllm: as asked for, version 0.32" in first.stdout
    # What began with vLLM goes on with it, whatever "auto" would take now.
    second = nsr(*train, "--n_train_steps", "4", "--resume", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    run = tmp_path / "output" / "run"
    assert read_config(run)["resolved"]["engine"] == "vllm"
    metrics = read_metrics(run)
    assert [record["step"] for record in metrics] == [1, 2, 3, 4]
    for record in metrics:
        # Beyond the first step too: the engine samples from the weights as they are.
        assert record["logprob_diff_max"] < 1e-3
        assert record["effective_sample_size"] > 0.99
        assert record["entropy"] == pytest.approx(record["entropy_kept"], rel=0.2)
    assert "warning" not in first.stdout + second.stdout
    assert all(record["sampling_tokens_per_second"] > 0 for record in read_timings(run))

    exported = nsr("export", "output/run", "--out", "exported", cwd=tmp_path)
    assert exported.returncode == 0, exported.stdout + exported.stderr
    # The exported folder in a new engine has the log-probs of the run's own model.
    final = load_policy(str(run / "model"), device=DEVICE, dtype=torch.float32)
    policy = load_policy(str(tmp_path / "exported"), device=DEVICE, dtype=torch.float32)
    support = Support.of(policy.model, policy.tokenizer, 4)
    prompt = prompt_encoder(policy.tokenizer, 16, "off")(Puzzle(numbers=(3, 5, 2), target=16))
    response = tuple(range(20, 36))
    np.testing.assert_allclose(
        log_probs(policy.model, support, prompt, response), log_probs(final.model, support, prompt, response), atol=1e-5
    )
    measured = nsr("eval", "output/run", "base", *COMMON, "--num_samples", "4", "--thinking", "off", cwd=tmp_path)
    assert measured.returncode == 0, measured.stdout + measured.stderr
    # Two models, two engines, one after the other in a process; each is the model that it says.
    records = [
        read_evaluation(path.parent, 4 if "run" in path.parent.name else 0)
        for path in sorted((tmp_path / "output" / "eval").glob("*/config.json"))
    ]
    assert len(records) == 2
    assert Evaluation.from_json(records[0]).entropy != Evaluation.from_json(records[1]).entropy


def test_a_baseline_samples_like_the_local_engines(tmp_path: Path) -> None:
    build_folder(tmp_path / "base", tied=True, hidden=64)
    words = ["--model_id", "base", "--temperature", "0.7", "--eval_samples", "16"]
    for engine in ("vllm", "local"):
        common = [engine if word == "vllm" else word for word in COMMON]
        done = nsr("baseline", *words, *common, "--exp_name", engine, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    by_vllm, local = (read_evaluation(tmp_path / "output" / engine, 0) for engine in ("vllm", "local"))
    assert by_vllm["greedy_accuracy"] == local["greedy_accuracy"]
    assert by_vllm["entropy"] == pytest.approx(local["entropy"], rel=0.1)
    assert by_vllm["response_length"] == pytest.approx(local["response_length"], rel=0.1)


def test_smollm2_has_the_log_probs_of_the_trainer(tmp_path: Path) -> None:
    policy = load_policy("smollm2-135m", device=DEVICE, dtype=torch.float32)
    support = Support.of(policy.model, policy.tokenizer, 4)
    encode = prompt_encoder(policy.tokenizer, 16)
    engine = VLLMEngine(
        policy.model,
        policy.tokenizer,
        support,
        model=resolve("smollm2-135m"),
        max_model_len=256,
        tested_prompt=encode(Puzzle(numbers=(44, 19, 35), target=98)),
    )
    assert engine.check(policy.model) < 1e-3


def test_vllm_that_is_not_there_is_said_in_a_sentence(tmp_path: Path) -> None:
    script = (
        "import importlib.metadata as m, sys; real = m.version\n"
        "def version(name):\n"
        "    if name.startswith('vllm'): raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
        "from nsr.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["baseline", "--model_id", "tiny", *COMMON]
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    *_, last = done.stderr.splitlines()
    assert re.fullmatch(r"error: --engine is 'vllm', but vLLM is not installed: `pip install .*`.*", last)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "output").exists()
