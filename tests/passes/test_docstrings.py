"""Docstrings of passes have one form, which the page of passes is made of."""

import ast
import re
from pathlib import Path

import pytest

from dqar_fx import passes
from dqar_fx.passes.pipeline import PASS_NAMES

FOLDER = Path(passes.__file__).parent


@pytest.mark.parametrize("name", [*PASS_NAMES, "find_sites"])
def test_docstring_says_what_why_legal_example_leaves_alone_and_source(name):
    text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text("utf-8")))
    what, *parts = text.split("\n\n")
    assert re.fullmatch(r"[A-Z][^\n]+[.]", what)
    marks = [r"Legal because ", r"(    | ).*", r"Leaves alone: ", r"Source: "]
    places = [
        next(i for i, part in enumerate(parts) if re.match(mark, part)) for mark in marks
    ]
    assert places == sorted(set(places))
    assert "\n -> " in f"\n{parts[places[1]]}"
    assert parts[places[0]].endswith(":")
