"""Built in inference mode and used outside of it, or the other way round."""

import copy
from contextlib import nullcontext

import pytest
import torch

import dqar_fx
from dqar_fx import Schedule
from tests.helpers.hook_oracle import Oracle
from tests.helpers.models import make_dit

ACTIONS = "SRSR"


def transformed(case):
    return dqar_fx.transform(case.model, Schedule.from_actions(ACTIONS))


def prepared(case):
    denoiser = transformed(case)
    denoiser.prepare(**case.inputs(0))
    return denoiser


def called(case):
    denoiser = transformed(case)
    denoiser(**case.inputs(0))
    return denoiser


def moved(case):
    denoiser = transformed(case).to(torch.float64).to(torch.float32)
    denoiser.prepare(**case.inputs(0))
    return denoiser


def copied(case):
    return copy.deepcopy(transformed(case))


def with_another_schedule(case):
    denoiser = called(case)
    return denoiser.with_schedule(Schedule.from_actions(ACTIONS))


def tabulated(case):
    denoiser = dqar_fx.transform(
        case.model, Schedule.from_actions(ACTIONS), conditioning="trajectory"
    )
    denoiser.prepare(**case.inputs(0))
    times = [float(case.inputs(step)["timestep"][0]) for step in range(len(ACTIONS))]
    labels = case.given["class_labels"].tolist()
    return denoiser.drop_conditioning(torch.tensor(times), class_labels=labels)


BUILD = [transformed, prepared, called, moved, copied, with_another_schedule, tabulated]
MODES = {"inside": torch.inference_mode, "outside": nullcontext}


@pytest.mark.parametrize("loaded", MODES)
@pytest.mark.parametrize("built", MODES)
@pytest.mark.parametrize("build", BUILD)
def test_denoiser_is_used_in_and_out_of_inference_mode(build, built, loaded):
    with MODES[loaded]():
        case = make_dit(layers=1)
    with MODES[built]():
        denoiser = build(case)
    oracle = Oracle(case.model)
    with torch.inference_mode():
        rows = [["CSR".index(action)] for action in ACTIONS]
        kept = [oracle(row, **case.inputs(step)) for step, row in enumerate(rows)]
    for mode in (*MODES.values(), *MODES.values()):
        denoiser.reset()
        for step, wanted in enumerate(kept):
            with mode():
                found = denoiser(**case.inputs(step)).sample
            assert torch.allclose(found, wanted, atol=1e-5)
    for step, wanted in enumerate(kept):  # one trajectory, in and out
        with MODES["inside" if step % 2 else "outside"]():
            assert torch.allclose(denoiser(**case.inputs(step)).sample, wanted, atol=1e-5)
