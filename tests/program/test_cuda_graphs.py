"""CUDA graphs, as far as a machine without a GPU can tell."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import dqar_fx
from dqar_fx import Schedule
from dqar_fx.program.forecast_noise import ForecastNoise
from dqar_fx.program.stream import Stream
from tests.helpers.fake_cuda import allow_formats, fake_cuda, move_to_fake_cuda
from tests.helpers.models import make_dit
from tests.helpers.slow_cases import slow_but

STEPS = 6
SCHEDULES = {
    "reuse": Schedule.interval(STEPS, 2, warmup=1),
    "forecast": Schedule.interval(STEPS, 3, warmup=2).forecast(2),
}
aten = torch.ops.aten
pytestmark = pytest.mark.usefixtures("fresh_counters")


def run(denoiser, case, seed=0):
    for step in range(STEPS):
        with denoiser.cache_context("all", step_index=step):
            denoiser(**case.inputs(step, seed))


def slots_of(denoiser):
    (stream,) = denoiser.program.streams.values()
    return [buffer.data_ptr() for buffer in stream.slots.buffers.values()]


class Recorder:
    """A backend that notes which inputs are static, and which ones a graph writes to."""

    def __init__(self):
        self.graphs = 0
        self.static, self.written = [], []

    def __call__(self, gm, _inputs, **_options):
        self.graphs += 1
        nodes = gm.graph.find_nodes(op="placeholder")
        marks = {
            node: node.meta["tensor_dict"].get("_dynamo_static_input_type") for node in nodes
        }
        self.static += marks.values()
        self.written += [
            marks[node.args[0]]
            for node in gm.graph.nodes
            if node.target in (aten.copy_.default, torch.Tensor.copy_, "copy_")
            and node.args[0] in marks
        ]
        return gm.forward


@pytest.mark.parametrize("unit", slow_but("regional", of=["regional", "whole"]))
@pytest.mark.parametrize("name", SCHEDULES)
def test_what_graphs_write_and_weights_have_static_addresses(name, unit):
    """Inductor makes no CUDA graph of what writes to other inputs, and copies the others."""
    recorder, case = Recorder(), make_dit(layers=3)
    options = {"unit": unit, "backend": recorder, "options": {"triton.cudagraphs": True}}
    denoiser = dqar_fx.transform(case.model, SCHEDULES[name], compile=options)
    run(denoiser, case)
    assert recorder.written, "a schedule that stores must write"
    assert set(recorder.written) == {"unguarded"}
    # what flows is not static: latent, conditioning, hidden states
    assert {None, "unguarded"} == set(recorder.static)
    assert recorder.static.count("unguarded") > recorder.static.count(None)


@pytest.mark.parametrize("name", slow_but("reuse", of=SCHEDULES))
def test_blocks_share_graphs_whatever_the_addresses(name):
    counts = []
    for layers in (2, 5):
        recorder, case = Recorder(), make_dit(layers=layers)
        options = {"backend": recorder, "options": {"triton.cudagraphs": True}}
        denoiser = dqar_fx.transform(case.model, SCHEDULES[name], compile=options)
        run(denoiser, case)
        with torch.compiler.set_stance("fail_on_recompile"):
            run(denoiser, case, seed=1)
        counts.append(recorder.graphs)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("name", SCHEDULES)
def test_slots_stay_where_they_are(name):
    case = make_dit(layers=3)
    denoiser = dqar_fx.transform(case.model, SCHEDULES[name])
    run(denoiser, case)
    before = slots_of(denoiser)
    bound = len(next(iter(denoiser.program.streams.values())).rows)
    for seed in (1, 2):
        run(denoiser, case, seed)
    assert slots_of(denoiser) == before
    # equal steps of later trajectories use the same buffers: nothing is bound again
    assert len(next(iter(denoiser.program.streams.values())).rows) == bound


class Allocations(TorchDispatchMode):
    """Counts tensors that are made from nothing."""

    MAKERS = (aten.empty.memory_format, aten.zeros.default, aten.empty_strided.default)

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in self.MAKERS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", slow_but("reuse", of=SCHEDULES))
def test_no_step_of_a_later_trajectory_allocates_a_slot(name):
    case = make_dit(layers=3)
    denoiser = dqar_fx.transform(case.model, SCHEDULES[name])
    plain = dqar_fx.transform(case.model, Schedule.compute_all(STEPS))
    for each in (denoiser, plain):
        run(each, case)
    counts = []
    for each in (denoiser, plain):
        with Allocations() as made:
            run(each, case, seed=1)
        counts.append(made.count)
    assert counts[0] <= counts[1]


@pytest.mark.parametrize("cache", slow_but("same", of=["same", "int8"]))
@pytest.mark.parametrize("name", slow_but("forecast", of=SCHEDULES))
def test_no_step_on_a_cuda_device_reads_from_it(name, cache, monkeypatch):
    """Fake tensors have no values: whatever reads one on the host raises."""
    allow_formats(monkeypatch)
    asked = []  # of what is not finite or noisy: all questions, between trajectories
    monkeypatch.setattr(Stream, "report_flags", lambda *_: asked.append(step))
    monkeypatch.setattr(ForecastNoise, "report", lambda *_: asked.append(step))
    case = make_dit(layers=2)
    with fake_cuda():
        model = case.model
        move_to_fake_cuda(model)
        denoiser = dqar_fx.transform(model, SCHEDULES[name], cache=cache)
        labels = torch.zeros(2, dtype=torch.long, device="cuda")
        for _ in range(2):
            for step in range(STEPS):
                with denoiser.cache_context("all", step_index=step):
                    result = denoiser(
                        torch.empty(case.latent_shape, device="cuda"),
                        timestep=torch.empty(2, device="cuda"),
                        class_labels=labels,
                    ).sample
        assert result.device.type == "cuda"
    assert set(asked) == {0, STEPS - 1}
    buffers = next(iter(denoiser.program.streams.values())).slots.buffers.values()
    assert {buffer.device.type for buffer in buffers} == {"cuda"}


def test_slots_stay_where_they_are_when_a_pipeline_ends():
    """Recorded graphs write to them: elsewhere each request would record them anew."""
    case = make_dit(layers=2)
    options = {"backend": Recorder(), "options": {"triton.cudagraphs": True}}
    denoiser = dqar_fx.transform(case.model, SCHEDULES["reuse"], compile=options)
    run(denoiser, case)
    before = slots_of(denoiser)
    denoiser._reset_stateful_cache()
    run(denoiser, case, seed=1)
    assert slots_of(denoiser) == before
    assert [log.num_reused for log in denoiser.runs] == [6, 6]
