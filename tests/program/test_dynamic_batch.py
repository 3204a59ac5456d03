"""Batch sizes that share compiled regions: counts, values, slots, and what cannot be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import dqar_fx
from dqar_fx import Guidance, Schedule
from dqar_fx.errors import OptionError
from tests.helpers.models import MAKERS, Attention, make_dit, seeded
from tests.helpers.slow_cases import slow_but

STEPS = 4
SCHEDULE = Schedule.interval(STEPS, 2, warmup=1)
pytestmark = pytest.mark.usefixtures("fresh_counters")


class Counting:
    """The eager backend, and the graphs it was given."""

    def __init__(self):
        self.graphs = []

    def __call__(self, gm, _inputs):
        self.graphs.append(gm)
        return gm.forward


def transformed(model, backend="eager", schedule=SCHEDULE, **options):
    compile = {"backend": backend, "dynamic": True, **options.pop("compile", {})}
    return dqar_fx.transform(model, schedule, compile=compile, **options)


def check_trajectory(denoiser, plain, case, seed=0):
    """Equal to an eager denoiser, within the rounding of passes for compilers."""
    for step in range(STEPS):
        inputs = case.inputs(step, seed)
        expected = plain(**inputs).sample
        result = denoiser(**inputs).sample
        assert result.shape == expected.shape
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "order"),
    slow_but(
        ("pixart", (1, 8, 2, 3)),
        of=[("dit", (2, 1, 3, 8)), *((name, (1, 8, 2, 3)) for name in MAKERS)],
    ),
)
def test_batches_share_the_graphs_of_one(name, order):
    first, *others = map(MAKERS[name], order)
    backend = Counting()
    denoiser = transformed(first.model, backend)
    plain = dqar_fx.transform(first.model, SCHEDULE)
    check_trajectory(denoiser, plain, first)
    graphs = len(backend.graphs)
    variants = len(denoiser.program.variants)
    assert graphs == counters["stats"]["unique_graphs"] == variants
    with torch.compiler.set_stance("fail_on_recompile"):
        for case in others:
            check_trajectory(denoiser, plain, case)
            assert len(denoiser.program.variants) == variants
    assert len(backend.graphs) == graphs
    assert not counters["graph_break"]
    assert len(denoiser._programs.batches.regions) == graphs


@pytest.mark.slow
def test_any_batch_takes_the_graphs_that_one_batch_takes():
    case = make_dit(2, layers=2)
    counts = []
    for dynamic in (False, True):
        backend = Counting()
        denoiser = transformed(case.model, backend, compile={"dynamic": dynamic})
        for step in range(STEPS):
            denoiser(**case.inputs(step))
        counts.append(len(backend.graphs))
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    "options",
    slow_but(
        {"keep": "kv"},
        of=[
            {"cache": "int8"},
            {"keep": "kv"},
            {"schedule": SCHEDULE.forecast(1)},
            {"sites": "block"},
            {"compile": {"unit": "whole"}},
            {"guidance": Guidance(batched="conditional_first")},
        ],
    ),
    ids=str,
)
def test_batches_share_whatever_is_kept_and_however(options):
    cases = [make_dit(batch, layers=2) for batch in (2, 4, 6)]
    backend = Counting()
    denoiser = transformed(cases[0].model, backend, **options)
    alike = {key: value for key, value in options.items() if key != "compile"}
    plain = dqar_fx.transform(cases[0].model, alike.pop("schedule", SCHEDULE), **alike)
    check_trajectory(denoiser, plain, cases[0])
    graphs = len(backend.graphs)
    with torch.compiler.set_stance("fail_on_recompile"):
        for case in cases[1:]:
            check_trajectory(denoiser, plain, case)
    assert len(backend.graphs) == graphs


def test_batches_have_slots_of_their_own_and_nothing_stale():
    denoiser = transformed(make_dit(2, layers=2).model)
    plain = dqar_fx.transform(make_dit(2, layers=2).model, SCHEDULE)
    nbytes = {}
    for seed, batch in enumerate((2, 3, 2, 1, 3)):
        case = make_dit(batch, layers=2)
        check_trajectory(denoiser, plain, case, seed)
        slots = next(iter(denoiser.program.streams.values())).slots
        assert slots.nbytes == denoiser.cache_bytes == plain.cache_bytes
        nbytes[batch] = slots.nbytes
    assert nbytes[3] == 3 * nbytes[1]
    assert nbytes[2] == 2 * nbytes[1]


@pytest.mark.slow
def test_a_row_that_comes_later_is_freed_at_the_batch_size_it_comes_with():
    cases = [make_dit(batch, layers=2) for batch in (2, 3, 5)]
    backend = Counting()
    denoiser = transformed(cases[0].model, backend)
    denoiser(**cases[0].inputs(0))
    check_trajectory(denoiser, dqar_fx.transform(cases[0].model, SCHEDULE), cases[1])
    graphs = len(backend.graphs)
    with torch.compiler.set_stance("fail_on_recompile"):
        for case in (cases[0], cases[2]):
            check_trajectory(denoiser, dqar_fx.transform(case.model, SCHEDULE), case)
    assert len(backend.graphs) == graphs


@pytest.mark.slow
def test_another_schedule_shares_the_batches():
    case, wide = make_dit(2, layers=2), make_dit(3, layers=2)
    backend = Counting()
    denoiser = transformed(case.model, backend)
    plain = dqar_fx.transform(case.model, Schedule.linear(STEPS, warmup=1))
    check_trajectory(denoiser, dqar_fx.transform(case.model, SCHEDULE), case)
    twin = denoiser.with_schedule(Schedule.linear(STEPS, warmup=1))
    check_trajectory(twin, plain, case)
    graphs = len(backend.graphs)
    with torch.compiler.set_stance("fail_on_recompile"):
        check_trajectory(twin, plain, wide)
    assert len(backend.graphs) == graphs


def test_a_copy_and_a_moved_denoiser_start_without_shared_regions():
    case = make_dit(2, layers=2)
    denoiser = transformed(case.model)
    denoiser(**case.inputs(0))
    assert denoiser._programs.batches.regions
    assert not copy.deepcopy(denoiser)._programs.batches.regions
    denoiser.to(torch.float64)
    assert not denoiser._programs.batches.regions


class Picky(nn.Module):
    """Attention, and something that is not the same for every batch size."""

    def __init__(self, extra):
        super().__init__()
        self.attention = Attention(16)
        self.extra = extra

    def forward(self, x, timestep):
        return self.extra(self.attention(x) * timestep.reshape(-1, 1, 1))


PICKY = {
    "branch": lambda x: x.sin() if len(x) == 4 else x,
    "average": lambda x: x * (1.0 / len(x)),
    "square": lambda x: x + torch.ones(len(x) ** 2).mean(),
}


@pytest.mark.parametrize("name", PICKY)
def test_what_depends_on_the_batch_otherwise_is_compiled_anew_and_said(name):
    model = Picky(PICKY[name]).eval()
    denoiser = transformed(model, schedule=Schedule.compute_all(1))
    given = {batch: (seeded(batch, 4, 16), torch.ones(batch)) for batch in (2, 3, 5)}
    with pytest.warns(UserWarning, match="dynamic: compiled for a batch of"):
        results = {batch: denoiser(*inputs) for batch, inputs in given.items()}
    for batch, inputs in given.items():
        torch.testing.assert_close(results[batch], model(*inputs))


class Even(nn.Module):
    """Refuses more than three samples."""

    def __init__(self):
        super().__init__()
        self.attention = Attention(16)

    def forward(self, x, timestep):
        if len(x) > 3:
            raise ValueError("too many")
        return self.attention(x) * timestep.reshape(-1, 1, 1)


def test_a_model_that_refuses_twice_the_samples_is_compiled_per_batch():
    model = Even().eval()
    denoiser = transformed(model, schedule=Schedule.compute_all(1))
    x = seeded(2, 4, 16)
    with pytest.warns(UserWarning, match="twice the samples cannot be captured"):
        result = denoiser(x, torch.ones(2))
    torch.testing.assert_close(result, model(x, torch.ones(2)))
    x = seeded(3, 4, 16)
    torch.testing.assert_close(denoiser(x, torch.ones(3)), model(x, torch.ones(3)))


@pytest.mark.parametrize(
    ("compile", "said"),
    [
        ({"unit": None, "dynamic": True}, "nothing is compiled"),
        ({"dynamic": True, "mode": "reduce-overhead"}, "CUDA graph is recorded"),
        ({"dynamic": True, "options": {"triton.cudagraphs": True}}, "CUDA graph is recorded"),
        ({"dynamic": True, "shapes_spec": None}, "follows from the captures"),
        ({"dynamic": "yes"}, "expected True, so that all batch sizes share"),
    ],
)
def test_dynamic_refuses_what_fixes_the_batch(compile, said):
    with pytest.raises(OptionError, match=said):
        dqar_fx.transform(make_dit(layers=1).model, SCHEDULE, compile=compile)


def test_dynamic_false_goes_to_torch_compile():
    case = make_dit(layers=1)
    denoiser = transformed(case.model, compile={"dynamic": False})
    denoiser(**case.inputs(0))
    assert not denoiser._programs.batches.batch_signatures


@pytest.mark.slow
def test_inductor_shares_its_kernels():
    cases = [make_dit(batch, layers=1) for batch in (2, 1, 3)]
    denoiser = transformed(cases[0].model, "inductor")
    plain = dqar_fx.transform(cases[0].model, SCHEDULE)
    check_trajectory(denoiser, plain, cases[0])
    graphs = counters["stats"]["unique_graphs"]
    with torch.compiler.set_stance("fail_on_recompile"):
        for case in cases[1:]:
            check_trajectory(denoiser, plain, case)
    assert counters["stats"]["unique_graphs"] == graphs
