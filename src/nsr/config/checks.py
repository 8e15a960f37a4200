"""Checks of settings.

Each raises ValueError with one sentence that names the flag, what was given, what is allowed and what to do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from nsr.errors import UserError

MAX_SEED = 2**32 - 1

_RUN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]{0,99}")
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")


def sentence(flag: str, given: object, allowed: str, advice: str) -> str:
    """What is said of a setting that is not allowed."""
    return f"--{flag} is {given!r} but must be {allowed}: {advice}."


def check_text(flag: str, value: str, meaning: str) -> None:
    """The setting is not blank."""
    if not value.strip() or "\0" in value:
        raise UserError(sentence(flag, value, meaning, "give a name"))


def check_printable(flag: str, value: str) -> None:
    """The setting has no line break, other control character or broken character, which no message could name."""
    if any(char < " " or char == "\x7f" or "\ud800" <= char <= "\udfff" for char in value):
        raise UserError(sentence(flag, value, "a name without control characters", "rename it"))


def check_at_least(flag: str, value: int, lowest: int) -> None:
    """The setting is `lowest` or more."""
    if value < lowest:
        raise UserError(sentence(flag, value, f"at least {lowest}", f"use {lowest} or more"))


def check_range(
    flag: str, value: float, *, above: float, at_most: float | None = None, below: float | None = None
) -> None:
    """The setting is finite and within the ends that are given."""
    allowed = f"above {above:g}"
    inside = math.isfinite(value) and value > above
    if at_most is not None:
        allowed, inside = f"{allowed} and at most {at_most:g}", inside and value <= at_most
    if below is not None:
        allowed, inside = f"{allowed} and below {below:g}", inside and value < below
    if not inside:
        raise UserError(sentence(flag, value, allowed, "choose a value in this range"))


def check_temperature(flag: str, value: float) -> None:
    """The setting is a sampling temperature; 0, greedy, is none."""
    if not 0.0 < value <= 2.0:
        advice = "0.7 is the study's; `nsr baseline` measures greedy accuracy beside it"
        raise UserError(sentence(flag, value, "above 0 and at most 2", advice))


def check_divides(flag: str, value: int, whole: str, total: int) -> None:
    """The setting divides `total` without remainder."""
    if total % value:
        divisors = [n for n in range(1, total + 1) if total % n == 0]
        nearest = sorted(divisors, key=lambda n: (abs(n - value), n))[:3]
        advice = "use one of " + ", ".join(str(n) for n in sorted(nearest))
        raise UserError(sentence(flag, value, f"a divisor of {whole}, {total}", advice))


def check_choice(flag: str, value: str, allowed: Iterable[str]) -> None:
    """The setting is one of the names allowed."""
    names = tuple(allowed)
    if value not in names:
        raise UserError(sentence(flag, value, "one of " + ", ".join(names), "choose one of them"))


def check_names(flag: str, value: str, allowed: Iterable[str], nothing: str) -> None:
    """The setting is some of the names allowed, each once, with commas between; or `nothing`."""
    known, names = tuple(allowed), value.split(",")
    if value != nothing and (not set(names) <= set(known) or len(set(names)) < len(names)):
        choice = f"{nothing}, or some of {', '.join(known)}, each once"
        raise UserError(sentence(flag, value, choice, "write them with commas between, without spaces"))


def check_seed(seed: int) -> None:
    """The setting is a seed that every generator takes."""
    if not 0 <= seed <= MAX_SEED:
        raise UserError(sentence("seed", seed, f"between 0 and {MAX_SEED}", "choose a number in this range"))


def check_device(device: str) -> None:
    """The setting is the name of a device, whether it is there or not."""
    if not _DEVICE.fullmatch(device):
        raise UserError(sentence("device", device, "`cuda`, `cuda:N` or `cpu`", "use `cpu` where there is no GPU"))


def check_run_name(name: str) -> None:
    """The setting is a plain name for a folder, no path."""
    if not _RUN_NAME.fullmatch(name):
        allowed = "a plain folder name of letters, digits and _.=+- (at most 100, no dot or hyphen first)"
        raise UserError(sentence("exp_name", name, allowed, "choose where it lies with --output_dir"))
