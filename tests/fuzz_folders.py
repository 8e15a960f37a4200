"""Damage to whole run folders, drawn from a seed, and what every command must do with it.

    python tests/fuzz_folders.py --cases 5000     the long form; prints what it found

A command must end in a result or in a sentence: no exception, no hang, nothing in its output that a terminal or a
browser would obey, and nothing written outside of the run's folder and the place that was asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from micro_model import micro_config, save_micro_model

LIMIT_SECONDS = 60
STEPS = 3

STRINGS = (
    "<canary onload=alert(1)>",
    "</script><canary>",
    "\x1b[31m\x1b]8;;http://canary\x07",
    "\u202egnp.exe\u2066",
    "\ud800",
    "\x00",
    "a\r\nb\x85\u2028",
    "../../../outside/file.txt",
    "/dev/zero",
    "{{ 7 * 7 }}${x}`*_[|]",
    "x" * 100_000,
    "",
    "NaN",
)
NUMBERS = (float("nan"), float("inf"), -float("inf"), 1e308, -1, 0, 10**30, 2**63, -(10**400), 0.1, True)
VALUES: tuple[Any, ...] = (*STRINGS, *NUMBERS, None, [], {}, [[]], {"a": {}}, ["x"], [1, 2])


def make_run(folder: Path) -> Path:
    """A real, complete run of a very small model, with evaluations, samples, checkpoints, probe and event."""
    from nsr.training.loop import train

    model = save_micro_model(folder / "model")
    config = micro_config(model, folder, n_train_steps=STEPS, eval_every=2, save_every=1, keep=2, eval_puzzles=3)
    with contextlib.redirect_stdout(io.StringIO()):
        path = train(config)
    event = {"step": 2, "event": "collapse", "kind": "accuracy", "reason": "accuracy 1% in steps 1 to 2"}
    (path / "events.jsonl").write_text(json.dumps(event) + "\n")
    (path / "figures").mkdir()
    (path / "figures" / "passk.png").write_text("an earlier report's")
    return path


class Fuzzer:
    """Copies of one run, each damaged and then given to the commands."""

    def __init__(self, base: Path, work: Path) -> None:
        self.base = base
        self.work = work
        self.outside = work / "outside"
        (self.outside / "folder").mkdir(parents=True)
        (self.outside / "file.txt").write_text("not nsr's\n")
        (self.outside / "folder" / "other.txt").write_text("not nsr's\n")
        self.before = _listing(self.outside)

    def case(self, seed: int, commands: tuple[str, ...]) -> list[str]:
        """What is wrong with what the commands do after the damage of a seed."""
        rng = random.Random(seed)
        output = self.work / "output"
        shutil.rmtree(output, ignore_errors=True)
        run = shutil.copytree(self.base, output / "run", symlinks=True)
        damage = [self.damage(run, rng) for _ in range(rng.choice((1, 1, 1, 2, 4)))]
        wrong: list[str] = []
        for command in commands:
            try:
                with _limit(LIMIT_SECONDS):
                    wrong += COMMANDS[command](self, run)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                where = traceback.extract_tb(error.__traceback__)[-1]
                wrong.append(f"{command}: {type(error).__name__}: {error} ({where.filename}:{where.lineno})"[:400])
            if _listing(self.outside) != self.before:
                wrong.append(f"{command}: something outside has changed")
        return [f"seed {seed}, {'; '.join(damage)}: {what}" for what in wrong]

    def damage(self, run: Path, rng: random.Random) -> str:
        """Damage one file or folder; says how."""
        files = sorted(path for path in run.rglob("*") if path.is_file() and not path.is_symlink())
        weights = [8 if path.parent in (run, run / "evaluations", run / "figures") else 1 for path in files]
        if not files:
            return "nothing left"
        path = rng.choices(files, weights)[0]
        kinds: list[Callable[[Path, random.Random], None]] = [_delete, _truncate, _flip, _garbage, _as_folder, _encode]
        kinds += [self._link, _fifo, _half_line, _delete_folder]
        if path.suffix == ".json" or ".jsonl" in path.name:
            kinds += [_mutate_json] * 12
        if ".jsonl" in path.name:
            kinds += [_lines] * 3
        kind = rng.choice(kinds)
        kind(path, rng)
        return f"{getattr(kind, '__name__', kind)} {path.relative_to(run)}"

    def _link(self, path: Path, rng: random.Random) -> None:
        targets = [
            self.outside / "file.txt",
            Path("/dev/zero"),
            Path("/dev/null"),
            path,
            self.outside / "none",
            Path("/"),
        ]
        folder = rng.random() < 0.3 and path.parent.name in ("evaluations", "checkpoints", "figures")
        if folder:
            shutil.rmtree(path.parent)
            path.parent.symlink_to(self.outside / "folder")
        else:
            path.unlink()
            path.symlink_to(rng.choice(targets))

    def _main(self, words: list[str]) -> tuple[int, str]:
        from nsr.cli import main

        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main(words)
        return code, out.getvalue()

    def _run(self, words: list[str]) -> list[str]:
        code, text = self._main(words)
        wrong = [f"{words[0]}: exit code {code}"] if code not in (0, 1, 2, 3) else []
        if "Traceback" in text:
            wrong.append(f"{words[0]}: a traceback")
        if found := re.search(
            r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029\u2066-\u2069\ud800-\udfff]", text
        ):
            wrong.append(f"{words[0]}: {found[0]!r} in its output")
        if code and not text.strip():
            wrong.append(f"{words[0]}: exit code {code} and no word")
        return wrong

    def main_of(self, command: str, run: Path) -> tuple[int, str]:
        """Exit code and output of a command that only reads."""
        out = str(self.work / "report")
        words = {
            "watch": ["watch", "--once", str(run)],
            "report": ["report", str(run), "--out", out],
            "from_samples": ["eval", "--from_samples", str(run)],
        }
        return self._main(words[command])

    def watch(self, run: Path) -> list[str]:
        return self._run(["watch", "--once", str(run.parent)])

    def report(self, run: Path) -> list[str]:
        out = self.work / "report"
        shutil.rmtree(out, ignore_errors=True)
        wrong = self._run(["report", str(run.parent), "--out", str(out)])
        if (out / "report.html").exists():
            page = (out / "report.html").read_text("utf-8")
            if "<canary" in page or "</canary" in page or "\x1b" in page:
                wrong.append("report: a canary lives in the page")
        return wrong

    def report_beside(self, run: Path) -> list[str]:
        """The report where it lies by default: in the run's folder."""
        return self._run(["report", str(run)])

    def from_samples(self, run: Path) -> list[str]:
        return self._run(["eval", "--from_samples", str(run)])

    def resume(self, run: Path) -> list[str]:
        from nsr.suite.lists import to_words

        (run / "done.json").unlink(missing_ok=True) if (run / "done.json").is_file() else None
        changes = {"n_train_steps": STEPS + 1, "eval_every": 2, "save_every": 1, "keep": 2, "eval_puzzles": 3}
        config = micro_config(self.base.parent / "model", run.parent, resume=True, **changes)
        return self._run(to_words(config))


COMMANDS: dict[str, Callable[[Fuzzer, Path], list[str]]] = {
    "watch": Fuzzer.watch,
    "report": Fuzzer.report,
    "report_beside": Fuzzer.report_beside,
    "from_samples": Fuzzer.from_samples,
    "resume": Fuzzer.resume,
}


def _listing(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"it hangs: {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _delete(path: Path, rng: random.Random) -> None:
    path.unlink()


def _delete_folder(path: Path, rng: random.Random) -> None:
    if path.parent.name in ("evaluations", "checkpoints") or "step_" in path.parent.name:
        shutil.rmtree(path.parent)
    else:
        path.unlink()


def _truncate(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data) + 1)])


def _flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 3, 30)) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))


def _garbage(path: Path, rng: random.Random) -> None:
    nested = b"[" * 100_000
    choices = (b"", b"\n\n\n", b"null\n", b"[]\n", b"{}\n", b"0\n", nested, b'{"step":' + nested, rng.randbytes(300),
               b'{"a": "' + b"x" * 2_000_000 + b'"}\n', b"\xff\xfe\x00" * 99, b"{" * 99)  # fmt: skip
    data = rng.choice(choices)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" and rng.random() < 0.7 else data)


def _as_folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()
    (path / "x").write_text("x")


def _encode(path: Path, rng: random.Random) -> None:
    text = path.read_bytes().decode("latin-1")
    path.write_bytes(text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")), "replace"))


def _fifo(path: Path, rng: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _half_line(path: Path, rng: random.Random) -> None:
    with path.open("ab") as file:
        file.write(b'{"step": 4, "loss": 0.')


def _lines(path: Path, rng: random.Random) -> None:
    """Lines twice, in another order, or without some of them."""
    try:
        data = _read(path).splitlines(keepends=True)
    except (OSError, EOFError, zlib.error):  # damaged before
        return
    chosen = [rng.choice(data) for _ in range(rng.randrange(2 * len(data) + 1))] if data else []
    _write(path, b"".join(chosen))


def _mutate_json(path: Path, rng: random.Random) -> None:
    """Another value somewhere, a key less, or one more."""
    try:
        lines = [json.loads(line) for line in (_read(path).splitlines() if ".jsonl" in path.name else [_read(path)])]
    except (ValueError, RecursionError, OSError, EOFError, zlib.error):  # damaged before
        return _garbage(path, rng)
    if not lines:
        return _garbage(path, rng)
    for _ in range(rng.choice((1, 1, 2, 5))):
        index = rng.randrange(len(lines))
        lines[index] = _mutated(lines[index], rng)
    with contextlib.suppress(UnicodeError):
        _write(path, b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    return None


def _mutated(value: Any, rng: random.Random, depth: int = 0) -> Any:
    if not isinstance(value, (dict, list)) or not value or (depth and rng.random() < 0.2):
        if rng.random() < 0.02:
            return json.loads("[" * 900 + "]" * 900)
        return rng.choice(VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    if rng.random() < 0.15:
        del value[key]
    elif isinstance(value, dict) and rng.random() < 0.1:
        value[rng.choice(STRINGS)] = value.pop(key)
    else:
        value[key] = _mutated(value[key], rng, depth + 1)
    return value


def _read(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default="watch,from_samples,report,resume")
    parser.add_argument(
        "--figures", action="store_true", help="draw the report's figures too, which takes seconds a case"
    )
    parser.add_argument("--seconds", type=float, default=float("inf"))
    given = parser.parse_args()
    commands = tuple(given.commands.split(","))
    if not given.figures:
        from nsr.report import report

        report.MOST_SECTIONS_DRAWN = 0
    start, done, wrong = time.monotonic(), 0, list[str]()
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(make_run(Path(folder) / "base"), Path(folder))
        for seed in range(given.seed, given.seed + given.cases):
            if time.monotonic() - start > given.seconds:
                break
            found = fuzzer.case(seed, commands)
            done += 1
            for line in found:
                print(ascii(line)[:700], flush=True)
            wrong += found
    kinds = Counter(line.rsplit("(", 1)[-1] for line in wrong)
    print(
        f"{done} cases x {len(commands)} commands in {time.monotonic() - start:.0f} s: {len(wrong)} wrong",
        *kinds.items(),
        sep="\n",
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
