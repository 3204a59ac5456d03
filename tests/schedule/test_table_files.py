"""Branch tables saved and loaded, and what is no such file."""

import json

import numpy as np
import pytest
from expecttest import assert_expected_inline
from hypothesis import given, settings
from hypothesis import strategies as st

from dqar_fx import BranchTable, Schedule, ScheduleError
from tests.helpers.table_texts import table_of, valid_columns

FEW = settings(max_examples=50, deadline=None)


@FEW
@given(columns=valid_columns(), max_age=st.none() | st.just(20))
def test_table_saved_and_loaded_is_the_same(tmp_path_factory, columns, max_age):
    path = tmp_path_factory.mktemp("table") / "table.json"
    table = table_of(*columns, max_age=max_age)
    table.save(path)
    loaded = BranchTable.load(path)
    assert loaded == table
    assert loaded.actions.dtype == np.int8
    again = Schedule.from_actions(loaded.actions, max_age=max_age).resolve(loaded.sites)
    assert again == table


def test_table_saved_is_text_that_can_be_read(tmp_path):
    path = tmp_path / "table.json"
    Schedule.linear(5, 1, max_age=3).resolve(["x.attn", "y.attn"]).save(path)
    assert_expected_inline(
        path.read_text(),
        """\
{
 "max_age": 3,
 "actions": {
  "x.attn": "SRRRC",
  "y.attn": "CCSRR"
 }
}
""",
    )


GOOD = {"max_age": None, "actions": {"a": "SR", "b": "CC"}}


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "{",
        "[]",
        "3",
        json.dumps({"actions": {"a": "SR"}}),
        json.dumps({"max_age": None}),
        json.dumps({**GOOD, "actions": ["SR"]}),
        json.dumps({**GOOD, "actions": {}}),
        json.dumps({**GOOD, "actions": {"a": "SR", "b": "CCC"}}),
        json.dumps({**GOOD, "actions": {"a": "SX"}}),
        json.dumps({**GOOD, "actions": {"a": "RS"}}),
        json.dumps({**GOOD, "actions": {"a": 3}}),
        json.dumps({**GOOD, "actions": {"a": ""}}),
        json.dumps({**GOOD, "max_age": "old"}),
        json.dumps({**GOOD, "max_age": 0}),
        "\x00\xff",
    ],
    ids=[
        "missing",
        "empty",
        "cut",
        "list",
        "number",
        "no_age",
        "no_actions",
        "no_sites",
        "nothing",
        "lengths",
        "letter",
        "rule",
        "no_text",
        "no_steps",
        "age_of_text",
        "age_too_small",
        "noise",
    ],
)
def test_table_load_damaged_is_a_schedule_error(tmp_path, content):
    path = tmp_path / "table.json"
    if content is not None:
        path.write_text(content, encoding="latin-1")
    with pytest.raises(ScheduleError):
        BranchTable.load(path)


def test_table_load_good_file_of_the_damaged_ones_is_accepted(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(GOOD))
    assert BranchTable.load(path) == BranchTable([[1, 0], [2, 0]], ("a", "b"))


def test_table_load_missing_names_the_file(tmp_path):
    path = tmp_path / "table.json"
    with pytest.raises(ScheduleError) as caught:
        BranchTable.load(path)
    message = str(caught.value)
    assert message.startswith(f"no branch table can be read from {path}: FileNotFoundError: ")
