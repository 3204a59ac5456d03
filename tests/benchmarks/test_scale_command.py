"""benchmarks.scale: fits, tables, and its command line."""

import json

import numpy as np
import pytest

from benchmarks import scale
from benchmarks.scale import (
    PHASES,
    Growth,
    fit_exponent,
    format_growth,
    format_verdict,
    group_by_size,
    measure,
    median_times,
)
from tests.benchmarks.command_errors import refuse


def growth(layers, steps, seconds=None):
    known = dict.fromkeys(PHASES, 0.5) | (seconds or {})
    return Growth(layers, steps, known, 40 * layers, layers + 2, 3, steps // 4, 5)


LINEAR = [
    growth(layers, steps, {"capture": layers / 10, "table": steps * layers / 1e4})
    for layers, steps in [(14, 50), (28, 50), (56, 50), (28, 100), (28, 1000)]
]


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_fit_exponent_of_powers(power):
    assert fit_exponent({n: 3e-4 * n**power for n in (14, 28, 56, 112)}) == pytest.approx(
        power
    )


def test_median_times_leave_the_other_axis_alone():
    assert median_times(LINEAR, "layers", "capture") == {14: 1.4, 28: 2.8, 56: 5.6}
    assert list(median_times(LINEAR, "steps", "table")) == [50, 100, 1000]
    for axis, other, value in (("layers", "steps", 50), ("steps", "layers", 28)):
        groups = group_by_size(LINEAR, axis)
        assert {getattr(row, other) for group in groups.values() for row in group} == {value}


def test_median_times_of_repeats():
    rows = [growth(4, 8, {"table": seconds}) for seconds in (1.0, 9.0, 2.0)]
    assert median_times(rows, "layers", "table") == {4: 2.0}


def test_format_growth_times_exponents_and_counts():
    lines = format_growth(LINEAR, "layers").splitlines()
    cells = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines}
    assert [cell.strip() for cell in cells["capture ms"]] == (
        ["1400.0", "2800.0", "5600.0", "1.00", "1.00"]
    )
    assert [cell.strip() for cell in cells["calls"]] == ["16", "30", "58", "", ""]


def test_verdict_names_the_steepest_phase():
    layers, steps = format_verdict(LINEAR)
    assert layers.startswith("linear in layers up to 56: steepest is ")
    assert layers.endswith("exponent 1.00, at most 1.15: holds")
    assert steps == (
        "linear in steps up to 1,000: steepest is table, exponent 1.00, at most 1.15: holds"
    )


def test_verdict_of_what_is_quadratic():
    rows = [growth(n, 50, {"passes": n**2 / 1e3}) for n in (14, 28, 56)]
    rows += [growth(28, steps) for steps in (100, 500)]
    assert format_verdict(rows)[0] == (
        "linear in layers up to 56: steepest is passes, exponent 2.00, at most 1.15: does "
        "not hold"
    )


def test_sizes_cross_in_the_second_number_of_layers_and_the_first_of_steps():
    assert scale.list_sizes([14, 28, 56], [50, 100]) == [
        (14, 50),
        (28, 50),
        (56, 50),
        (28, 100),
    ]


def test_runs_have_the_most_layers_once():
    rest = [(14, 50), (28, 50), (28, 100)]
    assert scale.list_runs([14, 28, 56], [50, 100], 2) == [*rest[:2], (56, 50), rest[2], *rest]
    assert scale.list_runs([14, 28], [50, 100], 3) == 3 * rest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "4"], "--layers needs two different numbers, found 4"),
        (["--steps", "8", "8"], "--steps needs two different numbers, found 8"),
        (["--layers", "0", "2"], "--layers: expected an integer of at least 1"),
    ],
)
def test_command_bad_input_is_said_with_code_2(tmp_path, capsys, arguments, message):
    code, error = refuse(scale.main, ["--out", str(tmp_path), *arguments], capsys)
    assert code == 2
    assert message in error


def test_command_prints_and_writes_all(tmp_path, capsys, monkeypatch):
    asked = []

    def pretend(geometry, steps):
        asked.append((geometry.layers, steps))
        return growth(geometry.layers, steps)

    monkeypatch.setattr(scale, "measure", pretend)
    assert scale.main(["--out", str(tmp_path), "--quick", "--repeats", "2"]) == 0
    assert asked[1:] == [(2, 8), (4, 8), (4, 16)] * 2
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert len(lines) == 6
    assert json.loads(lines[0])["seconds"]["table"] == 0.5
    assert "linear in steps up to 16: " in capsys.readouterr().out


def test_measure_times_every_phase_and_all_together():
    found = measure(scale.NARROW, 8)
    assert (found.calls, found.regions, found.layers, found.steps) == (4, 3, 2, 8)
    assert set(found.seconds) == set(PHASES)
    parts = ("capture", "match", "passes", "table", "plan")
    assert all(found.seconds[phase] > 0 for phase in parts)
    assert np.sum([found.seconds[phase] for phase in parts]) <= found.seconds["transform"]
