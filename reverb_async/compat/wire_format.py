"""The frequent messages of DeepMind's protocol, read and written without a protobuf library in between.

The generated classes would cost milliseconds on nested messages. Both write the same wire form
(`protos/deepmind/reverb/`), and each reads the other's. Serialized chunks and trajectories are passed through as they
came.
"""

from reverb_async.compat.insert_reading import read_insert_request
from reverb_async.compat.messages import (
    ChunkView,
    ColumnView,
    InsertRequest,
    ItemView,
    MutateRequest,
    SampleEntry,
    SampleInfo,
    SampleRequest,
    Slice,
)
from reverb_async.compat.mutate_reading import read_mutate_request
from reverb_async.compat.reading import (
    read_insert_response,
    read_sample_request,
    read_sample_response,
)
from reverb_async.compat.tensors import TensorHead
from reverb_async.compat.writing import (
    SampleInfos,
    write_chunk,
    write_insert_request,
    write_insert_response,
    write_item,
    write_mutate_request,
    write_sample_request,
    write_sample_response,
    write_trajectory,
)

__all__ = [
    "ChunkView",
    "ColumnView",
    "InsertRequest",
    "ItemView",
    "MutateRequest",
    "SampleEntry",
    "SampleInfo",
    "SampleInfos",
    "SampleRequest",
    "Slice",
    "TensorHead",
    "read_insert_request",
    "read_insert_response",
    "read_mutate_request",
    "read_sample_request",
    "read_sample_response",
    "write_chunk",
    "write_insert_request",
    "write_insert_response",
    "write_item",
    "write_mutate_request",
    "write_sample_request",
    "write_sample_response",
    "write_trajectory",
]
