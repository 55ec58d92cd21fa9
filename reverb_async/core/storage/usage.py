"""How a store's rows and memory are used."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoreUsage:
    """How a store's rows and memory are used. Live, staged and free rows add up to the rows there is room for.

    Attributes:
        live_rows: rows items refer to.
        staged_rows: rows only pins hold: written or about to be, not yet part of an item, or no longer.
        pinned_rows: rows with a pin, staged ones included.
        free_rows: the others; they cost address space, not memory.
        used_bytes: of live and staged rows.
        resident_bytes: of all pages in memory, counters included.
    """

    live_rows: int = 0
    staged_rows: int = 0
    pinned_rows: int = 0
    free_rows: int = 0
    used_bytes: int = 0
    resident_bytes: int = 0

    def __add__(self, other: StoreUsage) -> StoreUsage:
        return StoreUsage(
            self.live_rows + other.live_rows,
            self.staged_rows + other.staged_rows,
            self.pinned_rows + other.pinned_rows,
            self.free_rows + other.free_rows,
            self.used_bytes + other.used_bytes,
            self.resident_bytes + other.resident_bytes,
        )
