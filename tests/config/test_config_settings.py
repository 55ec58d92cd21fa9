"""Values from files and command lines: reading, writing, and what is said about wrong ones."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverb_async.config.settings import Setting, check_keys, parse_flag, shown, to_toml
from reverb_async.errors import InvalidArgument

# Text without surrogates: UTF-8 has none.
TEXTS = st.text(st.characters(exclude_categories=("Cs",)))
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_what_is_written_as_toml_is_read_back(value):
    assert tomllib.loads(f"value = {to_toml(value)}") == {"value": value}


@given(value=VALUES, other=VALUES)
def test_toml_values_work_in_flags_too(value, other):
    assert parse_flag(f"replay:a={to_toml(value)},b={to_toml(other)}") == ("replay", {"a": value, "b": other})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e6", 1e6),
        ("1_000_000", 1_000_000),
        ("007", 7),
        (".5", 0.5),
        ("inf", float("inf")),
        ("true", True),
        ("prioritized", "prioritized"),
        ("'quoted, text'", "quoted, text"),
        ("[1, 2.5]", [1, 2.5]),
        ("{kind = 'prioritized', priority_exponent = 0.6}", {"kind": "prioritized", "priority_exponent": 0.6}),
        ("1\nb = 2", "1\nb = 2"),
        ("a=b", "a=b"),
    ],
)
def test_flag_values_are_toml_or_text(text, value):
    assert parse_flag(f"replay:a={text}") == ("replay", {"a": value})


@pytest.mark.parametrize("text", ["replay", "replay:", " replay : "])
def test_a_flag_may_be_a_bare_name(text):
    assert parse_flag(text) == (text.split(":")[0], {})


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("", 'a table\'s name comes first, as in replay:max_size=1e6, got ""'),
        (":max_size=3", "a table's name comes first"),
        ("max_size=3", "a table's name comes first"),
        ("re\nplay", r'must be printable, got "re\\nplay"'),
        ("replay:max_size", 'table "replay", key "max_size": it has no value: write max_size=VALUE'),
        ("replay:max_size=", 'table "replay", key "max_size": it has no value'),
        ("replay:max_size=3, max_size=4", 'table "replay", key "max_size": it is given twice'),
    ],
)
def test_a_malformed_flag_is_refused(flag, message):
    with pytest.raises(InvalidArgument, match=r"^--table: .*" + message):
        parse_flag(flag)


@pytest.mark.parametrize(("value", "expected"), [(3, 3), (1e6, 1_000_000), (0, 0)])
def test_integral_floats_are_integers(value, expected):
    read = Setting(value, "here").integer(0)
    assert read == expected
    assert type(read) is int


@pytest.mark.parametrize("value", [-1, 11, 1.5, True, "3", "many", float("nan"), float("inf"), [1], {}])
def test_what_is_no_integer_in_range_is_refused(value):
    with pytest.raises(InvalidArgument, match=r"^here: must be an integer from 0 to 10, got"):
        Setting(value, "here").integer(0, 10)


@pytest.mark.parametrize("value", [True, "3", float("nan"), [1], {}, 10**400])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(InvalidArgument, match=r"^here: must be a number"):
        Setting(value, "here").number()


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), "x"])
def test_what_is_no_finite_number_above_zero_is_refused(value):
    with pytest.raises(InvalidArgument, match=r"^here: must be a"):
        Setting(value, "here").finite()


def test_zero_is_allowed_where_it_makes_sense():
    assert Setting(0, "here").finite(zero=True) == 0.0


@pytest.mark.parametrize("value", ["", 3, None, "two\nlines", "bell\a"])
def test_what_is_no_printable_text_is_refused(value):
    with pytest.raises(InvalidArgument, match=r"^here: must be "):
        Setting(value, "here").text()


@pytest.mark.parametrize("value", [0, 1, "true"])
def test_what_is_not_true_or_false_is_refused(value):
    with pytest.raises(InvalidArgument, match=r"^here: must be true or false, got"):
        Setting(value, "here").boolean()


def test_a_misspelt_choice_names_the_one_that_was_meant():
    with pytest.raises(InvalidArgument, match=r'must be one of "fifo", "lifo", got "FIFOO"; did you mean "fifo"'):
        Setting("FIFOO", "here").choice(("fifo", "lifo"))


def test_a_misspelt_key_names_the_one_that_was_meant():
    with pytest.raises(
        InvalidArgument, match=r'^x.toml: key "max_sise": there is no such key; did you mean "max_size"?'
    ):
        check_keys(["name", "max_sise"], ["name", "max_size"], "x.toml: ")


def test_a_key_like_no_other_lists_those_there_are():
    with pytest.raises(InvalidArgument, match=r'key "zzz": there is no such key; known are max_size, name$'):
        check_keys(["zzz"], ["name", "max_size"], "x.toml: ")


def test_long_values_are_shortened_in_messages():
    assert shown("x" * 100) == '"' + "x" * 56 + "..."
