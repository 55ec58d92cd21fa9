"""dm-reverb's server configuration: the same text, the same tables."""

from __future__ import annotations

import sys
import warnings

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from reverb_async.compat.signatures import EncodedSignature, signature_bytes
from reverb_async.config import Config, ServerConfig, TableConfig, load
from reverb_async.config.reverb_config import read_reverb_config
from reverb_async.core import selectors
from reverb_async.core.rate_limiters import MinSize, RateLimiter
from reverb_async.core.spec import ArraySpec
from reverb_async.errors import InvalidArgument

UNIFORM_REPLAY = """
  port: 8000
  tables {
    table_name: "priority_table"   # as Acme calls it
    sampler { uniform: true }
    remover { fifo: true }
    max_size: 1000000
    max_times_sampled: 0
    rate_limiter {
      samples_per_insert: 1
      min_size_to_sample: 1000
      min_diff: -1.7976931348623157e+308
      max_diff: 1.7976931348623157e+308
    }
  }
"""

QUEUE_AND_REPLAY = """
tables: {
  table_name: "queue"
  sampler: { fifo: true is_deterministic: true }
  remover: { fifo: true is_deterministic: true }
  max_size: 10
  max_times_sampled: 1
  rate_limiter: { samples_per_insert: 1.0 min_size_to_sample: 1 min_diff: 0.0 max_diff: 10.0 }
}
tables: <
  table_name: 'replay'
  sampler: { prioritized: { priority_exponent: 0.8 } }
  remover: { heap: { min_heap: true } }
  max_size: 100
  rate_limiter: { samples_per_insert: 4 min_size_to_sample: 10 min_diff: 30 max_diff: 50 }
  signature: {
    dict_value: {
      fields: { key: "observation" value: { tensor_spec_value: {
        name: "observation" shape: { dim: { size: -1 } dim: { size: 84 } } dtype: DT_UINT8 } } }
      fields: { key: "action" value: { bounded_tensor_spec_value: {
        shape: { dim: { size: -1 } } dtype: DT_INT32
        minimum: { dtype: DT_INT32 int_val: 0 } maximum: { dtype: DT_INT32 int_val: 17 } } } }
    }
  }
>
port: 12000
"""


def tables(text: str) -> dict[str, TableConfig]:
    return {table.name: table for table in load(reverb_config=text).tables}


def table(fields: str) -> TableConfig:
    """Read one table; what it must have is there already."""
    (made,) = tables(f'tables {{ table_name: "t" max_size: 100 {fields} }}').values()
    return made


def test_uniform_replay():
    assert load(reverb_config=UNIFORM_REPLAY) == Config(
        server=ServerConfig(port=8000),
        tables=(TableConfig(name="priority_table", max_size=1_000_000, rate_limiter=MinSize(1000)),),
    )


def test_several_tables_and_a_signature():
    config = load(reverb_config=QUEUE_AND_REPLAY)
    queue, replay = config.tables
    assert config.server.port == 12000
    assert queue == TableConfig(
        name="queue",
        max_size=10,
        sampler=selectors.Fifo(),
        remover=selectors.Fifo(),
        rate_limiter=RateLimiter(1.0, 1, 0.0, 10.0),
        max_times_sampled=1,
    )
    assert (replay.sampler, replay.remover) == (selectors.Prioritized(0.8), selectors.MinHeap())
    assert replay.rate_limiter == RateLimiter(4.0, 10, 30.0, 50.0)
    made = replay.build()
    assert made.info.signature == {
        "observation": ArraySpec((None, 84), "uint8"),
        "action": ArraySpec((None,), "int32"),
    }


def test_a_signature_is_kept_as_it_was_written():
    signature = tables(QUEUE_AND_REPLAY)["replay"].build().signature
    assert isinstance(signature, EncodedSignature)
    encoded = signature_bytes(signature)
    assert b"observation" in encoded
    assert b"\x2a" in encoded  # bounds: field 5 of the spec
    again = tables(QUEUE_AND_REPLAY)["replay"].build().signature
    assert again is not None
    assert signature_bytes(again) == encoded


def test_a_file_has_the_same_text(tmp_path):
    path = tmp_path / "server.textproto"
    path.write_text(QUEUE_AND_REPLAY)
    assert load(reverb_config=f"@{path}") == load(reverb_config=QUEUE_AND_REPLAY)


@pytest.mark.parametrize(
    ("text", "selector"),
    [
        ("fifo: true", selectors.Fifo()),
        ("lifo: true", selectors.Lifo()),
        ("uniform: true", selectors.Uniform()),
        ("heap { min_heap: true }", selectors.MinHeap()),
        ("heap { min_heap: false }", selectors.MaxHeap()),
        ("heap {}", selectors.MaxHeap()),
        ("prioritized { priority_exponent: 0.6 }", selectors.Prioritized(0.6)),
        ("prioritized {}", selectors.Prioritized(0.0)),
        ("is_deterministic: true fifo: true", selectors.Fifo()),
    ],
)
def test_every_selector_can_be_sampler_and_remover(text, selector):
    assert table(f"sampler {{ {text} }}").sampler == selector
    assert table(f"remover {{ {text} }}").remover == selector


def test_what_is_left_out_is_as_in_other_configurations():
    assert table("") == TableConfig(name="t", max_size=100)
    assert load(reverb_config='tables { table_name: "t" max_size: 1 }').server == ServerConfig()
    assert table("").rate_limiter == MinSize(1)


@pytest.mark.parametrize("times", [-3, -1, 0])
def test_no_limit_of_theirs_is_none_of_ours(times):
    assert table(f"max_times_sampled: {times}").max_times_sampled == 0


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(
    finite.filter(lambda ratio: ratio > 0), st.integers(1, 100), st.floats(allow_nan=False), st.floats(allow_nan=False)
)
def test_every_sound_rate_limiter_is_taken_as_it_is(ratio, size, low, high):
    bounds = f"min_diff: {low!r} max_diff: {high!r}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = table(f"rate_limiter {{ samples_per_insert: {ratio!r} min_size_to_sample: {size} {bounds} }}")
    assert made.rate_limiter == RateLimiter(ratio, size, low, high)


@given(st.text(min_size=1).filter(str.isprintable))
def test_every_printable_name_is_taken_as_it_is(name):
    quoted = text_format.text_encoding.CEscape(name, as_utf8=False)
    assert list(tables(f'tables {{ table_name: "{quoted}" max_size: 1 }}')) == [name]


def test_flags_come_on_top():
    config = load(None, ["priority_table:max_size=5e6,sampler=max_heap", "more"], {"port": 0}, UNIFORM_REPLAY)
    changed, more = config.tables
    assert config.server.port == 0
    assert (changed.max_size, changed.sampler, more.name) == (5_000_000, selectors.MaxHeap(), "more")


def test_the_toml_it_is_printed_as_is_read_back(tmp_path):
    config = load(reverb_config=QUEUE_AND_REPLAY)
    path = tmp_path / "same.toml"
    path.write_text(config.to_toml())
    again = load(path)
    assert again.server == config.server
    assert again.to_toml() == config.to_toml()
    assert [table.build().info.signature for table in again.tables] == [
        table.build().info.signature for table in config.tables
    ]


@pytest.mark.parametrize(
    ("signature", "kind"),
    [
        ("tuple_value { values { tensor_spec_value { dtype: DT_FLOAT } } }", "tuple"),
        ('named_tuple_value { name: "S" values { key: "x" value { tensor_spec_value { dtype: DT_FLOAT } } } }', "S"),
    ],
)
def test_a_signature_that_toml_cannot_say_is_not_printed(signature, kind):
    made = table(f"signature {{ {signature} }}")
    assert made.build().signature is not None
    with pytest.raises(InvalidArgument, match=f'table "t": TOML has dicts and lists, but no {kind}; its signature is'):
        made.to_toml()


# -- what is wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--reverb-config: names no table: add tables {"),
        ("port: 8000", "--reverb-config: names no table"),
        ("tables { max_size: 3 }", 'tables number 1, field "table_name": must be a non-empty text, got ""'),
        ('tables { table_name: "t" }', 'table "t", field "max_size": must be an integer from 1 to 536870912, got 0'),
        ('tables { table_name: "t" max_size: -1 }', 'field "max_size": must be an integer from 1 to 536870912, got -1'),
        ('tables { table_name: "t" max_size: 1 }' * 2, 'table "t", given twice: names must be distinct'),
        ('port: -1 tables { table_name: "t" max_size: 1 }', 'field "port": must be an integer from 0 to 65535, got -1'),
        ('port: 65536 tables { table_name: "t" max_size: 1 }', "got 65536"),
    ],
)
def test_what_cannot_work_is_refused_by_name(text, message):
    with pytest.raises(InvalidArgument) as caught:
        load(reverb_config=text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("sampler { fifo: false }", 'field "sampler": fifo: false names no selector: write fifo: true'),
        ("remover { is_deterministic: true }", 'field "remover": names no selector: write fifo: true, say, or drop'),
        ("sampler {}", 'field "sampler": names no selector'),
        ("sampler { prioritized { priority_exponent: -1 } }", 'field "sampler", priority_exponent: must be a finite'),
        ("sampler { prioritized { priority_exponent: nan } }", "priority_exponent: must be a number, got nan"),
        ("rate_limiter {}", 'field "rate_limiter.samples_per_insert": must be a finite number > 0, got 0.0'),
        ("rate_limiter { samples_per_insert: nan }", "samples_per_insert\": must be a number, got nan"),
        ("rate_limiter { samples_per_insert: 1 }", 'field "rate_limiter.min_size_to_sample": must be an integer >= 1'),
        (
            "rate_limiter { samples_per_insert: 1 min_size_to_sample: 1 min_diff: nan }",
            'field "rate_limiter.min_diff": must be a number, got nan',
        ),
        (
            "rate_limiter { samples_per_insert: 1 min_size_to_sample: 101 max_diff: 500 }",
            'field "rate_limiter.min_size_to_sample": 101 items can never be reached with max_size = 100',
        ),
        ("signature {}", 'table "t", field "signature": the signature has no value'),
        (
            'signature { list_value { values { tensor_spec_value { shape { unknown_rank: true } } } } }',
            'field "signature": column 0 has a shape of unknown rank',
        ),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*no room between")
def test_a_table_that_cannot_work_is_refused_by_name(fields, message):
    with pytest.raises(InvalidArgument) as caught:
        table(fields)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'tables {\n  table_nam: "t"\n}',
            'line:column 2:3 : Message type "deepmind.reverb.PriorityTableCheckpoint" has no',
        ),
        ("tables { max_size: many }", "line:column 1:20 : 'tables { max_size: many }': Couldn't parse integer: many"),
        ("tables { max_size: 1 max_size: 2 }", 'should not have multiple "max_size" fields'),
        ("tables { signature { tensor_spec_value { dtype: DT_FLOATS } } }", "DT_FLOATS"),
        ("tables {", "line:column 1:"),
    ],
)
def test_a_text_that_is_wrong_is_refused_with_its_line(text, message):
    with pytest.raises(InvalidArgument) as caught:
        load(reverb_config=text)
    assert message in str(caught.value)


def test_a_text_that_is_nested_too_deeply_is_refused():
    deep = "list_value { values { " * 2000
    with pytest.raises(InvalidArgument, match="deep"):
        load(reverb_config=f'tables {{ table_name: "t" max_size: 1 signature {{ {deep} {"} } " * 2000} }} }}')


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin1").write_bytes(b"# \xe9")
    for name, message in (
        ("missing", "missing: cannot be read: No such file"),
        ("latin1", "latin1: is not UTF-8 text"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            load(reverb_config=f"@{name}")
    (tmp_path / "wrong").write_text("\n  tabels {}")
    with pytest.raises(InvalidArgument, match="wrong: line:column 2:3"):
        load(reverb_config="@wrong")


def test_without_protobuf_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.protobuf", None)
    with pytest.raises(
        InvalidArgument, match=r"needs the package protobuf: pip install 'reverb_async\[reverb-config\]'"
    ):
        load(reverb_config=UNIFORM_REPLAY)


# -- what is doubtful --------------------------------------------------------------------------------------------------


def test_the_state_of_a_checkpoint_is_ignored_aloud():
    with pytest.warns(UserWarning, match=r'table "t", field \w+ is a checkpoint\'s state') as warned:
        made = table(
            "num_unique_samples: 3 deprecated_items { key: 1 } rate_limiter { samples_per_insert: 1 "
            "min_size_to_sample: 1 min_diff: -9 max_diff: 9 insert_count: 7 }"
        )
    assert made.rate_limiter == RateLimiter(1.0, 1, -9.0, 9.0)
    assert len(warned) == 3


def test_bounds_that_stop_the_table_are_said_aloud():
    with pytest.warns(UserWarning, match='table "t", field "rate_limiter": there is no room between min_diff 0 and'):
        table("rate_limiter { samples_per_insert: 1 min_size_to_sample: 10 }")


def test_sound_configurations_say_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for text in (UNIFORM_REPLAY, QUEUE_AND_REPLAY):
            assert read_reverb_config(text)
