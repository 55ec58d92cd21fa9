"""Write docs/reference.md from the docstrings of the public names: ``python docs/make_reference.py``."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import reverb_async as ra

PAGE = Path(__file__).with_name("reference.md")

GROUPS = {
    "Serving": ["Server", "Limits", "Table", "Checkpointer", "TableInfo", "ServerStatus", "Alarm"],
    "Client": ["Client", "Sampler", "BatchSampler", "Sample", "SampleInfo", "Batch", "BatchInfo", "MutateResult"],
    "Writing": ["TrajectoryWriter", "TrajectoryColumn"],
    "Security": ["ServerTLS", "ClientTLS"],
    "Data": ["ArraySpec", "Ragged"],
}


def render() -> str:
    """Return the whole page."""
    parts = ["# Reference", "Made from the docstrings by `python docs/make_reference.py`."]
    for title, names in GROUPS.items():
        parts.append(f"## {title}")
        for name in names:
            parts += describe_class(f"ra.{name}", getattr(ra, name))
    for title, module in (
        ("Selectors", ra.selectors),
        ("Rate limiters", ra.rate_limiters),
        ("Events", ra.events),
    ):
        parts.append(f"## {title}")
        for name, member in public_classes(module):
            parts += describe_class(f"ra.{module.__name__.rpartition('.')[2]}.{name}", member, methods=False)
    parts.append("## Errors")
    tree = inspect.cleandoc(inspect.getmodule(ra.ReplayError).__doc__ or "")  # type: ignore[union-attr]
    parts.append("```text\n" + inspect.cleandoc(tree.partition("::")[2].partition("Errors cross")[0]) + "\n```")
    return "\n\n".join(parts) + "\n"


def public_classes(module: ModuleType) -> list[tuple[str, Any]]:
    """Return the classes that a user of `module` names."""
    return [
        (name, member)
        for name, member in vars(module).items()
        if inspect.isclass(member)
        and not name.startswith("_")
        and member.__module__.startswith(module.__name__)
        and not name.endswith("State")
    ]


def describe_class(name: str, kind: Any, *, methods: bool = True) -> list[str]:
    """Return the paragraphs about a class."""
    parts = [f"### `{name}{signature(kind)}`", text(kind)]
    if methods:
        for method, member in vars(kind).items():
            if method.startswith("_") or not (callable(member) or isinstance(member, property | classmethod)):
                continue
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            coroutine = "async " if inspect.iscoroutinefunction(function) else ""
            shown = method if isinstance(member, property) else f"{coroutine}{method}{signature(function)}"
            parts += [f"#### `{shown}`", text(function)]
    return parts


def signature(function: Any) -> str:
    """Return parameters as they are written in a call, without annotations and `self`."""
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ("self", "cls")
    ]
    return str(inspect.Signature(parameters))


def text(documented: Any) -> str:
    """Return a docstring as Markdown: sections as lists."""
    lines: list[str] = []
    in_section = False
    for line in inspect.cleandoc(documented.__doc__ or "").splitlines():
        if line in ("Args:", "Attributes:", "Raises:", "Returns:", "Yields:"):
            lines += ["", f"*{line[:-1]}*", ""]
            in_section = True
        elif in_section and line.startswith("        "):
            lines.append(f"  {line.strip()}")
        elif in_section and line.startswith("    "):
            entry, colon, rest = line.strip().partition(": ")
            lines.append(f"- `{entry}`: {rest}" if colon else f"- {entry}")
        else:
            in_section = in_section and not line
            lines.append(line)
    return "\n".join(lines).replace("``", "`").strip()


if __name__ == "__main__":
    PAGE.write_text(render())
