"""The grader against texts made to fool it: the tricks that fooled others, by hand, and a stream of millions."""

from __future__ import annotations

from itertools import islice

import pytest
from hostile_texts import KINDS, compare, hostile_texts, lines_run, oracle, slowest

from nsr.task import grader
from nsr.task.grader import Verdict, grade
from nsr.task.prompt import build_messages
from nsr.task.puzzle import Puzzle
