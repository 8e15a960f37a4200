"""The public face: its names, how quick it is to import, and that it stays clear of torch."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nsr

HOMES = {
    "Puzzle": "nsr.tasks.countdown.puzzle",
    "Verdict": "nsr.tasks.countdown.grader",
    "build_messages": "nsr.tasks.countdown.prompt",
    "generate": "nsr.tasks.countdown.puzzle",
    "grade": "nsr.tasks.countdown.grader",
    "objective_weights": "nsr.algorithms.objectives",
    "pass_at_k": "nsr.evaluation.pass_at_k",
    "solve": "nsr.tasks.countdown.solver",
}
HEAVY = ("torch", "transformers", "datasets", "matplotlib", "vllm")


def fresh(code: str) -> list[str]:
    """Run code in a new interpreter; which heavy libraries were imported."""
    code += f"; import sys, json; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_the_names_that_stay() -> None:
    assert set(nsr.__all__) == {*HOMES, "__version__"}
    assert set(HOMES) <= set(dir(nsr))


@pytest.mark.parametrize("name", HOMES)
def test_a_name_comes_from_its_home_and_brings_nothing_heavy(name: str) -> None:
    assert getattr(nsr, name) is getattr(importlib.import_module(HOMES[name]), name)
    assert fresh(f"import nsr; nsr.{name}") == []


def test_import_brings_not_even_numpy() -> None:
    code = "import sys, nsr; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'nsr' has no attribute 'absent'"):
        nsr.absent  # noqa: B018


def test_help_brings_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['nsr', '--help']\ntry:\n    from nsr.cli import main; main()\nexcept SystemExit as e:"
    )
    assert fresh(f"{code}\n    assert not e.code\npass") == []


def test_the_version_is_said_once_and_cited_as_it_is() -> None:
    citation = (Path(__file__).parent.parent / "CITATION.cff").read_text("utf-8")
    assert re.findall(r"^version: (.*)$", citation, flags=re.MULTILINE) == [nsr.__version__]


def test_the_package_is_typed() -> None:
    assert (Path(nsr.__file__).parent / "py.typed").exists()
