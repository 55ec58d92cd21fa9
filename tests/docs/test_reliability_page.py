"""The page on reliability names tests; each is where it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[^`]*)`", PAGE)))


def marks(function: ast.AST) -> str:
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    return " ".join(ast.unparse(one) for one in function.decorator_list if "parametrize" not in ast.unparse(one))


@pytest.mark.parametrize("named", NAMED)
def test_the_tests_it_names_exist_and_run_by_default_unless_it_says_soak(named: str) -> None:
    path, *classes, name = named.split("::")
    found: list[ast.AST] = [ast.parse((ROOT / path).read_text())]
    for part in (*classes, name):
        found = [node for one in found for node in getattr(one, "body", []) if getattr(node, "name", None) == part]
    assert found, named
    assert name.startswith("test_")
    said = re.findall(rf"`{re.escape(named)}`( \(\*soak\*\))?", PAGE)
    assert {bool(one) for one in said} == {"mark.soak" in marks(found[0])}


def test_every_promise_names_a_test() -> None:
    rows = re.findall(r"^\| (\d+) \|(.*)$", PAGE, flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 22))
    assert all("`tests/" in row for _, row in rows)
