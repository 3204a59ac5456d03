"""Each row of the page on compatibility says how it ends, and names a test of its section."""

import re

import pytest

from tests.docs.pages import ROOT

ROW = re.compile(r"^\|(.+)\| (works|raises) \|(.*)\| `(test_\w+)` \|$", re.MULTILINE)
PAGE = (ROOT / "docs/compatibility.md").read_text("utf-8")
FILE = re.compile(r"^\| feature \|.* test in `(\S+)` \|$", re.MULTILINE)
_, *TABLES = FILE.split(PAGE)
ROWS = [
    (file, row)
    for file, table in zip(TABLES[::2], TABLES[1::2], strict=True)
    for row in ROW.findall(table)
]


@pytest.mark.parametrize(("file", "row"), ROWS, ids=lambda each: str(each[0]).strip()[:40])
def test_a_row_names_a_test(file, row):
    assert f"def {row[3]}(" in (ROOT / file).read_text("utf-8")


def test_all_rows_are_read():
    lines = [line for line in PAGE.splitlines() if line.startswith("| ")]
    heads = [line for line in lines if line.startswith("| feature ")]
    assert len(ROWS) == len(lines) - len(heads) > 0
    assert len(heads) == len(FILE.findall(PAGE))
