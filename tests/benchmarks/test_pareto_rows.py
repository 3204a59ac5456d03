"""Rows, what they say, and the race that fills them: without a model."""

import json
import math
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchHeunDiscreteScheduler
from torch import nn

import dqar_fx
from benchmarks.ablation.protocol import Protocol
from benchmarks.contenders import bench as bench_module
from benchmarks.contenders.bench import Bench, Counting, StandIn, timed
from benchmarks.contenders.contenders import Contender, Entrant
from benchmarks.contenders.kinds import (
    ATTENTION,
    BASE,
    BOTH,
    COMPILED,
    DIFFUSERS,
    EAGER,
    FEWER,
    OPTIMISED,
    THEIRS,
    forecast_of,
)
from benchmarks.contenders.race import Race
from benchmarks.contenders.recipes import Transformed, Untransformed, make_interval
from benchmarks.contenders.records import Record
from benchmarks.contenders.rows import Row, add_quality, make_rows, turn_saving
from benchmarks.harness.errors import InputError
from benchmarks.harness.geometry import Geometry
from benchmarks.harness.plots import styled, write_figure
from benchmarks.harness.rows import to_values
from benchmarks.harness.store import Piece, file_name
from benchmarks.pareto.front import draw, make_caption, make_title
from benchmarks.pareto.lineup import line_up
from benchmarks.pareto.options import Options
from benchmarks.pareto.table import format_judged, format_notes, format_table, list_counts
from benchmarks.pareto.verdict import (
    choose_judged,
    find_best,
    find_nearest,
    format_verdict,
    interpolate_fewer,
)
from benchmarks.quality.judge import Judge
from benchmarks.quality.panel import Quality
from dqar_fx import Schedule, prior_art

CPU = torch.device("cpu")
SVG = "{http://www.w3.org/2000/svg}"
RUN = {
    "model": "reference/pipeline",
    "scheduler_class": "DDIMScheduler",
    "guidance": 1.5,
    "dtype": "float32",
    "samples": 8,
    "device": "cpu",
    "processor": "abacus",
    "cores": 2,
    "threads": 2,
    "torch": "2",
    "diffusers": "0",
    "cache_dit": None,
    "frechet_name": "FD-FashionCNN",
    "lpips_name": "LPIPS-FashionCNN",
}
MACHINE = {"dqar_fx": "0.1.0", "commit": "0123456789abcdef", "dirty": False}


def make_row(name, family, speed=None, psnr_db=None, **values):
    ranges = {} if speed is None else {"speed_min": speed - 0.1, "speed_max": speed + 0.1}
    plain = {"setting": name, "mode": COMPILED, "tool": None, "steps": 50, "repeats": 5}
    known = {"speed_median": speed, "psnr_db": psnr_db, "run": RUN, "machine": MACHINE}
    known |= {"family": family.title, "kind": family.kind}
    return Row(name=name, **{**plain, **ranges, **known, **values})


ROWS = [
    make_row("untransformed, compiled", BASE, 1.0, math.inf, pictures=48),
    make_row("25 steps", FEWER, 2.0, 42.0, steps=25),
    make_row("20 steps", FEWER, 2.4, 38.0, steps=20),
    make_row("17 steps", FEWER, 2.8, 36.0, steps=17),
    make_row("attention, every 2", ATTENTION, 1.2, 44.0),
    make_row("attention + ff, every 3", BOTH, 2.3, 37.5),
    make_row("forecast order 1, every 3", forecast_of(1), 2.2, 50.0),
    make_row("forecast order 1, every 4", forecast_of(1), 2.6, 46.0),
    make_row("TaylorSeer, by dqar_fx", THEIRS, 2.1, 48.0),
    make_row("TaylorSeer, eager", DIFFUSERS, 1.5, 47.0, setting="T", tool="TaylorSeer"),
    make_row("TaylorSeer, compiled", DIFFUSERS, 2.1, 47.0, setting="T", tool="TaylorSeer"),
    make_row("PAB, eager", DIFFUSERS, 0.8, 45.0, tool="PAB"),
    make_row(
        "FasterCache, eager", DIFFUSERS, error="ValueError: no\nsuch", tool="FasterCache"
    ),
    make_row(
        "SeaCache, eager", DIFFUSERS, 0.9, math.inf, tool="SeaCache", note="does nothing"
    ),
]
NAMES = [row.name for row in ROWS]
BASES = ["untransformed, compiled", "untransformed, eager"]


# ---- saving turned into time --------------------------------------------------------------


@pytest.mark.parametrize(
    ("speed", "ratio", "share"),
    [
        (2.5, 0.4, 1.0),
        (1 / 0.7, 0.4, 0.5),
        (1.0, 0.4, 0.0),
        (0.5, 0.5, -2.0),
        (3.0, 1.0, None),
        (1.1, 1.3, None),
        (None, 0.4, None),
        (2.0, None, None),
    ],
)
def test_turn_saving(speed, ratio, share):
    assert turn_saving(speed, ratio) == pytest.approx(share)


# ---- the verdict --------------------------------------------------------------------------


def test_interpolate_fewer_is_linear_between_neighbours():
    assert interpolate_fewer(ROWS, 2.2) == pytest.approx(40.0)
    assert interpolate_fewer(ROWS, 2.8) == 36.0
    assert interpolate_fewer(ROWS, 2.9) is None
    assert interpolate_fewer(ROWS, 1.9) is None
    assert interpolate_fewer([], 2.0) is None


def test_find_best_is_at_that_speed_or_above():
    assert find_best(ROWS, "ours", 2.0).name == "forecast order 1, every 3"
    assert find_best(ROWS, "ours", 2.5).name == "forecast order 1, every 4"
    assert find_best(ROWS, "peer", 2.0).name == "TaylorSeer, compiled"
    assert find_best(ROWS, "peer", 2.5) is None


def test_verdict_compares_at_equal_speed():
    assert format_verdict(ROWS, (2.0,)) == [
        "At 2x or faster, ours: 50.0 dB (forecast order 1, every 3, 2.20x).",
        "- fewer steps at that speed: 40.0 dB, ours +10.0 dB, between the measured numbers of "
        "steps.",
        "- fewer steps at 2x: 42.0 dB, ours +8.0 dB, between the measured numbers of steps.",
        "- the best peer (TaylorSeer, compiled, 2.10x): 47.0 dB, ours +3.0 dB.",
        "- a peer's schedule by us (TaylorSeer, by dqar_fx, 2.10x): 48.0 dB, ours +2.0 dB.",
    ]


def test_verdict_without_peers_or_ours_says_so():
    lines = format_verdict(ROWS, (2.5, 3.0))
    assert "- the best peer: none as fast was measured." in lines
    assert lines[-1] == "At 3x or faster: none of ours."


# ---- who is judged ------------------------------------------------------------------------


def choose(*arguments, rows=ROWS, tmp="results/pareto"):
    return choose_judged(rows, Options.read(["--lowering", "eager", *arguments]))


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # options make their folder


def test_choose_judged_takes_the_nearest_of_each_family():
    assert choose() == [
        "untransformed, compiled",
        "25 steps",
        "20 steps",
        "attention, every 2",
        "attention + ff, every 3",
        "forecast order 1, every 3",
        "forecast order 1, every 4",
        "TaylorSeer, by dqar_fx",
        "TaylorSeer, compiled",
    ]
    assert choose("--targets", "2.7")[1] == "17 steps"


def test_choose_judged_as_asked():
    assert choose("--judge", "20 steps") == ["untransformed, compiled", "20 steps"]
    assert choose("--judge", "none") == choose("--images", "0") == []


def test_find_nearest_of_equal_speed_is_the_better():
    rows = [make_row("a", BOTH, 2.1, 30.0), make_row("b", BOTH, 1.9, 40.0)]
    assert find_nearest(rows, 2.0).name == "b"


def test_add_quality_differences_are_by_seed_group():
    judged = {
        ROWS[0].name: Quality(6, frechet=(5.0, 6.0)),
        NAMES[1]: Quality(6, frechet=(7.0, 5.0)),
    }
    rows = add_quality(ROWS[:3], judged, {NAMES[2]: "ValueError: x"})
    assert [row.frechet_differences for row in rows] == [(0.0, 0.0), (2.0, -1.0), ()]
    assert rows[2].error == "ValueError: x"
    assert "+0.500 (-1.000 to +2.000)" in format_judged(rows)
    assert format_judged(ROWS) is None


# ---- tables and records -------------------------------------------------------------------


def test_table_shows_failures_and_notes_explain_them():
    lines = {line.split("|")[1].strip(): line for line in format_table(ROWS).splitlines()}
    assert "failed" in lines["FasterCache, eager"]
    assert "2.20 (2.10-2.30)" in lines["forecast order 1, every 3"]
    assert " inf " in lines["untransformed, compiled"]
    notes = format_notes(ROWS)
    assert "FasterCache, eager (compiled) failed: ValueError: no" in notes
    assert "SeaCache, eager (compiled) does nothing" in notes
    assert "cache-dit not installed, dqar_fx 0.1.0, commit 0123456789." in notes[6]


def test_row_json_is_flat_and_strict():
    row = make_row("a", BOTH, 2.0, math.inf, judged=Quality(6, psnr_db=math.inf))
    values = to_values(row)
    assert (values["psnr_db"], values["judged"]["psnr_db"]) == ("inf", "inf")
    assert (values["family"], values["kind"]) == (BOTH.title, "ours")
    assert (values["processor"], values["commit"]) == ("abacus", MACHINE["commit"])


def test_record_is_read_as_written_and_forgotten_after_an_error(tmp_path):
    piece = Piece(tmp_path / "a.safetensors", {"x": 1})
    record = Record.read(piece, retry=True)
    record.note(macs=3)
    record.add(2, torch.ones(1, 1, 2, 2), 4.0, 2.0)
    found = Record.read(piece, retry=True)
    assert (found.facts, found.times) == ({"macs": 3}, {2: (4.0, 2.0)})
    assert torch.equal(found.images[2], torch.ones(1, 1, 2, 2))
    assert (found.lacks(1), found.lacks(2)) == (True, False)
    found.note(error="ValueError: x")
    assert not found.lacks(1)
    assert Record.read(piece, retry=True).facts == {}
    with pytest.raises(InputError, match="is of another run: x 1 there, 2 here"):
        Record.read(Piece(piece.path, {"x": 2}))


def test_make_rows_pairs_times_and_compares_equal_pictures(tmp_path):
    contenders = [
        Contender("untransformed", BASE, 4, None),
        Contender("untransformed", BASE, 4, None, EAGER),
        Contender("fast", BOTH, 4, None),
        Contender("idle", DIFFUSERS, 4, None, EAGER),
    ]
    records = {e.name: Record(Piece(tmp_path / file_name(e.name), {})) for e in contenders}
    fast, pictures = records["fast"], torch.rand(2, 1, 8, 8)
    for record in records.values():
        record.images = {0: pictures, 1: pictures.flip(0)}
        record.times = {1: (8.0, 8.0)}
        record.facts = {"macs": 100, "hooked": 0}
    fast.images = {1: (pictures.flip(0) + 0.1).clamp(0, 1), 2: pictures}  # 2 is no one else's
    fast.times, fast.facts = {1: (8.0, 4.0), 2: (9.0, 3.0), 3: (7.0, 7.0)}, {"macs": 40}
    rows = {row.name: row for row in make_rows(contenders, records, Judge(), RUN)}
    row = rows["fast"]
    assert (row.speed_median, row.speed_min, row.speed_max) == (2.0, 1.0, 3.0)
    assert (row.trajectory_s, row.step_ms, row.repeats) == (4.0, 1000.0, 3)
    assert (row.macs_ratio, row.saving_in_time) == (0.4, pytest.approx(0.5 / 0.6))
    assert row.pictures == 2
    assert 19 < row.psnr_db < 23
    assert rows["idle, eager"].note == (
        "is attached without an error, but reuses nothing (0 modules have a hook)"
    )
    assert rows["untransformed, compiled"].note is None


# ---- the drawing --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("front")
    with styled():
        paths = write_figure(draw(ROWS, (2.0, 2.5)), folder, "front")
    root = ElementTree.parse(paths[1]).getroot()
    return ["".join(text.itertext()).strip() for text in root.iter(f"{SVG}text")]


def test_front_says_what_there_is_to_see(texts):
    assert (
        "At 2 times the speed: dqar_fx 50.0 dB, fewer steps 42.0 dB, the best peer 47.0 dB"
        in (" ".join(texts))
    )
    assert "fewer steps, nothing reused" in texts
    assert "dqar_fx: attention + feed-forward forecast, order 1" in texts
    assert "peer: TaylorSeer" in texts
    assert texts.count("TaylorSeer") == 1  # its fastest mode is marked, with its name
    assert "25" in texts


def test_front_leaves_out_what_it_names_below(texts):
    assert "peer: PAB" not in texts
    caption = make_caption(ROWS)
    assert caption.endswith("in all modes: PAB, eager.")


def test_front_of_nothing_is_drawn():
    assert make_title(ROWS[:1], (2.0,)) == "At 2 times the speed: nothing was measured"
    with styled():
        draw(ROWS[:1], (2.0,))


# ---- the line-up --------------------------------------------------------------------------


def test_line_up_names_are_names_of_files(tmp_path):
    options = Options.read(["--out", str(tmp_path)])
    contenders = line_up(options, [])
    names = [each.name for each in contenders]
    assert names[:3] == [*BASES, "converged: DPM-Solver++ (2M), 150 steps, eager"]
    assert len({*map(file_name, names)}) == len(names)
    json.dumps([each.identity for each in contenders])  # as pieces need it
    kinds = {each.family.kind for each in contenders}
    assert kinds == {"base", "teacher", "fewer", "ours", "theirs", "peer"}
    assert OPTIMISED.title not in {each.family.title for each in contenders}


def test_line_up_takes_chosen_families_only(tmp_path):
    arguments = ["--only", "fewer", "--fewer", "20", "10", "--teacher", "0"]
    options = Options.read([*arguments, "--out", str(tmp_path)])
    names = [each.name for each in line_up(options, [])]
    assert names == [*BASES, "20 steps", "10 steps"]


def test_make_interval_forecasts_where_it_would_reuse():
    plain = make_interval(9, every=3, warmup=2, order=0)
    assert plain == Schedule.interval(9, 3, warmup=2)
    assert make_interval(9, every=3, warmup=2, order=2) == plain.forecast(2)


# ---- the race -----------------------------------------------------------------------------


class Plain:
    """A recipe of a module with a name."""

    def __init__(self, name, log):
        self.name, self.log, self.identity = name, log, {}

    def build(self, bench, mode):
        module = nn.Identity()
        module.register_forward_hook(lambda *_: self.log.append(self.name))
        return Entrant(module)


class Loop:
    """A pipeline's pictures: calls its transformer once per step."""

    def generate(self, pipe, steps):
        for _ in range(steps):
            pipe.transformer(torch.zeros(1))
        return torch.zeros(1, 1, 8, 8)


@pytest.fixture
def race(tmp_path, monkeypatch):
    log = []
    pipe = SimpleNamespace(transformer=None, scheduler=None)
    bench = Bench(pipe, nn.Identity(), Protocol({0: "a"}, (0,), 1.0), 1, 1, CPU, "eager")
    monkeypatch.setattr(Bench, "task", lambda self, number: Loop())
    monkeypatch.setattr(Bench, "count_macs", lambda self, contender: 1)
    contenders = [
        Contender(name, BASE if name == "base" else BOTH, 1, Plain(name, log))
        for name in ("base", "a", "b", "c")
    ]
    records = {e.name: Record(Piece(tmp_path / e.name, {})) for e in contenders}
    race = Race(bench, contenders[0], contenders, records)
    race.log = log
    return race


BASE_NAME = "base, compiled"


def test_race_runs_the_base_before_each_few(race):
    race.run(repeats=2, pair=2)
    warm, first, second = race.log[:4], race.log[4:9], race.log[9:]
    assert warm == ["base", "a", "b", "c"]
    assert first == ["base", *first[1:3], "base", first[4]]
    assert second[0] == second[3] == "base"
    assert {*first} == {*second} == {"base", "a", "b", "c"}
    assert first != second  # another order
    for record in race.records.values():
        assert sorted(record.times) == [1, 2]
        assert sorted(record.images) == [0, 1, 2]
    base_s, own_s = race.records[BASE_NAME].times[1]
    assert base_s == own_s


def test_race_base_alone_is_timed(race):
    race.contenders = race.contenders[:1]
    race.run(repeats=2, pair=4)
    assert race.log == ["base"] * 3
    assert sorted(race.records[BASE_NAME].times) == [1, 2]


def test_race_failing_contender_does_not_stop_the_others(race, capsys):
    def fail(bench, mode):
        raise RuntimeError("no such kernel")

    race.contenders[1].recipe.build = fail
    race.run(repeats=1, pair=2)
    record = race.records["a"]
    assert record.error == "RuntimeError: no such kernel"
    assert "processor" in record.facts["machine"]
    assert race.log == ["base", "b", "c", "base", *race.log[4:]]
    assert "a failed:" in capsys.readouterr().err
    assert race.records["c"].times


def test_race_failing_base_times_nobody(race):
    def fail(bench, mode):
        raise RuntimeError("no such kernel")

    race.contenders[0].recipe.build = fail
    race.run(repeats=1, pair=2)
    assert race.log == ["a", "b", "c"]
    assert not any(record.times for record in race.records.values())


def test_timed_waits_at_the_first_call_and_the_last(monkeypatch):
    waits, module = [], nn.Identity()
    monkeypatch.setattr(bench_module, "synchronise", waits.append)
    with timed(module, 3, CPU) as marks:
        for _ in range(3):
            module(torch.zeros(1))
    assert len(waits) == len(marks) == 2
    assert marks[0] < marks[1]
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_evaluations_are_counted_beside_steps():
    plain = Bench(
        SimpleNamespace(scheduler=DDIMScheduler()), None, None, 2, 6, CPU, "regional"
    )
    heun = Entrant(nn.Identity(), scheduler=FlowMatchHeunDiscreteScheduler())
    assert plain.count_evaluations(Entrant(nn.Identity()), 6) == 6
    assert plain.count_evaluations(heun, 6) == 11


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"evaluations": 4}, set()),
        ({"evaluations": 7}, {"steps", "evaluations"}),
        ({"evaluations": 4, "trials": 150}, {"trials"}),
    ],
    ids=["one each", "more", "searched"],
)
def test_table_has_columns_of_evaluations_and_trials_where_rows_do(facts, named):
    row = Row("a", "a", EAGER, None, ATTENTION.title, "ours", 4, **facts)
    assert {column.header for column in list_counts([row])} == named


def test_stand_in_has_the_attributes_of_what_it_stands_for():
    inner = nn.Linear(3, 5)
    stand_in = StandIn(inner)
    assert stand_in.out_features == 5
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        stand_in.nothing  # noqa: B018 - the access is what fails


def test_counting_adds_up_calls():
    counting = Counting(nn.Linear(3, 5))
    counting(torch.zeros(2, 3))
    counting(torch.zeros(1, 3))
    assert counting.macs == 45


# ---- recipes ------------------------------------------------------------------------------


@pytest.fixture
def geometry_bench():
    model = Geometry(layers=2, width=16, heads=2, tokens=16, batch=2).build()
    protocol = Protocol({0: "a"}, (0,), 1.0)
    return Bench(SimpleNamespace(scheduler=None), model, protocol, 2, 6, CPU, "regional")


@pytest.mark.parametrize(("mode", "unit"), [(COMPILED, "regional"), (EAGER, None)])
def test_transformed_is_compiled_as_asked(mode, unit, geometry_bench, monkeypatch):
    seen, transform = [], dqar_fx.transform

    def note(*args, compile, **keywords):
        seen.append((compile, keywords["sites"]))
        return transform(*args, **keywords)

    monkeypatch.setattr(dqar_fx, "transform", note)
    recipe = Transformed(lambda bench: Schedule.interval(6, 2), {}, "all")
    first = recipe.build(geometry_bench, mode)
    assert seen == [(unit, "all")]
    other = Transformed(lambda bench: Schedule.interval(6, 3), {}, "all")
    second = other.build(geometry_bench, mode)
    assert len(seen) == 1  # a twin of the first, which has its captures and regions
    assert second.module is not first.module


def test_transformed_takes_the_sites_of_its_schedule(geometry_bench):
    recipe = Transformed(lambda bench: prior_art.fora(6, 3), {})
    entrant = recipe.build(geometry_bench, EAGER)
    geometry = Geometry(layers=2, width=16, heads=2, tokens=16, batch=2)
    with torch.no_grad(), entrant.fresh():
        entrant.module(
            geometry.draw_latent(),
            timestep=torch.tensor([999, 999]),
            class_labels=geometry.labels(),
        )
    assert len(entrant.module.table.sites) == 4


def test_untransformed_is_compiled_once_for_all_numbers_of_steps(geometry_bench, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda model, **k: seen.append(k) or model)
    compiled = [Untransformed().build(geometry_bench, COMPILED).module for _ in range(2)]
    assert compiled[0] is compiled[1]
    assert seen == [{"isolate_recompiles": True, "fullgraph": True, "dynamic": False}]
    assert Untransformed().build(geometry_bench, EAGER).module is geometry_bench.original
