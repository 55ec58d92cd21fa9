import contextlib
import importlib
import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverb_async.core import dtypes
from reverb_async.core.ragged import Ragged
from reverb_async.core.spec import ArraySpec, Signature, as_leaf, check_values, dtype_from_name, dtype_name, leaf_spec
from reverb_async.errors import InvalidArgument, SignatureMismatch

NUMERIC = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
BUILTIN = [*NUMERIC, "str", "bytes", "S1", "S7", "U1", "U16"]
FROM_ML_DTYPES = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz"]

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.binary(max_size=6)
    | st.sampled_from([0, 4, None, "float32", "bfloat16", "str", "dict", "list", "tuple", "namedtuple", "dataclass"])
)  # fmt: skip
wires = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=25,
)


@pytest.mark.parametrize("name", BUILTIN + FROM_ML_DTYPES)
def test_every_supported_dtype_keeps_its_name(name: str) -> None:
    if name in FROM_ML_DTYPES:
        pytest.importorskip("ml_dtypes")
    assert dtype_name(dtype_from_name(name)) == name


@given(
    st.sampled_from(BUILTIN),
    st.lists(st.integers(0, 9) | st.none(), max_size=5),
)
def test_a_spec_survives_the_wire(name: str, shape: list[int | None]) -> None:
    spec = ArraySpec(tuple(shape), dtype_from_name(name))
    again = ArraySpec.from_wire(spec.to_wire())
    assert again == spec
    assert hash(again) == hash(spec)
    assert again.is_variable == (None in shape or name in ("str", "bytes"))
    assert pickle.loads(pickle.dumps(spec)) == spec


@given(wires)
def test_a_hostile_spec_is_an_invalid_argument(wire: object) -> None:
    for reader in (ArraySpec.from_wire, Signature.from_wire, dtype_from_name):
        with contextlib.suppress(InvalidArgument):
            reader(wire)


@pytest.mark.parametrize(
    "wire",
    [
        ["float32"],
        ["float32", [4], 0],
        ["object", [4]],
        [">i4", [4]],
        ["M8[s]", []],
        ["U0", []],
        ["U٣", []],
        ["S99999999999999", []],
        ["U300000", []],
        [["float32"], []],
        ["float32", [-1]],
        ["float32", [2**31]],
        pytest.param(["float32", [10**5000]], id="huge"),
        ["float32", [True]],
        ["float32", [1.0]],
        ["float32", "44"],
        ["float32", [1] * 33],
        ["float32", [None] * 9],
        ["float32", [2**16, 2**16]],
        ["float32", [0, 2**30, 2**30]],
        ["float32", {"0": 4}],
    ],
)
def test_a_malformed_spec_is_refused(wire: object) -> None:
    with pytest.raises(InvalidArgument):
        ArraySpec.from_wire(wire)


def test_a_row_has_the_size_of_its_shape() -> None:
    assert ArraySpec((84, 84, 4), np.uint8).row_bytes == 84 * 84 * 4
    assert ArraySpec((84, 84, 4), np.uint8).fixed_shape == (84, 84, 4)
    assert ArraySpec((), "U16").row_bytes == 64
    assert ArraySpec((0, 3), float).row_bytes == 0


def test_python_types_are_dtypes() -> None:
    assert ArraySpec((), str) == ArraySpec([], "str")
    assert ArraySpec((np.int64(3),), int) == ArraySpec((3,), "int64")


@pytest.mark.parametrize(
    ("dtype", "way_out"),
    [
        (object, "np.asarray(x, np.float32)"),
        ([("a", "f4"), ("b", "i4")], "its fields as a dict"),
        (">f4", "x.astype(x.dtype.newbyteorder('='))"),
        ("M8[s]", "x.astype(np.int64)"),
        (None, "np.float32"),
        ("nonsense", "np.float32"),
        ("i4,,", "np.float32"),
        (3.5, "np.float32"),
    ],
)
def test_a_dtype_that_cannot_travel_is_refused_with_the_way_out(dtype: object, way_out: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        ArraySpec((), dtype)
    assert way_out in str(caught.value)


def test_bfloat16_needs_ml_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    dtypes._ml_dtype.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(importlib, "import_module", missing)
        with pytest.raises(InvalidArgument, match="pip install"):
            dtype_from_name("bfloat16")
    dtypes._ml_dtype.cache_clear()


class TestAsLeaf:
    def test_an_array_is_returned_as_it_is(self) -> None:
        array = np.zeros((2, 3), np.float32)[:, ::2]
        assert as_leaf(array, ("x",)) is array

    @pytest.mark.parametrize(
        ("value", "dtype"),
        [(True, "bool"), (3, "int64"), (2.5, "float64"), (1j, "complex128"), (np.float32(3), "float32")],
    )
    def test_numbers_become_arrays_without_dimensions(self, value: object, dtype: str) -> None:
        leaf = as_leaf(value, ("x",))
        assert isinstance(leaf, np.ndarray)
        assert (leaf.shape, leaf.dtype, leaf.item()) == ((), np.dtype(dtype), value)

    @pytest.mark.parametrize(
        ("value", "dtype", "taken"),
        [
            (True, "uint8", "uint8"),
            (3, "float32", "float32"),
            (3, "bool", "int64"),
            (2.5, "float16", "float16"),
            (2.5, "int32", "float64"),
            (float("inf"), "float32", "float32"),
            (1j, "complex64", "complex64"),
            (1j, "float32", "complex128"),
            (np.float64(1), "float32", "float64"),
        ],
    )
    def test_python_numbers_take_the_dtype_asked_for_if_it_can_hold_them(
        self, value: object, dtype: str, taken: str
    ) -> None:
        leaf = as_leaf(value, ("x",), ArraySpec((), dtype))
        assert isinstance(leaf, np.ndarray)
        assert (leaf.dtype, leaf.item()) == (np.dtype(taken), value)

    @pytest.mark.parametrize("name", FROM_ML_DTYPES)
    def test_small_floats_are_taken_and_kept(self, name: str) -> None:
        pytest.importorskip("ml_dtypes")
        leaf = as_leaf(1.5, ("x",), ArraySpec((), name))
        assert isinstance(leaf, np.ndarray)
        assert leaf.dtype.name == name
        assert as_leaf(leaf, ("x",)) is leaf
        with pytest.raises(InvalidArgument, match="range"):
            as_leaf(1e300, ("x",), ArraySpec((), name))

    @pytest.mark.parametrize(
        ("value", "dtype"),
        [
            (300, "uint8"),
            (-1, "uint64"),
            (2**63, None),
            pytest.param(10**5000, None, id="huge"),
            (10**400, "float32"),
            (10**400, "float64"),
            (1e39, "float32"),
            (70000, "float16"),
            (1e300j, "complex64"),
        ],
    )
    def test_a_number_out_of_range_is_refused(self, value: object, dtype: str | None) -> None:
        with pytest.raises(InvalidArgument, match=r"column \('r',\)"):
            as_leaf(value, ("r",), None if dtype is None else ArraySpec((), dtype))

    def test_text_and_bytes_stay_python_values(self) -> None:
        assert as_leaf("héllo", ()) == "héllo"
        assert type(as_leaf(np.str_("a"), ())) is str
        assert type(as_leaf(np.bytes_(b"a"), ())) is bytes
        assert as_leaf(np.array("abc"), (), ArraySpec((), str)) == "abc"

    def test_text_and_bytes_are_widened_to_the_width_asked_for(self) -> None:
        assert as_leaf("ab", (), ArraySpec((), "U4")).dtype == np.dtype("U4")  # type: ignore[union-attr]
        assert as_leaf(b"ab", (), ArraySpec((), "S4")).dtype == np.dtype("S4")  # type: ignore[union-attr]
        wide = as_leaf(np.array(["a", "bc"]), (), ArraySpec((2,), "U4"))
        assert isinstance(wide, np.ndarray)
        assert wide.dtype == np.dtype("U4")
        assert wide.tolist() == ["a", "bc"]

    @pytest.mark.parametrize("value", ["abcde", "ab\0", b"abcde", b"a\0"])
    def test_text_that_a_fixed_width_would_change_is_refused(self, value: str | bytes) -> None:
        with pytest.raises(InvalidArgument, match="make the signature's dtype"):
            as_leaf(value, ("t",), ArraySpec((), "U4" if isinstance(value, str) else "S4"))

    def test_what_offers_an_array_is_one(self) -> None:
        class Tensor:
            __module__ = "torch"
            device = SimpleNamespace(type="cpu")
            requires_grad = False

            def __array__(self, dtype: object = None, copy: object = None) -> Any:
                return np.arange(3)

        assert np.array_equal(as_leaf(Tensor(), ("x",)), np.arange(3))  # type: ignore[arg-type]
        Tensor.requires_grad = True
        with pytest.raises(InvalidArgument, match=r"\.detach\(\)"):
            as_leaf(Tensor(), ("x",))
        Tensor.device = SimpleNamespace(type="cuda")
        with pytest.raises(InvalidArgument, match=r"\('x',\).*\.cpu\(\)\.numpy\(\)"):
            as_leaf(Tensor(), ("x",))

    def test_what_fails_to_become_an_array_is_refused(self) -> None:
        class Broken:
            def __array__(self, dtype: object = None, copy: object = None) -> Any:
                raise RuntimeError("no data yet")

        with pytest.raises(InvalidArgument, match=r"Broken.*no data yet"):
            as_leaf(Broken(), ("x",))

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            (np.array([1, None]), "np.asarray(x, np.float32)"),
            (np.zeros(2, [("a", "f4")]), "dict"),
            (np.zeros(2, ">i4"), "x.astype(x.dtype.newbyteorder('='))"),
            (np.zeros(2, ">U4"), "newbyteorder"),
            (np.zeros(2, np.longdouble), "x.astype(np.float64)"),
            (np.zeros(2, "m8[s]"), "x.astype(np.int64)"),
            (np.zeros(2, "V3"), "x.view(np.uint8)"),
            (np.array(["a"], np.dtypes.StringDType()), "U16"),
            (np.ma.masked_array([1], [True]), "mask"),
            ({1, 2}, "use a tuple or a dict"),
            (bytearray(2), "bytes(x)"),
            ([1, 2], "np.asarray(x, np.float32)"),
            (None, "None"),
            (object(), "object"),
            ("\ud800", "surrogate"),
            (Ragged(np.zeros(2), np.array([0, 2])), "Ragged"),
        ],
    )
    def test_other_values_are_refused_with_path_and_way_out(self, value: object, said: str) -> None:
        with pytest.raises(InvalidArgument) as caught:
            as_leaf(value, ("a", 0))
        assert "('a', 0)" in str(caught.value)
        assert said in str(caught.value)

    def test_a_forgotten_await_is_recognised(self) -> None:
        async def step() -> None: ...

        forgotten = step()
        with pytest.raises(InvalidArgument, match=r"a coroutine, did you forget 'await'\?"):
            as_leaf(forgotten, ("obs",))
        forgotten.close()

    @pytest.mark.parametrize("name", [*NUMERIC, "S7", "U16", *FROM_ML_DTYPES])
    @pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (1, 2, 3)])
    def test_the_spec_of_a_leaf_is_its_own(self, name: str, shape: tuple[int, ...]) -> None:
        if name in FROM_ML_DTYPES:
            pytest.importorskip("ml_dtypes")
        leaf = as_leaf(np.zeros(shape, dtype_from_name(name)), ("x",))
        assert ArraySpec.from_wire(leaf_spec(leaf).to_wire()) == ArraySpec(shape, name)

    def test_text_has_a_variable_spec(self) -> None:
        assert leaf_spec("abc") == ArraySpec((), str)
        assert leaf_spec(b"abc") == ArraySpec((), bytes)


def test_bytes_that_are_no_values_are_refused() -> None:
    check_values(np.array([True, False]), "x")
    check_values(np.array(["ä\U0010ffff"]), "x")
    check_values(np.zeros(0, bool), "x")
    with pytest.raises(InvalidArgument, match="x: bools"):
        check_values(np.array([1, 2], np.uint8).view(bool), "x")
    with pytest.raises(InvalidArgument, match="x: text"):
        check_values(np.array([1, 0x110000], np.uint32).view("U2"), "x")


NEST = {"obs": ArraySpec((None, 4), np.float32), "action": (ArraySpec((), np.int32), None)}


def signature() -> Signature:
    found = Signature.of(NEST)
    assert found is not None
    return found


def check(nest: object) -> None:
    given = Signature.of(nest)
    assert given is not None
    signature().check(given.structure, given.specs, what="table 'replay'")


class TestSignature:
    def test_none_is_no_signature(self) -> None:
        assert Signature.of(None) is None

    def test_it_gives_back_its_nest_and_survives_the_wire(self) -> None:
        assert signature().nest == NEST
        assert Signature.from_wire(signature().to_wire()) == signature()
        assert hash(Signature.from_wire(signature().to_wire())) == hash(signature())

    def test_examples_may_stand_for_specs(self) -> None:
        assert Signature.of({"x": np.zeros(3, np.uint8)}) == Signature.of({"x": ArraySpec((3,), np.uint8)})

    @pytest.mark.parametrize("nest", [{"x": np.float32}, {"x": 3}, {"x": "float32"}, {}, {"x": np.zeros(2, object)}])
    def test_other_nests_are_refused(self, nest: object) -> None:
        with pytest.raises(InvalidArgument):
            Signature.of(nest)

    def test_columns_are_matched_by_name_not_by_place(self) -> None:
        check(NEST)
        check({"obs": ArraySpec((7, 4), np.float32), "action": [ArraySpec((), np.int32)]})
        check({"obs": ArraySpec((None, None), np.float32), "action": [ArraySpec((), np.int32)]})

    @pytest.mark.parametrize(
        ("obs", "said"),
        [
            (ArraySpec((1, 4), np.float64), "column ('obs',) is float64 [1, 4], the signature wants float32 [any, 4]"),
            (ArraySpec((1, 3), np.float32), "column ('obs',) is float32 [1, 3]"),
            (ArraySpec((4,), np.float32), "column ('obs',) is float32 [4]"),
        ],
    )
    def test_a_column_of_another_kind_is_named(self, obs: ArraySpec, said: str) -> None:
        with pytest.raises(SignatureMismatch) as caught:
            check({**NEST, "obs": obs})
        assert str(caught.value).startswith(f"table 'replay': {said}")

    def test_a_list_of_numbers_where_one_array_is_wanted_is_told_with_the_way_out(self) -> None:
        signature = Signature.of({"obs": ArraySpec((4,), np.float32), "r": ArraySpec((), np.float32)})
        given = Signature.of({"obs": [ArraySpec((), np.float64)] * 4, "r": ArraySpec((), np.float32)})
        assert signature is not None
        assert given is not None
        with pytest.raises(SignatureMismatch) as caught:
            signature.check(given.structure, given.specs, what="table 't'")
        assert str(caught.value) == (
            "table 't': 'obs' is a list of 4 columns; the signature wants one, float32 [4]: np.asarray(obs, np.float32)"
        )

    def test_missing_and_unexpected_columns_are_listed(self) -> None:
        with pytest.raises(SignatureMismatch) as caught:
            check({"z": NEST["obs"], "zz": ArraySpec((), np.int32)})
        message = str(caught.value)
        assert "missing columns ('action', 0), ('obs',)" in message
        assert "unexpected columns ('z',), ('zz',)" in message

    @pytest.mark.parametrize("wire", [[0, []], [None, []], [0, [["float32", []], ["float32", []]]], [0, 0], 3, [0]])
    def test_a_malformed_one_is_refused(self, wire: object) -> None:
        with pytest.raises(InvalidArgument):
            Signature.from_wire(wire)
