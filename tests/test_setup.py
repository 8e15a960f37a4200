"""The set-up: everything that `make demo` and `make test` install is pinned, for each Python that nsr runs on."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
DIRECT = [Requirement(text) for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]]


def pins(python: str, system: str = "linux") -> dict[str, str]:
    """Package -> the version that constraints.txt gives it on that Python."""
    environment = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": system}
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        if line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate({**environment, "platform_machine": "x86_64"}):
            name = canonicalize_name(pin.name)
            assert name not in found, f"two versions of {name} for Python {python}"
            (specifier,) = pin.specifier
            assert specifier.operator == "=="
            found[name] = specifier.version
    return found


@pytest.mark.parametrize("system", ["linux", "darwin"])
@pytest.mark.parametrize("python", PYTHONS)
def test_what_the_project_names_is_pinned_within_its_bounds(python: str, system: str) -> None:
    pinned = pins(python, system)
    for requirement in [*DIRECT, Requirement("hatchling")]:
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement
    assert pinned["torch"] == "2.13.0"


def test_what_those_need_is_pinned_too() -> None:
    pinned = pins(f"{sys.version_info.major}.{sys.version_info.minor}")
    left, seen = [*DIRECT, Requirement("hatchling")], set[str]()
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        if name in seen or name.startswith(("nvidia-", "cuda-")):
            continue
        seen.add(name)
        assert name in pinned, f"{name} is not in constraints.txt"
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in ("", *requirement.extras)):
                left.append(needed)
    assert len(seen) > len(DIRECT)


def test_ci_runs_the_tests_and_installs_a_browser_at_most() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, "not executable"
    commands = [line for line in script.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    first, last = next(i for i, line in enumerate(commands) if line.startswith("if ")), commands.index("fi")
    assert "chromium" in commands[first] and any("apt-get" in line for line in commands[first:last])
    assert commands[-2:] == ["make test", "make test-vllm"]
    assert all(line.startswith(("set ", "cd ", "make ")) for line in commands[:first] + commands[last + 1 :])


def test_make_refuses_an_old_python_in_a_sentence(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run(
        ["make", f"PYTHON={old}", f"VENV={tmp_path}/venv", f"{tmp_path}/venv/.runtime-installed"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "nsr needs Python 3.10 or later" in done.stderr
    assert not (tmp_path / "venv").exists()
