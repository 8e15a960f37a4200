from __future__ import annotations

import json
import subprocess
from pathlib import Path

from nsr.runs import environment


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_it_is_plain_and_does_not_change() -> None:
    described = environment.describe()
    assert json.loads(json.dumps(described)) == described
    assert described == environment.describe()
    assert isinstance(described["memory"], int)
    assert described["memory"] > 2**28
    assert isinstance(described["cores"], int)
    assert described["cores"] >= 1
    packages = described["packages"]
    assert isinstance(packages, dict)
    assert {"torch", "numpy"} <= packages.keys()
    assert str(Path.home()) not in json.dumps(described)


def test_the_commit_is_that_of_the_checkout_which_tracks_the_file(tmp_path: Path) -> None:
    file = tmp_path / "environment.py"
    file.write_text("a")
    assert environment._commit(file) is None
    git(tmp_path, "init", "-q")
    assert environment._commit(file) is None  # below a checkout, but not of it
    git(tmp_path, "add", "environment.py")
    git(tmp_path, "commit", "-qm", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "untracked").touch()
    assert environment._commit(file) == {"id": commit, "dirty": False}
    file.write_text("b")
    assert environment._commit(file) == {"id": commit, "dirty": True}
