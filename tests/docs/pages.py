"""Where the pages are."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def name_of(page: Path) -> str:
    """A page's name in the name of a test."""
    return page.relative_to(ROOT).as_posix()
