"""The model of a run as a folder to give away: its files, checked, and a card that says what it is.

Nothing but the files of a model is copied: no optimizer, no random state, nothing that a link leads to outside.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from nsr.config import ExportConfig
from nsr.errors import UserError
from nsr.models.files import check_folder
from nsr.report.collect import collect
from nsr.report.model_card import model_card
from nsr.report.run import RunRecord
from nsr.runs.checkpoints import ASIDE, checkpoint_step, checkpoints, fault, newest_checkpoint
from nsr.runs.files import read_json
from nsr.runs.folder import is_complete
from nsr.runs.progress import printable

_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
)
"""What a model's folder may hold for `transformers` and vLLM to load it: the rest of a checkpoint stays."""


def export(config: ExportConfig) -> Path:
    """Write the model of a run and its card to a new folder; returns it.

    Raises:
        ValueError: there is no such run or model, a file of it is damaged, or the folder cannot be written.
    """
    out = Path(config.out)
    if out.exists() or out.is_symlink():
        raise UserError(f"--out is {config.out!r}, which exists: choose another name, or delete it.")
    run = _find_run(Path(config.run))
    source, step = _find_weights(run, config)
    check_folder(f"the model of the run {config.run!r}", source)
    files = _files_of(source)
    card = model_card(run, step=step, name=out.name, final=config.checkpoint is None)
    try:
        _write(out, files, card)
    except OSError as error:
        raise UserError(
            f"--out is {config.out!r} but cannot be written ({error.strerror or error}): make room, or choose another."
        ) from error
    print(f"The model after {step} steps is in {printable(str(out)).plain}, with a card in README.md.")
    return out


def _find_run(path: Path) -> RunRecord:
    advice = "give the folder of a training run, such as `output/demo`"
    found = collect([path])
    for problem in found.problems:
        print(printable(problem).plain)
    if [run.path for run in found.runs] != [path.resolve()]:
        raise UserError(f"{str(path)!r} is not the folder of one run that can be read: {advice}.")
    if found.runs[0].config["command"] != "train":
        raise UserError(f"the run {str(path)!r} trained no model: {advice}.")
    return found.runs[0]


def _find_weights(run: RunRecord, config: ExportConfig) -> tuple[Path, int]:
    """Folder of the weights, and the training steps behind them."""
    try:
        found = _weights(run, config.checkpoint)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        advice = "restore it, or take another checkpoint"
        raise UserError(f"a file of the run {config.run!r} is not what it should be ({error!r}): {advice}.") from error
    if found is not None:
        return found
    if config.checkpoint is None:
        fault, advice = (
            "no final model, since it is not complete",
            "finish it with --resume, or add --checkpoint newest",
        )
    elif config.checkpoint == "newest":
        fault, advice = "no whole checkpoint", "go on with it first, with --resume"
    else:
        fault, advice = "no whole checkpoint with an evaluation after its step", "use --checkpoint newest"
    raise UserError(f"the run {config.run!r} has {fault}: {advice}.")


def _weights(run: RunRecord, checkpoint: str | None) -> tuple[Path, int] | None:
    folder = run.path / "checkpoints"
    if checkpoint is None:
        if is_complete(run.path) and (run.path / "model").is_dir():
            return run.path / "model", int(read_json(run.path / "done.json")["step"])
        return None
    if checkpoint == "newest":
        newest = newest_checkpoint(folder)
        return newest and (newest[1], newest[0])
    whole = [(checkpoint_step(path), path) for path in checkpoints(folder) if fault(path) is None]
    measured = [(value.accuracy.estimate, step, path) for step, path in whole if (value := run.evaluation(step))]
    if not measured:
        return None
    _, step, path = max(measured)
    return path, step


def _files_of(source: Path) -> list[Path]:
    files = sorted({file for pattern in _FILES for file in source.glob(pattern)})
    for file in files:
        if not file.is_file() or not file.resolve().is_relative_to(source.resolve()):
            advice = "put the file itself there"
            raise UserError(f"{str(file)!r} is no file of the run, but leads out of its folder: {advice}.")
    return files


def _write(out: Path, files: list[Path], card: str) -> None:
    """Write the folder aside and rename it: it is there whole, or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=ASIDE, dir=out.parent))
    try:
        for file in files:
            shutil.copyfile(file, aside / file.name)
        (aside / "README.md").write_text(card, encoding="utf-8")
        for file in aside.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        aside.chmod(0o755)
        aside.rename(out)  # fails where another process has made it in the meantime
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
