"""`nsr export`: a folder that loads as the run's model, with a card whose numbers are the run's."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from models.random_qwen3 import build_folder
from pretend_runs import train_run, write_lines

from nsr.cli import main
from nsr.config import ExportConfig, TrainConfig
from nsr.models.registry import load_policy
from nsr.report.export import export
from nsr.report.model_card import model_card
from nsr.report.run import read_run
from nsr.runs.checkpoints import newest_checkpoint
from nsr.training.loop import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real training run of a small random Qwen3."""
    folder = tmp_path_factory.mktemp("trained")
    return train(
        TrainConfig(
            model_id=str(build_folder(folder / "base", tied=False)),
            device="cpu",
            data="synthetic:3",
            max_tokens=8,
            eval_puzzles=3,
            eval_samples=2,
            n_train_steps=2,
            lr=1e-2,
            rollout_batch_size=4,
            group_size=2,
            grad_acc_steps=1,
            eval_every=1,
            save_every=1,
            keep=2,
            output_dir=str(folder),
            exp_name="run",
            log_to="none",
        )
    )


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def logits(folder: Path) -> torch.Tensor:
    policy = load_policy(str(folder), device="cpu", dtype=torch.float32)
    with torch.no_grad():
        return policy.model(torch.arange(7, 60)[None]).logits


def test_the_final_model_loads_as_it_was(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "gone" / "model"
    assert main(["export", str(run), "--out", str(out)]) == 0
    names = {file.name for file in out.iterdir()}
    assert names == {file.name for file in (run / "model").iterdir()} | {"README.md"}
    assert [file.name for file in out.parent.iterdir()] == ["model"]  # nothing is left beside it
    expected = logits(run / "model")
    shutil.rmtree(run)  # a copy, not a link
    assert torch.equal(logits(out), expected)


def test_the_same_logits_as_the_run_and_checkpoints_without_their_optimizer(run: Path, tmp_path: Path) -> None:
    final = export(ExportConfig(run=str(run), out=str(tmp_path / "final")))
    assert torch.equal(logits(final), logits(run / "model"))
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None and newest[0] == 2
    (run / "done.json").unlink()
    out = export(ExportConfig(run=str(run), out=str(tmp_path / "newest"), checkpoint="newest"))
    assert torch.equal(logits(out), logits(newest[1]))
    assert not {"optimizer.pt", "state.json", "manifest.json"} & {file.name for file in out.iterdir()}
    assert "a checkpoint after 2 steps" in (out / "README.md").read_text()


def test_the_best_checkpoint_is_the_one_with_the_highest_accuracy(run: Path, tmp_path: Path) -> None:
    for step, count in ((1, 2), (2, 1)):
        path = run / "evaluations" / f"step_{step:06d}.json"
        record = json.loads(path.read_text())
        accuracy = {"k": 1, "estimate": count / 2, "low": 0.0, "high": 1.0, "rough": False}
        path.write_text(json.dumps({**record, "pass_at_k": [accuracy, *record["pass_at_k"][1:]]}))
    out = export(ExportConfig(run=str(run), out=str(tmp_path / "best"), checkpoint="best"))
    assert torch.equal(logits(out), logits(run / "checkpoints" / "step_000001"))


def test_the_card_is_what_the_hub_reads_and_its_numbers_are_the_runs(tmp_path: Path) -> None:
    path = train_run(tmp_path, before=2, after=4)  # of 8 samples, on each of 24 puzzles
    card = ModelCard(model_card(read_run(path), step=4, name="my: model", final=True))
    assert card.data.license == "mit"
    assert card.data.library_name == "transformers"
    assert card.data.tags is not None and "nsr" in card.data.tags
    assert card.data.eval_results is not None
    (result,) = card.data.eval_results
    assert (result.metric_name, result.metric_value) == ("pass@1", 50.0)
    # 2 of 8 before and 4 of 8 after on every puzzle: no spread, and pass@2 is 1 - (6*5)/(8*7), then 1 - (4*3)/(8*7).
    rows = dict(re.findall(r"^\| ([^|]+) \| (.*) \|$", card.text, flags=re.MULTILINE))
    assert rows["accuracy (pass@1)"].startswith("25.0% [") and "| 50.0% [" in rows["accuracy (pass@1)"]
    assert rows["pass@2"].startswith("46.4% [") and "| 78.6% [" in rows["pass@2"]
    assert "| +25.0 [" in rows["accuracy (pass@1)"]
    assert rows["`objective`"] == "`NSR`"
    for heading in ("Results", "Training", "Use", "Limits", "Licence"):
        assert f"\n## {heading}\n" in card.text
    assert "build_messages(puzzle, 64)" in card.text


def test_the_commands_of_a_card_are_read_by_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nsr.tools.play

    played: list[object] = []
    monkeypatch.setattr(nsr.tools.play, "play", played.append)
    text = model_card(read_run(train_run(tmp_path)), step=4, name="m", final=True)
    (line,) = re.findall(r"^nsr (play .*)$", text, flags=re.MULTILINE)
    assert main(line.split()) == 0
    assert len(played) == 1


def test_the_python_of_a_card_runs(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = export(ExportConfig(run=str(run), out=str(tmp_path / "model")))
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), flags=re.DOTALL)
    exec(code.replace("PATH/TO/THIS/FOLDER", str(out)), {})
    assert "Verdict" in capsys.readouterr().out


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    path = train_run(tmp_path)
    evil = "x`](javascript:1) <script>|\n---\nlicense: evil\n# Heading\x1b[31m\u202e"
    config = json.loads((path / "config.json").read_text())
    config |= {"model_id": evil, "data": evil, "exp_name": evil, "objective": evil, "resolved": {"data": evil}}
    (path / "config.json").write_text(json.dumps(config))
    text = model_card(read_run(path), step=4, name=evil, final=True)
    card = ModelCard(text)
    assert card.data.license is None and card.data.base_model is None
    assert "\x1b" not in text and "\u202e" not in text
    assert not re.search(r"^(# Heading|license: evil)", text, flags=re.MULTILINE)
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert [line.partition(":")[0] for line in head.splitlines()] == [
        "library_name", "pipeline_tag", "language", "tags", "model-index",
    ]  # fmt: skip
    outside = re.sub(r"```.*?```|`[^`\n]*`", "", body, flags=re.DOTALL)
    assert "<" not in outside and "javascript" not in outside
    assert all(line.count("|") in (0, 3, 5) for line in body.splitlines() if line.startswith("|"))


def test_what_cannot_be_exported_is_said_in_one_sentence(run: Path, tmp_path: Path) -> None:
    def refusal(where: Path, out: Path = tmp_path / "out", **choices: object) -> str:
        with pytest.raises(ValueError) as caught:
            export(ExportConfig(run=str(where), out=str(out), **choices))  # type: ignore[arg-type]
        said = str(caught.value)
        assert "\n" not in said and said.endswith(".") and len(said) < 600
        assert not (tmp_path / "out").exists()
        return said

    (tmp_path / "there").mkdir()
    assert "which exists" in refusal(run, tmp_path / "there")
    assert "no folder" in refusal(tmp_path / "nowhere")
    assert "holds no run" in refusal(run / "model")
    assert "is not the folder of one run" in refusal(run.parent)
    (tmp_path / "file").touch()
    assert "cannot be written" in refusal(run, tmp_path / "file" / "out")
    weights = run / "model" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1])
    assert f"has a truncated model.safetensors: its header says {len(data)} bytes" in refusal(run)
    weights.unlink()
    (tmp_path / "secret.safetensors").write_bytes(data)
    weights.symlink_to(tmp_path / "secret.safetensors")
    assert "leads out of its folder" in refusal(run)
    (run / "done.json").write_text('{"step": "many"}')
    assert "is not what it should be" in refusal(run)
    (run / "done.json").unlink()
    assert "no final model, since it is not complete: finish it with --resume" in refusal(run)
    for path in (run / "checkpoints").iterdir():
        (path / "manifest.json").unlink()
    assert "has no whole checkpoint: go on" in refusal(run, checkpoint="newest")
    assert "no whole checkpoint with an evaluation after its step" in refusal(run, checkpoint="best")
    (run / "config.json").write_text("[" * 100_000)
    assert "is not the folder of one run that can be read" in refusal(run)


def test_needs_no_torch(run: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from nsr.config import ExportConfig; from nsr.report.export import export; "
        f"export(ExportConfig(run={str(run)!r}, out={str(tmp_path / 'out')!r})); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("The model after 2 steps is in")
    assert second == "[]"
    assert (tmp_path / "out" / "README.md").exists()


def test_a_run_without_evaluations_says_so(tmp_path: Path) -> None:
    path = train_run(tmp_path)
    shutil.rmtree(path / "evaluations")
    write_lines(path / "metrics.jsonl", [])
    assert "holds no evaluation of these weights" in model_card(read_run(path), step=4, name="m", final=True)
