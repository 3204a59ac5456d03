"""Each row of the page on compatibility says how it ends, and names a test that is there."""

import re

import pytest

from tests.docs.pages import ROOT

HEAD = re.compile(r"^\| feature \| \| how \| test in `(tests/[\w/]+\.py)` \|$")
ROW = re.compile(r"^\|(.+)\| (works|raises) \|(.*)\| `(test_\w+)` \|$")
PAGE = (ROOT / "docs/compatibility.md").read_text("utf-8")


def read_rows():
    """Per row, what it is about, its test, and the file that has it."""
    rows, file = [], None
    for line in PAGE.splitlines():
        if head := HEAD.match(line):
            file = head[1]
        elif row := ROW.match(line):
            rows.append((row[1].strip(), row[4], file))
    return rows


@pytest.mark.parametrize("row", read_rows(), ids=lambda row: row[0][:40])
def test_a_row_names_a_test(row):
    assert f"def {row[1]}(" in (ROOT / row[2]).read_text("utf-8")


def test_all_rows_are_read():
    lines = [line for line in PAGE.splitlines() if line.startswith("| ")]
    heads = [line for line in lines if line.startswith("| feature ")]
    assert all(map(HEAD.match, heads))
    assert len(read_rows()) == len(lines) - len(heads) > 0
