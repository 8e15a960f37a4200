"""`nsr suite` with runs that only pretend: real processes, folders and signals, without a model.

    python pretend.py suite three --output_dir ...     the suite; `three` holds PSR, NSR and RLVR
    python pretend.py train --objective=... ...        what it starts

Files in the folder given by --output_dir of the suite steer the runs: `NSR.hold` stops NSR after its second step
until the file is gone, `PSR.fail` has PSR fail, `RLVR.deaf` has RLVR ignore ctrl-C,
`NSR.collapse` has NSR collapse in its third step.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from nsr.cli import main
from nsr.cli.arguments import parse_run
from nsr.config import RunConfig, TrainConfig
from nsr.runs.folder import RunFolder, read_metrics
from nsr.suite import SUITES, jobs, run, to_words

STEPS = 4


def three() -> list[RunConfig]:
    return [TrainConfig(objective=name, device="cpu", n_train_steps=STEPS) for name in ("PSR", "NSR", "RLVR")]


def command(config: RunConfig) -> list[str]:
    return [sys.executable, __file__, *to_words(config)]


def pretend(config: TrainConfig) -> int:
    controls = Path(config.output_dir).parent

    def is_set(what: str) -> bool:
        return (controls / f"{config.objective}.{what}").exists()

    print("a run that only pretends", flush=True)
    if is_set("fail"):
        print("\x1b[31mthe data is \u202egone", file=sys.stderr)
        return 3
    if is_set("deaf"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    given = {name: os.environ.get(name, "") for name in (*jobs.THREADS, jobs.GPUS)}
    with RunFolder.open(config, environment=given) as folder:
        for step in range(len(read_metrics(folder.path)) + 1, STEPS + 1):
            folder.append_metrics({"step": step, "correct_ratio": step / 10, "pid": os.getpid()})
            end = time.monotonic() + 600  # none outlives a test that fails by much
            while step == 2 and is_set("hold") and time.monotonic() < end:
                time.sleep(0.02)
            if step == 3 and is_set("collapse"):
                folder.append_event({"step": 3, "event": "collapse", "kind": "accuracy", "reason": "it \x1b[2Jfell"})
                if config.stop_on_collapse:
                    folder.append_event({"step": 3, "event": "stopped", "reason": "it fell"})
                    return 3
        folder.mark_complete(STEPS)
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "suite":
        # As in a terminal, also where the tests are run in the background, which ignores ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        SUITES["three"] = three
        jobs.command = command
        run.POLL_SECONDS = 0.05
        run.PATIENCE_SECONDS = (3600.0, 3600.0)  # only a test's own signals end a run
        sys.exit(main(sys.argv[1:]))
    try:
        sys.exit(pretend(parse_run(TrainConfig, sys.argv[2:])))
    except KeyboardInterrupt:
        print("told to end", flush=True)
        sys.exit(130)
