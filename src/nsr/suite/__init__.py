"""Named lists of runs, each made in a process of its own."""

from nsr.suite.lists import SUITES, build_suite, to_words
from nsr.suite.run import run_list, run_suite

__all__ = ["SUITES", "build_suite", "run_list", "run_suite", "to_words"]
