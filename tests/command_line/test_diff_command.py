"""``dqar-fx diff``: two steps, or two schedules at one."""

from __future__ import annotations

import pytest

from tests.helpers.config_files import config, expect_error, run

__all__ = ["config"]


def test_two_steps_differ_in_attention(config, capsys):
    code, out, _ = run(capsys, "diff", config, "0:1", "--schedule", "CR")
    assert code == 0
    assert "aten.scaled_dot_product_attention.default: -2" in out


def test_two_schedules_at_a_step(config, capsys):
    argv = ("diff", config, "2", "--schedule", "interval", "--every", 3, "--steps", 6)
    assert run(capsys, *argv, "--against", "CCRRRR")[0] == 2  # --every means nothing to it
    argv = ("diff", config, "2", "--schedule", "CCCCCC", "--exit-code")
    code, out, _ = run(capsys, *argv, "--against", "CCRRRR")
    assert code == 1
    assert "read slot: +2" in out


@pytest.mark.parametrize(("steps", "code"), [("1:2", 0), ("0:1", 1)])
def test_exit_code_tells_whether_they_differ(config, capsys, steps, code):
    argv = ("diff", config, steps, "--schedule", "CRRC", "--exit-code")
    found, out, _ = run(capsys, *argv)
    assert found == code
    assert (out == "the same graph\n") == (code == 0)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("4",), "one step, 4"),
        (("a:b",), "expected a step such as 17"),
        (("0:50",), "no step 50"),
        (("-1:2",), ""),
        (("3", "--against", "nonsense"), "'nonsense' is none"),
        (("3", "--forecast", "1", "--against", "table.json"), "is none"),
    ],
)
def test_diff_wrong_input_is_one_line(config, capsys, argv, said):
    assert said in expect_error(capsys, "diff", config, *argv)
