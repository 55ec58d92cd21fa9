"""Tables: where inserts and samples wait for the rate limiter.

Inserts stand in one queue per table (`InsertQueue`) and samples in another (`waiting.Gate`). Every insert waits on an
`asyncio.Condition` of its own: a change that may admit waiting inserts serves those at the head of the queue, as many
as it admits, in one step soon after it, and notifies just them. The first of the samples waits on the samples'
`asyncio.Condition`; everyone behind it waits for a FIFO lock. So nobody overtakes, and a change wakes at most one in
vain. On a server, waiting for a table happens in this package and nowhere else; every change of a table is one
synchronous step.
"""

from reverb_async.table.insertion import RowInsertion, insert_now
from reverb_async.table.memory import Memory
from reverb_async.table.table import Table

__all__ = ["Memory", "RowInsertion", "Table", "insert_now"]
