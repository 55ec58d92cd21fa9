"""Random messages of DeepMind's protocol, as the generated classes have them."""

from __future__ import annotations

from hypothesis import strategies as st

from reverb_async.compat.tensors import NAMES
from reverb_async.wire.generated.deepmind import reverb as pb
from reverb_async.wire.generated.tensorflow import DataType, TensorProto, TensorShapeProto, TensorShapeProtoDim

uint64s = st.integers(0, 2**64 - 1) | st.integers(0, 300)
int64s = st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 300)
int32s = st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 300)
doubles = st.floats(allow_nan=False)
keys = st.lists(uint64s, max_size=5)
names = st.text(max_size=20)

tensors = st.builds(
    lambda dtype, shape, content: TensorProto(
        dtype=DataType(dtype),
        tensor_shape=TensorShapeProto(dim=[TensorShapeProtoDim(size=size) for size in shape]),
        tensor_content=content,
    ),
    st.sampled_from(list(NAMES)),
    st.lists(st.integers(0, 300), min_size=1, max_size=4),
    st.binary(max_size=150),
)
chunks = st.builds(
    lambda key, steps, tensors, delta: pb.ChunkData(
        chunk_key=key,
        sequence_range=steps,
        data=pb.ChunkDataData(tensors=tensors),
        delta_encoded=delta,
        data_tensors_len=len(tensors),
        data_uncompressed_size=sum(len(tensor.tensor_content) for tensor in tensors),
    ),
    uint64s,
    st.none() | st.builds(pb.SequenceRange, episode_id=uint64s, start=int32s, end=int32s, sparse=st.booleans()),
    st.lists(tensors, max_size=3),
    st.booleans(),
)
slices = st.builds(pb.FlatTrajectoryChunkSlice, chunk_key=uint64s, offset=int32s, length=int32s, index=int32s)
columns = st.builds(
    pb.FlatTrajectoryColumn, chunk_slices=st.lists(slices, min_size=1, max_size=3), squeeze=st.booleans()
)
items = st.builds(
    pb.PrioritizedItem,
    key=uint64s,
    table=names,
    priority=doubles,
    times_sampled=int32s,
    flat_trajectory=st.none() | st.builds(pb.FlatTrajectory, columns=st.lists(columns, max_size=3)),
)
insert_requests = st.builds(
    pb.InsertStreamRequest,
    chunks=st.lists(chunks, max_size=3),
    items=st.lists(items, max_size=3),
    keep_chunk_keys=keys,
)
sample_requests = st.builds(
    pb.SampleStreamRequest,
    table=names,
    num_samples=int64s,
    rate_limiter_timeout=st.none() | st.builds(pb.Timeout, milliseconds=int64s),
)
sample_responses = st.builds(
    pb.SampleStreamResponse,
    entries=st.lists(
        st.builds(
            pb.SampleStreamResponseSampleEntry,
            info=st.none()
            | st.builds(pb.SampleInfo, item=items, probability=doubles, table_size=int64s, rate_limited=st.booleans()),
            data=st.lists(chunks, max_size=2),
            end_of_sequence=st.booleans(),
        ),
        max_size=3,
    ),
)
mutate_requests = st.builds(
    pb.MutatePrioritiesRequest,
    table=names,
    updates=st.lists(st.builds(pb.KeyWithPriority, key=uint64s, priority=doubles), max_size=5),
    delete_keys=keys,
)
