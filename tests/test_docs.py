"""What the documents say exists: their links, the make targets they name, the code they show."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/nsr/**/*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def prose(document: Path) -> str:
    return BLOCK.sub("", document.read_text("utf-8"))


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


def has_test(file: Path, name: str) -> bool:
    if not file.exists():
        return True  # until every package has landed
    return re.search(rf"^def {name}\(", file.read_text("utf-8"), flags=re.MULTILINE) is not None


def test_the_tests_of_the_paper_map_exist() -> None:
    named = TEST.findall((ROOT / "docs" / "paper_map.md").read_text("utf-8"))
    assert named
    assert [f"{file}::{name}" for file, name in named if not has_test(ROOT / file, name)] == []


def test_the_objective_of_the_contributing_guide_works() -> None:
    """Run as a newcomer would have it: appended to the module, then asked for by name."""
    pytest.importorskip("nsr.learning.objective")
    guide = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    (block,) = [code for _, code in BLOCK.findall(guide) if "@objective" in code]
    (name,) = re.findall(r'@objective\("(\w+)"', block)
    # In a process of its own: the registry of this one stays as it is.
    program = f"""
import numpy as np
import nsr.learning.objective as module
exec({block!r}, vars(module))
rewards_PG = np.array([[1, -1, -1, -1], [-1, -1, -1, -1], [1, 1, 1, -1]])
print(module.objective_weights({name!r}, rewards_PG).tolist())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[[0.0, -1.0, -1.0, -1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, -1.0]]"
    assert len(block.strip().splitlines()) <= 10
