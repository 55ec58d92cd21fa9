"""Small helpers for the tasks of a stream."""

from __future__ import annotations


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first leaf of an exception group: the failure that ended a stream, not those that followed."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
