"""`python -m study.again NAME`: one training of the study from scratch, and whether it gave the same metrics."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from pathlib import Path

from nsr.runs.files import read_json
from nsr.suite import run_list
from study.keep import metrics_digest, read_trainings
from study.runs import trainings


def main() -> int:
    """Run it in a folder of its own. Returns 0 where metrics.jsonl is the same to the last byte, else 1."""
    parser = argparse.ArgumentParser(prog="python -m study.again", description=__doc__)
    parser.add_argument("name", help="the training, such as NSR_seed42")
    parser.add_argument("--data", type=Path, default=Path("docs/results/data"), help="what is kept of the study")
    given = parser.parse_args()
    before = read_trainings(given.data)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        listed = trainings(root, read_json(given.data / "rates.json")["chosen"])
        known = {one.name: one.config for one in listed if one.name in before}
        if given.name not in known:
            print(f"no training {given.name!r} is kept: give one of {', '.join(known)}", file=sys.stderr)
            return 2
        # Each run of the study had one thread, beside another one.
        os.environ["OMP_NUM_THREADS"] = "2"
        beside = dataclasses.replace(known[given.name], exp_name="beside")
        code = run_list(root, [known[given.name], beside], jobs=2)
        if code:
            return code
        digests = [metrics_digest(run.run_path) for run in (known[given.name], beside)]
    same = all(digest == before[given.name].metrics_sha256 for digest in digests)
    print(f"metrics.jsonl of {given.name}, made twice more: {'the same' if same else 'NOT the same'} to the last byte.")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
