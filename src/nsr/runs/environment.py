"""What a run ran on: versions, commit and hardware. Nothing in it changes from one start to the next on one machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import psutil

PACKAGES = ("nsr", "torch", "transformers", "tokenizers", "numpy", "vllm", "torchao")


def describe() -> dict[str, object]:
    """Versions, commit and hardware of this process, as plain values for environment.json.

    Imports torch. `commit` is None outside of a git checkout of nsr; memory is in bytes.
    """
    import torch

    return {
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "commit": _commit(Path(__file__).resolve()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "memory": psutil.virtual_memory().total,
        "gpus": [
            {"name": torch.cuda.get_device_name(index), "memory": torch.cuda.get_device_properties(index).total_memory}
            for index in range(torch.cuda.device_count())
        ],
        "cuda": torch.version.cuda,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit(file: Path) -> dict[str, object] | None:
    """Commit of the checkout that tracks `file`, and whether tracked files differ from it.

    A file that merely lies below a checkout, as an installed package in its virtual environment does, is not of it.
    """
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        return None
    commit = _git(file.parent, "rev-parse", "HEAD")
    changes = _git(file.parent, "status", "--porcelain", "--untracked-files=no")
    return {"id": commit, "dirty": bool(changes)} if commit else None


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
