"""Small helpers for the tasks of a stream."""

from __future__ import annotations


def first_error(error: BaseException) -> BaseException:
    """Return the first leaf of an exception group: the failure that ended a stream, not those that followed."""
    while isinstance(error, BaseExceptionGroup):
        # A group refers to the frame that raised it, and that to the group: with both go the messages of other frames.
        error.__traceback__ = None
        error = error.exceptions[0]
    return error
