from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from nsr.cli import COMMANDS, main
from nsr.cli.arguments import parse_run
from nsr.config import PRESETS, BaselineConfig, TrainConfig, with_preset
from nsr.runs.folder import RunFolder
from nsr.tasks.countdown.puzzle import Puzzle

ROOT = Path(__file__).resolve().parents[1]


def install(monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> ModuleType:
    """Put a module of nsr's in place, made from source."""
    module = ModuleType(name)
    exec(source, module.__dict__)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A trainer that only notes its settings, and leaves nothing to sum up."""
    install(monkeypatch, "nsr.report.summary", "def summarize(path):\n    pass")
    return install(monkeypatch, "nsr.training.loop", "seen = []\ndef train(config):\n    seen.append(config)\n")


def is_one_sentence(text: str) -> bool:
    return text.count("\n") == 1 and text.startswith("error: ") and text.endswith((".\n", "?\n")) and ". " not in text


# Flags, and what the sentence must name. All of it is known before the trainer is called.
BAD = [
    (["--group_size", "7"], ["--group_size", "7", "128", "8"]),
    (["--group-size=7"], ["--group_size", "7", "128", "8"]),
    (["--grad_acc_steps", "12"], ["--grad_acc_steps", "12", "128", "8, 16"]),
    (["--objective", "NRS"], ["--objective", "'NRS'", "RLVR, PSR, NSR, W_REINFORCE", "did you mean NSR?"]),
    (["--objective", "w-reinforce"], ["--objective", "did you mean W_REINFORCE?"]),
    (["--lambda_psr", "-0.1"], ["--lambda_psr", "-0.1", "between 0 and 1"]),
    (["--lambda_psr", "1.1"], ["--lambda_psr", "1.1", "between 0 and 1"]),
    (["--temperature", "0"], ["--temperature", "0", "above 0 and at most 2"]),
    (["--temperature", "nan"], ["--temperature", "nan", "above 0 and at most 2"]),
    (["--preset", "huge"], ["--preset", "'huge'", "tiny"]),
    (["--exp_name", "../other"], ["--exp_name", "'../other'", "--output_dir"]),
    (["--group_size", "1", "--objective", "RLVR"], ["--group_size", "at least 2", "--advantage none"]),
    (["--device", "gpu"], ["--device", "'gpu'", "cpu"]),
]


@pytest.mark.parametrize(("flags", "parts"), BAD, ids=[" ".join(flags) for flags, _ in BAD])
def test_bad_input_ends_in_one_sentence_and_nothing_is_written(
    flags: list[str],
    parts: list[str],
    tmp_path: Path,
    trainer: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "--output_dir", str(tmp_path / "output"), *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert is_one_sentence(err), err
    assert all(part in err for part in parts), err
    assert list(tmp_path.iterdir()) == []
    assert trainer.seen == []


def test_no_gpu(
    tmp_path: Path, trainer: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["train", "--output_dir", str(tmp_path / "output")]) == 2
    err = capsys.readouterr().err
    assert is_one_sentence(err)
    assert all(part in err for part in ("--device", "'cuda'", "`--preset tiny`", "`--device cpu`"))
    assert list(tmp_path.iterdir()) == []
    assert trainer.seen == []


def test_a_folder_with_another_run(tmp_path: Path, trainer: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["train", "--preset", "tiny", "--output_dir", str(tmp_path)]
    RunFolder.open(parse_run(TrainConfig, flags[1:]), environment={}).close()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main([*flags, "--lr", "1e-4", "--resume"]) == 2
    err = capsys.readouterr().err
    assert is_one_sentence(err)
    assert "NSR_96 holds another run (lr 3e-05 -> 0.0001): choose another --exp_name" in err
    assert main(flags) == 2
    assert "add --resume" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert trainer.seen == []
    assert main([*flags, "--resume"]) == 0
    assert [config.resume for config in trainer.seen] == [True]


def test_a_run_that_another_process_is_at(
    tmp_path: Path, trainer: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also with --resume, and nothing of it is touched."""
    flags = ["--preset", "tiny", "--output_dir", str(tmp_path)]
    hold = "import sys; from nsr.cli.arguments import parse_run; from nsr.config import TrainConfig; "
    hold += "from nsr.runs.folder import RunFolder; folder = RunFolder.open(parse_run(TrainConfig, sys.argv[1:]), "
    hold += "environment={}); print('held', flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", hold, *flags], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        for resume in ([], ["--resume"]):
            assert main(["train", *flags, *resume]) == 2
            out, err = capsys.readouterr()
            assert out == ""
            assert is_one_sentence(err)
            assert f"{tmp_path / 'NSR_96'} is in use by process {process.pid}: wait for its end" in err
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        process.communicate()
    assert trainer.seen == []
    assert main(["train", *flags, "--resume"]) == 0


def test_a_complete_run_is_not_made_again(
    tmp_path: Path, trainer: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--output_dir", str(tmp_path), "--n_train_steps", "3", "--resume"]  # no GPU is needed to find this out
    with RunFolder.open(parse_run(TrainConfig, flags), environment={}) as folder:
        folder.mark_complete(3)
    assert main(["train", *flags]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'NSR_256'} is complete.\n"
    assert trainer.seen == []


def test_an_error_of_the_set_up_is_one_sentence_but_a_bug_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["train", "--preset", "tiny", "--output_dir", str(tmp_path / "output")]
    told = "from nsr.errors import UserError\ndef train(config):\n    raise UserError('--model_id \\x1b[31m is gone.')"
    install(monkeypatch, "nsr.training.loop", told)
    assert main(flags) == 2
    assert capsys.readouterr().err == "error: --model_id \\x1b[31m is gone.\n"
    for bug in ("import json\n    json.loads('{')", "import fractions\n    fractions.Fraction('x')"):
        install(monkeypatch, "nsr.training.loop", f"def train(config):\n    {bug}")
        with pytest.raises(ValueError):
            main(flags)


def test_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    install(monkeypatch, "nsr.training.loop", "def train(config):\n    raise KeyboardInterrupt")
    words = ["train", "--preset", "tiny", "--output_dir", str(tmp_path)]
    command = f"nsr train --preset tiny --output_dir {tmp_path} --resume"
    assert main(words) == 130
    assert capsys.readouterr().err == f"Interrupted. Go on with: {command}\n"
    told = "from nsr.runs.signals import Interrupted\ndef train(config):\n    raise Interrupted(15, 'Step 3 is saved.')"
    install(monkeypatch, "nsr.training.loop", told)
    assert main([*words, "--resume"]) == 143
    assert capsys.readouterr().err == f"Interrupted. Step 3 is saved. Go on with: {command}\n"
    # No command line of a run.
    install(monkeypatch, "nsr.tools.play", "def play(config):\n    raise KeyboardInterrupt")
    assert main(["play", "1", "2", "3", "--target", "6"]) == 130
    assert capsys.readouterr().err == "Interrupted. A run goes on with the same command and --resume.\n"
    # A disk that does not take it.
    full = (
        "from nsr.runs.files import CannotWrite\ndef train(config):\n    raise CannotWrite('x could not be written.')"
    )
    install(monkeypatch, "nsr.training.loop", full)
    assert main(words) == 1
    assert capsys.readouterr().err == "error: x could not be written.\n"


def test_flags_win_over_the_preset_and_the_preset_over_the_defaults() -> None:
    assert parse_run(TrainConfig, []) == TrainConfig()
    assert parse_run(TrainConfig, ["--preset", "tiny"]) == with_preset(TrainConfig, "tiny")
    for words in (["--lr", "1e-3", "--preset", "tiny"], ["--preset=tiny", "--lr=1e-3"]):
        config = parse_run(TrainConfig, words)
        assert (config.lr, config.model_id, config.n_train_steps) == (1e-3, "tiny", PRESETS["tiny"]["n_train_steps"])
    # Also where the flag says what the default without a preset would be.
    assert parse_run(TrainConfig, ["--preset", "tiny", "--lr", "3e-6"]).lr == 3e-6
    assert parse_run(BaselineConfig, ["--preset", "tiny"]) == with_preset(BaselineConfig, "tiny")


def test_underscores_and_hyphens_are_the_same() -> None:
    for words in (["--max_tokens", "64"], ["--max-tokens", "64"], ["--max-tokens=64"]):
        assert parse_run(TrainConfig, words).max_tokens == 64
    assert parse_run(TrainConfig, ["--resume"]).resume is True
    assert parse_run(TrainConfig, ["--eval_temperature", "0.5"]).eval_temperature == 0.5
    assert parse_run(TrainConfig, ["--advantage", "none"]).advantage == "none"


@pytest.mark.parametrize("words", [["--bogus", "1"], ["--max_tokens", "many"], ["--max_tokens"], ["--engine", "x"]])
def test_flags_that_cannot_be_read(words: list[str], trainer: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *words]) == 2
    assert words[0] in capsys.readouterr().err
    assert trainer.seen == []


def test_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    err = capsys.readouterr().err
    assert is_one_sentence(err)
    assert err.endswith("did you mean train?\n")
    assert main([]) == 2


def test_the_help_lists_every_command_and_flag_as_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in COMMANDS)
    assert {"baseline", "train", "eval", "suite", "report", "warmstart", "data", "solve", "play"} <= COMMANDS.keys()
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
        assert f"usage: nsr {name}" in capsys.readouterr().out
    main(["train", "--help"])
    out = capsys.readouterr().out
    assert "--max_tokens INT" in out
    assert "Longest response in tokens. (default: 256)" in out
    assert "--preset" in out


def test_help_and_bad_flags_import_nothing_heavy() -> None:
    code = """
import sys
from nsr.cli import main
for line in ("--help", "train --help", "train --group_size 7", "solve 1 2 --target 3"):
    main(line.split())
print([name for name in ("torch", "transformers", "datasets", "pyarrow", "matplotlib") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]", result


def test_solve(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", "44", "19", "35", "--target", "98"]) == 0
    assert capsys.readouterr() == ("19 + 35 + 44\n", "1 solution\n")
    assert main(["solve", "--target", "98", "1", "2"]) == 0
    assert capsys.readouterr() == ("", "no solutions\n")
    assert main(["solve", "44", "--target", "98"]) == 2
    assert is_one_sentence(capsys.readouterr().err)


PUZZLES = (
    Puzzle(numbers=(44, 19, 35), target=98),
    Puzzle(numbers=(3, 3, 8, 8), target=24),
    Puzzle(numbers=(1, 2, 3), target=6),
    Puzzle(numbers=(5, 7, 9), target=21),
)


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """A source of puzzles, and what it was asked for."""
    asked: list[dict[str, object]] = []

    def load_splits(source: str, **options: object) -> SimpleNamespace:
        asked.append({"source": source, **options})
        return SimpleNamespace(train=PUZZLES, evaluation=PUZZLES[:2], description="made up")

    module = install(monkeypatch, "nsr.tasks.countdown.data", "")
    monkeypatch.setattr(module, "load_splits", load_splits, raising=False)
    return asked


def test_data_is_shown_with_statistics(source: list[dict[str, object]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "--data", "synthetic:3", "--count", "4", "--seed", "7"]) == 0
    assert source == [{"source": "synthetic:3", "eval_puzzles": 1, "seed": 7, "train_puzzles": 4}]
    assert capsys.readouterr().out.splitlines() == [
        "44 19 35 -> 98",
        "3 3 8 8 -> 24",
        "1 2 3 -> 6",
        "5 7 9 -> 21",
        "made up",
        "4 puzzles: 75.0% have 3 numbers, 25.0% have 4 numbers, 25.0% repeat a number",
        # 1 2 3 3 3 5 7 8 8 9 19 35 44: their sum is 147, the 4th, 7th and 10th are the quartiles
        "numbers: 1 to 44, mean 11.3, quartiles 3, 7, 9",
        # 6 21 24 98
        "targets: 6 to 98, mean 37.2, quartiles 17.25, 22.5, 42.5",
    ]
    assert main(["data", "--split", "evaluation", "--count", "1"]) == 0
    assert source[1] == {"source": "synthetic", "eval_puzzles": 1, "seed": 42, "train_puzzles": 1}
    assert capsys.readouterr().out.splitlines()[-1] == "targets: 98 to 98, mean 98.0, quartiles 98, 98, 98"


@pytest.mark.usefixtures("source")
def test_data_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = tmp_path / "puzzles.jsonl"
    assert main(["data", "--count", "2", "--out", str(lines)]) == 0
    expected = [{"nums": [44, 19, 35], "target": 98}, {"nums": [3, 3, 8, 8], "target": 24}]
    assert [json.loads(line) for line in lines.read_text().splitlines()] == expected
    table = tmp_path / "puzzles.parquet"
    assert main(["data", "--count", "2", "--out", str(table)]) == 0
    import pyarrow.parquet as pq

    assert pq.read_table(table).to_pylist() == expected
    capsys.readouterr()
    for bad in (lines, tmp_path / "missing" / "puzzles.jsonl"):
        assert main(["data", "--out", str(bad)]) == 2
        err = capsys.readouterr().err
        assert is_one_sentence(err)
        assert "--out" in err


def test_play_and_warmstart_get_their_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    played = install(monkeypatch, "nsr.tools.play", "seen = []\ndef play(config):\n    seen.append(config)")
    flags = ["44", "19", "35", "--target", "98", "--model_id", "tiny", "--num_samples", "8"]
    assert main(["play", *flags]) == 0
    assert [(config.numbers, config.target, config.num_samples) for config in played.seen] == [((44, 19, 35), 98, 8)]
    assert main(["play", "44", "--target", "98"]) == 2
    assert is_one_sentence(capsys.readouterr().err)
    started = install(monkeypatch, "nsr.training.sft", "seen = []\ndef warmstart(config):\n    seen.append(config)")
    assert main(["warmstart", "--from_scratch", "--exclude", "a.parquet", "b.jsonl"]) == 0
    assert [(config.from_scratch, config.exclude) for config in started.seen] == [(True, ("a.parquet", "b.jsonl"))]


def test_explain_gets_its_settings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    explained = install(
        monkeypatch, "nsr.tools.explain", "seen = []\ndef explain(config):\n    seen.append(config)\n    return 'x'"
    )
    shown = install(monkeypatch, "nsr.report.explain", "seen = []\ndef show_explanation(path):\n    seen.append(path)")
    assert main(["explain"]) == 0
    assert main(["explain", "44", "19", "35", "--target", "98", "--objectives", "NSR", "PSR", "--positions", "3"]) == 0
    first, second = explained.seen
    assert (first.numbers, first.target, first.data) == ((), None, "synthetic")
    assert (second.numbers, second.target, second.objectives) == ((44, 19, 35), 98, ("NSR", "PSR"))
    assert second.positions == (3,)
    assert shown.seen == ["x", "x"]
    for words, part in (
        (["44", "19"], "--target and the numbers go together"),
        (["--target", "98"], "--target and the numbers go together"),
        (["44", "--target", "98"], "2 to 6 numbers"),
        (["--objectives", "NRS"], "did you mean NSR?"),
        (["--group_size", "1"], "--group_size is 1"),
        (["--positions", "-1"], "--positions is -1"),
    ):
        assert main(["explain", *words]) == 2
        err = capsys.readouterr().err
        assert is_one_sentence(err), err
        assert part in err
    assert len(explained.seen) == 2


def test_baseline_gets_its_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = install(
        monkeypatch, "nsr.evaluation.baseline", "seen = []\ndef run_baseline(config):\n    seen.append(config)"
    )
    assert main(["baseline", "--preset", "tiny", "--max_tokens", "99", "--output_dir", str(tmp_path)]) == 0
    assert module.seen == [parse_run(BaselineConfig, ["--preset=tiny", "--max_tokens=99", f"--output_dir={tmp_path}"])]
    assert main(["baseline", "--lr", "1e-3"]) == 2


@pytest.mark.parametrize(("script", "command"), [("experiment.py", "train"), ("baseline.py", "baseline")])
def test_the_scripts_are_the_commands(
    script: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--max_tokens", "1"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert end.value.code == main([command, "--max_tokens", "1"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == second

    monkeypatch.setitem(sys.modules, "nsr.cli", None)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert end.value.code == 2
    assert re.search(r"install nsr first, with `pip install -r requirements.txt`", capsys.readouterr().err)


def test_a_command_says_nothing_but_its_own() -> None:
    words = ["play", "44", "19", "35", "--target", "98", "--num_samples", "1", "--max_tokens", "8"]
    result = subprocess.run([sys.executable, "-m", "nsr", *words], capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stderr == ""
    assert result.stdout.startswith("attempt 1: ")


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m nsr solve 1 2 --target 3 | true; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert result.stdout == "0\n"
    assert "BrokenPipe" not in result.stderr


@pytest.mark.skipif(find_spec("nsr.training.loop") is None, reason="there is no trainer yet")
@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--model_id", "./nowhere"], ["--model_id", "./nowhere"]),
        (["--model_id", "no-such/model"], ["--model_id", "no-such/model", "hub", "unreachable"]),
        (["--max_tokens", "1000000"], ["--max_tokens", "1000000", "context"]),
        (["--data", "nowhere.parquet"], ["nowhere.parquet"]),
    ],
)
def test_what_the_set_up_finds_through_the_real_command(flags: list[str], parts: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nsr", "train", "--preset", "tiny", *flags]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "src")}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert result.returncode == 2
    assert all(part in result.stderr for part in parts), result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
