"""What a calibration must find: the untouched model with plain hooks."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention as DiffusersAttention
from torch import nn

from tests.helpers.models import Attention
from tests.helpers.rewrite_checks import JointAttention


@dataclass
class Call:
    """One call of the untouched model: what came in, went out, and went on inside."""

    args: tuple
    kwargs: dict
    output: torch.Tensor
    attention: list
    queries: list
    keys: list
    values: list


def attentions_of(model):
    kinds = Attention | DiffusersAttention | JointAttention
    return {name: m for name, m in model.named_modules() if isinstance(m, kinds)}


def answer_of(output):
    return output if isinstance(output, torch.Tensor) else output.sample


@contextmanager
def hooked(model, *, site=None, output=None):
    """Attention outputs as they come, one of them replaced if a site is given."""
    seen, handles = [], []

    def hook(place):
        def replace_output(_module, _args, own):
            seen.append(own if place != site else output)
            return seen[-1]

        return replace_output

    for place, module in enumerate(attentions_of(model).values()):
        handles.append(module.register_forward_hook(hook(place)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def patched(site=None, key=None, value=None):
    """Queries, keys and values as they come; those of one site replaced if one is given."""
    original, seen = F.scaled_dot_product_attention, []

    def attend(q, k, v, *args, **options):
        if len(seen) == site:
            k, v = key, value
        seen.append((q, k, v))
        return original(q, k, v, *args, **options)

    with mock.patch.object(F, "scaled_dot_product_attention", attend):
        yield seen


class Recorder(nn.Module):
    """Stands in for a transformer and writes every call down."""

    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, []

    config = property(lambda self: self.model.config)
    dtype = property(lambda self: self.model.dtype)
    device = property(lambda self: self.model.device)

    def forward(self, *args, **kwargs):
        with hooked(self.model) as outputs, patched() as inside:
            result = self.model(*args, **kwargs)
        queries, keys, values = zip(*inside, strict=True)
        self.calls.append(
            Call(args, kwargs, answer_of(result), outputs, queries, keys, values)
        )
        return result


def record(pipe, labels, num_steps, seed=0, batch_size=8, **call):
    """Every call of the untouched transformer in the runs that a calibration makes."""
    model, runs = pipe.transformer, []
    for number, start in enumerate(range(0, len(labels), batch_size)):
        pipe.transformer = Recorder(model)
        generator = torch.Generator().manual_seed(seed + number)
        batch = labels[start : start + batch_size]
        try:
            pipe(batch, num_inference_steps=num_steps, generator=generator, **call)
            runs.append(pipe.transformer.calls)
        finally:
            pipe.transformer = model
    return runs


def norm_ratio(right, other):
    """Of a tensor, or of several taken together."""
    right, other = (
        torch.cat([x.double().flatten() for x in listed(t)]) for t in (right, other)
    )
    return ((right - other).norm() / right.norm()).item()


def listed(value):
    return value if isinstance(value, tuple) else (value,)


def change_by_hand(steps, max_age):
    """``[steps, sites, ages]`` of the calls of one stream; NaN where there is none."""
    found = np.full((len(steps), len(steps[0].attention), max_age), np.nan)
    for step, site, age in np.ndindex(found.shape):
        if age < step:
            now, old = (s.attention[site] for s in (steps[step], steps[step - age - 1]))
            found[step, site, age] = norm_ratio(now, old)
    return found


def entropy_by_hand(steps):
    """``[steps, sites]`` by softmax of the scores of whole attentions."""
    return np.array(
        [
            [
                softmax_entropy(q.double(), k.double())
                for q, k in zip(call.queries, call.keys, strict=True)
            ]
            for call in steps
        ]
    )


def softmax_entropy(query, key):
    weights = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]), -1)
    nats = -(weights * weights.clamp(min=1e-300).log()).sum(-1)
    return (nats.mean() / math.log(key.shape[-2])).item()


@torch.no_grad()
def error_by_hand(model, steps, step, site, age):
    """What reusing one output does to the answer of the untouched model."""
    now, old = steps[step], steps[step - age]
    with hooked(model, site=site, output=old.attention[site]):
        found = answer_of(model(*now.args, **now.kwargs))
    return norm_ratio(now.output, found)


@torch.no_grad()
def kv_errors_by_hand(model, steps, step, site, age):
    """The same with kept keys and values: error of the answer, change of the site."""
    now, old = steps[step], steps[step - age]
    with patched(site, old.keys[site], old.values[site]), hooked(model) as outputs:
        found = answer_of(model(*now.args, **now.kwargs))
    return norm_ratio(now.output, found), norm_ratio(now.attention[site], outputs[site])


def check_cells(cells, model, steps, which):
    """Cells of a calibration that belong to one stream are those of the hooks."""
    for i in which:
        cell = int(cells.step[i]), int(cells.site[i]), int(cells.age[i])
        found = [cells.error[i], cells.kv_error[i], cells.kv_change[i]]
        expected = [
            error_by_hand(model, steps, *cell),
            *kv_errors_by_hand(model, steps, *cell),
        ]
        if np.isnan(found[1]):
            found, expected = found[:1], expected[:1]
        np.testing.assert_allclose(found, expected, rtol=2e-4)


def of_stream(pipe, calls, stream):
    """The calls of one stream; ``pipe`` tells in which order it made them."""
    made = [name for _, name in pipe.calls[-len(calls) :]]
    return [call for call, name in zip(calls, made, strict=True) if name == stream]
