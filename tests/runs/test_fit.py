"""`nsr fit`: the sum of a case, and the flags that make it fit."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from nsr.config.fit import FitConfig
from nsr.memory.search import CUDA_CONTEXT, LOST, VLLM_OVERHEAD, as_given, changes, find_fit, report, work_out
from nsr.models.architecture import find_shape, known_shape

GB = 10**9
STUDY = FitConfig(model_id="Qwen/Qwen3-1.7B")
SHAPE = known_shape("Qwen/Qwen3-1.7B")


def items(config: FitConfig, total: int) -> dict[str, int]:
    return {item.name: item.size for item in work_out(config, SHAPE, total, "adamw").items}


def test_the_studys_model_by_hand() -> None:
    # 28 layers of 2048 x (2048 + 2 x 1024 + 2048) + 3 x 2048 x 6144 weights, norms, and 151936 x 2048 tied embeddings
    layer = 2048 * (2 * 2048 + 2 * 1024) + 3 * 2048 * 6144 + 2 * 2048 + 2 * 128
    assert SHAPE.parameters == 28 * layer + 151936 * 2048 + 2048 == 1_720_574_976
    found = items(STUDY, 80 * GB)
    assert found["weights"] == found["gradients"] == 2 * SHAPE.parameters
    assert found["master weights"] == 2 * SHAPE.parameters
    assert found["optimizer state"] == 8 * SHAPE.parameters
    assert found["vLLM"] == 32 * GB
    assert (found["CUDA"], found["vLLM asleep"]) == (CUDA_CONTEXT, VLLM_OVERHEAD)


def test_vllm_and_learning_take_turns() -> None:
    whole = work_out(STUDY, SHAPE, 80 * GB, "adamw")
    more = work_out(dataclasses.replace(STUDY, gpu_mem_util=0.41), SHAPE, 80 * GB, "adamw")
    # Sampling takes most here, so a larger share is a larger sum; what learning takes is not added to it.
    assert more.peak - whole.peak == pytest.approx(0.8 * GB)
    local = work_out(dataclasses.replace(STUDY, engine="local"), SHAPE, 80 * GB, "adamw")
    assert "vLLM" not in {item.name for item in local.items}


def test_blocks_lose_a_share_of_the_tensors_alone() -> None:
    found = items(STUDY, 80 * GB)
    always = sum(found[name] for name in ("weights", "master weights", "optimizer state", "gradients"))
    learning = found["activations"] + found["probabilities"] + found["output gradient"]
    assert found["between blocks"] == pytest.approx(LOST["cuda"] * (always + learning), abs=1)


def test_it_finds_the_flags_that_make_it_fit() -> None:
    given = as_given(STUDY, SHAPE, 22 * GB)
    assert not given.fits
    found = find_fit(STUDY, SHAPE, 22 * GB)
    assert found is not None
    assert found.fits
    flags = changes(STUDY, found)
    assert "--optimizer auto -> adamw8bit" in flags
    assert any(flag.startswith("--grad_acc_steps 16 -> ") for flag in flags)
    # Each of them is needed: with one left as it was, it does not fit.
    for name in ("grad_acc_steps",):
        less = dataclasses.replace(found.config, **{name: getattr(STUDY, name)})
        assert not work_out(less, SHAPE, 22 * GB, found.optimizer).fits
    assert not work_out(found.config, SHAPE, 22 * GB, "adamw").fits


def test_what_nothing_makes_fit_is_said() -> None:
    assert find_fit(STUDY, SHAPE, 8 * GB) is None
    assert any("does not fit" in line for line in report(STUDY, SHAPE, 8 * GB))


def test_a_shape_from_flags_is_the_known_one() -> None:
    known, _ = find_shape("smollm2-135m")
    config = FitConfig(hidden=576, layers=30, heads=9, kv_heads=3, intermediate=1536, vocab=49152, tied=True)
    words = [f"--{name}={getattr(config, name)}" for name in ("hidden", "layers", "heads", "kv_heads", "intermediate")]
    out = subprocess.run(
        [sys.executable, "-m", "nsr", "fit", *words, "--vocab=49152", "--tied", "--device=cpu", "--gpu_gb=16"],
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr
    assert f"{known.parameters:,} parameters" in out.stdout
    assert "It fits" in out.stdout


def test_it_loads_no_torch() -> None:
    script = (
        "import sys; from nsr.cli import main; main(['fit', '--model_id', 'tiny', '--gpu_gb', '8']); "
        "print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert out.stdout.splitlines()[-1] == "[]"
