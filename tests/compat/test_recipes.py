from __future__ import annotations

import pytest

from reverb_async import Table
from reverb_async.compat import recipes as module
from reverb_async.compat.columns import ColumnLayouts, kind_of
from reverb_async.compat.messages import Shape
from reverb_async.compat.recipes import Recipes, Tensor
from reverb_async.core.encoded import Columns, EncodedItems
from reverb_async.core.storage import Storage
from reverb_async.errors import InvalidArgument

FLOAT, INT64 = 1, 9
TABLE = Table("t", max_size=5)
STEPS = (Tensor(kind_of(FLOAT, (3,)), 4, 12, 0),)
PAIR = (*STEPS, Tensor(kind_of(INT64, ()), 4, 8, 0))


@pytest.fixture
def recipes() -> Recipes:
    return Recipes(ColumnLayouts(EncodedItems(Storage(reserve_bytes=1 << 26))))


def test_a_recipe_that_is_remembered_is_the_one_found_first(recipes: Recipes) -> None:
    def find() -> module.Recipe:
        columns: Columns = (((0, 1, 2, 0), (1, 0, 1, 0)), ((1, 3, 1, 1),))
        return recipes.find(TABLE, Shape(columns, (False, True)), (STEPS, PAIR))

    first = find()
    assert find() is first
    assert first.nbytes == 3 * 12 + 8
    assert first == recipes._make(TABLE, first.columns, (False, True), (STEPS, PAIR))


def test_items_that_differ_in_anything_have_recipes_of_their_own(recipes: Recipes) -> None:
    columns: Columns = (((0, 0, 2, 0),),)
    one = recipes.find(TABLE, Shape(columns, (False,)), (STEPS,))
    others = [
        recipes.find(Table("u", max_size=5), Shape(columns, (False,)), (STEPS,)),
        recipes.find(TABLE, Shape((((0, 1, 2, 0),),), (False,)), (STEPS,)),
        recipes.find(TABLE, Shape((((0, 0, 1, 0),),), (True,)), (STEPS,)),
        recipes.find(TABLE, Shape(columns, (False,)), ((STEPS[0]._replace(rows=2),),)),
    ]
    assert len({id(each) for each in (one, *others)}) == 5
    assert [each.nbytes for each in others] == [24, 24, 12, 24]


@pytest.mark.parametrize(
    ("columns", "squeezed", "text"),
    [
        ((), (), "must not be empty"),
        (((),), (False,), "must not be empty"),
        ((((0, 0, 1, 1),),), (False,), "has 1 tensors, no 1"),
        ((((0, 0, 1, -1),),), (False,), "has 1 tensors, no -1"),
        ((((0, 3, 2, 0),),), (False,), "rows 3 to 4"),
        ((((0, -1, 1, 0),),), (False,), "rows -1 to -1"),
        ((((0, 0, 0, 0),),), (False,), "rows 0 to -1"),
        ((((0, 0, 2, 0),),), (True,), "squeezed"),
        ((((0, 0, 1, 0), (1, 0, 1, 1)),), (False,), "rows of"),
    ],
)
def test_wrong_items_are_refused_every_time(
    recipes: Recipes, columns: Columns, squeezed: tuple[bool, ...], text: str
) -> None:
    for _ in range(2):
        with pytest.raises(InvalidArgument, match=text):
            recipes.find(TABLE, Shape(columns, squeezed), (STEPS, PAIR))


def test_what_is_remembered_is_bounded(recipes: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_REMEMBERED", 3)
    for offset in range(4):
        recipes.find(TABLE, Shape((((0, offset, 1, 0),),), (False,)), (STEPS,))
    assert len(recipes._known) == 1
    many = ((0, 0, 1, 0),) * module._MAX_REMEMBERED_PARTS
    assert recipes.find(TABLE, Shape((many,), (False,)), (STEPS,)).nbytes == 12 * len(many)
    assert len(recipes._known) == 1
