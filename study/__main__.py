import sys
from pathlib import Path

from nsr.suite import run_list
from study.runs import tries

if __name__ == "__main__":
    sys.exit(run_list(Path("output/study/tries"), list(tries("output/study/tries")), jobs=2))
