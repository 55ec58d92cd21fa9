"""Everything that README and docs show runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import reverb_async as ra

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


def programs() -> list[pytest.param]:
    """Blocks that import what they need are programs of their own; others continue the page's previous block."""
    found = []
    for page in PAGES:
        sources: list[str] = []
        for block in blocks(page):
            if block.startswith("import") or not sources:
                sources.append(block)
            else:
                sources[-1] += block
        name = page.relative_to(ROOT)
        found += [pytest.param(source, id=f"{name}-{at}") for at, source in enumerate(sources)]
    return found


@pytest.mark.parametrize("source", programs())
def test_code_in_the_docs_runs(source, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_and_the_guides_have_examples():
    for page in ("README.md", "docs/tutorial.md", "docs/how-to/index.md"):
        assert blocks(ROOT / page), page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_reference_is_what_the_docstrings_say():
    done = subprocess.run(
        [sys.executable, "-c", "import make_reference; print(make_reference.render(), end='')"],
        cwd=ROOT / "docs",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == (ROOT / "docs" / "reference.md").read_text(), "run `python docs/make_reference.py`"


def test_every_public_name_is_in_the_reference():
    reference = (ROOT / "docs" / "reference.md").read_text()
    missing = [name for name in ra.__all__ if name not in reference]
    assert not missing
