"""One capture for all shapes: captures, programs, values, slots, and what is said."""

from __future__ import annotations

import gc
from itertools import product

import pytest
import torch
from torch import fx, nn

import dqar_fx
from benchmarks.harness.sized_models import SIZED
from dqar_fx import Schedule
from dqar_fx.program import graphs, programs
from tests.helpers.hook_oracle import Oracle
from tests.helpers.models import Attention, seeded
from tests.helpers.slow_cases import slow_but

SCHEDULE = Schedule.interval(3, 2)
SIZES = ((2, 4, 6, 7), (3, 6, 4, 12), (2, 5, 5, 25), (8, 4, 6, 9), (1, 5, 6, 7), (1, 6, 4, 8))


@pytest.mark.parametrize("name", slow_but("flux", of=SIZED))
def test_all_sizes_take_three_captures_and_are_exact(name, captures):
    case = SIZED[name]()
    denoiser, oracle = dqar_fx.transform(case.model, SCHEDULE), Oracle(case.model)
    for _ in range(2):
        for sizes in SIZES:
            table = None
            for step in range(3):
                inputs = case.inputs(*sizes, step=step)
                result = denoiser(**inputs).sample
                table = denoiser.table if table is None else table
                assert torch.equal(result, oracle(table.actions[step], **inputs))
            slots = next(iter(denoiser.program.streams.values())).slots
            assert slots.nbytes == denoiser.cache_bytes > 0
    # the first sizes alone; several samples; one sample
    assert len(captures) == 3
    assert len(denoiser._programs) == len(SIZES)


def test_what_is_captured_tells_the_sizes_of_the_call():
    case = SIZED["flux"]()
    denoiser = dqar_fx.transform(case.model, SCHEDULE)
    for batch, height, width, text in SIZES:
        denoiser.prepare(**case.inputs(batch, height, width, text))
        kept = denoiser.explain().sites[0].kept
        assert [spec.shape for spec in kept] == [
            (batch, height * width, 32),
            (batch, text, 32),
        ]
        program = denoiser.program
        for gm in (program.captured.gm, program.guarded, denoiser.row_graph(1)):
            latent = gm.graph.find_nodes(op="placeholder")[0]
            assert latent.meta["val"].shape == (batch, height * width, 8)
            (output,) = gm.graph.output_node().args[0]
            assert output.meta["val"].shape == (batch, height * width, 8)


class Picky(nn.Module):
    """Attention, and something that is not the same for every size."""

    def __init__(self, extra):
        super().__init__()
        self.attention = Attention(16)
        self.extra = extra

    def forward(self, x, timestep):
        return self.extra(self.attention(x) * timestep.reshape(-1, 1, 1))


PICKY = {
    "branch": (lambda x: x.sin() if len(x) == 4 else x, 3),
    "average": (lambda x: x * (1.0 / len(x)), 2),
    "square": (lambda x: x + torch.ones(len(x) ** 2).mean(), 2),
    "root": (lambda x: x * x.shape[1] ** 0.5, 2),
    "even": (lambda x: x.cos() if x.shape[1] % 2 == 0 else x, 3),
    "turned": (lambda x: x.reshape(x.shape[1], x.shape[0], 16).sin().reshape(x.shape), 2),
    "counted": (lambda x: x + torch.arange(x.shape[1]).to(x).reshape(1, -1, 1), 2),
}


@pytest.mark.parametrize("name", PICKY)
def test_what_depends_on_sizes_is_computed_for_each(name, captures):
    extra, expected = PICKY[name]
    model = Picky(extra).eval()
    denoiser = dqar_fx.transform(model, Schedule.compute_all(1))
    for batch, length in product((2, 3, 4, 5), (4, 5, 6)):
        inputs = seeded(batch, length, 16), torch.ones(batch)
        assert torch.equal(denoiser(*inputs), model(*inputs))
    assert len(captures) == expected


def test_sizes_that_were_equal_by_chance_may_differ():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Attention(16)

        def forward(self, x, timestep, text):
            rows = (
                torch.arange(x.shape[1]).sin().sum(),
                torch.arange(text.shape[1]).sin().sum(),
            )
            return self.attention(x) * rows[0] + self.attention(text).mean() * rows[1]

    model = Two().eval()
    denoiser = dqar_fx.transform(model, Schedule.compute_all(1))
    for length, other in ((4, 4), (4, 6), (5, 3)):
        inputs = seeded(2, length, 16), torch.ones(2), seeded(2, other, 16)
        assert torch.equal(denoiser(*inputs), model(*inputs))


def test_a_call_of_a_new_size_makes_no_graph_of_all_of_the_model(monkeypatch):
    made, original = [], graphs.fix_sizes
    monkeypatch.setattr(
        graphs,
        "fix_sizes",
        lambda gm, *args, **options: made.append(gm) or original(gm, *args, **options),
    )
    denoiser = dqar_fx.transform(Picky(lambda x: x).eval(), Schedule.interval(2, 2))
    for length in (4, 5, 6):
        denoiser(seeded(2, length, 16), torch.ones(2))
    assert not made
    captured = denoiser.program.captured
    assert captured.gm is denoiser.program.captured.gm
    assert captured.gm.graph.find_nodes(op="placeholder")[0].meta["val"].shape == (2, 6, 16)
    assert made == [captured.gm]


def test_layouts_and_dtypes_are_captured_apart(captures):
    model = Picky(lambda x: x).eval()
    denoiser = dqar_fx.transform(model, Schedule.compute_all(1))
    for length in (4, 6):
        turned = seeded(2, 16, length).transpose(1, 2)
        for x in (seeded(2, length, 16), turned):
            assert torch.equal(denoiser(x, torch.ones(2)), model(x, torch.ones(2)))
    assert len(captures) == 3  # the first sizes alone, then each layout


def test_whoever_was_not_called_for_long_keeps_no_outputs(monkeypatch):
    monkeypatch.setattr(programs, "MAX_WARM", 2)
    denoiser = dqar_fx.transform(Picky(lambda x: x).eval(), Schedule.interval(2, 2))
    for length in (4, 5, 6, 7):
        denoiser(seeded(2, length, 16), torch.ones(2))
    assert sum(bool(program.streams) for program in denoiser.captured_programs()) == 2
    assert len(denoiser.captured_programs()) == 4


def test_what_is_kept_stays_bounded_whatever_comes(monkeypatch):
    monkeypatch.setattr(programs, "MAX_PROGRAMS", 4)
    denoiser = dqar_fx.transform(Picky(lambda x: x).eval(), Schedule.interval(2, 2))
    counts = []
    for _ in range(3):
        for length in range(4, 16):
            for step in range(2):
                denoiser(seeded(2, length, 16), torch.full((2,), 0.9 - step))
        gc.collect()
        counts.append(sum(type(each) is fx.Graph for each in gc.get_objects()))
    assert counts[0] == counts[1] == counts[2]
    assert len(denoiser.captured_programs()) == 4


def test_kinds_of_calls_that_take_turns_are_said(monkeypatch):
    monkeypatch.setattr(programs, "MAX_CAPTURES", 2)
    model = Picky(lambda x: x).eval()
    denoiser = dqar_fx.transform(model, Schedule.compute_all(1))
    kinds = (torch.float32, torch.float64, torch.bfloat16)
    inputs = [(seeded(2, 4, 16), torch.ones(2, dtype=kind)) for kind in kinds]
    for given in inputs[:2]:
        denoiser(*given)
    with pytest.warns(UserWarning, match="more than 2 kinds of calls take turns"):
        denoiser(*inputs[2])
    assert len(denoiser.captured_programs()) == 2
