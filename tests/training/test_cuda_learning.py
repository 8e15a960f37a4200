"""What learning does otherwise on a GPU, and a whole run there; its gradients are in test_fast_learning.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from learning_rollouts import relative_error

from nsr.models.fast import output_layer as head_module
from nsr.models.fast.output_layer import head_log_probs
from nsr.models.sampling_mask import Support
from nsr.training.optimizer import PolicyOptimizer, build_optimizer

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("kept", [2**28, 2**23])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_output_layer(dtype: torch.dtype, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "KEPT_ELEMENTS", kept)
    torch.manual_seed(0)
    head = torch.nn.Linear(64, 40_000, bias=False, device="cuda", dtype=dtype)
    hidden = torch.randn(3000, 64, device="cuda", dtype=dtype, requires_grad=True)
    tokens, index = torch.randint(39_000, (3000,), device="cuda"), torch.arange(3000, device="cuda") % 50
    support = Support(vocab_size=39_000, end_token_ids=(7,), min_tokens=4)
    tokens[tokens == 7] = 8
    log_probs, entropy = head_log_probs(head, support, hidden, tokens, index, 0.7)
    weights = torch.randn(3000, device="cuda")
    (log_probs * weights).sum().backward()
    wide = hidden.detach().double().requires_grad_(True)
    weight = head.weight.detach().double().requires_grad_(True)
    logits = support.mask_logits((wide @ weight.T).unsqueeze(0), index.unsqueeze(0))[0] / 0.7
    expected = logits.log_softmax(dim=-1)
    chosen = expected.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    (chosen * weights.double()).sum().backward()
    most = 1e-4 if dtype == torch.float32 else 2e-2
    assert relative_error(log_probs.detach().double(), chosen.detach()) < most
    assert relative_error(entropy.double(), torch.special.entr(expected.exp()).sum(dim=-1).detach()) < most
    assert relative_error(hidden.grad.double(), wide.grad) < most
    assert relative_error(head.weight.grad.double(), weight.grad) < most


def test_small_updates_of_bfloat16_weights_add_up() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(512, 512, bias=False, device="cuda", dtype=torch.bfloat16)
    twin = torch.nn.Parameter(model.weight.detach().float())
    optimizer = build_optimizer(model, lr=1e-6, kind="adamw")
    reference = torch.optim.AdamW([twin], lr=1e-6, betas=(0.9, 0.95), eps=1e-8, weight_decay=1e-2, fused=True)
    start = twin.detach().clone()
    for _ in range(20):
        gradient = torch.randn(512, 512, device="cuda").bfloat16()
        model.weight.grad, twin.grad = gradient, gradient.float()
        optimizer.step()
        reference.step()
    (master,) = optimizer.state_dict()["masters"]
    assert torch.equal(master, twin.cpu())
    assert (twin - start).abs().mean() > 1e-6
    assert (model.weight.float() - twin).abs().max() <= twin.abs().max() * 2**-8


def test_the_step_looked_at_beforehand_is_the_step() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(256, 256, device="cuda")
    optimizer: PolicyOptimizer = build_optimizer(model, lr=1e-2, kind="adamw")
    for _ in range(3):
        for weight in model.parameters():
            weight.grad = torch.randn_like(weight)
        proposed, _ = optimizer.proposed_norms()
        assert optimizer.step() == pytest.approx(proposed, rel=1e-4)


def run_nsr(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "nsr", *words], text=True, capture_output=True, check=False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_on_a_gpu_and_its_resumption(tmp_path: Path, dtype: str) -> None:
    words = ["train", "--preset", "tiny", "--device", "cuda", "--dtype", dtype, "--output_dir", str(tmp_path)]
    words += ["--group_size", "4", "--rollout_batch_size", "16", "--max_tokens", "64", "--eval_every", "2"]
    words += ["--eval_puzzles", "8", "--eval_samples", "4", "--exp_name", "run"]
    first = run_nsr(*words, "--n_train_steps", "2")
    assert first.returncode == 0, first.stderr[-2000:]
    second = run_nsr(*words, "--n_train_steps", "4", "--resume")
    assert second.returncode == 0, second.stderr[-2000:]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    assert [record["step"] for record in steps] == [1, 2, 3, 4]
