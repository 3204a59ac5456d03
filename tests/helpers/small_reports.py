"""Reports of small denoisers, one of each kind that a page must show."""

from __future__ import annotations

import dqar_fx
from dqar_fx import Guidance, Schedule
from tests.helpers.models import MAKERS, make_dit

STEPS = 8
FORECAST = Schedule.interval(STEPS, 3, warmup=3).forecast(1)


def transformed(case, schedule, **options):
    return dqar_fx.transform(case.model, schedule, example_inputs=case.inputs(0), **options)


def make_report(name="dit", schedule=None, **options):
    """The report of a small model."""
    schedule = schedule or Schedule.linear(STEPS, warmup=2)
    return transformed(MAKERS[name](), schedule, **options).report(device="A100")


def make_guided_report():
    """Of two streams, the second of which is not called at all steps."""
    guidance = Guidance(
        unconditional=Schedule.interval(STEPS, 2),
        output=Schedule.from_actions("CCRCRCRC"),
        batched="conditional_first",
    )
    case = make_dit(layers=2)
    denoiser = transformed(case, Schedule.linear(STEPS, warmup=2), guidance=guidance)
    return denoiser.report(device="A100")
