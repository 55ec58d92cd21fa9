"""Small helpers for the tasks of a stream."""

from __future__ import annotations


def first_error(error: BaseException) -> BaseException:
    """Return the first leaf of an exception group: the failure that ended a stream, not those that followed."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
