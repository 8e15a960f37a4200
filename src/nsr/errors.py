"""Errors for users: everything else keeps its traceback."""

from __future__ import annotations


class UserError(ValueError):
    """A setting, file or machine that does not work. The message says what was given, what is allowed, what to do.

    The command line prints the message and exits with code 2. Any other ValueError is a bug and keeps its traceback.
    """
