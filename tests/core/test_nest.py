import dataclasses
import pickle
import time
from collections import OrderedDict, defaultdict, deque, namedtuple
from typing import Any, NamedTuple

import numpy as np
import optree
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverb_async.core.nest import flatten
from reverb_async.core.records import registry
from reverb_async.errors import InvalidArgument


class Step(NamedTuple):
    reward: object
    obs: object


@dataclasses.dataclass(frozen=True, slots=True)
class Timestep:
    step: object
    discount: object = None


@dataclasses.dataclass
class Empty: ...


keys = st.text("abcé", min_size=1, max_size=2)
leaves = st.integers(0, 3) | st.floats(allow_nan=False) | st.text(max_size=2) | st.binary(max_size=2) | st.booleans()
nests = st.recursive(
    leaves | st.none(),
    lambda inner: (
        st.dictionaries(keys, inner, max_size=4)
        | st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.builds(Step, inner, inner)
        | st.builds(Timestep, inner, inner)
        | st.builds(Empty)
    ),
    max_leaves=12,
)


def walked(nest: Any, at: tuple[object, ...] = ()) -> list[tuple[tuple[object, ...], object]]:
    """What dm-tree's order is, in the plainest words."""
    if nest is None:
        return []
    if isinstance(nest, dict):
        parts = [(key, nest[key]) for key in sorted(nest)]
    elif isinstance(nest, Step | Timestep | Empty):
        names = nest._fields if isinstance(nest, Step) else [field.name for field in dataclasses.fields(nest)]
        parts = [(name, getattr(nest, name)) for name in names]
    elif isinstance(nest, list | tuple):
        parts = list(enumerate(nest))
    else:
        return [(at, nest)]
    return [found for part, child in parts for found in walked(child, (*at, part))]


@given(nests)
def test_a_nest_is_taken_apart_in_order_and_put_together_again(nest: object) -> None:
    for _ in range(2):  # learnt, then known
        values, structure = flatten(nest)
        wanted = walked(nest)
        assert structure.paths == tuple(path for path, _ in wanted)
        assert structure.num_leaves == len(values)
        assert all(got is value for got, (_, value) in zip(values, wanted, strict=True))
        assert structure.unflatten(values) == nest


@given(nests, nests)
def test_structures_are_equal_when_their_descriptions_are(one: object, other: object) -> None:
    first, second = flatten(one)[1], flatten(other)[1]
    assert (first == second) == (first.to_wire() == second.to_wire())
    if first == second:
        assert hash(first) == hash(second)
    assert pickle.loads(pickle.dumps(first)) == first


def test_a_flat_dict_is_sorted_whatever_its_order() -> None:
    for _ in range(2):
        assert flatten({"b": 1, "a": 2})[0] == [2, 1]
        assert flatten({"a": 2, "b": 1})[0] == [2, 1]
    assert flatten({"a": 2, "b": None})[0] == [2]
    assert flatten({"a": 2, "b": [1]})[0] == [2, 1]
    assert flatten({"a": Timestep(1), "b": 1})[0] == [1, 1]


def test_an_ordered_dict_is_a_dict() -> None:
    for _ in range(2):
        values, structure = flatten(OrderedDict(z=1, a=OrderedDict(y=2, b=3)))
        assert values == [3, 2, 1]
        assert structure == flatten({"z": 1, "a": {"y": 2, "b": 3}})[1]
        assert structure.unflatten(values) == {"a": {"b": 3, "y": 2}, "z": 1}


def test_values_are_not_looked_at() -> None:
    class Column:
        """As a trajectory column is: neither an array nor a container."""

        def __len__(self) -> int:
            return 3

    column = Column()
    for _ in range(2):
        assert flatten({"a": column, "b": np.zeros(3)})[0][0] is column
        assert flatten([column])[0] == [column]
    assert flatten(column)[1].paths == ((),)


def test_a_long_list_of_arrays_is_a_list() -> None:
    for _ in range(2):
        assert len(flatten([np.zeros(1)] * 20)[0]) == 20
        assert len(flatten({"x": [np.zeros(1)] * 20, "y": [1.0] * 16})[0]) == 36


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([3] * 512, "'tokens' is 512 columns; pass np.asarray(tokens, np.int32)"),
        ((0.5,) * 17, "'tokens' is 17 columns; pass np.asarray(tokens, np.float32)"),
        ([True] * 17, "np.asarray(tokens, np.bool_)"),
        ([1j] * 17, "np.asarray(tokens, np.complex64)"),
        ([np.zeros(1), *[1] * 17], "np.asarray(tokens, np.int32)"),
    ],
)
def test_a_list_of_many_numbers_is_refused_with_the_array_it_should_be(numbers: object, said: str) -> None:
    assert isinstance(numbers, list | tuple)
    flatten({"seen": {"tokens": type(numbers)([np.zeros(1)] * len(numbers))}})  # the same structure is known by now
    with pytest.raises(InvalidArgument) as caught:
        flatten({"seen": {"tokens": numbers}})
    assert "column ('seen', 'tokens')" in str(caught.value)
    assert said in str(caught.value)


class Attributes(dict):  # type: ignore[type-arg]
    pass


@pytest.mark.parametrize(
    ("container", "way_out"),
    [
        ({1, 2}, "a set; use a tuple or a dict"),
        (frozenset(), "a frozenset; use a tuple or a dict"),
        (deque([1]), "a deque; pass np.asarray(list(x))"),
        (defaultdict(int, a=1), "a defaultdict; pass dict(x)"),
        (Attributes(a=1), "a Attributes; pass dict(x)"),
        (time.gmtime(0), "a struct_time; pass tuple(x)"),
        (range(3), "a range; pass np.arange(...)"),
        (iter([1]), "a list_iterator; pass np.asarray(list(x))"),
        ({"a": 1}.keys(), "a dict_keys; pass"),
        ({"a": 1}.values(), "a dict_values; pass"),
    ],
)
def test_other_containers_are_refused_with_the_way_out(container: object, way_out: str) -> None:
    for nest in ({"a": container}, {"a": container, "b": 1}):
        with pytest.raises(InvalidArgument) as caught:
            flatten(nest)
        assert f"column ('a',) is {way_out}" in str(caught.value)


@pytest.mark.parametrize("nest", [{1: 2}, {"a": {("b",): 1}}, {None: 1}, {b"a": 1, "a": 2}, {1: 1, "a": 1}])
def test_keys_must_be_text(nest: object) -> None:
    with pytest.raises(InvalidArgument, match=r"the dict at .* has the key .*str\(k\)"):
        flatten(nest)


@pytest.mark.parametrize("key", ["\ud800", "x" * 1025])
def test_keys_must_be_able_to_travel(key: str) -> None:
    with pytest.raises(InvalidArgument, match="key"):
        flatten({key: 1})


def test_a_nest_that_contains_itself_is_refused() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(InvalidArgument, match="contain"):
        flatten(endless)


def test_the_limits_are_those_of_the_wire() -> None:
    deep: object = 1
    for _ in range(64):
        deep = [deep]
    structure = flatten(deep)[1]
    assert type(structure).from_wire(structure.to_wire()) == structure
    with pytest.raises(InvalidArgument, match="64 deep"):
        flatten([deep])
    array = np.zeros(1)
    structure = flatten([array] * 16384)[1]
    assert type(structure).from_wire(structure.to_wire()) == structure
    for nest in ([array] * 16385, [[] for _ in range(70000)]):
        with pytest.raises(InvalidArgument, match="columns"):
            flatten(nest)


def test_records_are_made_without_their_constructor() -> None:
    @dataclasses.dataclass
    class Positive:
        value: float

        def __post_init__(self) -> None:
            assert self.value > 0

    class Scaled(namedtuple("Scaled", "value")):  # the untyped kind exists too
        def __new__(cls, value: float) -> "Scaled":
            return super().__new__(cls, value * 2)

    for _ in range(2):
        for record in (Positive(2.0), Scaled(2.0)):
            values, structure = flatten({"r": record})
            again: Any = structure.unflatten([-7.0])
            assert type(again["r"]) is type(record)
            assert again["r"].value == -7.0
            assert values == [2.0] if isinstance(record, Positive) else [4.0]


def test_a_record_without_a_value_for_a_field_is_refused() -> None:
    record = Timestep(1)
    object.__delattr__(record, "discount")
    with pytest.raises(InvalidArgument, match=r"Timestep at \('t',\) has no value for its field 'discount'"):
        flatten({"t": record})


def test_a_dataclass_that_is_also_a_dict_is_refused() -> None:
    @dataclasses.dataclass
    class Output(dict):  # type: ignore[type-arg]
        logits: object = None

    with pytest.raises(InvalidArgument, match="Output; pass"):
        flatten(Output())


def test_two_classes_of_one_name_and_fields_come_back_as_a_namedtuple() -> None:
    def first() -> type:
        class Pair(NamedTuple):
            a: object

        return Pair

    def second() -> type:
        class Pair(NamedTuple):
            a: object

        return Pair

    one, other = first(), second()
    structure = flatten(one(1))[1]
    assert type(structure.unflatten([1])) is one
    assert flatten(other(1))[1] == structure
    again: Any = structure.unflatten([1])
    assert type(again) not in (one, other)
    assert type(again).__name__ == "Pair"
    assert again.a == 1
    assert pickle.loads(pickle.dumps(again)) == again


def test_a_class_defined_anew_replaces_the_former() -> None:
    def cell() -> type:
        class Redefined(NamedTuple):
            a: object

        return Redefined

    old, new = cell(), cell()
    structure = flatten(old(1))[1]
    assert type(structure.unflatten([1])) is old
    flatten(new(1))
    assert type(structure.unflatten([1])) is new


def test_classes_that_optree_does_not_walk_are_walked_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reverb_async.core.records._MAX_CLASSES", 0)

    @dataclasses.dataclass
    class Late:
        a: object

    for _ in range(2):
        values, structure = flatten({"x": Late(5)})
        assert values == [5]
        assert structure.paths == (("x", "a"),)
        assert flatten({"x": 5})[1].paths == (("x",),)
    assert not registry.is_walked(Late)
    typed = structure.with_types({"x": Late})
    assert typed.unflatten([6]) == {"x": Late(6)}


def test_what_others_registered_with_optree_stays_a_value() -> None:
    class Box:
        def __init__(self, value: object) -> None:
            self.value = value

    optree.register_pytree_node(
        Box, lambda box: ((box.value,), None), lambda _, values: Box(*values), namespace="elsewhere"
    )
    box = Box(3)
    for _ in range(2):
        assert flatten({"b": box})[0] == [box]


def test_names_are_kept_as_they_stand_in_paths_of_str_subclasses() -> None:
    structure = flatten({np.str_("a"): 1})[1]
    assert structure.paths == (("a",),)
    assert type(structure.paths[0][0]) is str
