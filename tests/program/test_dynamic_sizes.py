"""Regions that are compiled for all sizes: counts, values, slots, and what cannot be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import dqar_fx
from benchmarks.harness.sized_models import SIZED
from dqar_fx import Guidance, Schedule
from dqar_fx.errors import OptionError
from tests.helpers.hook_oracle import ForecastOracle
from tests.helpers.models import Attention, make_dit, seeded
from tests.helpers.slow_cases import slow_but

STEPS = 4
SCHEDULE = Schedule.interval(STEPS, 2, warmup=1)
SIZES = ((2, 4, 6, 7), (3, 6, 4, 12), (8, 5, 6, 25))
pytestmark = pytest.mark.usefixtures("fresh_counters")


class Counting:
    """The eager backend, and the graphs it was given."""

    def __init__(self):
        self.graphs = []

    def __call__(self, gm, _inputs):
        self.graphs.append(gm)
        return gm.forward


def transformed(model, backend="eager", schedule=SCHEDULE, dynamic=True, **options):
    compile = {"backend": backend, "dynamic": dynamic, **options.pop("compile", {})}
    return dqar_fx.transform(model, schedule, compile=compile, **options)


def check_trajectory(denoiser, plain, inputs):
    """Equal to an eager denoiser, within the rounding of passes for compilers."""
    for step in range(STEPS):
        given = inputs(step)
        result, expected = denoiser(**given).sample, plain(**given).sample
        assert result.shape == expected.shape
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def check_against_hooks(denoiser, case, sizes):
    """Equal to the untouched model with hooks, within the rounding of passes for compilers."""
    oracle = None
    for step in range(STEPS):
        given = case.inputs(*sizes, step=step)
        found = denoiser(**given).sample
        oracle = oracle or ForecastOracle(case.model, denoiser.table)
        torch.testing.assert_close(found, oracle(step, **given), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", slow_but("flux", of=SIZED))
def test_sizes_share_the_graphs_of_one(name):
    case, backend = SIZED[name](), Counting()
    denoiser = transformed(case.model, backend)
    check_against_hooks(denoiser, case, SIZES[0])
    graphs = len(backend.graphs)
    assert graphs == counters["stats"]["unique_graphs"] == len(denoiser.program.variants)
    with torch.compiler.set_stance("fail_on_recompile"):
        for sizes in SIZES[1:]:
            check_against_hooks(denoiser, case, sizes)
    assert len(backend.graphs) == graphs == len(denoiser.program.graphs.free.known)
    assert not counters["graph_break"]
    for sizes in ((1, 4, 6, 7), (1, 5, 6, 9)):  # one sample is captured, and compiled, apart
        check_against_hooks(denoiser, case, sizes)
    assert len(backend.graphs) <= 2 * graphs


def test_auto_compiles_the_first_size_for_itself_and_others_together():
    backend, model = Counting(), make_dit(2, layers=2).model
    denoiser = transformed(model, backend, dynamic="auto")
    plain = dqar_fx.transform(model, SCHEDULE)
    counts = []
    for batch in (2, 3, 5, 2, 8):
        check_trajectory(denoiser, plain, make_dit(batch, layers=2).inputs)
        counts.append(len(backend.graphs))
    assert counts == [counts[0], *[2 * counts[0]] * 4]


@pytest.mark.slow
def test_any_size_takes_the_graphs_that_one_size_takes():
    case = make_dit(2, layers=2)
    counts = []
    for dynamic in (False, True):
        backend = Counting()
        denoiser = transformed(case.model, backend, dynamic=dynamic)
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
def test_sizes_share_whatever_is_kept_and_however(options):
    cases = [make_dit(batch, layers=2) for batch in (4, 8, 6)]
    backend = Counting()
    denoiser = transformed(cases[0].model, backend, **options)
    alike = {key: value for key, value in options.items() if key != "compile"}
    plain = dqar_fx.transform(cases[0].model, alike.pop("schedule", SCHEDULE), **alike)
    check_trajectory(denoiser, plain, cases[0].inputs)
    graphs = len(backend.graphs)
    with torch.compiler.set_stance("fail_on_recompile"):
        for case in cases[1:]:
            check_trajectory(denoiser, plain, case.inputs)
    assert len(backend.graphs) == graphs


@pytest.mark.slow
def test_a_row_that_comes_later_is_compiled_for_all_sizes():
    cases = [make_dit(batch, layers=2) for batch in (2, 3, 5)]
    backend = Counting()
    denoiser = transformed(cases[0].model, backend)
    plain = dqar_fx.transform(cases[0].model, SCHEDULE)
    denoiser(**cases[0].inputs(0))
    check_trajectory(denoiser, plain, cases[1].inputs)
    graphs = len(backend.graphs)
    with torch.compiler.set_stance("fail_on_recompile"):
        for case in (cases[0], cases[2]):
            check_trajectory(denoiser, plain, case.inputs)
    assert len(backend.graphs) == graphs


@pytest.mark.slow
def test_another_schedule_shares_the_regions():
    case, wide = make_dit(2, layers=2), make_dit(3, layers=2)
    backend, linear = Counting(), Schedule.linear(STEPS, warmup=1)
    denoiser = transformed(case.model, backend)
    plain = dqar_fx.transform(case.model, linear)
    check_trajectory(denoiser, dqar_fx.transform(case.model, SCHEDULE), case.inputs)
    twin = denoiser.with_schedule(linear)
    check_trajectory(twin, plain, case.inputs)
    graphs = len(backend.graphs)
    with torch.compiler.set_stance("fail_on_recompile"):
        check_trajectory(twin, plain, wide.inputs)
    assert len(backend.graphs) == graphs


def test_a_copy_and_a_moved_denoiser_start_without_shared_regions():
    case = make_dit(2, layers=2)
    denoiser = transformed(case.model)
    denoiser(**case.inputs(0))
    assert denoiser.program.graphs.free.known
    assert not copy.deepcopy(denoiser).prepare(**case.inputs(0)).graphs.free.known
    assert not denoiser.to(torch.float64).captured_programs()


class Asking(nn.Module):
    """Attention, and something that depends on a size."""

    def __init__(self):
        super().__init__()
        self.attention = Attention(16)

    def forward(self, x, timestep):
        del timestep
        return self.attention(x) * (1 if x.shape == torch.Size([2, 4, 16]) else 2)


def test_what_the_forward_asks_of_sizes_is_compiled_apart():
    model = Asking().eval()
    denoiser = transformed(model, schedule=Schedule.compute_all(1))
    for batch, length in ((2, 4), (2, 5), (3, 4), (3, 7)):
        inputs = seeded(batch, length, 16), torch.ones(batch)
        torch.testing.assert_close(denoiser(*inputs), model(*inputs))


@pytest.mark.parametrize(
    ("compile", "said"),
    [
        ({"unit": None, "dynamic": True}, "nothing is compiled"),
        ({"unit": None, "dynamic": "auto"}, "nothing is compiled"),
        ({"dynamic": True, "mode": "reduce-overhead"}, "CUDA graph is recorded"),
        ({"dynamic": True, "options": {"triton.cudagraphs": True}}, "CUDA graph is recorded"),
        ({"dynamic": True, "shapes_spec": None}, "follows from the captures"),
        ({"dynamic": True, "prepack": True}, "takes weights as they are"),
        ({"dynamic": "yes"}, "expected True, so that all sizes share"),
    ],
)
def test_dynamic_refuses_what_fixes_sizes(compile, said):
    with pytest.raises(OptionError, match=said):
        dqar_fx.transform(make_dit(layers=1).model, SCHEDULE, compile=compile)


def test_dynamic_false_goes_to_torch_compile():
    case = make_dit(layers=1)
    denoiser = transformed(case.model, dynamic=False)
    denoiser(**case.inputs(0))
    assert not denoiser.program.graphs.free.known


@pytest.mark.slow
def test_inductor_shares_its_kernels():
    case = SIZED["flux"]()
    denoiser = transformed(case.model, "inductor")
    check_against_hooks(denoiser, case, SIZES[0])
    graphs = counters["stats"]["unique_graphs"]
    with torch.compiler.set_stance("fail_on_recompile"):
        for sizes in SIZES[1:]:
            check_against_hooks(denoiser, case, sizes)
    assert counters["stats"]["unique_graphs"] == graphs
