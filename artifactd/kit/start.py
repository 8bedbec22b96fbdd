"""The error that stops the start."""

from __future__ import annotations


class StartError(Exception):
    """
    The daemon can't start.  The message is one line for the operator that says what to do.
    """
