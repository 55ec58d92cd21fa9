"""Who may import whom, read from the sources."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import reverb_async

ROOT = Path(reverb_async.__file__).parent
PACKAGE = "reverb_async"

ALLOWED = {
    "alarms": ["core"],
    "errors": [],
    "core": ["errors", "core"],
    "protocol": ["core", "errors", "protocol"],
    "hosts": [],
    "limits": ["errors"],
    "logs": [],
    "metrics": [],
    "security": ["errors", "security"],
    "waiting": ["logs"],
    "table": ["alarms", "core", "errors", "limits", "logs", "metrics", "table", "waiting"],
    "sessions": ["errors", "protocol"],
    "saving": ["core"],
    "capture": ["core", "replay"],
    "replay": ["alarms", "capture", "core", "errors", "limits", "logs", "protocol", "saving", "sessions", "table"],
    "checkpoint": [
        *["alarms", "capture", "checkpoint", "compat.tensors", "core", "errors", "replay", "saving", "sessions"],
        "table",
    ],
    "service": [
        *["core", "errors", "limits", "protocol", "replay", "security.grants", "service", "sessions", "table"],
        "waiting",
    ],
    "wire": ["client.transport", "core", "errors", "protocol", "security", "wire"],
    "client": ["client", "core", "errors", "hosts", "logs", "protocol", "security", "waiting"],
    "compat": [
        *["compat", "core", "errors", "limits", "metrics", "protocol", "replay", "service", "sessions", "table"],
        *["waiting", "wire"],
    ],
    "config": ["checkpoint", "compat.signatures", "config", "core", "errors", "hosts", "limits", "security", "table"],
    "local_streams": ["errors", "protocol", "waiting"],
    "inprocess": ["client.transport", "core", "errors", "local_streams", "protocol", "service"],
    "foreign": [
        *["client.transport", "compat", "core", "errors", "foreign", "limits", "local_streams", "protocol"],
        *["service.tasks", "sessions", "waiting", "wire"],
    ],
    "server": [
        *[
            "checkpoint",
            "client",
            "compat",
            "core",
            "errors",
            "hosts",
            "inprocess",
            "limits",
            "logs",
            "metrics",
            "protocol",
            "replay",
            "security",
            "server",
            "service",
            "table",
        ],
        "wire",
    ],
}
"""Parts of the package and what they import from it; whatever is not named here may import everything."""

FREE = {"__init__", "serve", "testing", "tokens"}

LAZILY = {("client/client.py", "wire.transport"), ("client/client.py", "foreign.transport")}
"""Imports that only run when a client connects over a wire."""

CORE_LIBRARIES = {"ml_dtypes", "numpy", "optree"}
NOT_IN_CORE = {"asyncio", "grpclib", "random", "threading", "time"}


def modules(part: str) -> Iterator[Path]:
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        if relative.with_suffix("").parts[0] == part and "generated" not in relative.parts:
            yield path


def imports(path: Path, *, inside_functions: bool) -> Iterator[str]:
    """Yield the modules that a file imports, as far as the part that decides: `reverb_async.core.spec`, `numpy`."""
    tree = ast.parse(path.read_text())
    lazy = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if (node in lazy) != inside_functions:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} uses a relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(imported: str) -> str | None:
    """Return what follows the package's name, or None for modules of others."""
    if imported == PACKAGE:
        return "__init__"
    return imported.removeprefix(f"{PACKAGE}.") if imported.startswith(f"{PACKAGE}.") else None


def within(imported: str, allowed: list[str]) -> bool:
    return any(imported == part or imported.startswith(f"{part}.") for part in allowed)


def test_every_part_of_the_package_has_its_place() -> None:
    parts = {
        path.name.removesuffix(".py")
        for path in ROOT.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert parts <= ALLOWED.keys() | FREE


@pytest.mark.parametrize("part", ALLOWED)
def test_parts_import_only_what_lies_below_them(part: str) -> None:
    wrong = []
    for path in modules(part):
        name = path.relative_to(ROOT).as_posix()
        for lazy in (False, True):
            for imported in imports(path, inside_functions=lazy):
                target = own(imported)
                if target is None or within(target, ALLOWED[part]):
                    continue
                if lazy and any(name == module and within(target, [what]) for module, what in LAZILY):
                    continue
                wrong.append(f"{name} imports {imported}")
    assert not wrong


def test_the_core_is_pure() -> None:
    wrong = []
    for path in modules("core"):
        for lazy in (False, True):
            for imported in imports(path, inside_functions=lazy):
                top = imported.split(".")[0]
                pure = top in CORE_LIBRARIES or (top in sys.stdlib_module_names and top not in NOT_IN_CORE)
                if top != PACKAGE and not pure:
                    wrong.append(f"{path.relative_to(ROOT)} imports {imported}")
    assert not wrong


def test_global_random_numbers_and_the_clock_stay_out_of_the_core() -> None:
    for path in modules("core"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Attribute)
                and node.value.attr == "random"
            ):
                assert node.attr in {"Generator"}, f"{path.name} uses np.random.{node.attr}"
