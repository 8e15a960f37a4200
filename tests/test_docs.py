"""What the documents say holds: their links, the make targets they name, the command lines and the code they show."""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/nsr/**/*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def prose(document: Path) -> str:
    return BLOCK.sub("", document.read_text("utf-8"))


def lines_of_shell(text: str) -> list[str]:
    blocks = [
        block.replace("\\\n", " ") for language, block in BLOCK.findall(text) if language in {"bash", "console", "sh"}
    ]
    return [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]


def nsr_words(line: str) -> Iterator[list[str]]:
    """What follows `nsr` in the commands of a shell line, if it is one of them. Scripts become the command they are."""
    scripts = {
        "baseline.py": ["baseline"],
        "experiment.py": ["train"],
        "run_experiments.sh": ["train", "--objective", "NSR", "--max_tokens", "256", "--resume"],
    }
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.commenters = "#"
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("();<>|&"):
            commands.append([])
        elif commands[-1] or not re.fullmatch(r"\w+=.*", word):  # a variable that is set for the command
            commands[-1].append(word)
    for command in commands:
        match [word.removeprefix(".venv/bin/") for word in command[:3]]:
            case ["nsr", *_]:
                yield command[1:]
            case ["python" | "python3", "-m", "nsr"]:
                yield command[3:]
            case ["python" | "python3" | "bash", script, *_] if script in scripts:
                yield [*scripts[script], *command[2:]]
            case _:
                pass


def anchors(document: Path) -> set[str]:
    """The names that a link can point to: headings in lower case, without punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.*)$", prose(document), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_relative_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)", prose(document))
    links += re.findall(r"(?:src|href|srcset)=\"([^\"]+)\"", prose(document))
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


@each_document
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE))
    assert {"demo", "test", "clean"} <= targets
    text = document.read_text("utf-8")
    code = [
        *re.findall(r"`([^`\n]+)`", text),
        *(line for _, block in BLOCK.findall(text) for line in block.splitlines()),
    ]
    named = {match[1] for line in code if (match := re.match(r"(?:\$ )?make ([a-z]+)\b", line.strip()))}
    assert named <= targets


@each_document
def test_command_lines_are_read_by_the_command_line(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nsr import cli
    from nsr.algorithms.objectives import OBJECTIVES
    from nsr.cli import arguments

    read = arguments.parse

    class Read(Exception):
        pass

    def read_and_stop(*positional: Any, **settings: Any) -> None:
        raise Read(read(*positional, **settings))

    monkeypatch.setattr(arguments, "parse", read_and_stop)
    text = document.read_text("utf-8")
    inline = [code for code in re.findall(r"`([^`\n]+)`", text) if " --" in code]
    for words in (words for line in [*lines_of_shell(text), *inline] for words in nsr_words(line)):
        try:
            assert cli.main(words) == 0, words
        except Read as stopped:
            objective = getattr(stopped.args[0], "objective", "NSR")
            assert objective in OBJECTIVES or f'@objective("{objective}")' in text, words


def test_command_lines_are_found_in_shell_lines() -> None:
    def found(line: str) -> list[list[str]]:
        return list(nsr_words(line))

    assert found("nsr train --lr 1e-5  # slow") == [["train", "--lr", "1e-5"]]
    assert found("A=1 python baseline.py --seed 1 | tee log && .venv/bin/nsr --help") == [
        ["baseline", "--seed", "1"],
        ["--help"],
    ]
    assert found("bash run_experiments.sh --seed 43")[0][-3:] == ["--resume", "--seed", "43"]
    assert found("nsr data --data train.parquet,dev.parquet; nsr --help") == [
        ["data", "--data", "train.parquet,dev.parquet"],
        ["--help"],
    ]
    assert found("pip install nsr && make demo") == []
    assert lines_of_shell("```bash\nnsr solve 1 2 \\\n  --target 3\n```\n```python\nnsr\n```\n") == [
        "nsr solve 1 2    --target 3"
    ]


def has_test(file: Path, name: str) -> bool:
    return file.exists() and re.search(rf"^def {name}\(", file.read_text("utf-8"), flags=re.MULTILINE) is not None


def test_the_tests_of_the_paper_map_exist() -> None:
    named = TEST.findall((ROOT / "docs" / "paper_map.md").read_text("utf-8"))
    assert named
    assert [f"{file}::{name}" for file, name in named if not has_test(ROOT / file, name)] == []


def test_the_objective_of_the_contributing_guide_works() -> None:
    """Run as a newcomer would have it: appended to the module, then asked for by name."""
    guide = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    (block,) = [code for _, code in BLOCK.findall(guide) if "@objective" in code]
    (name,) = re.findall(r'@objective\("(\w+)"', block)
    # In a process of its own: the registry of this one stays as it is.
    program = f"""
import numpy as np
import nsr.algorithms.objectives as module
exec({block!r}, vars(module))
rewards_PG = np.array([[1, -1, -1, -1], [-1, -1, -1, -1], [1, 1, 1, -1]])
print(module.objective_weights({name!r}, rewards_PG).tolist())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[[0.0, -1.0, -1.0, -1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, -1.0]]"
    assert len(block.strip().splitlines()) <= 10


def test_the_readme_lists_every_flag_with_its_defaults() -> None:
    from nsr.config import PRESETS, TrainConfig

    rows = re.findall(
        r"^\| `--(\w+)` \| (.*?) \| (.*?) \| .+ \|$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE
    )
    listed = {name: (default, preset) for name, default, preset in rows}
    for field in dataclasses.fields(TrainConfig):
        default, preset = field.default, PRESETS["tiny"].get(field.name)
        assert listed.pop(field.name) == (
            "" if default is None else f"`{default}`",
            "" if preset in (None, default) else f"`{preset}`",
        )
    assert not listed
