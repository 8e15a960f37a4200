"""`python -m study`: make every run of the study that is not complete, and keep what the results are made from."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from nsr.runs.files import write_json
from nsr.runs.folder import is_complete
from nsr.suite import run_list
from study.choice import all_tries, choose
from study.keep import keep, kept_evaluation
from study.measuring import Measurement, development, final
from study.runs import Training, trainings, tries
from study.sets import write_sets

DATA = Path("docs/results/data")


def main() -> int:
    """Go through the study, from wherever it stopped. Returns an exit code: 130 after ctrl-C, 1 where a run failed."""
    parser = argparse.ArgumentParser(prog="python -m study", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("output/results"), help="folder of all runs")
    parser.add_argument(
        "--data", type=Path, help=f"folder of what is kept: {DATA} once all is made, before that ROOT/data"
    )
    parser.add_argument("--real", type=Path, help="file with the real test rows; without it that set is left out")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--until", choices=("rates", "trainings", "end"), default="end", help="where to stop")
    parser.add_argument("--keep_only", action="store_true", help="start no run: keep what is complete")
    given = parser.parse_args()
    root: Path = given.root
    # A thread for each run: the last bits of a training depend on the number.
    os.environ["OMP_NUM_THREADS"] = str(given.jobs)
    write_sets(root, given.real)
    tried = tries(root)
    before = development(root, tried)
    if not given.keep_only and (code := _make(root, tried, before, given.jobs)):
        return code
    found = all_tries({one.model: kept_evaluation(root, one) for one in before})
    rates = choose(found)
    made = trainings(root, rates)
    measured = final(root, made)
    code = 0
    if not given.keep_only and given.until != "rates":
        code = _make(root, made, measured if given.until == "end" else [], given.jobs)
    runs = [one.config.run_path for one in (*tried, *made, *before, *measured)]
    is_whole = all(map(is_complete, runs))
    data: Path = given.data or (DATA if is_whole else root / "data")
    keep(root, data, [*tried, *made], [*before, *measured])
    write_json(data / "rates.json", {"tries": [one._asdict() for one in found], "chosen": rates})
    print(f"What is kept of {'all' if is_whole else 'the complete ones among all'} {len(runs)} runs is in {data}.")
    return code


def _make(root: Path, trained: Sequence[Training], measured: Sequence[Measurement], jobs: int) -> int:
    """Run trainings, then measurements. Those need models, so none is begun where a training is not complete."""
    for runs in ([one.config for one in trained], [one.config for one in measured]):
        if runs and (code := run_list(root, list(runs), jobs=jobs)):
            return code
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
