"""Guidance done by hand: the untouched model, called for one stream at a time.

It shares no code with the package. Whatever a site or a stream gave last is kept; masks say
where that is read.
"""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch.utils._python_dispatch import TorchDispatchMode

import dqar_fx
from dqar_fx import Guidance, Schedule
from tests.helpers.models import make_dit

ORDERS = ("conditional_first", "unconditional_first")


def mask_of(given):
    """A mask, from a text of letters: True where it reads."""
    return np.array([letter in "RF" for letter in given] if isinstance(given, str) else given)


class Stream:
    """One stream: each attention keeps what it computed last."""

    def __init__(self, model):
        self.model, self.kept, self.calls = model, {}, 0
        self.sites = [m for m in model.modules() if isinstance(m, Attention | FluxAttention)]

    @torch.no_grad()
    def __call__(self, reuse, inputs):
        self.calls += 1
        with self.hooked(np.broadcast_to(reuse, len(self.sites))):
            return self.model(**inputs).sample

    @contextmanager
    def hooked(self, reuse):
        pairs = enumerate(zip(self.sites, reuse, strict=True))
        handles = [m.register_forward_hook(self.hook(i, reads)) for i, (m, reads) in pairs]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def hook(self, site, reads):
        def replace(_module, _args, output):
            if not reads:
                self.kept[site] = output
            return self.kept[site]

        return replace


class Guided:
    """Both streams.

    Masks are ``[steps]`` or ``[steps, sites]`` for the sites, ``[steps]`` for the whole
    output. Where that is read, it is what was computed last, or, with ``line``, goes on from
    there as it came from the one before.
    """

    def __init__(self, model, cond, uncond, output, *, keep="output", line=False):
        self.streams = Stream(model), Stream(model)
        self.masks, self.output = (mask_of(cond), mask_of(uncond)), mask_of(output)
        self.is_difference, self.line, self.past = keep == "difference", line, []

    def conditional(self, step, inputs):
        self.base = self.streams[0](self.masks[0][step], inputs)
        return self.base

    def unconditional(self, step, inputs):
        if self.output[step]:
            kept = self.continued(step)
            return self.base + kept if self.is_difference else kept
        result = self.streams[1](self.masks[1][step], inputs)
        self.past.insert(0, (step, result - self.base if self.is_difference else result))
        return result

    def continued(self, step):
        (last, value), *before = self.past
        if not self.line or not before:
            return value
        first, other = before[0]
        slope = (value.double() - other.double()) / (last - first)
        return (value.double() + slope * (step - last)).float()

    def batch(self, order, step, inputs):
        """Both streams as one batch."""
        is_first = order == "conditional_first"
        cond = self.conditional(step, half_of(inputs, is_first))
        uncond = self.unconditional(step, half_of(inputs, not is_first))
        return torch.cat((cond, uncond) if is_first else (uncond, cond))


def half_of(inputs, is_first):
    """The inputs of the first or second half of a batch."""
    rows = inputs["hidden_states"].shape[0]

    def part(value):
        if isinstance(value, dict):
            return {name: part(each) for name, each in value.items()}
        if not isinstance(value, torch.Tensor) or value.shape[:1] != (rows,):
            return value
        return value[: rows // 2] if is_first else value[rows // 2 :]

    return {name: part(value) for name, value in inputs.items()}


def make_case(layers):
    """A DiT, and a batch of four whose second half has the null label."""
    case = make_dit(batch=4, layers=layers)
    case.given["class_labels"], case.has_halves = torch.tensor([3, 7, 9, 9]), True
    return case


def masked(mask):
    """A schedule of a mask."""
    return Schedule.from_actions(np.array(mask, bool))


def guided(case, cond, uncond, output, **more):
    """A transformed case, from texts of letters."""
    guidance = Guidance(
        unconditional=None if uncond is None else Schedule.from_actions(uncond),
        output=None if output is None else Schedule.from_actions(output),
        **more,
    )
    return dqar_fx.transform(case.model, Schedule.from_actions(cond), guidance=guidance)


def call_named(denoiser, step, *pairs):
    """Calls of a step, each in a context: name and inputs."""
    results = []
    for name, inputs in pairs:
        with denoiser.cache_context(name, step_index=step):
            results.append(denoiser(**inputs).sample)
    return results


def streams_of(case, step, seed=0):
    """Inputs of the conditional and the unconditional call of a step: one latent."""
    inputs = case.inputs(step, seed)
    return inputs, {**inputs, "class_labels": torch.full((4,), 9)}


def call_both(denoiser, step, cond, uncond):
    return call_named(denoiser, step, ("cond", cond), ("uncond", uncond))


def addresses_of(denoiser):
    """Of every buffer that outlives a step."""
    (other,) = denoiser._others.values()
    kept = [each.slots for each in other.kept.values()]
    programs = (denoiser.program, other.program)
    slots = [s.slots for program in programs for s in program.streams.values()]
    buffers = [b for each in (*kept, *slots) for b in each.buffers.values()]
    held = [b for each in other.held.values() for b in each]
    return [buffer.data_ptr() for buffer in (*buffers, *held)]


class NoReading(TorchDispatchMode):
    """Fails where the host waits for a value."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in (
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.is_nonzero,
            torch.ops.aten.equal,
        ), func
        return func(*args, **(kwargs or {}))
