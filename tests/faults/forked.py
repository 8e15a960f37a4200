"""Real training processes that start in a fraction of a second: forked from one that has imported everything.

`python forked.py FOLDER` writes a very small model to FOLDER, then takes requests, one a line: the words of a command
line and what is wrong with its world. Each runs as a process of its own, the same as `nsr` in all but the imports.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

PHASES = (
    "start-up",
    "drawing the probe",
    "sampling",
    "learning",
    "evaluating",
    "saving",
    "deleting",
    "final model",
    "summary",
    "between",
)
SMALL = {
    "--device": "cpu",
    "--data": "synthetic:3",
    "--max_tokens": "12",
    "--temperature": "1.0",
    "--eval_puzzles": "3",
    "--eval_samples": "2",
    "--n_train_steps": "16",
    "--lr": "1e-3",
    "--rollout_batch_size": "8",
    "--group_size": "4",
    "--grad_acc_steps": "2",
    "--updates_per_rollout": "2",
    "--eval_every": "4",
    "--save_every": "2",
    "--keep": "2",
    "--log_to": "none",
    "--exp_name": "run",
}
"""A run that has every part of one and takes a second or two."""


class Trainer:
    """The process that others are forked from. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.model = folder / "small_model"
        self._phase_file = folder / "phase"
        self._phase_file.write_bytes(b"\0")
        with self._phase_file.open("r+b") as file:
            self._phase = mmap.mmap(file.fileno(), 1)
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self.model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        assert self._process.stdout is not None
        self._answers = self._process.stdout.fileno()
        assert self._answer() == "ready"

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # the end of its requests is its end

    def words(self, output: Path, **changes: object) -> list[str]:
        """The command line of a small run in `output`, without --resume."""
        flags = {"--model_id": str(self.model), "--output_dir": str(output), **SMALL}
        flags |= {f"--{name}": str(value) for name, value in changes.items()}
        return ["train", *(f"{flag}={value}" for flag, value in flags.items())]

    def start(self, words: list[str], log: Path, **world: object) -> int:
        """Start `nsr WORDS`, with its output appended to `log`; returns the process id."""
        self._phase[0] = 0
        request = {"words": words, "log": str(log), "phase": str(self._phase_file), **world}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return int(self._answer())

    def ended(self, seconds: float) -> bool:
        """Whether the process ends within so many seconds."""
        return bool(select.select([self._answers], [], [], max(0.0, seconds))[0])

    def code(self) -> int:
        """Wait for the end of the process: its exit code, or minus the signal that ended it."""
        assert self.ended(300), "the run does not end"
        return int(self._answer())

    def run(self, words: list[str], log: Path, **world: object) -> int:
        """Start it and wait for its end."""
        self.start(words, log, **world)
        return self.code()

    def _answer(self) -> str:
        """The next line from the process; read byte by byte, so that `ended` sees what is not read yet."""
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self._answers, 1)
            assert byte, "the process that others are forked from has ended"
            line += byte
        return line.decode().strip()

    @property
    def phase(self) -> str:
        """What the process is doing, or was doing when it was killed."""
        return PHASES[self._phase[0]]

    def wait_for(self, phase: str) -> bool:
        """Wait until the process is in a phase; False if it ends before."""
        while self.phase != phase:
            if self.ended(0.001):
                return False
        return True


def _serve(model: Path) -> None:
    for heavy in ("nsr.training.loop", "nsr.report.summary", "transformers.models.qwen3.modeling_qwen3"):
        importlib.import_module(heavy)
    _write_model(model)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _run(request)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _write_model(folder: Path) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from nsr.models.embedded import build_tiny_tokenizer

    tokenizer = build_tiny_tokenizer()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _run(request: dict[str, Any]) -> NoReturn:
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        _change_world(request)
        from nsr.cli import main

        code = main(request["words"])
    except BaseException:  # noqa: BLE001  as the interpreter does
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _change_world(request: dict[str, Any]) -> None:
    import nsr.report.summary as summary
    import nsr.training.checkpoint as checkpoint
    import nsr.training.loop as trainer

    with Path(request["phase"]).open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 1)
    parts = {
        "rollout": "sampling",
        "update": "learning",
        "evaluate": "evaluating",
        "save_checkpoint": "saving",
        "draw_probe": "drawing the probe",
        "save_model": "final model",
    }
    for name, phase in parts.items():
        seconds = 2.0 if request.get("slow") == name else 0.0
        setattr(trainer, name, _marked(getattr(trainer, name), memory, PHASES.index(phase), seconds))
    checkpoint.prune = _marked(checkpoint.prune, memory, PHASES.index("deleting"))
    summary.summarize = _marked(summary.summarize, memory, PHASES.index("summary"))
    if "die_after" in request:
        save = trainer.save_checkpoint

        def save_and_die(folder: Path, step: int, *arguments: Any, **named: Any) -> Path:
            path = save(folder, step, *arguments, **named)
            if step == request["die_after"]:
                os.kill(os.getpid(), signal.SIGKILL)
            return path

        trainer.save_checkpoint = save_and_die
    if "clock" in request:
        now = time.time
        time.time = lambda: now() + request["clock"]
    if "file_limit" in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"], request["file_limit"]))
    if "version" in request:
        import nsr.runs.environment as environment

        describe = environment.describe
        trainer.describe = lambda: {**describe(), "packages": {"nsr": request["version"]}}


def _marked(function: Callable[..., Any], memory: mmap.mmap, phase: int, seconds: float = 0.0) -> Callable[..., Any]:
    def marked(*arguments: Any, **named: Any) -> Any:
        memory[0] = phase
        try:
            time.sleep(seconds)
            return function(*arguments, **named)
        finally:
            memory[0] = PHASES.index("between")

    return marked


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
