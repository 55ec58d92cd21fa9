"""Where a client's parts tell what happens, and its listeners hear of it."""

from __future__ import annotations

from weakref import WeakSet

from reverb_async.client.events import Event, Events


class EventHub:
    """Passes events on to all iterators that somebody still has."""

    def __init__(self) -> None:
        self._listening: WeakSet[Events] = WeakSet()
        self._closed = False

    def listen(self, capacity: int) -> Events:
        """Return an iterator of what happens from now on."""
        events = Events(capacity)
        if self._closed:
            events._end()
        self._listening.add(events)
        return events

    def emit(self, event: Event) -> None:
        """Tell everybody; never waits."""
        for events in self._listening:
            events._put(event)

    def close(self) -> None:
        """End all iterators once they have given what they hold."""
        self._closed = True
        for events in self._listening:
            events._end()
