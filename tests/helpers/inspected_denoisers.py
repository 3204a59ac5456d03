"""Denoisers to look into, and what their rows cost when they are run."""

from __future__ import annotations

from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

import dqar_fx
from dqar_fx.costs.operation import UNKNOWN_TO_TORCH
from tests.helpers.models import make_dit, make_flux, make_pixart, make_sd3

MODELS = {"dit": make_dit, "pixart": make_pixart, "sd3": make_sd3, "flux": make_flux}
STEPS = 8


LINEAR = dqar_fx.Schedule.linear(STEPS, warmup=2)


@cache
def prepared(name, schedule=LINEAR, **options):
    """A small model's denoiser, captured; not to be changed."""
    case = MODELS[name]()
    return dqar_fx.transform(case.model, schedule, example_inputs=case.inputs(0), **options)


@cache
def row(name, step, **options):
    """The graph of a row; not to be changed."""
    return prepared(name, **options).row_graph(step)


def run_row(gm, known=UNKNOWN_TO_TORCH):
    """Run the graph of a row on zeros; the floating-point operations.

    ``known`` has formulas for operators that PyTorch's counter takes to be free.
    """
    inputs = [allocated(node.meta["val"]) for node in gm.graph.find_nodes(op="placeholder")]
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        gm(*inputs)
    return counter.get_total_flops()


def allocated(fake):
    """Zeros like a fake tensor; any other input as it is."""
    if not isinstance(fake, torch.Tensor):
        return fake
    return torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype).zero_()
