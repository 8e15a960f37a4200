"""`python -m nsr`: the same as `nsr`."""

from __future__ import annotations

import sys

from nsr.cli import main

if __name__ == "__main__":
    sys.exit(main())
