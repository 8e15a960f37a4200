"""`python -m study.best`: how far the embedded model goes on the public rows, with whatever gets it there.

A second warm start on longer traces, then reinforcement. No part of the comparison: the recipe was found on the
development rows. The test rows are for `--test`, once.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from nsr.config import BaselineConfig, ExportConfig, TrainConfig, WarmstartConfig, with_preset
from nsr.report.export import export
from nsr.runs.files import write_json
from nsr.suite import run_list
from nsr.training.sft import warmstart
from study.keep import keep
from study.measuring import EVALUATION_SEED, Measurement
from study.runs import BEST, WARM, Training
from study.sets import REAL_DEV_LONG, REAL_LONG, PuzzleSet, write_set

FOLDER = Path("docs/results/data/best")
MODEL = Path("docs/results/model")
MEASURED = {"base": "tiny", "warm_start": "warm", "best": "model"}
"""The embedded model, and folders of what became of it."""
RECORD = "warmstart.json"


def warmed(root: Path, rows: Path) -> Path:
    """The embedded model after another warm start, on traces of synthetic puzzles that are none of the measured."""
    out = root / "warm"
    if not (out / RECORD).exists():
        shutil.rmtree(out, ignore_errors=True)  # it was interrupted, and begins again
        exclude = tuple(str(rows / f"{name}.parquet") for name in ("dev", "test"))
        warmstart(WarmstartConfig(model_id="tiny", out=str(out), exclude=exclude, **WARM))
    return out


def training(root: Path, rows: Path) -> Training:
    """The one training after that, on the public training rows."""
    config = dataclasses.replace(
        with_preset(TrainConfig, "tiny"),
        model_id=str(root / "warm"),
        data=f"{rows / 'train.parquet'},{rows / 'dev.parquet'}",
        output_dir=str(root),
        exp_name="best",
        log_to="none",
        resume=True,
        **BEST,
    )
    return Training(method="best", part="main", config=config)


def weights_digest(model: Path) -> str:
    """SHA-256 of a model folder's weights."""
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()


def amended(card: str, made: Training) -> str:
    """A model card that names the embedded model and its licence, not the folder between it and the training."""
    text, heading, _ = card.partition("## Licence")
    assert text.startswith("---\n"), "a card begins with its fields"
    assert heading, "a card ends with its licence"
    text = text.replace(
        f"`{made.config.model_id}`", "nsr's embedded model `tiny`, after a second warm start on solver traces"
    )
    return f'---\nlicense: "mit"\n{text[4:]}{heading}\n\nMIT, as the embedded model that it was made from.\n'


def rounded(made: Training, out: Path) -> Path:
    """The trained model as a folder to give away, its weights rounded to bfloat16: half the size."""
    if not out.exists():
        aside = out.with_name(f"{out.name}.part") / out.name  # the name goes into its card
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        export(ExportConfig(run=str(made.config.run_path), out=str(aside)))
        model: Any = AutoModelForCausalLM.from_pretrained(aside, dtype=torch.bfloat16)
        model.save_pretrained(aside)
        card = aside / "README.md"
        card.write_text(amended(card.read_text(), made))
        aside.rename(out)
        aside.parent.rmdir()
    return out


def measurement(root: Path, rows: Path, one: PuzzleSet, name: str, made: Training) -> Measurement:
    """One of `MEASURED` on a set, with as many tokens as the training had."""
    config = dataclasses.replace(
        with_preset(BaselineConfig, "tiny"),
        model_id=MEASURED[name] if name == "base" else str(root / MEASURED[name]),
        data=f"{rows / 'train.parquet'},{one.path(root)}",
        max_tokens=made.config.max_tokens,
        eval_puzzles=one.num_puzzles,
        eval_samples=one.num_samples,
        seed=EVALUATION_SEED,
        output_dir=str(root / "measured" / one.name),
        exp_name=name,
        resume=True,
    )
    return Measurement(puzzles=one, training=made if name == "best" else None, config=config)


def main() -> int:
    """Train, publish, measure, keep. Returns an exit code: 130 after ctrl-C, 1 where a run failed."""
    parser = argparse.ArgumentParser(prog="python -m study.best", description=__doc__)
    parser.add_argument("--rows", type=Path, required=True, help="folder of train.parquet, dev.parquet, test.parquet")
    parser.add_argument("--test", action="store_true", help="then measure on the test rows")
    parser.add_argument("--root", type=Path, default=Path("output/best"), help="folder of the runs")
    parser.add_argument("--data", type=Path, default=FOLDER, help="folder of what is kept")
    parser.add_argument("--model", type=Path, default=MODEL, help="where the trained model is published")
    given = parser.parse_args()
    root, rows = given.root, given.rows
    warm = warmed(root, rows)
    made = training(root, rows)
    if code := run_list(root, [made.config], jobs=1):
        return code
    model = rounded(made, root / "model")
    sets = [(REAL_DEV_LONG, rows / "dev.parquet")]
    if given.test or REAL_LONG.path(root).exists():  # once looked at, it stays in what is kept
        sets.append((REAL_LONG, rows / "test.parquet"))
    for one, file in sets:
        write_set(root, one, file)
    measured = [measurement(root, rows, one, name, made) for one, _ in sets for name in MEASURED]
    if code := run_list(root, [one.config for one in measured], jobs=1):
        return code
    keep(root, given.data, [made], measured)
    shutil.copy(warm / RECORD, given.data)
    write_json(given.data / "weights.json", {"sha256": weights_digest(model)})
    shutil.copytree(model, given.model, dirs_exist_ok=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
