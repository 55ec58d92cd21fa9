"""Tables from settings: what implies what, what overrides what, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverb_async.config import Config, ServerConfig, TableConfig, load
from reverb_async.core import selectors
from reverb_async.core.rate_limiters import MinSize, Queue, RateLimiter, SampleToInsertRatio, Stack
from reverb_async.core.spec import ArraySpec
from reverb_async.errors import InvalidArgument
from reverb_async.table import Table


def table(flag: str) -> TableConfig:
    """Read one table from the command line."""
    (config,) = load(table_flags=[flag]).tables
    return config


@pytest.fixture
def overlaid(tmp_path):
    """Read a table of a file, changed on the command line."""

    def read(file: str, flag: str) -> TableConfig:
        path = tmp_path / "run.toml"
        path.write_text(f'[[table]]\nname = "replay"\n{file}')
        (config,) = load(path, [flag]).tables
        return config

    return read


def test_a_bare_name_is_a_uniform_table_of_a_million_items():
    assert table("replay") == TableConfig(
        name="replay",
        max_size=1_000_000,
        sampler=selectors.Uniform(),
        remover=selectors.Fifo(),
        rate_limiter=MinSize(1),
    )


def test_all_settings_reach_the_table():
    config = table(
        "replay:sampler=max_heap,remover=lifo,max_size=50,max_times_sampled=3,max_bytes=1e9,seed=7,min_size_to_sample=5,"
        "signature={obs = {shape = [4], dtype = 'float32'}}"
    )
    expected = Table(
        "replay",
        max_size=50,
        sampler=selectors.MaxHeap(),
        remover=selectors.Lifo(),
        rate_limiter=MinSize(5),
        max_times_sampled=3,
        max_bytes=10**9,
        signature={"obs": ArraySpec((4,), np.float32)},
        seed=7,
    )
    assert config.build().info == expected.info
    assert (config.max_bytes, config.seed) == (10**9, 7)


@pytest.mark.parametrize(
    ("name", "selector"),
    [
        ("uniform", selectors.Uniform()),
        ("fifo", selectors.Fifo()),
        ("lifo", selectors.Lifo()),
        ("min_heap", selectors.MinHeap()),
        ("max_heap", selectors.MaxHeap()),
    ],
)
def test_selectors_are_named(name, selector):
    config = table(f"replay:sampler={name},remover={{kind='{name}'}}")
    assert (config.sampler, config.remover) == (selector, selector)


@pytest.mark.parametrize(
    ("settings", "sampler", "remover"),
    [
        ("priority_exponent=0.6", selectors.Prioritized(0.6), selectors.Fifo()),
        ("sampler=prioritized,priority_exponent=0.6", selectors.Prioritized(0.6), selectors.Fifo()),
        ("sampler=uniform,remover=prioritized,priority_exponent=1", selectors.Uniform(), selectors.Prioritized(1)),
        (
            "sampler=prioritized,remover=prioritized,priority_exponent=0",
            selectors.Prioritized(0),
            selectors.Prioritized(0),
        ),
        (
            "sampler={kind='prioritized',priority_exponent=0.6},remover=prioritized,priority_exponent=0.3",
            selectors.Prioritized(0.6),
            selectors.Prioritized(0.3),
        ),
    ],
)
def test_an_exponent_belongs_to_what_is_prioritized(settings, sampler, remover):
    config = table(f"replay:{settings}")
    assert (config.sampler, config.remover) == (sampler, remover)


@pytest.mark.parametrize(
    ("settings", "limiter"),
    [
        ("min_size_to_sample=1000", MinSize(1000)),
        ("rate_limiter=min_size", MinSize(1)),
        ("samples_per_insert=8,min_size_to_sample=10,error_buffer=80", SampleToInsertRatio(8, 10, 80)),
        ("samples_per_insert=8,min_size_to_sample=10,error_buffer=[0, 500]", SampleToInsertRatio(8, 10, (0, 500))),
        ("samples_per_insert=1,error_buffer=3", SampleToInsertRatio(1, 1, 3)),
        ("rate_limiter=queue,size=5", Queue(5)),
        ("rate_limiter={kind='stack', size=5}", Stack(5)),
        ("min_diff=-inf,max_diff=10,samples_per_insert=2", RateLimiter(2, 1, float("-inf"), 10)),
    ],
)
def test_parameters_imply_the_rate_limiter(settings, limiter):
    assert table(f"replay:{settings}").rate_limiter == limiter


@pytest.mark.parametrize(("kind", "make"), [("queue", Table.queue), ("stack", Table.stack)])
def test_kind_is_short_for_the_constructors_of_table(kind, make):
    assert table(f"trajectories:kind={kind},max_size=9").build().info == make("trajectories", 9).info


def test_signatures_are_nests_of_shapes_and_dtypes():
    config = table(
        "replay:signature={obs = {image = {shape=['any', 84, 4], dtype='uint8'}}, "
        "pair = [{dtype='float32'}, {shape=[2], dtype='str'}], dtype = {shape=[], dtype='bool'}}"
    )
    assert config.signature == {
        "obs": {"image": ArraySpec((None, 84, 4), np.uint8)},
        "pair": [ArraySpec((), np.float32), ArraySpec((2,), str)],
        "dtype": ArraySpec((), bool),
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("max_sise=3", 'key "max_sise": there is no such key; did you mean "max_size"?'),
        ("max_size=0", 'key "max_size": must be an integer from 1 to 536870912, got 0'),
        ("max_size=1e300", r'key "max_size": must be an integer from 1 to 536870912, got 1e\+300'),
        ("max_times_sampled=-1", 'key "max_times_sampled": must be an integer from 0 to 2147483647, got -1'),
        ("sampler=prioritised", 'key "sampler": must be one of .*, got "prioritised"; did you mean "prioritized"?'),
        ("sampler=prioritized", 'key "sampler": "prioritized" needs a priority_exponent: add priority_exponent = 0.6'),
        ("sampler={priority_exponent=1}", r'key "sampler": must say which one, as in \{kind = "uniform"\}, got'),
        (
            "sampler={kind='prioritized',exponent=1}",
            'key "sampler": key "exponent": .* did you mean "priority_exponent"?',
        ),
        ("sampler={kind='fifo',priority_exponent=1}", 'key "sampler": key "priority_exponent": there is no such key'),
        ("priority_exponent=-1", 'key "priority_exponent": must be a finite number >= 0, got -1'),
        ("sampler=fifo,priority_exponent=1", 'key "priority_exponent": nothing takes it: say sampler = "prioritized"'),
        ("remover=prioritized,priority_exponent=1", 'key "priority_exponent": is it for sampler or remover?'),
        ("rate_limiter=quue", 'key "rate_limiter": must be one of .*, got "quue"; did you mean "queue"?'),
        ("rate_limiter=queue", 'key "size": rate_limiter "queue" needs it: add size = 100'),
        ("size=3", 'key "size": rate_limiter "min_size" does not take it: .* rate_limiter = "queue" or "stack"'),
        (
            "samples_per_insert=8,min_size_to_sample=1000",
            'key "error_buffer": rate_limiter "sample_to_insert_ratio" needs it: add error_buffer = 800 and',
        ),
        ("samples_per_insert=8,error_buffer=1", 'key "error_buffer": .*it takes at least 16'),
        ("samples_per_insert=8,error_buffer=[1]", r'key "error_buffer": must be a number or a pair \[low, high\]'),
        ("error_buffer=9", 'key "samples_per_insert": rate_limiter "sample_to_insert_ratio" needs it'),
        ("samples_per_insert=0,error_buffer=9", 'key "samples_per_insert": must be a finite number > 0, got 0'),
        ("samples_per_insert=1,max_diff=9", 'key "min_diff": rate_limiter "custom" needs it: add min_diff = -inf'),
        ("samples_per_insert=1,min_diff=9", 'key "max_diff": rate_limiter "custom" needs it: add max_diff = inf'),
        (
            "rate_limiter={kind='min_size',min_size_to_sample=3},min_size_to_sample=4",
            'key "min_size_to_sample": it is given within rate_limiter too: drop one',
        ),
        (
            "max_size=10,min_size_to_sample=11",
            'key "min_size_to_sample": 11 items can never be reached with max_size = 10: lower it, or raise max_size',
        ),
        ("kind=ring", 'key "kind": must be one of "queue", "stack", got "ring"'),
        ("kind=queue,sampler=lifo", 'key "sampler": kind = "queue" decides this'),
        ("kind=stack,seed=3", 'key "seed": kind = "stack" decides this'),
        ("signature=3", r'key "signature": must be \{shape = \[4\], dtype = "float32"\} or a table of these, got 3'),
        ("signature={}", 'key "signature": the signature .* has no columns'),
        ("signature={a={shape=3,dtype='bool'}}", r'key "signature", a: shape must be a list .*, got 3'),
        ("signature={a={shape=[-1],dtype='bool'}}", 'key "signature", a: an extent lies between 0 and'),
        (
            "signature={a={shape=['none'],dtype='bool'}}",
            'key "signature", a: write "any" for an open extent, got "none"',
        ),
        ("signature={a={dtype='flaot32'}}", 'key "signature", a: .*flaot32'),
        ("signature={a={shapes=[1],dtype='bool'}}", 'key "signature", a: key "shapes": .* did you mean "shape"?'),
        ("name=other", 'key "name": the name stands before the colon'),
    ],
)
def test_what_cannot_work_is_refused_with_a_way_out(settings, message):
    with pytest.raises(InvalidArgument, match=f'^--table: table "replay", {message}'):
        table(f"replay:{settings}")


def test_the_suggested_error_buffer_works():
    table("replay:samples_per_insert=8,min_size_to_sample=1000,error_buffer=800")
    table("replay:samples_per_insert=0.1,error_buffer=1")


@pytest.mark.parametrize(
    ("file", "flag", "changed"),
    [
        ("max_size = 5", "max_size=6", {"max_size": 6}),
        ("seed = 1", "max_size=6", {"seed": 1, "max_size": 6}),
        (
            'sampler = {kind = "prioritized", priority_exponent = 0.6}',
            "priority_exponent=0.7",
            {"sampler": selectors.Prioritized(0.7)},
        ),
        ("priority_exponent = 0.6", "sampler=uniform", {"sampler": selectors.Uniform()}),
        ("priority_exponent = 0.6", "sampler=prioritized", {"sampler": selectors.Prioritized(0.6)}),
        ("min_size_to_sample = 5", "min_size_to_sample=6", {"rate_limiter": MinSize(6)}),
        (
            "min_size_to_sample = 5",
            "samples_per_insert=2,error_buffer=9",
            {"rate_limiter": SampleToInsertRatio(2, 5, 9)},
        ),
        (
            "samples_per_insert = 2\nmin_size_to_sample = 5\nerror_buffer = 9",
            "rate_limiter=min_size",
            {"rate_limiter": MinSize(5)},
        ),
        ('rate_limiter = {kind = "queue", size = 3}', "size=4", {"rate_limiter": Queue(4)}),
    ],
)
def test_the_command_line_changes_a_table_of_the_file(overlaid, file, flag, changed):
    assert overlaid(file, f"replay:{flag}") == TableConfig(name="replay", **changed)


def test_a_message_names_the_place_that_is_wrong(overlaid):
    with pytest.raises(InvalidArgument, match=r'run.toml: table "replay", key "seed": must be an integer >= 0, got -1'):
        overlaid("seed = -1", "replay:max_size=3")
    with pytest.raises(InvalidArgument, match=r'^--table: table "replay", key "seed": must be an integer >= 0, got -2'):
        overlaid("seed = 1", "replay:seed=-2")


def test_a_table_has_a_line_that_sums_it_up():
    flag = (
        "replay:priority_exponent=0.6,max_size=50,max_times_sampled=2,max_bytes=9,seed=3,signature={a={dtype='bool'}}"
    )
    assert table(flag).summary() == (
        'table "replay": max_size 50, sampler Prioritized(priority_exponent=0.6), remover Fifo(), '
        "rate_limiter MinSize(1), max_times_sampled 2, max_bytes 9, seed 3, signature of 1 columns"
    )


SELECTORS = st.sampled_from(
    [selectors.Uniform(), selectors.Fifo(), selectors.Lifo(), selectors.MinHeap(), selectors.MaxHeap()]
) | st.floats(0, 1e300).map(selectors.Prioritized)
RATIOS = st.floats(1e-3, 1e6)
LIMITERS = st.one_of(
    st.integers(1, 100).map(MinSize),
    st.builds(lambda ratio, more: SampleToInsertRatio(ratio, 3, ratio + 1 + more), RATIOS, st.floats(0, 1e9)),
    st.integers(1, 2**40).map(Queue),
    st.integers(1, 2**40).map(Stack),
    st.builds(RateLimiter, RATIOS, st.integers(1, 100), st.floats(max_value=0), st.floats(min_value=0)),
)
SPECS = st.builds(
    ArraySpec,
    st.lists(st.none() | st.integers(0, 9), max_size=3),
    st.sampled_from(["bool", "uint8", "float32", "complex64", "str", "bytes", "U16", "S3"]),
)
NAMES = st.text(min_size=1, max_size=8).filter(str.isprintable)
SIGNATURES = st.recursive(
    SPECS,
    lambda inner: st.lists(inner, min_size=1, max_size=2) | st.dictionaries(NAMES, inner, min_size=1, max_size=2),
    max_leaves=4,
)
TABLES = st.builds(
    TableConfig,
    name=NAMES,
    max_size=st.integers(100, 2**29),
    sampler=SELECTORS,
    remover=SELECTORS,
    rate_limiter=LIMITERS,
    max_times_sampled=st.integers(0, 9),
    max_bytes=st.none() | st.integers(1, 2**63 - 1),
    seed=st.none() | st.integers(0, 2**63 - 1),
    signature=st.none() | SIGNATURES,
)
SERVERS = st.builds(
    ServerConfig,
    host=st.sampled_from(["127.0.0.1", "::1", "localhost"]),
    port=st.integers(0, 65535),
    unix=st.none() | NAMES,
    insecure=st.booleans(),
    tls_certificate=st.just("c.pem"),
    tls_key=st.just("k.pem"),
    tls_client_ca=st.none() | NAMES,
    tokens=st.none() | NAMES,
    reverb_compat=st.booleans(),
    reverb_compat_insecure=st.booleans() | st.integers(0, 65535),
    grace=st.floats(0, 1e6),
) | st.builds(ServerConfig, port=st.none(), unix=NAMES)


@given(server=SERVERS, tables=st.lists(TABLES, min_size=1, max_size=3, unique_by=lambda config: config.name))
def test_a_printed_configuration_is_read_back(tmp_path_factory, server, tables):
    config = Config(server=server, tables=tuple(tables))
    path: Path = tmp_path_factory.getbasetemp() / "printed.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert load(path) == config
