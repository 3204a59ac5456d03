"""Calls of a denoiser as the clock sees them, without any model."""

from __future__ import annotations

import torch

from dqar_fx.capture.inputs import is_prompt
from dqar_fx.steps.position import Call, NamedStream


def make_call(timestep, latents=None, signature="program", **conditioning):
    """A call; its latent is a new one unless it is given, a number is a timestep for two."""
    if isinstance(timestep, int | float):
        timestep = torch.full((2,), float(timestep))
    if latents is None:
        latents = torch.randn(3)
    latents = (latents,) if isinstance(latents, torch.Tensor) else tuple(latents)
    names = tuple(conditioning)
    tensors = tuple(conditioning.values())
    return Call(signature, timestep, latents, tensors, names, tuple(map(is_prompt, names)))


def locate(tracker, timestep, latents=None, *, name=None, index=None, scheduler=None, **given):
    """The position of a call, inside of ``cache_context`` where it has a name."""
    signature = given.pop("signature", "program")
    num_steps = given.pop("num_steps", None)
    tracker.context = None if name is None else NamedStream(name, index, num_steps)
    try:
        call = make_call(timestep, latents, signature, **given)
        return tracker.locate(call, lambda: scheduler)
    finally:
        tracker.context = None


def walk(tracker, timesteps, **given):
    """The steps of one call per timestep, each with a new latent."""
    return [locate(tracker, t, **given).step for t in timesteps]
