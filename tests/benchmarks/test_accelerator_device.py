"""What is asked of a device, and steps on a CUDA device that has no values."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from benchmarks.accelerator import abilities, race, subjects
from benchmarks.accelerator.abilities import ask
from benchmarks.accelerator.cases import LACKING, Stage
from benchmarks.accelerator.parts import graphs, identity
from benchmarks.accelerator.parts.graphs import RUNS, SCHEDULES, STEPS, run_denoiser
from benchmarks.accelerator.process import Measuring
from benchmarks.accelerator.scales import FULL, SMALL
from benchmarks.accelerator.subjects import (
    make_dit,
    make_flux,
    make_tiny,
    make_wan,
    waits_refused,
)
from dqar_fx import transform
from dqar_fx.program.forecast_noise import ForecastNoise
from dqar_fx.program.stream import Stream
from tests.helpers.accelerator_runs import CPU, MACHINE
from tests.helpers.fake_cuda import allow_formats, fake_cuda, move_to_fake_cuda
from tests.helpers.slow_cases import slow_but

MPS, CUDA = torch.device("mps"), torch.device("cuda")


@pytest.fixture
def as_mps(monkeypatch):
    """A device that has what Apple's has not, and cannot compile."""

    def convert(device, dtype):
        if dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        if dtype == torch.float8_e4m3fn:
            raise RuntimeError("Undefined type Float8_e4m3fn")

    def multiply(device):
        raise NotImplementedError("'aten::_int_mm' is not implemented for 'MPS'")

    def compile_there(device):
        raise torch._dynamo.exc.BackendCompilerFailed(lambda: None, RuntimeError("no"), None)

    monkeypatch.setattr(abilities, "round_trip", convert)
    monkeypatch.setattr(abilities, "multiply_int8", multiply)
    monkeypatch.setattr(abilities, "fuse", compile_there)
    yield ask.__wrapped__(MPS)
    ask.cache_clear()


def test_what_mps_lacks_is_found_by_asking(as_mps):
    lacking = [name for name, is_there in as_mps.to_dict().items() if not is_there]
    assert lacking == [
        *("float64", "float8", "int8_products", "compiles"),
        *("events", "waits", "graphs", "memory", "kernels"),
    ]


def test_cases_that_mps_cannot_try_are_rows_and_the_others_are_tried(as_mps, tmp_path):
    stage = Stage(MPS, FULL, tmp_path)
    stage.abilities = as_mps
    measuring = Measuring(SimpleNamespace(scale=FULL), None, MACHINE, 0.0)
    cases = {case.name: case for case in identity.list_cases(FULL)}
    lacking = [name for name, case in cases.items() if as_mps.lacks(case.needs)]
    assert lacking == [
        "fp8, eager",
        *(f"{name}, compiled" for name in ("fp16", "bf16", "int8", "int8-per-channel", "fp8")),
    ]
    part = SimpleNamespace(name="identity")
    row = measuring.try_case(part, cases["fp8, eager"], stage)
    assert (row.outcome, row.word) == (LACKING, "the device has no float8")


def test_a_device_that_works_is_asked_without_harm():
    found = ask(CPU)
    assert found.float64
    assert found.bfloat16
    assert not found.graphs
    assert found.lacks(("graphs", "float64", "events")) == "graphs, events"


def test_other_errors_are_not_taken_for_a_lack():
    def fail():
        raise ValueError("a mistake of ours")

    with pytest.raises(ValueError, match="a mistake"):
        abilities.works(fail)


# ---- a CUDA device without values -----------------------------------------------------------


@pytest.fixture
def sync_modes(monkeypatch):
    """How CUDA was told to treat waits, in order."""
    modes = ["default"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    return modes


def move_subject(subject):
    """Where it has no values, while inside of `fake_cuda`."""
    move_to_fake_cuda(subject.model)
    latent = torch.empty(subject.latent.shape, device="cuda")
    return replace(subject, latent=latent)


@pytest.mark.parametrize("name", slow_but("forecast", of=SCHEDULES))
def test_runs_on_cuda_read_nothing_and_refuse_waits_inside(name, sync_modes, monkeypatch):
    allow_formats(monkeypatch)
    monkeypatch.setattr(Stream, "report_flags", lambda *_: None)
    monkeypatch.setattr(ForecastNoise, "report", lambda *_: None)  # between runs, as flags are
    monkeypatch.setattr(graphs, "list_addresses", lambda _: [0])
    read = []  # the timesteps, when they come first: before the steps that may not wait

    def tell_values(timesteps):
        read.append(sync_modes[-1])
        return list(range(len(timesteps), 0, -1))

    monkeypatch.setattr(FakeTensor, "tolist", tell_values)
    real = make_tiny(CPU)
    with fake_cuda(), torch.no_grad():
        subject = move_subject(real)
        denoiser = transform(subject.model, SCHEDULES[name], cache="int8")
        runs = run_denoiser(denoiser, subject, CUDA)
    assert [len(outputs) for outputs in runs.outputs] == [STEPS] * RUNS
    assert runs.is_settled
    assert read == ["default"]
    # each inner step of the later runs, and back again
    assert sync_modes.count("error") == (RUNS - 1) * (STEPS - 2)
    assert sync_modes[-1] == "default"


def test_waits_are_allowed_again_after_an_error(sync_modes):
    with pytest.raises(RuntimeError, match="waits"), waits_refused(CUDA):
        raise RuntimeError("waits")
    assert sync_modes == ["default", "error", "default"]


def test_trajectories_are_timed_by_marks_in_the_queue(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("mark")

        def elapsed_time(self, other):
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(race, "synchronise", lambda device: log.append("wait"))
    took = race.run_trajectory(lambda **_: log.append("call"), [{}, {}], CUDA)
    assert log == ["wait", "mark", "call", "call", "mark", "wait"]
    assert took.device_s == 0.25


# ---- subjects -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_dit("dit", SMALL.dit["DiT-XL/2-256"], CPU, torch.float32),
        lambda: make_flux(SMALL, CPU),
        lambda: make_wan(SMALL, CPU),
    ],
)
@torch.no_grad()
def test_subjects_are_called_as_pipelines_call(make):
    subject = make()
    one, two = subject.calls(2)
    assert one["timestep"].untyped_storage().data_ptr() == (
        two["timestep"].untyped_storage().data_ptr()
    )
    assert not torch.equal(one["hidden_states"], two["hidden_states"])
    assert subject.model(**one).sample.isfinite().all()


@pytest.mark.parametrize("has_float64", [True, False])
def test_models_are_built_where_tables_of_float64_can_be(has_float64, monkeypatch):
    found = replace(ask(CPU), float64=has_float64)
    monkeypatch.setattr(subjects, "ask", lambda device: found)
    places = []

    def build():
        places.append(torch.get_default_device().type)
        return torch.nn.Linear(2, 2, device="cpu")

    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_: self)
    subjects.build_there(build, torch.device("meta"), torch.float32)
    assert places == ["meta" if has_float64 else "cpu"]


def test_runs_have_prompts_of_their_own():
    subject = make_tiny(CPU)
    (one, again), (other,) = list(subject.calls(2)), list(subject.calls(1))
    assert one["class_labels"] is again["class_labels"]
    assert one["class_labels"] is not other["class_labels"]


def test_published_sizes_are_those_of_their_models():
    dit = FULL.dit["DiT-XL/2-256"]
    assert (dit.layers, dit.width, dit.heads, dit.tokens) == (28, 1152, 16, 256)
    assert FULL.flux["num_attention_heads"] * FULL.flux["attention_head_dim"] == 3072
    assert FULL.wan["num_attention_heads"] * FULL.wan["attention_head_dim"] == 1536
