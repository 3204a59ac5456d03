"""benchmarks.compile_cost: points, rows, going on after an interruption, processes."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from benchmarks.compile_cost import job, process
from benchmarks.compile_cost.rows import Measured, Point, Row, cross, middle
from benchmarks.harness import options
from benchmarks.harness.geometry import Geometry
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.rows import append_rows, read_rows, to_values
from benchmarks.harness.timing import Compiled
from tests.benchmarks.command_errors import refuse

TINY = Geometry(layers=2, width=16, heads=2, tokens=4, batch=2)
MACHINE = describe_machine(torch.device("cpu"))
MEASURED = Measured(1.0, 8.0, 0.1, 2.0, 7, 0, 0, 0, 5)
DEEP = dataclasses.replace(TINY, layers=4)


@pytest.fixture(autouse=True)
def compiler(monkeypatch):
    monkeypatch.setattr(options, "can_compile", lambda device: True)


def parse(folder, *arguments):
    return job.Options.read(["--out", str(folder), *arguments])


def rows_of(point, repeat, error=None):
    cold = Row(point, "cold", repeat, 9.0, None if error else MEASURED, error, MACHINE)
    return [cold] if error else [cold, dataclasses.replace(cold, phase="warm")]


class Counting:
    """Stands for the processes."""

    def __init__(self, error=None):
        self.asked, self.error = [], error

    def __call__(self, point, repeat, *_):
        self.asked.append((point, repeat))
        return rows_of(point, repeat, self.error)


@pytest.fixture
def run(monkeypatch):
    """Runs with pretended processes: settings, what stands for the processes -> rows."""

    def run(settings, measure, machine=MACHINE):
        monkeypatch.setattr(job, "measure_pair", measure)
        return job.measure(settings, machine)

    return run


# ---- points ------------------------------------------------------------------------------


def test_points_by_default_differ_from_the_middle_in_one_thing(tmp_path):
    points = parse(tmp_path).points
    assert [str(point) for point in points] == [
        "28 layers, whole",
        "12 layers, 50 steps",
        "28 layers, 50 steps",
        "56 layers, 50 steps",
        "28 layers, 20 steps",
        "28 layers, 100 steps",
        "28 layers, 50 steps, ramp 2",
        "28 layers, 50 steps, ramp 45",
    ]
    assert len(set(points)) == len(points)


def test_points_of_one_number_each_are_one_schedule():
    assert cross([TINY], [8], []) == [Point("regional", TINY, 8)]


@pytest.mark.parametrize(("values", "expected"), [([3], 3), ([3, 5], 5), ([3, 5, 9], 5)])
def test_middle(values, expected):
    assert middle(values) == expected


def test_ramp_decides_the_distinct_rows():
    paths = [f"blocks.{i}" for i in range(28)]
    rows = [
        len(Point("regional", TINY, 50, ramp).schedule.resolve(paths).rows)
        for ramp in (2, None, 45)
    ]
    assert rows == sorted(set(rows))


# ---- command line ------------------------------------------------------------------------


def test_options_sort_and_take_each_number_once(tmp_path):
    settings = parse(tmp_path, "--layers", "9", "3", "9", "--steps", "7", "--whole")
    assert [geometry.layers for geometry in settings.geometries] == [3, 9]
    assert settings.whole == ()
    assert not [point for point in settings.points if point.kind == "whole"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "0"], "--layers: expected an integer of at least 1"),
        (["--steps", "x"], "--steps: expected an integer of at least 1"),
        (["--tokens", "60"], "--tokens must be a square number, found 60"),
        (["--heads", "5"], "--width 384 is no multiple of --heads 5"),
        (["--whole", "14"], "--whole 14 is none of --layers 12 28 56"),
        (["--timeout-s", "0"], "--timeout-s: expected a number above 0"),
        (["--repeats", "0"], "--repeats: expected an integer of at least 1"),
    ],
)
def test_options_bad_input_is_said_with_code_2(tmp_path, capsys, arguments, message):
    code, error = refuse(job.main, ["--out", str(tmp_path), *arguments], capsys)
    assert code == 2
    assert message in error


def test_options_without_compiler_say_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(options, "can_compile", lambda device: False)
    code, error = refuse(job.main, ["--out", str(tmp_path)], capsys)
    assert code == 2
    assert error.startswith("error: no C++ compiler was found")


# ---- rows on disk ------------------------------------------------------------------------


def test_rows_are_flat_and_read_as_they_were_written(tmp_path):
    rows = [
        *rows_of(Point("regional", TINY, 8, ramp=2), 0),
        *rows_of(Point("whole", TINY, 1), 1, error="RuntimeError: no"),
    ]
    append_rows(rows, tmp_path / "rows.jsonl")
    assert read_rows(tmp_path / "rows.jsonl", Row) == rows
    measured, failed = to_values(rows[0]), to_values(rows[-1])
    assert measured.keys() == failed.keys()
    assert not [name for name, value in measured.items() if isinstance(value, dict)]
    assert (measured["ramp"], measured["width"], measured["compile_s"]) == (2, 16, 8.0)
    assert failed["compile_s"] is None


def test_rows_of_another_version_are_left_out(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"kind": "whole", "compile_s": 27.8}\n')
    assert read_rows(tmp_path / "rows.jsonl", Row) == []


# ---- going on after an interruption ------------------------------------------------------


QUICK = ("--quick", "--repeats", "2")


def test_run_repeats_take_turns_in_rotating_order(tmp_path, run):
    settings, measure = parse(tmp_path, *QUICK), Counting()
    rows = run(settings, measure)
    whole, regional = settings.points
    assert measure.asked == [(whole, 0), (regional, 0), (regional, 1), (whole, 1)]
    assert [row.point.kind for row in rows] == ["whole"] * 4 + ["regional"] * 4


def test_run_again_measures_nothing(tmp_path, run):
    settings = parse(tmp_path, *QUICK)
    first, again = run(settings, Counting()), Counting()
    assert run(settings, again) == first
    assert not again.asked


def test_run_goes_on_where_it_was(tmp_path, run):
    run(parse(tmp_path, "--quick"), Counting())
    again, settings = Counting(), parse(tmp_path, *QUICK)
    assert len(run(settings, again)) == 8
    assert [repeat for _, repeat in again.asked] == [1, 1]


def test_run_measures_anew_what_failed(tmp_path, run):
    settings = parse(tmp_path, "--quick")
    run(settings, Counting(error="TimeoutError: took more than 1 s"))
    again = Counting()
    assert all(row.error is None for row in run(settings, again))
    assert len(again.asked) == 2


def test_run_measures_anew_without_its_warm_half(tmp_path, run):
    settings = parse(tmp_path, "--quick")
    append_rows(rows_of(settings.points[0], 0)[:1], settings.path)
    again = Counting()
    run(settings, again)
    assert len(again.asked) == 2


@pytest.mark.parametrize("fact", ["commit", "threads", "torch", "processor"])
def test_run_measures_anew_on_other_machines_and_sources(tmp_path, run, fact):
    settings, again = parse(tmp_path, "--quick"), Counting()
    run(settings, Counting())
    run(settings, again, dataclasses.replace(MACHINE, **{fact: "another"}))
    assert len(again.asked) == 2


def test_main_prints_table_verdict_and_failures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(job, "measure_pair", Counting())
    arguments = ["--out", str(tmp_path), "--quick"]
    assert job.main(arguments) == 0
    said = capsys.readouterr().out
    assert "| regional |        2 |       8 |" in said
    assert "regional by whole: 1.000" in said
    monkeypatch.setattr(job, "measure_pair", Counting(error="RuntimeError: no"))
    assert job.main([*arguments, "--repeats", "2"]) == 1
    assert "failed: 2 layers, whole, cold, repeat 2: RuntimeError: no" in (
        " ".join(capsys.readouterr().out.split())
    )


def test_main_damaged_rows_are_an_error_and_code_2(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text("{")
    code, error = refuse(job.main, ["--out", str(tmp_path), "--quick"], capsys)
    assert code == 2
    assert "line 1: no JSON object" in error


# ---- processes ---------------------------------------------------------------------------


def measure_pair(monkeypatch, run_apart):
    """The rows of a pair of processes that are pretended, and the phases that are told."""
    monkeypatch.setattr(job, "run_apart", run_apart)
    told = []
    return job.measure_pair(Point("whole", TINY, 1), 0, MACHINE, 60, told.append), told


def test_pair_failed_cold_process_has_no_warm_one(monkeypatch):
    (row,), told = measure_pair(monkeypatch, lambda *_, **files: "RuntimeError: no")
    assert (row.phase, row.measured, row.error) == ("cold", None, "RuntimeError: no")
    assert told == ["cold"]


def test_pair_warm_process_has_the_cold_ones_cache_and_the_last_line_counts(monkeypatch):
    caches = []

    def pretend(module, arguments, *, said, complaint, timeout_s, env):
        cache = Path(env["TORCHINDUCTOR_CACHE_DIR"])
        caches.append((cache, cache.exists()))
        cache.mkdir(exist_ok=True)
        said.write_text(f"first\n{json.dumps(dataclasses.asdict(MEASURED))}\n")

    rows, told = measure_pair(monkeypatch, pretend)
    assert [row.phase for row in rows] == told == ["cold", "warm"]
    assert all(row.measured == MEASURED for row in rows)
    (cold, was_there), (warm, is_there) = caches
    assert (cold, was_there, is_there) == (warm, False, True)
    assert not cold.exists()


# ---- what a process measures -------------------------------------------------------------


def test_measure_takes_off_the_same_steps_of_a_second_trajectory(monkeypatch):
    times = iter([[(9.0, 2), (1.5, 0), (4.0, 1)], [(1.0, 0), (1.0, 0), (1.0, 1)]])
    monkeypatch.setattr(process, "set_up", lambda *_: None)
    monkeypatch.setattr(process, "build", lambda *_: (None, None))
    monkeypatch.setattr(
        process,
        "run_trajectory",
        lambda *_: [(s, Compiled(graphs, 0)) for s, graphs in next(times)],
    )
    found = process.measure(Point("whole", TINY, 3))
    assert (found.compile_s, found.other_s, found.run_s) == (11.0, 0.5, 3.0)
    assert (found.graphs, found.recompiles, found.breaks) == (3, 1, 0)


def test_build_captures_the_call_that_follows(monkeypatch):
    point = Point("regional", TINY, 3)
    denoiser, seconds = process.build(TINY.build(), point, torch.device("cpu"), {})
    program = denoiser.program
    monkeypatch.setattr(type(program), "run", lambda self, leaves, position: [self])
    with torch.no_grad():
        assert denoiser._run(*flat(next(TINY.draw_calls(3)), denoiser))[1] == [program]
    assert seconds > 0
    assert len(denoiser._programs) == 1


def flat(call, denoiser):
    args, kwargs, _ = denoiser._bind_call((), call)
    return torch.utils._pytree.tree_flatten((args, kwargs))


def test_orders_are_read_as_they_were_written(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(process, "measure", lambda point: asked.append(point) or MEASURED)
    point = Point("regional", DEEP, 8, ramp=2)
    process.main([process.write_order(point, torch.get_num_threads())])
    assert asked == [point]
    assert Measured(**json.loads(capsys.readouterr().out)) == MEASURED
