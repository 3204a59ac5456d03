"""Each row of the page on compatibility says how it ends, and names a test that is there."""

import re

import pytest

from tests.docs.pages import ROOT

ROW = re.compile(r"^\|(.+)\| (works|raises) \|(.*)\| `(test_\w+)` \|$", re.MULTILINE)
PAGE = (ROOT / "docs/compatibility.md").read_text("utf-8")
TESTS = (ROOT / "tests/denoiser/test_face.py").read_text("utf-8")


@pytest.mark.parametrize("row", ROW.findall(PAGE), ids=lambda row: row[0].strip()[:40])
def test_a_row_names_a_test(row):
    assert f"def {row[3]}(" in TESTS


def test_all_rows_are_read():
    lines = [line for line in PAGE.splitlines() if line.startswith("| ")]
    heads = [line for line in lines if line.startswith("| feature ")]
    assert len(ROW.findall(PAGE)) == len(lines) - len(heads) > 0
