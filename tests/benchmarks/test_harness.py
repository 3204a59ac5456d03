"""The harness: options that are read, rows that come back, tables, paired times, processes."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest

from benchmarks.harness.apart import describe_end, run_apart
from benchmarks.harness.errors import InputError
from benchmarks.harness.options import (
    Command,
    Count,
    Counts,
    Flag,
    Patterns,
    above,
    convert_with,
    one_of,
    quick_flag,
    run_command,
    several,
)
from benchmarks.harness.rows import (
    SHARED,
    append_rows,
    noted_failure,
    read_rows,
    to_values,
    write_rows,
)
from benchmarks.harness.tables import Column, format_page, format_table, show_megabytes
from benchmarks.harness.timing import (
    Spread,
    describe_speed,
    find_quartiles,
    find_range,
    rotate,
    take_ratios,
)
from tests.benchmarks.command_errors import refuse

QUICK = {"steps": 3, "numbers": (7, 8)}


@dataclass(frozen=True)
class Options(Command):
    """Options of a command that is none."""

    COMMAND = "benchmarks.none"
    QUICK = QUICK

    steps: Count = 50
    """Denoising steps."""
    numbers: Counts = (1, 2)
    """Some."""
    few: Annotated[tuple[str, ...], several(convert_with(str, "NAME"), none_allowed=True)] = ()
    """Some or none."""
    only: Patterns = ("*",)
    """Names."""
    kind: Annotated[str, one_of(("a", "b"))] = "a"
    """Which."""
    speed: Annotated[float, above(1.0)] = 2.0
    """How fast."""
    even: Flag = True
    """Whether evenly."""
    quick: quick_flag(QUICK) = False

    def settle(self):
        if self.steps == 13:
            raise InputError("--steps 13 brings bad luck")
        return super().settle()


def test_options_defaults_and_values():
    assert Options.read([]) == Options()
    found = Options.read(["--only", "x*", "y", "--numbers", "5", "--few", "--no-even"])
    assert (found.only, found.numbers, found.few, found.even) == (("x*", "y"), (5,), (), False)


def test_options_quick_has_other_defaults_and_yields_to_what_is_given():
    assert (Options.read(["--quick"]).steps, Options.read(["--quick"]).numbers) == (3, (7, 8))
    assert Options.read(["--steps", "9", "--quick"]).steps == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps: expected an integer of at least 1, found '0'"),
        (["--numbers", "1", "x"], "--numbers: expected an integer of at least 1, found 'x'"),
        (["--numbers"], "--numbers: expected at least one argument"),
        (["--speed", "1"], "--speed: expected a number above 1, found '1'"),
        (["--speed", "inf"], "--speed: expected a number above 1, found 'inf'"),
        (["--kind", "c"], "--kind: invalid choice 'c'; choose from a, b"),
        (["--steps", "13"], "error: --steps 13 brings bad luck"),
        (["--unknown", "1"], "Unrecognized options: --unknown"),
    ],
)
def test_options_wrong_ones_are_said_with_code_2(arguments, message, capsys):
    code, error = refuse(lambda argv: run_command(Options, print, argv), arguments, capsys)
    assert code == 2
    assert message in error


def test_options_help_has_docstring_and_other_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        Options.read(["--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert out.startswith("usage: python -m benchmarks.none")
    assert "The harness: options that are read" in out
    assert "Other defaults: steps 3, numbers 7 8." in out


def test_run_command_interrupted_is_130(capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    assert run_command(Options, interrupt, []) == 130
    assert "interrupted: the same command goes on from here" in capsys.readouterr().err


@dataclass(frozen=True)
class Place:
    device: str
    threads: int


@dataclass(frozen=True)
class Measured:
    run_s: float


@dataclass(frozen=True)
class Row:
    name: str
    psnr_db: float | None
    seeds: tuple[int, ...]
    measured: Measured | None = field(metadata=SHARED)
    place: Place = field(metadata=SHARED)

    @property
    def is_equal(self):
        return self.psnr_db == math.inf


ROWS = [
    Row("a", math.inf, (1, 2), Measured(0.5), Place("cpu", 2)),
    Row("b", None, (), None, Place("cuda", 1)),
]


def test_rows_are_flat_and_their_own_names_win():
    assert to_values(ROWS[0], {"name": "other", "steps": 4}, also=("is_equal",)) == {
        "name": "a",
        "psnr_db": "inf",
        "seeds": [1, 2],
        "is_equal": True,
        "run_s": 0.5,
        "device": "cpu",
        "threads": 2,
        "steps": 4,
    }
    assert to_values(ROWS[1])["run_s"] is None


def test_rows_come_back(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read_rows(path, Row) == []
    write_rows(ROWS[:1], path, {"steps": 4})
    append_rows(ROWS[1:], path)
    assert read_rows(path, Row) == ROWS


def test_rows_of_another_version_are_left_out_and_damaged_ones_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"name": "a"}\n')
    append_rows(ROWS, path)
    assert read_rows(path, Row) == ROWS
    path.write_text("[1]\n")
    with pytest.raises(InputError, match="line 1: no JSON object"):
        read_rows(path, Row)


def test_noted_failure_goes_on(capsys):
    notes = []
    with noted_failure("x", notes.append):
        raise RuntimeError("no kernel")
    assert notes == ["RuntimeError: no kernel"]
    err = capsys.readouterr().err
    assert "x failed:" in err
    assert "Traceback" in err


def test_table_columns():
    columns = (
        Column("who", "name"),
        Column("PSNR", "psnr_db", ".1f"),
        Column("s", "measured.run_s", ".2f"),
        Column("MB", lambda row: 2_500_000 if row.measured else None, show_megabytes(".1f")),
    )
    assert format_table(columns, ROWS).splitlines() == [
        "| who   |   PSNR |    s |   MB |",
        "|-------|--------|------|------|",
        "| a     |    inf | 0.50 |  2.5 |",
        "| b     |      - |    - |    - |",
    ]


def test_page_lists_notes_and_settings():
    page = format_page("Title", ["part"], ["one", "two"], {"steps": 4})
    assert page == '# Title\n\npart\n\n- one\n- two\n\nSettings: `{"steps": 4}`\n'


def test_spreads_of_paired_times():
    ratios = take_ratios([2.0, 3.0, 8.0, 1.0], [1.0, 1.0, 2.0])
    assert ratios == [2.0, 3.0, 4.0]
    assert f"{find_range(ratios):.1f}" == "3.0 (2.0-4.0)"
    assert find_quartiles(ratios) == Spread(3.0, 2.5, 3.5)
    assert find_quartiles(ratios, "exclusive") == Spread(3.0, 2.0, 4.0)
    assert find_quartiles([5.0]) == Spread(5.0, 5.0, 5.0)
    assert describe_speed([])["speed_median"] is None


def test_rotate_begins_with_another():
    assert [rotate("abc", number)[0] for number in range(4)] == ["a", "b", "c", "a"]
    assert rotate((), 3) == []


@pytest.mark.parametrize("apart", [False, True])
def test_run_apart_tells_how_it_ended(apart, tmp_path):
    files = {"said": tmp_path / "out", "complaint": tmp_path / "err" if apart else None}
    assert run_apart("calendar", ["2024", "1"], **files) is None
    assert "January" in files["said"].read_text()
    failure = run_apart("calendar", ["no year"], **files)
    assert failure.startswith("RuntimeError: its process ended with code ")
    assert "no year" in failure


def test_run_apart_takes_no_longer_than_asked(tmp_path):
    script = tmp_path / "sleeps.py"
    script.write_text("import time; time.sleep(60)")
    env = {"PYTHONPATH": str(tmp_path)}
    failure = run_apart("sleeps", [], said=Path(tmp_path / "out"), timeout_s=1, env=env)
    assert failure == "TimeoutError: took more than 1 s"


def test_describe_end_of_signals_and_silence():
    assert describe_end(-9, "") == (
        "RuntimeError: its process ended with signal 9: it said nothing"
    )
