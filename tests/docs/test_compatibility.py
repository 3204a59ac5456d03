"""Each row of the page on compatibility says how it ends, and names a test that is there."""

import re

import pytest

from tests.docs.pages import ROOT

HEAD = re.compile(r"^\| feature \| \| how \| test in `(tests/\S+\.py)` \|$")
ROW = re.compile(r"^\|(.+)\| (works|raises) \|(.*)\| `(test_\w+)` \|$")
LINES = [
    line
    for line in (ROOT / "docs/compatibility.md").read_text("utf-8").splitlines()
    if line.startswith("| ")
]


def read_rows():
    """Each feature, the file of its test, and the test."""
    file = None
    for line in LINES:
        if head := HEAD.match(line):
            file = head[1]
        elif row := ROW.match(line):
            yield row[1].strip(), file, row[4]


@pytest.mark.parametrize("row", list(read_rows()), ids=lambda row: row[0][:40])
def test_a_row_names_a_test(row):
    _, file, test = row
    assert f"def {test}(" in (ROOT / file).read_text("utf-8")


def test_all_rows_are_read():
    heads = [line for line in LINES if HEAD.match(line)]
    assert len(list(read_rows())) == len(LINES) - len(heads) > 0
