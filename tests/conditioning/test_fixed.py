"""Conditioning that is tabulated for some labels and timesteps, and then dropped for good."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dqar_fx
from dqar_fx import DqarError, Guidance, OptionError, Schedule, StepError
from tests.helpers.models import Attention, make_dit, make_pixart, make_sd3

TIMESTEPS = torch.linspace(900, 90, 3)
LABELS = [1, 4, 9]


def transformed(case, **options):
    options = {"conditioning": "trajectory", **options}
    return dqar_fx.transform(case.model, Schedule.compute_all(3), **options)


def call_of(case, step, labels=(4, 9), timesteps=TIMESTEPS):
    return {
        **case.inputs(step),
        "timestep": timesteps[step].expand(len(labels)),
        "class_labels": torch.tensor(labels),
    }


def dropped(case, **options):
    denoiser, call = transformed(case, **options), call_of(case, 0)
    denoiser.prepare(**call)
    denoiser.prepare(**{**call, "timestep": call["timestep"].contiguous()})  # other strides
    return denoiser.drop_conditioning(TIMESTEPS, class_labels=LABELS)


@torch.no_grad()
def check(case, denoiser, call):
    expected, found = case.model(**call).sample, denoiser(**call).sample
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.fixture(scope="module")
def shared():
    case = make_dit()
    return case, dropped(case)


@settings(max_examples=20, deadline=None)
@given(data=st.data(), num=st.integers(1, 3))
def test_fixed_labels_in_any_order_are_never_stale(shared, data, num):
    case, denoiser = shared
    pair = st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS))
    for _ in range(num):
        labels = data.draw(pair)
        for step in range(3):
            labels = data.draw(pair) if data.draw(st.booleans()) else labels
            check(case, denoiser, call_of(case, step, labels))


def test_fixed_labels_written_in_place():
    case = make_dit()
    denoiser, labels = dropped(case), torch.tensor([1, 1])
    for step in range(3):
        check(case, denoiser, {**call_of(case, step), "class_labels": labels})
        labels[0] = 9


def test_fixed_frees_as_counted():
    case = make_dit()
    denoiser = transformed(case)
    denoiser.prepare(**call_of(case, 0))
    counted = denoiser.parameter_bytes
    denoiser.drop_conditioning(TIMESTEPS, class_labels=LABELS)
    assert denoiser.released_bytes == counted.released
    table = denoiser.program._conditioning.fixed
    assert sum(len(pack.numbers) for pack in table.packs) > 6 * 5
    predicted = dqar_fx.conditioning.drop.fixed_bytes(
        denoiser.program, len(LABELS) * len(TIMESTEPS)
    )
    assert predicted == table.nbytes < counted.released


def test_fixed_timesteps_in_another_tensor():
    case = make_dit()
    denoiser = dropped(case)
    for step in range(3):
        call = call_of(case, step)
        with denoiser.cache_context("all", step_index=step):
            check(case, denoiser, {**call, "timestep": call["timestep"].contiguous()})


def test_fixed_with_guidance():
    case = make_dit(batch=4)
    denoiser = transformed(case, guidance=Guidance(batched="conditional_first"))
    denoiser.prepare(**call_of(case, 0, [1, 4, 9, 9]))
    denoiser.drop_conditioning(TIMESTEPS, class_labels=LABELS)
    for step in range(3):
        check(case, denoiser, call_of(case, step, [1, 4, 9, 9]))


def test_fixed_then_the_end_of_a_pipeline():
    case = make_dit()
    denoiser = dropped(case)
    for _ in range(2):
        check(case, denoiser, call_of(case, 0))
        denoiser._reset_stateful_cache()


def test_fixed_then_moved_to_where_it_is(shared):
    case, denoiser = shared
    program = denoiser.program
    denoiser.to("cpu").float().eval()
    check(case, denoiser, call_of(case, 0))
    assert denoiser.program is program


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_labels": torch.tensor([4, 5])}, r"labels \[5\].*\[1, 4, 9\]"),
        ({"timestep": torch.tensor([900.0, 800.0])[1].expand(2)}, "the timestep 800"),
        ({"timestep": torch.full((2,), 7.0)}, "not known ahead"),
    ],
)
@pytest.mark.filterwarnings("ignore:the trajectory has")
def test_fixed_others_are_refused(shared, change, message):
    case, denoiser = shared
    denoiser.reset()
    with pytest.raises(DqarError, match=message):
        denoiser(**{**call_of(case, 0), **change})


@pytest.mark.parametrize(
    "use",
    [
        copy.deepcopy,
        lambda d: d.double(),
        lambda d: d.state_dict(),
        lambda d: d.with_schedule(Schedule.compute_all(2)),
        lambda d: d.prepare(**call_of(make_dit(batch=3), 0, (1, 4, 9))),
        lambda d: d.parameter_bytes,
    ],
)
def test_fixed_refuses_what_needs_the_parameters(shared, use):
    with pytest.raises(DqarError, match="were dropped, and this needs them"):
        use(shared[1])


def test_fixed_labels_that_take_more_than_the_parameters_are_refused():
    case = make_dit()
    denoiser = transformed(case)
    denoiser.prepare(**call_of(case, 0))
    with pytest.raises(DqarError, match="1000 labels at 3 timesteps takes"):
        denoiser.drop_conditioning(TIMESTEPS, class_labels=range(1000))
    check(case, denoiser, call_of(case, 0))


def test_fixed_samples_that_depend_on_others_are_refused():
    class Mixing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.table = Attention(16), torch.nn.Embedding(10, 16)
            self.grow = torch.nn.Linear(16, 64)

        def forward(self, x, timestep, labels):
            given = self.table(labels) * timestep[:, None]
            given = self.grow(given - given.mean(0))[:, None, :16]
            return self.attention(x) + given

    call = {"timestep": TIMESTEPS[0].expand(2), "labels": torch.tensor([1, 4])}
    denoiser = dqar_fx.transform(Mixing(), Schedule.compute_all(3), conditioning="trajectory")
    denoiser.prepare(torch.randn(2, 3, 16), **call)
    with pytest.raises(OptionError, match="depends on the others"):
        denoiser.drop_conditioning(TIMESTEPS, labels=[1, 4])


@pytest.mark.parametrize("make", [make_pixart, make_sd3])
def test_fixed_conditioning_on_text_is_refused(make):
    case = make()
    denoiser = transformed(case)
    denoiser.prepare(**case.inputs(0))
    with pytest.raises(OptionError, match=r"reads .*encoder_hidden_states.* alone"):
        denoiser.drop_conditioning(TIMESTEPS, encoder_hidden_states=[1])


def test_fixed_bad_arguments_are_refused():
    case = make_dit(layers=1)
    denoiser = transformed(case)
    with pytest.raises(DqarError, match="nothing has been captured"):
        denoiser.drop_conditioning(TIMESTEPS, class_labels=[1])
    denoiser.prepare(**call_of(case, 0))
    for labels in (
        {},
        {"class_labels": [1], "other": [2]},
        {"other": [1]},
        {"class_labels": []},
    ):
        with pytest.raises(OptionError):
            denoiser.drop_conditioning(TIMESTEPS, **labels)
    with pytest.raises(StepError, match="1-D"):
        denoiser.drop_conditioning(5, class_labels=[1])
    eager = transformed(case, conditioning="auto")
    eager.prepare(**call_of(case, 0))
    with pytest.raises(DqarError, match="conditioning='trajectory'"):
        eager.drop_conditioning(TIMESTEPS, class_labels=[1])
