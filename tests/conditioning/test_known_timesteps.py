"""Timesteps that are known ahead, wherever from, and how often conditioning is evaluated."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from hypothesis import given, settings
from hypothesis import strategies as st

import dqar_fx
from benchmarks.reference import PIPELINE
from dqar_fx import OptionError, Schedule, StepError
from tests.helpers.models import MAKERS, Attention, make_dit, make_flux
from tests.helpers.slow_cases import slow_but
from tests.helpers.tensor_reads import Reads

STEPS = 50
WAYS = [("step", 0), ("trajectory", 2e-5)]
"""When conditioning is evaluated, and how far from the original it may be."""


def transformed(case, steps=STEPS, **options):
    options = {"conditioning": "trajectory", **options}
    return dqar_fx.transform(case.model, Schedule.compute_all(steps), **options)


def falling(case, steps=STEPS):
    return torch.linspace(case.top, case.top / 10, steps)


@torch.no_grad()
def check_call(case, denoiser, call, tolerance):
    expected, found = case.model(**call).sample, denoiser(**call).sample
    error = (found - expected).abs().max() / expected.abs().max()
    assert error <= tolerance


def tabulated_steps(denoiser):
    streams = denoiser.program.streams.values()
    tables = [known for stream in streams for known in stream.memo.tabulated.values()]
    return [len(table.rows or ()) for table in tables]


@pytest.mark.parametrize("name", slow_but("pixart", of=MAKERS))
@pytest.mark.parametrize(("way", "tolerance"), WAYS)
def test_conditioning_of_fifty_steps_with_guidance(name, way, tolerance):
    """Batched guidance: both halves in one call; the unconditional half has zeros for text."""
    case = MAKERS[name](batch=2)
    for key in ("encoder_hidden_states", "pooled_projections"):
        if key in case.given:
            case.given[key][0] = 0
    denoiser = transformed(case, conditioning=way)
    for step, t in enumerate(falling(case)):
        call = {**case.inputs(step), "timestep": t.expand(2)}
        check_call(case, denoiser, call, tolerance)
    assert tabulated_steps(denoiser) == ([] if way == "step" else [STEPS])


@pytest.mark.parametrize(
    ("way", "tolerance"),
    slow_but(("trajectory", 2e-5), of=WAYS),
)
def test_conditioning_of_the_reference_pipeline(way, tolerance):
    pipe = DiTPipeline.from_pretrained(PIPELINE)
    pipe.set_progress_bar_config(disable=True)
    model, calls = pipe.transformer, []
    denoiser = dqar_fx.transform(model, Schedule.compute_all(STEPS), conditioning=way)
    own = denoiser.forward

    def checked(*args, **kwargs):
        found, expected = own(*args, **kwargs).sample, model(*args, **kwargs).sample
        calls.append(float((found - expected).abs().max() / expected.abs().max()))
        return Transformer2DModelOutput(expected)

    denoiser.forward, pipe.transformer = checked, denoiser
    pipe([0, 3], num_inference_steps=STEPS, guidance_scale=1.5, output_type="np")
    assert len(calls) == STEPS
    assert max(calls) <= tolerance


@pytest.mark.parametrize("name", slow_but("pixart", of=MAKERS))
def test_conditioning_weights_are_read_once_per_trajectory(name):
    """What a step of the original reads and a later step of the denoiser does not."""
    case = MAKERS[name]()
    denoiser, timesteps = transformed(case, 3), falling(case, 3)
    denoiser.prepare(**{**case.inputs(0), "timestep": falling(case)[0].expand(2)})
    reads = []
    for step, t in enumerate(timesteps):
        call = {**case.inputs(step), "timestep": t.expand(2)}
        with Reads() as found:
            denoiser(**call)
        reads.append(found.of(case.model))
    with torch.no_grad(), Reads() as original:
        case.model(**call)
    once = {n for n, count in original.of(case.model).items() if count and not reads[1][n]}
    assert reads[2] == reads[1]
    for path in once:
        assert 0 < reads[0][path] <= original.of(case.model)[path], path
    expected = {
        "dit": {"class_embedder", "timestep_embedder", "norm1.linear"},
        "pixart": {"caption_projection", "adaln_single", "attn2.to_k", "attn2.to_v"},
        "sd3": {"time_text_embed", "context_embedder", "norm1_context.linear", "norm_out"},
        "flux": {"time_text_embed", "context_embedder", "norm1.linear", "norm_out"},
    }[name]
    for part in expected:
        paths = [n for n in reads[0] if part in n and original.of(case.model)[n]]
        assert paths, part
        assert once.issuperset(paths), part


def test_conditioning_rotary_table_is_evaluated_once():
    """Sines and cosines of a step: those of Flux's positions are among the first's alone."""

    class Waves(Reads):
        READING = ("sin", "cos")

    case, counts = make_flux(), []
    denoiser = transformed(case, 3, conditioning="step")
    denoiser.prepare(**{**case.inputs(0), "timestep": falling(case)[0].expand(2)})
    for step, t in enumerate(falling(case, 3)):
        call = {**case.inputs(step), "timestep": t.expand(2)}
        with Waves() as waves:
            denoiser(**call)
        counts.append(sum(waves.counts.values()))
    assert counts[0] > counts[1] == counts[2]


# ---- where timesteps come from -----------------------------------------------------------


@pytest.mark.parametrize("spelling", ["clone", "view"])
def test_conditioning_takes_timesteps_of_an_attached_scheduler(spelling):
    case, scheduler = make_dit(layers=2), FlowMatchEulerDiscreteScheduler()
    denoiser = transformed(case, 4).attach_scheduler(scheduler)
    for _ in range(2):
        scheduler.set_timesteps(4)
        for step, t in enumerate(scheduler.timesteps):
            t = t.expand(2)
            call = {**case.inputs(step), "timestep": t.clone() if spelling == "clone" else t}
            check_call(case, denoiser, call, 2e-5)
            scheduler.step(call["hidden_states"], t[0], call["hidden_states"])
        assert tabulated_steps(denoiser) == [4]


def test_conditioning_takes_scaled_timesteps_of_an_attached_scheduler():
    case, scheduler = make_flux(), FlowMatchEulerDiscreteScheduler()
    denoiser = transformed(case, 4).attach_scheduler(scheduler)
    scheduler.set_timesteps(4)
    for step, t in enumerate(scheduler.timesteps):
        call = {**case.inputs(step), "timestep": t.expand(2) / 1000}
        check_call(case, denoiser, call, 2e-5)
        scheduler.step(call["hidden_states"], t, call["hidden_states"])
    assert tabulated_steps(denoiser) == [4]


def test_conditioning_takes_attached_timesteps():
    case = make_dit(layers=2)
    timesteps = torch.tensor([900, 700, 50])
    denoiser = transformed(case, 3).attach_timesteps(timesteps)
    for step, t in enumerate(timesteps.tolist()):
        call = {**case.inputs(step), "timestep": torch.full((2,), t)}
        with denoiser.cache_context("cond", step_index=step):
            check_call(case, denoiser, call, 2e-5)
    assert tabulated_steps(denoiser) == [3]
    denoiser.attach_timesteps(None)
    denoiser(**call)
    assert tabulated_steps(denoiser) == []


def test_conditioning_takes_attached_timesteps_of_a_part_of_a_schedule():
    case, schedule = make_dit(layers=2), torch.linspace(900, 90, 6)
    denoiser = transformed(case, 3).attach_timesteps(schedule[3:])
    for step, t in enumerate(schedule[3:]):
        with denoiser.cache_context("cond", step_index=step):
            check_call(case, denoiser, {**case.inputs(step), "timestep": t.expand(2)}, 2e-5)
    assert tabulated_steps(denoiser) == [3]


@pytest.mark.parametrize("given", [3, [1, 2], torch.zeros(2, 2)])
def test_conditioning_attached_timesteps_must_be_one_dimensional(given):
    with pytest.raises(StepError, match="1-D"):
        transformed(make_dit(layers=1)).attach_timesteps(given)


def test_conditioning_other_timesteps_than_attached_are_evaluated_per_step():
    case = make_dit(layers=2)
    denoiser = transformed(case, 3).attach_timesteps(torch.tensor([900.0, 700.0, 50.0]))
    for step, t in enumerate((900.0, 650.0, 50.0)):
        call = {**case.inputs(step), "timestep": torch.full((2,), t)}
        check_call(case, denoiser, call, 0 if step == 1 else 2e-5)


def test_conditioning_timesteps_of_two_samples_are_evaluated_per_step():
    case = make_dit(layers=2)
    denoiser = transformed(case, 2).attach_timesteps(torch.tensor([900.0, 700.0]))
    for step, t in enumerate((900.0, 700.0)):
        call = {**case.inputs(step), "timestep": torch.tensor([t, t - 1])}
        check_call(case, denoiser, call, 0)
    assert tabulated_steps(denoiser) == []


def test_conditioning_of_a_model_without_a_timestep():
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Attention(8)

        def forward(self, x, y):
            return self.attention(x) + y.exp()

    model, x, y = Plain(), torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    denoiser = dqar_fx.transform(model, Schedule.compute_all(2), conditioning="trajectory")
    with denoiser.cache_context("only", step_index=0):
        assert torch.equal(denoiser(x, y), model(x, y))


@pytest.mark.parametrize("way", ["never", None, 3])
def test_conditioning_of_an_unknown_way_is_refused(way):
    with pytest.raises(OptionError, match="known are auto, step, trajectory"):
        transformed(make_dit(layers=1), conditioning=way)


def test_conditioning_asked_for_has_no_limit_of_size(monkeypatch):
    monkeypatch.setattr(dqar_fx.conditioning.conditioning, "MAX_TABULATED_BYTES", 10)
    case = make_dit(layers=1)
    denoiser = transformed(case, 3)
    for step, t in enumerate(falling(case, 3)):
        denoiser(**{**case.inputs(step), "timestep": t.expand(2)})
    assert tabulated_steps(denoiser) == [3]


@pytest.mark.parametrize("name", slow_but("pixart", of=MAKERS))
def test_conditioning_table_bytes_are_those_held(name):
    case = MAKERS[name]()
    denoiser = transformed(case, 3)
    for step, t in enumerate(falling(case, 3)):
        denoiser(**{**case.inputs(step), "timestep": t.expand(2)})
    program = denoiser.program
    (stream,) = program.streams.values()
    (table,) = stream.memo.tabulated.values()
    assert program.table_bytes == sum(out.nbytes for row in table.rows for out in row)
    constant = set(stream.memo.outputs) - set(stream.memo.tabulated)
    held = sum(out.nbytes for k in constant for out in stream.memo.outputs[k])
    assert program.constant_bytes == held
    assert transformed(case, 3, conditioning="step").prepare(**case.inputs(0)).table_bytes == 0


# ---- never stale -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared():
    case = make_dit(layers=2)
    return case, transformed(case, 9)


TRAJECTORY = st.fixed_dictionaries(
    {
        "batch": st.sampled_from([1, 2, 3]),
        "steps": st.integers(1, 9),
        "stop": st.integers(1, 9),
        "shift": st.sampled_from([0, 1, 7]),
        "source": st.sampled_from(["view", "scheduler", "attached", "context", "plain"]),
        "streams": st.integers(1, 2),
        "writes": st.dictionaries(st.integers(0, 8), st.integers(0, 9)),
        "replaces": st.dictionaries(st.integers(0, 8), st.integers(0, 9)),
        "retimes": st.booleans(),
        "resets": st.booleans(),
    }
)


@pytest.mark.filterwarnings("ignore:.* calls in a row each began", "ignore:the trajectory has")
@settings(max_examples=60, deadline=None)
@given(trajectories=st.lists(TRAJECTORY, min_size=1, max_size=4), data=st.data())
def test_conditioning_is_never_stale(shared, trajectories, data):
    """Any sequence of trajectories; label and timestep tensors are written to in place."""
    case, denoiser = shared
    labels = {b: [torch.arange(b), 9 - torch.arange(b)] for b in (1, 2, 3)}
    timesteps, last = torch.zeros(0), 0.0
    denoiser.reset()
    for each in trajectories:
        if not each["retimes"] or len(timesteps) != each["steps"]:
            timesteps = torch.zeros(each["steps"])
        timesteps.copy_(torch.linspace(900 - each["shift"], 20, each["steps"]))
        if timesteps[0] <= last:  # nothing would tell it from the one that was broken off
            denoiser.reset()
        last = float(timesteps[min(each["steps"], each["stop"]) - 1])
        with attached(denoiser, each["source"], timesteps) as calling:
            for step in range(min(each["steps"], each["stop"])):
                mine = labels[each["batch"]]
                if step in each["writes"]:
                    mine[0].fill_(each["writes"][step])
                if step in each["replaces"]:
                    mine[-1] = torch.full_like(mine[-1], each["replaces"][step])
                latent = torch.randn(each["batch"], 4, 12, 12)
                for stream in range(each["streams"]):
                    call = {
                        "hidden_states": latent,
                        "timestep": calling.timestep(step, each["batch"]),
                        "class_labels": mine[stream],
                    }
                    with calling.step(step, stream):
                        check_call(case, denoiser, call, 2e-5)
        if each["resets"]:
            denoiser.reset()


class attached:
    """One way of telling a denoiser its timesteps."""

    def __init__(self, denoiser, source, timesteps):
        self.denoiser, self.source, self.timesteps = denoiser, source, timesteps

    def __enter__(self):
        if self.source == "scheduler":
            self.scheduler = DDIMScheduler()
            self.scheduler.timesteps, self.scheduler.step_index = self.timesteps, 0
            self.denoiser.attach_scheduler(self.scheduler)
        if self.source == "attached":
            self.denoiser.attach_timesteps(self.timesteps)
        return self

    def __exit__(self, *_):
        if self.source == "scheduler":
            self.denoiser.attach_scheduler(None)
        if self.source == "attached":
            self.denoiser.attach_timesteps(None)

    def timestep(self, step, batch):
        found = self.timesteps[step].expand(batch)
        return found if self.source in ("view", "context") else found.clone()

    def step(self, step, stream):
        if self.source == "scheduler":
            self.scheduler.step_index = step
        index = step if self.source == "context" else None
        return self.denoiser.cache_context(f"stream {stream}", step_index=index)
