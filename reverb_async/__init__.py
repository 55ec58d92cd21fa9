"""Asyncio-native experience replay: tables, rate limiters and batches for actors and learners that are coroutines."""

from reverb_async.checkpoint import Checkpointer
from reverb_async.client import events
from reverb_async.client.client import Client
from reverb_async.client.sampling.batch import Batch, BatchInfo, Sample, SampleInfo
from reverb_async.client.sampling.sampler import BatchSampler, Sampler
from reverb_async.client.writing.history import TrajectoryColumn
from reverb_async.client.writing.writer import TrajectoryWriter
from reverb_async.core import rate_limiters, selectors
from reverb_async.core.draw import MutateResult
from reverb_async.core.info import Alarm, ServerStatus, TableInfo
from reverb_async.core.ragged import Ragged
from reverb_async.core.spec import ArraySpec
from reverb_async.errors import (
    CheckpointError,
    Closed,
    DeadlineExceeded,
    ExpiredReference,
    InvalidArgument,
    ItemNotFound,
    NotFound,
    PermissionDenied,
    RateLimiterTimeout,
    ReplayError,
    ResourceExhausted,
    SignatureMismatch,
    TableClosed,
    TableNotFound,
    Unavailable,
)
from reverb_async.limits import Limits
from reverb_async.security import ClientTLS, ServerTLS
from reverb_async.server import Server
from reverb_async.table import Table

__version__ = "0.1.0"

__all__ = [
    "Alarm",
    "ArraySpec",
    "Batch",
    "BatchInfo",
    "BatchSampler",
    "CheckpointError",
    "Checkpointer",
    "Client",
    "ClientTLS",
    "Closed",
    "DeadlineExceeded",
    "ExpiredReference",
    "InvalidArgument",
    "ItemNotFound",
    "Limits",
    "MutateResult",
    "NotFound",
    "PermissionDenied",
    "Ragged",
    "RateLimiterTimeout",
    "ReplayError",
    "ResourceExhausted",
    "Sample",
    "SampleInfo",
    "Sampler",
    "Server",
    "ServerStatus",
    "ServerTLS",
    "SignatureMismatch",
    "Table",
    "TableClosed",
    "TableInfo",
    "TableNotFound",
    "TrajectoryColumn",
    "TrajectoryWriter",
    "Unavailable",
    "events",
    "rate_limiters",
    "selectors",
]
