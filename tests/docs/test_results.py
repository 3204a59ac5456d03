"""Rows of results say where they come from, and tables show all of their columns."""

from __future__ import annotations

import re

import pytest

from docs.macros import (
    PROVENANCE,
    RESULTS,
    describe_origin,
    fill,
    read_rows,
    read_tables,
    render,
)
from tests.docs.pages import PAGES, README

TABLES = sorted(read_tables())
MARKDOWN = "\n".join(page.read_text("utf-8") for page in PAGES)


def lines_of(table):
    """Cells of the lines of a table in Markdown, head first, without the rule."""
    lines = [line.strip("|").split("|") for line in table.splitlines() if line[:1] == "|"]
    cells = [[cell.strip() for cell in line] for line in lines]
    return cells[:1] + cells[2:]


def test_each_file_has_a_table_and_each_table_a_file():
    assert {path.stem for path in RESULTS.glob("*.jsonl")} == set(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_rows_say_where_they_come_from(name):
    for row in read_rows(name):
        assert all(row[key] for key in PROVENANCE)
        assert re.fullmatch("[0-9a-f]{40}", row["commit"])
        assert (row["device"], row["torch"], row["diffusers"]) == ("cpu", "2.13.0", "0.42.1")


@pytest.mark.parametrize("name", TABLES)
def test_table_has_its_columns_and_a_line_per_row(name):
    head, *lines = lines_of(render(name))
    columns = list(read_tables()[name])
    assert head in (columns, [*columns, "commit"])
    assert len(lines) == len(read_rows(name))
    assert all(len(line) == len(head) for line in lines)
    filled = [column for column in zip(*lines, strict=True) if set(column) != {"-"}]
    assert len(filled) == len(head), "a column has no value in any row"


@pytest.mark.parametrize("name", TABLES)
def test_table_is_on_a_page(name):
    assert f'table("{name}")' in MARKDOWN


def test_origin_names_hardware_versions_commits_and_command():
    rows = [
        {
            "hardware": "a chip", "dtype": "float32", "torch": "1", "diffusers": "2",
            "commit": commit * 40, "command": "run it",
        }
        for commit in "ba"
    ]  # fmt: skip
    assert describe_origin("some", rows) == (
        "*a chip; float32; torch 1 (CPU), diffusers 2; commit aaaaaaa, bbbbbbb; `run it`; "
        "[rows](/results/some.jsonl)*"
    )


def test_first_template_with_its_fields_is_taken():
    templates = ["{a:.1f} to {b}", "{a:.2f}"]
    assert fill(templates, {"a": 1, "b": 2}) == "1.0 to 2"
    assert fill(templates, {"a": 1}) == "1.00"
    assert fill(templates, {}) == "-"


def test_decimals_of_a_file_are_kept():
    assert "0.580" in render("kept_keys_values")


def test_figures_of_the_readme_are_in_the_results():
    """Hardware, speed and PSNR of each line stand in one row."""
    speed = "{speed:.2f} ({speed_low:.2f}-{speed_high:.2f})"
    rows = [*read_rows("main_job"), *read_rows("pareto_reference")]
    found = {
        tuple(fill(each, row) for each in ("{hardware}", speed, "{psnr_db}")) for row in rows
    }
    text = re.sub(
        r"^```.*?^```", "", README.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    lines = lines_of(text)
    speeds = [line for line in lines if "AMD" in line[1]]
    assert len(speeds) == 6
    assert {tuple(line[1:]) for line in speeds} <= found
    columns = ("{evaluations}", "{DDIM:.1f}", "{best:.1f}", "{fitted:.1f}")
    solvers = {tuple(fill(each, row) for each in columns) for row in read_rows("solvers")}
    assert {tuple(line) for line in lines if line[0].isdigit()} == solvers
