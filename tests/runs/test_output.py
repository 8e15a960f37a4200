"""What a run prints never stops it, and whoever reads its files while it goes finds whole lines."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from micro_model import micro_config, save_micro_model

from nsr.runs.files import read_last_lines, read_lines
from nsr.runs.folder import is_complete
from nsr.runs.output import Tolerant, tolerant_output
from nsr.suite.lists import to_words


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_micro_model(tmp_path_factory.mktemp("model"))


class Failing(io.StringIO):
    """Takes so many characters, then fails as a pipe without a reader does."""

    def write(self, text: str) -> int:
        if self.tell() + len(text) > 10:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


def test_what_fails_is_dropped_and_so_is_the_rest() -> None:
    behind = Failing()
    stream = Tolerant(behind)
    for text in ("12345", "67890", "x", "y"):
        assert stream.write(text) == len(text)
    stream.flush()
    assert behind.getvalue() == "1234567890"
    closed = io.StringIO()
    closed.close()
    Tolerant(closed).write("x")


def test_characters_that_the_encoding_lacks_are_shown_as_escapes() -> None:
    raw = io.BytesIO()
    stream = Tolerant(io.TextIOWrapper(raw, encoding="ascii"))
    stream.write("a → b")
    stream.flush()
    assert raw.getvalue() == b"a \\u2192 b"


def test_it_is_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    with tolerant_output():
        print("seen")
        assert isinstance(sys.stdout, Tolerant)
    assert sys.stdout is before
    assert capsys.readouterr().out == "seen\n"


SHELL = {
    "a reader that goes away": '"$@" | head -1',
    "a full disk": '"$@" > /dev/full',
    "everything closed": '"$@" <&- >&- 2>&-',
    "a dumb terminal without UTF-8, one column wide": (
        'TERM=dumb LC_ALL=C PYTHONIOENCODING=ascii COLUMNS=1 PYTHONUTF8=0 FORCE_COLOR=1 "$@" > /dev/null'
    ),
}


@pytest.mark.parametrize("how", SHELL)
def test_a_run_goes_to_its_end_whoever_reads_what_it_prints(how: str, model: Path, tmp_path: Path) -> None:
    config = micro_config(model, tmp_path, n_train_steps=2, eval_puzzles=2)
    command = [sys.executable, "-u", "-m", "nsr", *to_words(config)]
    script = f"set -o pipefail; {SHELL[how]}"
    done = subprocess.run(["bash", "-c", script, "bash", *command], capture_output=True, text=True)
    assert is_complete(config.run_path, 2), done.stderr
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


WRITER = """
import sys
from pathlib import Path
from nsr.runs.files import append_line
for step in range(int(sys.argv[2])):
    append_line(Path(sys.argv[1]), {"step": step, "text": "x" * (step * 7919 % 20000)})
"""


def test_a_reader_never_sees_half_a_line(tmp_path: Path) -> None:
    path, count = tmp_path / "metrics.jsonl", 400
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(count)])
    seen, reads = 0, 0
    while seen < count:
        assert writer.poll() in (None, 0)
        records = read_lines(path)
        assert [record["step"] for record in records] == list(range(len(records)))
        assert all(len(record["text"]) == record["step"] * 7919 % 20000 for record in records)
        last = read_last_lines(path, 2)
        assert [record["step"] for record in last] == sorted(record["step"] for record in last)
        if path.exists():
            data = path.read_bytes()
            assert all(json.loads(line) for line in data.split(b"\n")[:-1])
        assert len(records) >= seen
        seen, reads = len(records), reads + 1
    assert writer.wait() == 0
    assert reads > 3
    assert path.stat().st_size > 0
