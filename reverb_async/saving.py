"""What a server holds at one moment, to be saved; and what it is restored from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

from reverb_async.core.cut.image import StoreImage, TableImage
from reverb_async.core.cut.store_cut import StoreCut
from reverb_async.core.cut.table_cut import TableCut


class ReplayCut:
    """Everything a `Replay` held when `Replay.cut` was called; it may go on changing.

    Whoever saves it asks all tables for their blocks and all stores for their rows, in any order and a block per turn
    of the event loop, and then calls `finish` until that returns False.

    Attributes:
        tables: by name.
        stores: in the order by which ``tables[...].state["layouts"]`` number them.
    """

    def __init__(
        self, describe: Callable[[], dict[str, Any]], tables: dict[str, TableCut], stores: list[StoreCut]
    ) -> None:
        self._describe = describe
        self.tables = tables
        self.stores = stores
        self.is_finished = False
        self._rest: list[TableCut | StoreCut] = [*tables.values(), *stores]

    @cached_property
    def state(self) -> dict[str, Any]:
        """Counters and sessions as they were: values MessagePack and JSON know.

        Ask for it in a thread: to write 16,000 sessions down takes a tenth of a second.
        """
        return self._describe()

    def finish(self, committed: bool) -> bool:
        """End the cut, a bounded part with each call; nobody may read its rows any more.

        Args:
            committed: it is on disk for good: the next cut may build on it. Otherwise nothing has happened: the next
                one has what changed since the last that was committed. The same in all calls.

        Returns:
            Whether there is more to do.
        """
        if self._rest and not self._rest[0].finish(committed):
            self._rest.pop(0)
        self.is_finished = not self._rest
        return not self.is_finished


class ReplayImage(Protocol):
    """A `Replay` as it was saved; wholly verified, for nothing is taken back that was read."""

    @property
    def state(self) -> Mapping[str, Any]:
        """What `ReplayCut.state` was."""

    @property
    def tables(self) -> Mapping[str, TableImage]:
        """By name."""

    @property
    def stores(self) -> Sequence[StoreImage]:
        """In the order of `ReplayCut.stores`."""
