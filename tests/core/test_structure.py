import contextlib
import dataclasses
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverb_async.core.nest import flatten
from reverb_async.core.structure import Structure
from reverb_async.errors import InvalidArgument


class Obs(NamedTuple):
    image: object
    speed: object


@dataclasses.dataclass
class Step:
    obs: object
    reward: object


NEST = {"step": Step(Obs(1, 2), 3), "extra": [4, (5, None)], "none": None}
STRUCTURE = flatten(NEST)[1]

scalars = (
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=4) | st.binary(max_size=4)
    | st.sampled_from(["dict", "list", "tuple", "namedtuple", "dataclass", ["a"], ["a", "b"], ["b", "a"], 0])
)  # fmt: skip
wires = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(st.sampled_from(["dict", "namedtuple", "dataclass", "list"]), inner, inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=25,
)


def structure_of(nest: object) -> Structure:
    return flatten(nest)[1]


class TestWire:
    def test_the_form_is_fixed(self) -> None:
        assert STRUCTURE.to_wire() == [
            "dict",
            ["extra", "none", "step"],
            ["list", 0, ["tuple", 0, None]],
            None,
            ["dataclass", "Step", ["obs", "reward"], ["namedtuple", "Obs", ["image", "speed"], 0, 0], 0],
        ]
        assert Structure.from_wire(STRUCTURE.to_wire()) == STRUCTURE

    @given(wires)
    def test_whatever_it_is_it_is_a_structure_or_an_invalid_argument(self, wire: object) -> None:
        with contextlib.suppress(InvalidArgument):
            structure = Structure.from_wire(wire)
            assert Structure.from_wire(structure.to_wire()) == structure
            assert flatten(structure.unflatten(list(range(structure.num_leaves))))[0] == list(
                range(structure.num_leaves)
            )

    @pytest.mark.parametrize(
        "wire",
        [
            1,
            True,
            False,
            0.0,
            "list",
            [],
            ["set", 0],
            [["list"], 0],
            ["dict"],
            ["dict", ["a"]],
            ["dict", ["b", "a"], 0, 0],
            ["dict", ["a", "a"], 0, 0],
            ["dict", [1], 0],
            ["dict", "a", 0],
            ["dict", ["\ud800"], 0],
            ["dict", ["x" * 1025], 0],
            ["namedtuple", "N", ["a"], 0, 0],
            ["namedtuple", "N", ["a", "a"], 0, 0],
            ["namedtuple", "N", ["class"], 0],
            ["namedtuple", "N", ["a b"], 0],
            ["namedtuple", "N", ["ﬁ", "fi"], 0, 0],
            ["namedtuple", "not a name", ["a"], 0],
            ["namedtuple", "", [], 0],
            ["namedtuple", 3, ["a"], 0],
            ["dataclass", "N"],
        ],
    )
    def test_a_malformed_one_is_refused(self, wire: object) -> None:
        with pytest.raises(InvalidArgument):
            Structure.from_wire(wire)

    def test_depth_and_size_are_bounded(self) -> None:
        deep: object = 0
        for _ in range(500):
            deep = ["list", deep]
        for wire in (deep, ["list", *[0] * 16385], ["list", *[None] * 70000], ["list", *[["list"]] * 70000]):
            with pytest.raises(InvalidArgument, match="at most"):
                Structure.from_wire(wire)

    def test_records_of_unknown_classes_are_namedtuples(self) -> None:
        structure = Structure.from_wire(["dataclass", "Elsewhere", ["a", "_b"], 0, 0])
        again: Any = structure.unflatten([1, 2])
        assert again == (1, 2)
        assert (type(again).__name__, again.a) == ("Elsewhere", 1)
        assert structure.paths == (("a",), ("_b",))


class TestDescribe:
    def test_it_shows_the_nest(self) -> None:
        assert STRUCTURE.describe() == (
            "{'extra': [*, (*, None)], 'none': None, 'step': Step(obs=Obs(image=*, speed=*), reward=*)}"
        )
        assert structure_of((1,)).describe() == "(*,)"
        assert structure_of(1).describe() == "*"

    def test_it_stays_short(self) -> None:
        assert len(structure_of({f"key{index}": index for index in range(1000)}).describe()) < 210


class TestSelect:
    @pytest.mark.parametrize(
        ("columns", "nest", "indices"),
        [
            (["extra"], {"extra": [4, (5, None)]}, [0, 1]),
            ("extra", {"extra": [4, (5, None)]}, [0, 1]),
            ([("extra", 1)], {"extra": [None, (5, None)]}, [1]),
            ([("step", "reward")], {"step": Step(None, 3)}, [4]),
            ([("step", "obs", "speed"), ("extra", 0)], {"step": Step(Obs(None, 2), None), "extra": [4, None]}, [0, 3]),
            ([["step"], ("step", "reward")], {"step": Step(Obs(1, 2), 3)}, [2, 3, 4]),
        ],
    )
    def test_columns_keep_their_places(self, columns: Any, nest: object, indices: list[int]) -> None:
        selected, found = STRUCTURE.select(columns)
        assert found == indices
        assert selected == structure_of(nest)
        assert selected.paths == tuple(STRUCTURE.paths[index] for index in indices)

    def test_the_empty_path_is_everything(self) -> None:
        assert STRUCTURE.select([()])[1] == [0, 1, 2, 3, 4]
        assert structure_of(1).select([()]) == (structure_of(1), [0])

    @pytest.mark.parametrize("columns", [["nope"], [("extra", 7)], ["none"], [("extra", 0, 0)], []])
    def test_an_unknown_column_is_refused_with_the_known_ones(self, columns: Any) -> None:
        with pytest.raises(InvalidArgument, match=r"there are \('extra', 0\), \('extra', 1, 0\)"):
            STRUCTURE.select(columns)

    @pytest.mark.parametrize("columns", [[None], [True], [{"a": 1}], [(1.5,)], [([],)]])
    def test_what_is_no_column_is_refused(self, columns: Any) -> None:
        with pytest.raises(InvalidArgument):
            STRUCTURE.select(columns)


class TestWithTypes:
    def test_classes_are_put_in_their_places(self) -> None:
        @dataclasses.dataclass
        class MyStep:
            obs: object
            reward: object

        class MyObs(NamedTuple):
            image: object
            speed: object

        structure = Structure.from_wire(STRUCTURE.to_wire())
        for template in ({"step": MyStep(MyObs, None)}, {"step": MyStep(MyObs(0, 0), 0), "extra": [0, (0, None)]}):
            got = structure.with_types(template).unflatten([4, 5, 1, 2, 3])
            assert got == {**NEST, "step": MyStep(MyObs(1, 2), 3)}
            assert type(got["step"].obs) is MyObs  # type: ignore[index]
        assert type(structure.with_types({"step": MyStep}).unflatten([4, 5, 1, 2, 3])["step"].obs) is Obs  # type: ignore[index]
        assert structure.with_types(template) == structure

    def test_a_class_may_stand_for_the_whole_nest(self) -> None:
        class Whole(NamedTuple):
            x: object

        structure = Structure.from_wire(["dataclass", "Other", ["x"], 0])
        assert structure.with_types(Whole).unflatten([1]) == Whole(1)

    @pytest.mark.parametrize(
        "template",
        [Step, {"step": Obs}, {"extra": Step}, {"step": int}, {"nope": Step}, {"extra": [0, 0, 0]}, {"step": [0]}],
    )
    def test_a_class_that_does_not_fit_is_refused(self, template: object) -> None:
        with pytest.raises(InvalidArgument, match="structure: "):
            STRUCTURE.with_types(template)


class TestMerge:
    @pytest.mark.parametrize(
        ("one", "other", "both"),
        [
            ({"x": 1, "z": 1}, {"z": 1, "y": 1}, {"x": 1, "y": 1, "z": 1}),
            ({"x": 1, "y": None}, {"x": None, "y": [1]}, {"x": 1, "y": [1]}),
            ((1,), (None, 2), (1, 2)),
            ([1, 2], [1], [1, 2]),
            ({}, {"a": 1}, {"a": 1}),
            (None, Step(1, None), Step(1, None)),
            (Step(1, None), Step(None, {"a": 1}), Step(1, {"a": 1})),
            (Obs(1, 2), Obs(1, 2), Obs(1, 2)),
        ],
    )
    def test_the_result_has_the_places_of_both(self, one: object, other: object, both: object) -> None:
        assert structure_of(one).merge(structure_of(other)) == structure_of(both)
        assert structure_of(other).merge(structure_of(one)) == structure_of(both)

    @pytest.mark.parametrize(
        ("one", "other"),
        [(1, [1]), ([1], (1, 2)), ({"x": 1}, Step(1, 1)), (Step(1, 1), Obs(1, 1)), ({"image": 1}, Obs(1, 1)), ({}, 1)],
    )
    def test_contradictions_are_refused_with_their_path(self, one: object, other: object) -> None:
        with pytest.raises(InvalidArgument, match=r"at \('a', 0\)"):
            structure_of({"a": [one]}).merge(structure_of({"a": [other]}))
