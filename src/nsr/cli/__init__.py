"""The command line, `nsr COMMAND`: flags -> settings -> the function that does it.

Names (command, objective, preset) and what else can be known at once are checked here, before anything heavy is
imported. A user's error ends in one sentence and exit code 2, a full disk in one and exit code 1, an interruption in
130 (143 for SIGTERM), and none of them in a traceback.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

from nsr.cli.commands import COMMANDS, RUNS, nearest
from nsr.cli.output import say
from nsr.errors import UserError
from nsr.models.log_filters import quiet_imports
from nsr.runs.errors import StoppedRun
from nsr.runs.files import CannotWrite
from nsr.runs.output import prepare_output, tolerant_output

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (by default that of this process); returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    prepare_output()
    quiet_imports()
    try:
        code = _dispatch(words)
        sys.stdout.flush()  # here, where a reader that went away is no error
        return code
    except SystemExit as end:  # tyro has shown its help, or said what it cannot read
        return end.code if isinstance(end.code, int) else BAD_INPUT
    except KeyboardInterrupt as told:
        say(" ".join(filter(None, ["Interrupted.", str(told), _how_to_go_on(words)])))
        return getattr(told, "exit_code", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except StoppedRun as stop:
        say(f"error: {stop}")
        return stop.status
    except OSError as error:  # a disk that is full, a folder that is none, a file that may not be read
        if error.errno is None and not isinstance(error, CannotWrite):
            raise
        say(f"error: {error}")
        return FAILED
    except UserError as error:
        say(f"error: {error}")
        return BAD_INPUT


def baseline_main() -> int:
    """`python baseline.py ...`: the same as `nsr baseline ...`."""
    return main(["baseline", *sys.argv[1:]])


def train_main() -> int:
    """`python experiment.py ...`: the same as `nsr train ...`."""
    return main(["train", *sys.argv[1:]])


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else BAD_INPUT
    if words[0] == "--version":
        from importlib import metadata

        print(metadata.version("nsr"))
        return 0
    name, *rest = words
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise UserError(f"the command is {name!r} but must be one of {known}: did you mean {nearest(name, COMMANDS)}?")
    if name not in RUNS:
        return COMMANDS[name](rest)
    with tolerant_output():  # whoever reads it may go away; the run goes on
        return COMMANDS[name](rest)


def _help() -> str:
    lines = [f"  {name:<10} {(command.__doc__ or '').strip()}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: nsr COMMAND [FLAGS]",
            "",
            "Reinforcement learning of language models on the Countdown numbers game.",
            "",
            *lines,
            "",
            "`nsr COMMAND --help` lists the flags of a command. On two cores and without a GPU, begin with:",
            "  nsr train --preset tiny",
        ]
    )


def _how_to_go_on(words: list[str]) -> str:
    """What to do after an interruption: for a run the whole command."""
    if words[0] not in ("train", "baseline"):
        return "A run goes on with the same command and --resume."
    resume = [] if any(word.partition("=")[0] == "--resume" for word in words) else ["--resume"]
    return f"Go on with: {shlex.join(['nsr', *words, *resume])}"
