from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nsr.config import BaselineConfig, TrainConfig, with_preset
from nsr.memory import preflight
from nsr.memory.preflight import Item, ModelShape, Plan, Setup

QWEN3_1_7B = SimpleNamespace(
    hidden_size=2048,
    intermediate_size=6144,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=151936,
    model_type="qwen3",
    tie_word_embeddings=True,
)
SMALL = ModelShape(parameters=1000, hidden=8, intermediate=24, layers=2, kv_width=4, vocab=50)
SETUP = Setup(shape=SMALL, weight_bytes=4, prompt_tokens=6, sampling_batch=16, on_cpu=True)
CONFIG = TrainConfig(
    device="cpu",
    max_tokens=10,
    rollout_batch_size=16,
    group_size=4,
    grad_acc_steps=8,
    n_train_steps=25,
    eval_every=10,
    eval_puzzles=3,
    eval_samples=5,
)


def test_the_number_of_parameters_of_the_studys_model() -> None:
    shape = ModelShape.from_config(QWEN3_1_7B)
    # The model card says 1.7B; this is what its files hold.
    assert shape.parameters == 1_720_574_976
    assert shape.kv_width == 1024
    assert ModelShape.from_config(QWEN3_1_7B, parameters=5).parameters == 5


def test_usual_values_stand_in_for_names_that_a_configuration_lacks() -> None:
    plain = SimpleNamespace(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=10)
    shape = ModelShape.from_config(plain)
    # Two embeddings of 80; four projections of 64; three of 8 x 32; two norms and one.
    assert shape.parameters == 160 + 256 + 768 + 16 + 8
    assert (shape.intermediate, shape.kv_width) == (32, 8)


def sizes(plan: Plan) -> dict[str, int]:
    return {item.name: item.size for item in (*plan.memory, *plan.disk)}


def test_a_training_run_worked_out_by_hand() -> None:
    plan = preflight.plan_training(CONFIG, SETUP, "adamw")
    assert sizes(plan) == {
        "weights": 4000,
        "optimizer state": 8000,
        "gradients": 4000,
        # 2 sequences x 16 tokens x 2 layers x 488 bytes: two norms of 8 x (4 + 4) + 4, what they give to linear layers
        # (8 x 4 each), queries, keys, values and output (8 + 4 + 4 + 8) x 4, and twice 24 x 4
        "activations": 2 * 16 * 2 * (2 * (68 + 32) + 96 + 192),
        # 2 sequences x 16 tokens but those of a prompt, x 50 words: kept and their gradient, and three more in float32
        "probabilities": (2 * 16 - 6) * 50 * (2 * 4 + 12),
        "output gradient": 50 * 8 * 4,
        # the embedding is the largest parameter; its step is worked out with gradient and two moments
        "step of a parameter": 50 * 8 * 4 * 3,
        # 16 sequences x (16 + 64) tokens x 2 layers x 2 x 4 values x 4 bytes
        "key-value cache": 16 * 80 * 2 * 8 * 4,
        "attention's copy": 16 * 80 * 2 * 8 * 4,
        "logits drawn from": 16 * 50 * (4 + 28),
        # three copies of weights and two moments: the newest, the best, and the one that is being written
        "checkpoints": 3 * 12000,
        "final model": 4000,
        # 4 evaluations (0, 10, 20, 25) x 15 samples x 10 tokens x 4 bytes
        "samples": 4 * 15 * 10 * 4,
    }
    assert plan.peak_memory == 16000 + max(31232 + 26000 + 1600, 4800, 2 * 81920 + 25600)
    assert plan.disk_space == 36000 + 4000 + 2400


def test_row_by_row_all_logits_are_there_at_once() -> None:
    plan = preflight.plan_training(dataclasses.replace(CONFIG, exact=True), SETUP, "adamw")
    # 2 sequences x 10 response tokens x 50 words: values and gradient of 4 bytes, and five copies in float32
    assert sizes(plan)["logits"] == 2 * 10 * 50 * 8
    assert sizes(plan)["float32 logits"] == 2 * 10 * 50 * 20
    assert "probabilities" not in sizes(plan)


def test_with_long_responses_attention_counts_instead_of_probabilities() -> None:
    shape = dataclasses.replace(SMALL, heads=4)
    plan = preflight.plan_training(CONFIG, dataclasses.replace(SETUP, shape=shape), "adamw")
    assert "attention's scores" not in sizes(plan)
    longer = dataclasses.replace(CONFIG, max_tokens=100)
    plan = preflight.plan_training(longer, dataclasses.replace(SETUP, shape=shape), "adamw")
    # 2 sequences x 4 heads x 100 x 106 scores of 12 bytes; 2 x 106 - 6 tokens x 50 words x 20 bytes are fewer
    assert sizes(plan)["attention's scores"] == 2 * 4 * 100 * 106 * 12
    assert "probabilities" not in sizes(plan)


def test_the_larger_of_learning_and_sampling_counts() -> None:
    always = Item(name="a", size=10, sum="")
    learning = Item(name="b", size=3, sum="", phase="learning")
    sampling = Item(name="c", size=5, sum="", phase="sampling")
    assert Plan(memory=(always, learning, sampling), disk=()).peak_memory == 15


def test_the_studys_model_takes_about_24_gb_beside_vllm_and_a_checkpoint_too() -> None:
    setup = Setup(
        shape=ModelShape.from_config(QWEN3_1_7B), weight_bytes=2, prompt_tokens=1, sampling_batch=0, on_cpu=False
    )
    plan = preflight.plan_training(TrainConfig(), setup, "adamw")
    state = sum(item.size for item in plan.memory if item.phase == "always")
    assert state == setup.shape.parameters * (2 + 2 + 8 + 2)
    assert preflight.size(state) == "24.1 GB"
    # weights, masters in full and moments
    assert preflight.checkpoint_bytes(setup, "adamw") == setup.shape.parameters * (2 + 4 + 8)
    assert preflight.checkpoint_bytes(setup, "adamw8bit") == setup.shape.parameters * (2 + 2)
    assert "key-value cache" not in sizes(plan)
    small = preflight.plan_training(TrainConfig(), setup, "adamw8bit")
    assert "master weights" not in sizes(small)
    assert sizes(small)["optimizer state"] == 2 * setup.shape.parameters


def test_more_microbatches_and_updates_need_less_memory() -> None:
    def activations(**changes: int) -> int:
        config = TrainConfig(device="cpu", **changes)  # type: ignore[arg-type]
        return sizes(preflight.plan_training(config, SETUP, "adamw"))["activations"]

    assert activations(grad_acc_steps=16) == 4 * activations(grad_acc_steps=64)
    # A microbatch has 128 / 2 rows, but no more than the 128 / 4 of an update.
    assert activations(grad_acc_steps=2) == 2 * activations(grad_acc_steps=2, updates_per_rollout=4)
    assert activations(grad_acc_steps=16) == activations(grad_acc_steps=16, updates_per_rollout=4)


def test_the_optimizer_is_chosen_by_what_fits() -> None:
    setup = Setup(shape=SMALL, weight_bytes=2, prompt_tokens=6, sampling_batch=0, on_cpu=False, vllm_bytes=7)
    needed = preflight.plan_training(CONFIG, setup, "adamw").peak_memory
    # 2 sequences x 16 tokens x 2 layers x (2 x (8 x 6 + 4 + 16) + 48 + 96) bytes; 1300 probabilities of 2 x 2 + 12
    assert needed == 7 + 14 * 1000 + 64 * 280 + 1300 * 16 + 50 * 8 * 2
    assert preflight.choose_optimizer(CONFIG, setup, needed) == "adamw"
    assert preflight.choose_optimizer(CONFIG, setup, needed - 1) == "adamw8bit"
    told = TrainConfig(optimizer="adamw")
    assert preflight.choose_optimizer(told, setup, 0) == "adamw"


def test_what_cannot_fit_is_refused_with_the_sum() -> None:
    plan = preflight.plan_training(CONFIG, SETUP, "adamw")
    plan.check(CONFIG, memory=plan.peak_memory, disk=plan.disk_space)
    with pytest.raises(ValueError) as caught:
        plan.check(CONFIG, memory=plan.peak_memory - 1, disk=plan.disk_space)
    assert str(caught.value) == (
        "--model_id Qwen/Qwen3-1.7B needs 205.4 kB of memory on cpu (weights 4.0 kB + optimizer state 8.0 kB + "
        "gradients 4.0 kB + activations 31.2 kB while learning + probabilities 26.0 kB while learning + "
        "output gradient 1.6 kB while learning + step of a parameter 4.8 kB while stepping + "
        "key-value cache 81.9 kB while sampling + attention's copy 81.9 kB while sampling + "
        "logits drawn from 25.6 kB while sampling) but 205.4 kB are free: use a smaller model, a smaller --max_tokens, "
        "more --grad_acc_steps, --gradient_checkpointing, --optimizer adamw8bit, or another machine."
    )
    with pytest.raises(
        ValueError, match=r"needs 42\.4 kB of disk space \(checkpoints 36\.0 kB .* but 42\.4 kB are free"
    ):
        plan.check(CONFIG, memory=plan.peak_memory, disk=plan.disk_space - 1)


def test_an_evaluation_alone_has_no_gradients() -> None:
    config = BaselineConfig(device="cpu", max_tokens=10, eval_puzzles=3, eval_samples=5)
    plan = preflight.plan_baseline(config, SETUP)
    drawn = {"key-value cache": 81920, "attention's copy": 81920, "logits drawn from": 25600}
    assert sizes(plan) == {"weights": 4000, **drawn, "samples": 600}
    with pytest.raises(ValueError, match="use a smaller model, a smaller --max_tokens, or another machine"):
        plan.check(config, memory=193439, disk=600)


def test_the_table_shows_each_term() -> None:
    plan = preflight.plan_training(CONFIG, SETUP, "adamw")
    lines = plan.table(memory=10**9, disk=2 * 10**9, seconds=3725.2).splitlines()
    assert lines[0] == "memory   weights                  4.0 kB  1,000 parameters x 4 bytes"
    assert lines[10] == "         together             205.4 kB at most, of 1.0 GB that are free"
    assert lines[11].startswith("disk     checkpoints             36.0 kB  3 x 12.0 kB")
    assert lines[-1] == "time     about 1:02:05 (hours:minutes:seconds)"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (3_440_000, "3.4 MB"), (10**9, "1.0 GB")]
)
def test_sizes_in_words(count: int, text: str) -> None:
    assert preflight.size(count) == text


@pytest.mark.parametrize(("steps", "every", "count"), [(25, 10, 4), (20, 10, 3), (5, 10, 2), (5, 0, 2)])
def test_the_number_of_evaluations(steps: int, every: int, count: int) -> None:
    assert preflight.evaluations(TrainConfig(n_train_steps=steps, eval_every=every)) == count


def test_the_time_it_takes() -> None:
    def seconds(done: int) -> float:
        return preflight.training_seconds(CONFIG, done=done, seconds_per_step=2.0, seconds_per_evaluation=100.0)

    assert seconds(0) == 25 * 2 + 3 * 100  # evaluations at 10, 20 and 25
    assert seconds(10) == 15 * 2 + 2 * 100
    assert seconds(24) == 2 + 100
    # An evaluation of 15 samples took 30 s: 16 samples take 32 s, and learning from them half of that.
    assert preflight.step_seconds(CONFIG, seconds_per_evaluation=30.0, learning_share=0.5) == pytest.approx(48.0)


def test_checkpoints_come_as_often_as_their_size_allows() -> None:
    assert preflight.save_every(TrainConfig(save_every=7), 10**12) == 7
    assert preflight.save_every(TrainConfig(save_every=0), 1) == 0
    assert preflight.save_every(TrainConfig(eval_every=5), 10**8) == 5
    assert preflight.save_every(TrainConfig(eval_every=0), 10**8) == 10
    assert preflight.save_every(TrainConfig(), 20 * 10**9) == 50


def test_responses_must_fit_into_the_context() -> None:
    preflight.check_context(412, prompt_tokens=100, context_length=512)
    with pytest.raises(
        ValueError, match=r"--max_tokens is 413 but must be at most 412, which the model's context of 512"
    ):
        preflight.check_context(413, prompt_tokens=100, context_length=512)


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    preflight.check_device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"--device is 'cuda' but no CUDA GPU .* `--preset tiny`.* `--device cpu`"):
        preflight.check_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    preflight.check_device("cuda")
    preflight.check_device("cuda:1")
    with pytest.raises(ValueError, match="--device is 'cuda:2' but must be cuda:0 to cuda:1"):
        preflight.check_device("cuda:2")


def test_the_cpu_is_checked_without_torch() -> None:
    code = (
        "import sys; from nsr.memory.preflight import check_device; check_device('cpu'); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_free_memory_respects_the_limit_of_a_container(tmp_path: Path) -> None:
    assert preflight.available_memory("cpu") > 0
    assert preflight._container_room(tmp_path) == []
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert preflight._container_room(tmp_path) == [450]
    (tmp_path / "memory.max").write_text("max\n")
    assert preflight._container_room(tmp_path) == []


def test_free_disk_of_a_folder_to_come(tmp_path: Path) -> None:
    assert preflight.free_disk(tmp_path / "a" / "b") > 0


def test_the_preset_needs_little() -> None:
    shape = ModelShape(parameters=3_400_000, hidden=256, intermediate=1024, layers=4, kv_width=128, vocab=100)
    config = with_preset(TrainConfig, "tiny")
    setup = Setup(shape=shape, weight_bytes=4, prompt_tokens=30, sampling_batch=128, on_cpu=True)
    plan = preflight.plan_training(config, setup, "adamw")
    assert plan.peak_memory < 10**9
    assert plan.disk_space < 3 * 10**8
