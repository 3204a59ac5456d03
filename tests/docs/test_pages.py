"""Pages name what is there, and document what is public."""

from __future__ import annotations

import re

import pytest

import dqar_fx
from docs.macros import read_passes, rooms
from tests.docs.pages import PAGES, README, ROOT, name_of

PATH = re.compile(r"`((?:benchmarks|docs|dqar_fx|examples|passes|tests)/[\w./]*)`")


@pytest.mark.parametrize("page", [README, *PAGES], ids=name_of)
def test_paths_that_a_page_names_are_there(page):
    for path in PATH.findall(page.read_text("utf-8")):
        assert (ROOT / path).exists(), path


def test_readme_is_short():
    assert len(README.read_bytes()) <= 10_000


def test_everything_public_is_documented():
    text = (ROOT / "docs/api.md").read_text("utf-8")
    for name in {*dqar_fx.__all__, *dqar_fx.prior_art.__all__} - {"prior_art"}:
        assert f'"{name}"' in text, name


def test_each_pass_has_an_entry():
    """A pass is a function that has a file of its own name."""
    entries = dict(read_passes())
    public = {name for name in dqar_fx.passes.__all__ if (ROOT / f"passes/{name}.py").exists()}
    assert {"find_attention", "insert_guards", "specialise"} <= public <= set(entries)
    assert all(text.strip() for text in entries.values())


def test_each_room_says_what_is_in_it():
    _, _, *lines = rooms().splitlines()
    names = [line.split("|")[1].strip() for line in lines]
    modules = {
        f"`{path.relative_to(ROOT)}`"
        for path in (ROOT / "passes", *ROOT.glob("dqar_fx/[!_]*.py"))
    }
    folders = {
        f"`{path.parent.relative_to(ROOT)}`" for path in ROOT.glob("dqar_fx/*/__init__.py")
    }
    assert set(names) == folders | modules
    assert all(line.split("|")[2].strip() for line in lines)
