"""One training run: the same as `nsr train`. `python experiment.py --help` lists the flags."""

import sys

try:
    from nsr.cli import train_main
except ModuleNotFoundError as error:
    print(f"{error}: install nsr first, with `pip install -r requirements.txt` in this folder.", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(train_main())
