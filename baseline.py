"""Zero-shot evaluation of a model: the same as `nsr baseline`. `python baseline.py --help` lists the flags."""

import sys

try:
    from nsr.cli import baseline_main
except ModuleNotFoundError as error:
    print(f"{error}: install nsr first, with `pip install -r requirements.txt` in this folder.", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(baseline_main())
