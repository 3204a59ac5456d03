"""From parsed options to a denoiser that is captured and not run."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import torch

from dqar_fx.errors import CaptureError
from dqar_fx.program.backends import unit_of
from dqar_fx.transform import transform

from .example_inputs import Sizes, derive_inputs
from .models import build_model, load_model
from .schedules import ScheduleOptions, make_schedule

if TYPE_CHECKING:
    import argparse

    from torch import nn

    from dqar_fx.denoiser.denoiser import Denoiser
    from dqar_fx.schedule.schedule import Schedule


def prepare(options: argparse.Namespace) -> Denoiser:
    """The denoiser that the options describe.

    Raises:
        DqarError: Something in them does not fit.
    """
    schedule = read_schedule(options, options.schedule)
    model = read_model(options)
    sizes = Sizes(options.batch, options.size, options.text_tokens, dict(options.inputs))
    return transform(
        model,
        schedule,
        sites=options.sites,
        example_inputs=derive_inputs(model, sizes),
        keep=options.keep,
        cache=options.cache,
        compile=unit_of(options.lowering),
    )


def read_schedule(options: argparse.Namespace, text: str) -> Schedule:
    """The schedule of a text, with the other options of schedules."""
    names = [field.name for field in fields(ScheduleOptions)]
    return make_schedule(text, ScheduleOptions(**{n: getattr(options, n) for n in names}))


def read_model(options: argparse.Namespace) -> nn.Module:
    """The model that the options name.

    Raises:
        CaptureError: They name none, or two.
    """
    source = options.model or options.config
    if source is None or (options.model and options.config):
        raise CaptureError(
            "give one model: a folder, a name on the hub, or --config FILE_OR_FOLDER"
        )
    if options.weights and options.config:
        raise CaptureError("--config has no weights: give the model's folder or name instead")
    dtype = getattr(torch, options.dtype)
    return load_model(source, dtype) if options.weights else build_model(source, dtype)
