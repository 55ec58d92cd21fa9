"""The synchronous heart: selectors, rate limiters, items, storage and table state. No event loop, no clock, no I/O."""
