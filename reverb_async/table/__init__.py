"""Tables: where inserts and samples wait for the rate limiter.

Inserts stand in one queue per table and samples in another (`waiting.Gate`). The head of each queue waits on an
`asyncio.Condition`; everyone behind it waits for a FIFO lock, so nobody overtakes and a change wakes at most one task
per queue. On a server, waiting for a table happens in this package and nowhere else; every change of a table is one
synchronous step.
"""

from reverb_async.table.insertion import RowInsertion, insert_now
from reverb_async.table.table import Table

__all__ = ["RowInsertion", "Table", "insert_now"]
