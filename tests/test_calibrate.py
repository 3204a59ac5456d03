"""Calibration: its numbers against plain hooks on the untouched model, and what it leaves."""

from __future__ import annotations

import copy
import json
import math
import sys
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.models.attention_processor import Attention as DiffusersAttention
from safetensors.torch import save_file
from torch import nn

import dqar_fx
from dqar_fx import (
    Calibration,
    DqarError,
    Policy,
    Schedule,
    ScheduleError,
    SiteError,
    calibrate,
    signal_to_noise,
)
from dqar_fx.calibration import Cells
from tests.models import Attention, make_dit, seeded
from tests.passes.checks import JointAttention
from tests.test_gates import random_calibration
from tests.test_pipeline import make_pipeline

WIDTH, TOKENS = 8, 6
QUIET = {"progress": False}


# ---- a small model, and something like a pipeline ----------------------------------------


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(WIDTH), Attention(WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, shift):
        x = x + self.attn(self.norm(x) + shift)
        return x + self.mix(x).tanh()


class Toy(nn.Module):
    """Two blocks; reads a timestep and a text."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.shift = nn.Linear(1, WIDTH)

    def forward(self, hidden_states, timestep, encoder_hidden_states):
        shift = self.shift(timestep.to(hidden_states.dtype)[:, None, None] / 1000)
        x = hidden_states + encoder_hidden_states
        for block in self.blocks:
            x = block(x, shift)
        return x


def make_toy(seed=0):
    torch.manual_seed(seed)
    toy = Toy()
    for name, parameter in toy.named_parameters():
        size = 2.0 if "qkv" in name else 1.0  # attention that is not all alike
        nn.init.normal_(parameter, std=size / parameter.shape[-1] ** 0.5)
    return toy.eval()


class Pipeline:
    """Denoises with one call of the transformer per stream and step.

    Args:
        streams: Names of the calls of each step.
        named: Whether it names them for the transformer.
        options: More arguments of ``set_timesteps``.
        kept_length: Steps that it takes, whatever it is asked.
    """

    def __init__(
        self, scheduler=None, streams=("cond",), *, named=True, kept_length=None, **options
    ):
        self.transformer = make_toy()
        self.scheduler = DDIMScheduler(clip_sample=False) if scheduler is None else scheduler
        self.streams, self.named, self.kept_length = streams, named, kept_length
        self.options, self.pictures, self.calls = options, [], []

    def __call__(self, labels, *, num_inference_steps, generator, gain=0.5):
        dtype = next(self.transformer.parameters()).dtype
        latent = torch.randn(len(labels), TOKENS, WIDTH, generator=generator).to(dtype)
        texts = self.texts(labels, dtype)
        self.scheduler.set_timesteps(self.kept_length or num_inference_steps, **self.options)
        for index, timestep in enumerate(self.scheduler.timesteps):
            answers = []
            for stream in self.streams:
                self.calls.append((index, stream))
                answers.append(self.ask(stream, latent, timestep, texts[stream]))
            answer = gain * torch.stack(answers).mean(0)
            latent = self.scheduler.step(answer, timestep, latent).prev_sample
        self.pictures.append(latent)

    def texts(self, labels, dtype):
        """A text per stream and label."""
        return {
            stream: torch.stack([seeded(1, WIDTH).roll(label + 3 * i) for label in labels]).to(
                dtype
            )
            for i, stream in enumerate(self.streams)
        }

    @torch.no_grad()
    def ask(self, stream, latent, timestep, text):
        with self.context(stream):
            times = timestep.expand(len(latent))
            return self.transformer(latent, times, encoder_hidden_states=text)

    def context(self, stream, **more):
        """What tells a denoiser the stream; the original knows of none."""
        if not self.named or not hasattr(self.transformer, "cache_context"):
            return nullcontext()
        return self.transformer.cache_context(stream, **more)


# ---- the oracle: the untouched model with plain hooks ------------------------------------


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


# ---- a stock pipeline --------------------------------------------------------------------

STEPS, AGES, LABELS = 5, 3, [1, 2]
CALL = {"guidance_scale": 1.5, "output_type": "np"}


class Keeping(DiTPipeline):
    """Remembers its pictures."""

    def __call__(self, *args, **kwargs):
        result = super().__call__(*args, **kwargs)
        self.__dict__.setdefault("pictures", []).append(result.images)
        return result


@pytest.fixture(scope="module")
def dit():
    """A stock pipeline around a tiny DiT."""
    model = make_dit(layers=2).model
    model.register_to_config(num_embeds_ada_norm=1000)
    for block in model.transformer_blocks:
        embedder = block.norm1.emb.class_embedder
        weight = seeded(1001, embedder.embedding_table.embedding_dim)
        embedder.embedding_table = nn.Embedding.from_pretrained(weight)
    return Keeping(**make_pipeline(model).components)


@pytest.fixture(scope="module")
def calibrated(dit):
    """The calibration of that pipeline, and what it did to it."""
    dit.set_progress_bar_config(disable=True, desc="own")
    before = dit.transformer, dit.scheduler, dict(dit._progress_bar_config)
    config = dict(dit.config)
    calibration = calibrate(
        dit,
        LABELS,
        num_steps=STEPS,
        max_age=AGES,
        cells_per_step=2,
        compare_kv=True,
        **QUIET,
        **CALL,
    )
    after = dit.transformer, dit.scheduler, dict(dit._progress_bar_config)
    assert dict(dit.config) == config
    return calibration, before, after


@pytest.fixture(scope="module")
def recorded(dit, calibrated):
    """The calls of the untouched transformer in the same run."""
    (calls,) = record(dit, LABELS, STEPS, **CALL)
    return calls


def test_calibrate_dit_sites_are_those_of_transform(dit, calibrated, recorded):
    calibration, _, _ = calibrated
    assert calibration.sites == tuple(attentions_of(dit.transformer))
    assert (calibration.num_steps, calibration.max_age) == (STEPS, AGES)
    assert calibration.samples == len(LABELS)
    assert len(recorded) == STEPS


def test_calibrate_dit_change_equals_norms_of_hooked_outputs(calibrated, recorded):
    expected = change_by_hand(recorded, AGES)
    np.testing.assert_allclose(calibrated[0].change, expected, rtol=1e-4)
    assert np.isnan(expected[0]).all()
    assert np.isnan(expected[2, :, 2]).all()


def test_calibrate_dit_entropy_equals_softmax_in_hooks(calibrated, recorded):
    np.testing.assert_allclose(calibrated[0].entropy, entropy_by_hand(recorded), rtol=1e-4)


def test_calibrate_dit_cells_equal_the_model_with_one_hooked_replacement(
    dit, calibrated, recorded
):
    cells = calibrated[0].cells
    assert len(cells) == 2 * (STEPS - 1)
    assert (cells.age >= 1).all()
    assert (cells.age <= np.minimum(cells.step, AGES)).all()
    assert np.isfinite(cells.kv_error).all()
    assert (cells.error > 1e-4).all(), "the test would compare noise"
    check_cells(cells, dit.transformer, recorded, range(len(cells)))


def test_calibrate_dit_ratios_are_those_of_the_scheduler(calibrated):
    expected = signal_to_noise(DDIMScheduler(), STEPS)
    assert np.array_equal(calibrated[0].snr, expected)


def test_calibrate_dit_pictures_are_those_without_it(dit, calibrated, recorded):
    probed, plain = dit.pictures[:2]
    assert np.array_equal(probed, plain)


def test_calibrate_dit_pipeline_is_as_before(calibrated):
    _, before, after = calibrated
    assert before[0] is after[0]
    assert before[1] is after[1]
    assert before[2] == after[2] == {"disable": True, "desc": "own"}


def test_calibrate_dit_gates_run_on_the_model(dit, calibrated):
    gate = dqar_fx.entropy_gate(calibrated[0], quantile=0.3) & Schedule.linear(STEPS, 1)
    model = dit.transformer
    try:
        dit.transformer = dqar_fx.transform(model, gate)
        dit(LABELS, num_inference_steps=STEPS, generator=torch.Generator(), **CALL)
        assert dit.transformer.table == gate.resolve(calibrated[0].sites)
        assert 0 < dit.transformer.table.reuse_ratio < 1
    finally:
        dit.transformer = model


# ---- streams and batches -----------------------------------------------------------------


def of_stream(pipe, calls, stream):
    """The calls of one stream; ``pipe`` tells in which order it made them."""
    made = [name for _, name in pipe.calls[-len(calls) :]]
    return [call for call, name in zip(calls, made, strict=True) if name == stream]


@pytest.mark.parametrize("named", [True, False])
def test_calibrate_two_streams_are_averaged_and_never_mixed(named):
    pipe = Pipeline(streams=("cond", "uncond"), named=named)
    calibration = calibrate(
        pipe, [1, 2], num_steps=5, max_age=3, cells_per_step=2, compare_kv=True, **QUIET
    )
    (calls,) = record(pipe, [1, 2], 5)
    streams = [of_stream(pipe, calls, name) for name in pipe.streams]
    change = np.mean([change_by_hand(steps, 3) for steps in streams], axis=0)
    entropy = np.mean([entropy_by_hand(steps) for steps in streams], axis=0)
    np.testing.assert_allclose(calibration.change, change, rtol=1e-4)
    np.testing.assert_allclose(calibration.entropy, entropy, rtol=1e-4)
    cells = calibration.cells
    assert len(cells) == 2 * 2 * 4
    turns = np.arange(len(cells)) // 2 % 2  # two of one stream, two of the other
    for turn, steps in enumerate(streams):
        check_cells(cells, pipe.transformer, steps, np.flatnonzero(turns == turn))


class Skipping(Pipeline):
    """Calls a second stream at some steps alone, and says which step it is."""

    def __init__(self, steps):
        super().__init__(streams=("cond", "rare"))
        self.rare_steps = steps

    def ask(self, stream, latent, timestep, text):
        step = self.scheduler.timesteps.tolist().index(timestep)
        if stream == "rare" and step not in self.rare_steps:
            self.calls.pop()
            return torch.zeros_like(latent)
        self.step = step
        return super().ask(stream, latent, timestep, text)

    def context(self, stream, **more):
        return super().context(stream, step_index=self.step, **more)


@pytest.mark.parametrize("steps", [(0, 2, 4), (2, 3, 4), (0, 1)], ids=str)
def test_calibrate_stream_that_skips_steps_hides_no_other(steps):
    pipe = Skipping(steps)
    calibration = calibrate(pipe, [1, 2], num_steps=5, max_age=3, cells_per_step=0, **QUIET)
    (calls,) = record(pipe, [1, 2], 5)
    cond, rare = (of_stream(pipe, calls, name) for name in pipe.streams)
    assert (len(cond), len(rare)) == (5, len(steps))
    expected = change_by_hand(cond, 3)
    assert (np.isnan(calibration.change) == np.isnan(expected)).all()
    alone = [step for step in range(5) if step not in steps]
    np.testing.assert_allclose(calibration.change[alone], expected[alone], rtol=1e-4)
    entropy = entropy_by_hand(cond)
    for step, row in zip(steps, entropy_by_hand(rare), strict=True):
        entropy[step] = (entropy[step] + row) / 2
    np.testing.assert_allclose(calibration.entropy, entropy, rtol=1e-4)


class Apart(Pipeline):
    """Gives each stream a latent of its own, and no name: each call looks like a new run."""

    def __init__(self):
        super().__init__(streams=("cond", "uncond"), named=False)

    def ask(self, stream, latent, timestep, text):
        return super().ask(stream, latent.clone(), timestep, text)


def test_calibrate_that_can_compare_nothing_does_not_pass_in_silence():
    with pytest.raises((DqarError, UserWarning)):
        calibrate(Apart(), [1], num_steps=4, **QUIET)


def test_calibrate_last_smaller_batch_weighs_what_it_holds():
    pipe = Pipeline()
    calibration = calibrate(
        pipe, [1, 2, 5], num_steps=3, batch_size=2, cells_per_step=0, **QUIET
    )
    runs = record(pipe, [1, 2, 5], 3, batch_size=2)
    two, one = (entropy_by_hand(calls) for calls in runs)
    assert np.abs(two - one).max() > 1e-3, "the test would compare noise"
    np.testing.assert_allclose(calibration.entropy, (2 * two + one) / 3, rtol=1e-4)
    assert calibration.samples == 3


def test_calibrate_equal_batches_are_averaged():
    pipe = Pipeline()
    calibration = calibrate(
        pipe, [1, 2, 5, 4], num_steps=4, max_age=2, batch_size=2, cells_per_step=2, **QUIET
    )
    runs = record(pipe, [1, 2, 5, 4], 4, batch_size=2)
    change = np.mean([change_by_hand(calls, 2) for calls in runs], axis=0)
    entropy = np.mean([entropy_by_hand(calls) for calls in runs], axis=0)
    np.testing.assert_allclose(calibration.change, change, rtol=1e-4)
    np.testing.assert_allclose(calibration.entropy, entropy, rtol=1e-4)
    cells = calibration.cells
    assert len(cells) == 2 * 2 * 3
    for number, calls in enumerate(runs):
        check_cells(cells, pipe.transformer, calls, range(6 * number, 6 * number + 6))


class Mixed(nn.Module):
    """Self attention, attention to a text, and both streams together."""

    def __init__(self):
        super().__init__()
        self.own, self.text, self.joint = ToText(), ToText(), JointAttention()

    def forward(self, hidden_states, timestep, encoder_hidden_states):
        words = encoder_hidden_states
        x = hidden_states + timestep[:, None, None] / 1000
        x = x + self.own(x, x.sin())
        x = x + self.text(x.sin(), words)
        image, both = self.joint(x, words + x.mean(1, keepdim=True))
        return x + image + both.mean(1, keepdim=True)


class ToText(Attention):
    """Attention to a second stream; the queries are of the first."""

    def __init__(self):
        super().__init__(WIDTH)

    def forward(self, x, source):
        q, k, v = self.qkv.weight.chunk(3)
        read = x @ q, source @ k, source @ v
        return F.scaled_dot_product_attention(*(part[:, None] for part in read))[:, 0]


def test_calibrate_text_and_joint_attention_equal_the_hooks():
    pipe = Pipeline()
    torch.manual_seed(0)
    pipe.transformer = Mixed().requires_grad_(False)
    pipe.texts = lambda labels, dtype: {"cond": 2 * seeded(len(labels), 3, WIDTH)}
    calibration = calibrate(
        pipe, [1, 2], num_steps=4, max_age=3, cells_per_step=3, compare_kv=True, **QUIET
    )
    (calls,) = record(pipe, [1, 2], 4)
    assert calibration.sites == ("own", "text", "joint")
    np.testing.assert_allclose(calibration.change, change_by_hand(calls, 3), rtol=1e-4)
    np.testing.assert_allclose(calibration.entropy, entropy_by_hand(calls), rtol=1e-4)
    cells = calibration.cells
    assert (np.isnan(cells.kv_error) == (cells.site == 1)).all(), "a text has none to keep"
    check_cells(cells, pipe.transformer, calls, range(len(cells)))


def test_calibrate_one_text_is_one_input():
    pipe = Pipeline()
    given = []
    pipe.texts = lambda labels, dtype: given.append(labels) or Pipeline.texts(pipe, [1], dtype)
    calibration = calibrate(pipe, "a prompt", num_steps=2, cells_per_step=0, **QUIET)
    assert given == [["a prompt"]]
    assert calibration.samples == 1


# ---- schedulers --------------------------------------------------------------------------


def make_flow():
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "options", "calls"),
    [
        (PNDMScheduler, {}, 15),
        (lambda: PNDMScheduler(skip_prk_steps=True), {}, 7),
        (HeunDiscreteScheduler, {}, 11),
        (UniPCMultistepScheduler, {}, 6),
        (make_flow, {"mu": 0.8}, 6),
    ],
    ids=["PNDM", "PNDM-skip", "Heun", "UniPC", "FlowMatch-mu"],
)
def test_calibrate_scheduler_has_a_row_for_each_call(make, options, calls):
    pipe = Pipeline(make(), **options)
    calibration = calibrate(pipe, [1], num_steps=6, max_age=2, cells_per_step=0, **QUIET)
    runs = record(pipe, [1], 6)
    assert [len(run) for run in runs] == [calls]
    assert calibration.num_steps == calls
    np.testing.assert_allclose(calibration.change, change_by_hand(runs[0], 2), rtol=1e-4)
    expected = signal_to_noise(make(), 6, **options)
    assert np.array_equal(calibration.snr, expected)


def test_calibrate_fewer_steps_than_asked_is_a_schedule_error():
    pipe = Pipeline(kept_length=3)
    model = pipe.transformer
    with (
        pytest.warns(UserWarning, match="has 3 steps but the branch table 5"),
        pytest.raises(ScheduleError, match="at 3 of 5 steps, and its scheduler has 3"),
    ):
        calibrate(pipe, [1], num_steps=5, **QUIET)
    assert pipe.transformer is model


def test_calibrate_more_steps_than_asked_is_a_dqar_error():
    pipe = Pipeline(kept_length=9)
    model = pipe.transformer
    with pytest.raises(DqarError, match="the table has 5"):
        calibrate(pipe, [1], num_steps=5, **QUIET)
    assert pipe.transformer is model


# ---- cells -------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "given"), [(0, 0), (1, 1), (2, 2), (9, 2)])
def test_calibrate_tries_no_more_cells_than_there_are_sites(asked, given):
    calibration = calibrate(Pipeline(), [1], num_steps=4, cells_per_step=asked, **QUIET)
    cells = calibration.cells
    assert len(cells) == 3 * given
    assert [len(getattr(cells, f.name)) for f in fields(Cells)] == [3 * given] * 6
    assert cells.step.tolist() == sorted(cells.step.tolist())
    for step in range(1, 4):
        sites = cells.site[cells.step == step]
        assert len(set(sites.tolist())) == given
    assert np.isnan(cells.kv_error).all()
    assert np.isnan(cells.kv_change).all()
    kinds = {f.name: getattr(cells, f.name).dtype for f in fields(Cells)}
    assert all(kinds[name] == np.int64 for name in ("step", "site", "age"))
    assert all(kinds[name] == np.float64 for name in ("error", "kv_error", "kv_change"))


def test_calibrate_one_site_is_looked_at_alone():
    pipe = Pipeline()
    calibration = calibrate(
        pipe, [1, 2], num_steps=4, sites="blocks.1.*", cells_per_step=3, **QUIET
    )
    (calls,) = record(pipe, [1, 2], 4)
    assert calibration.sites == ("blocks.1.attn",)
    np.testing.assert_allclose(calibration.entropy, entropy_by_hand(calls)[:, 1:], rtol=1e-4)
    cells = calibration.cells
    assert set(cells.site.tolist()) == {0}
    shifted = replace(calibration, cells=replace(cells, site=cells.site + 1)).cells
    check_cells(shifted, pipe.transformer, calls, range(len(cells)))


class FeedForward(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(WIDTH, 3 * WIDTH), nn.GELU(), nn.Linear(3 * WIDTH, WIDTH))


class FullBlock(Block):
    def __init__(self):
        super().__init__()
        self.ff = FeedForward()

    def forward(self, x, shift):
        x = super().forward(x, shift)
        return x + self.ff(x)


@pytest.mark.parametrize("sites", ["all", "feed_forward"])
def test_calibrate_sites_without_attention_are_compared_all_the_same(sites):
    pipe = Pipeline()
    torch.manual_seed(0)
    pipe.transformer.blocks = nn.ModuleList([FullBlock()]).eval()
    calibration = calibrate(
        pipe, [1], num_steps=4, max_age=2, cells_per_step=2, sites=sites, **QUIET
    )
    seen = []
    handle = pipe.transformer.blocks[0].ff.register_forward_hook(lambda *a: seen.append(a[2]))
    record(pipe, [1], 4)
    handle.remove()
    column = calibration.sites.index("blocks.0.ff")
    for step, age in [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2)]:
        found = calibration.change[step, column, age - 1]
        assert found == pytest.approx(norm_ratio(seen[step], seen[step - age]), rel=1e-4)
    assert len(calibration.cells) == 3 * len(calibration.sites)
    assert np.isfinite(calibration.cells.error).all()


def test_calibrate_max_age_bounds_what_is_compared():
    calibration = calibrate(Pipeline(), [1], num_steps=6, max_age=2, **QUIET)
    assert calibration.change.shape == (6, 2, 2)
    assert calibration.cells.age.max() <= 2


def test_calibrate_single_step_has_nothing_to_compare():
    calibration = calibrate(Pipeline(), [1], num_steps=1, max_age=2, **QUIET)
    assert np.isnan(calibration.change).all()
    assert len(calibration.cells) == 0


def test_calibrate_then_fit_a_policy():
    pipe = Pipeline()
    calibration = calibrate(pipe, [1, 2], num_steps=30, cells_per_step=2, **QUIET)
    policy = Policy.fit(calibration, num_updates=10)
    gate = dqar_fx.policy_gate(policy, 0.05)
    assert gate.resolve(calibration.sites).num_steps == 30
    dqar_fx.transform(pipe.transformer, gate)


# ---- what it leaves ----------------------------------------------------------------------


def test_calibrate_pictures_and_calls_are_those_without_it():
    plain, probed = Pipeline(streams=("cond", "uncond")), Pipeline(streams=("cond", "uncond"))
    record(plain, [1, 2, 5], 4, batch_size=2, gain=0.7)
    calibrate(probed, [1, 2, 5], num_steps=4, batch_size=2, gain=0.7, **QUIET)
    assert probed.calls == plain.calls
    for one, other in zip(probed.pictures, plain.pictures, strict=True):
        assert torch.equal(one, other)


def test_calibrate_seed_chooses_noise_and_cells():
    pictures, found = [], []
    for seed in (0, 0, 3):
        pipe = Pipeline()
        found.append(calibrate(pipe, [1], num_steps=8, cells_per_step=1, seed=seed, **QUIET))
        pictures.append(pipe.pictures[0])
    assert_same(found[0], found[1])
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])
    assert not np.array_equal(found[0].cells.site, found[2].cells.site)


def test_calibrate_is_repeatable_where_the_scheduler_draws_its_own_numbers():
    pipe = Pipeline(DDPMScheduler(clip_sample=False))  # it is given no generator, as in DiT's
    given = {"num_steps": 4, "cells_per_step": 1}
    assert_same(calibrate(pipe, [1], **given, **QUIET), calibrate(pipe, [1], **given, **QUIET))


def test_calibrate_leaves_random_numbers_alone():
    torch.manual_seed(7)
    np.random.seed(7)
    expected = torch.rand(2), np.random.rand(2)
    pipe = Pipeline()
    torch.manual_seed(7)
    np.random.seed(7)
    calibrate(pipe, [1], num_steps=3, **QUIET)
    assert torch.equal(torch.rand(2), expected[0])
    assert np.array_equal(np.random.rand(2), expected[1])


def test_calibrate_model_is_as_before():
    pipe = Pipeline()
    model = pipe.transformer.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calibrate(pipe, [1], num_steps=3, **QUIET)
    assert pipe.transformer is model
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("is_set", [False, True], ids=["fresh", "set"])
def test_calibrate_scheduler_is_as_before(is_set):
    pipe = Pipeline()
    if is_set:
        pipe.scheduler.set_timesteps(9)
    scheduler, before = pipe.scheduler, state_of(pipe.scheduler)
    calibrate(pipe, [1], num_steps=3, **QUIET)
    assert pipe.scheduler is scheduler
    assert state_of(scheduler) == before


def state_of(scheduler):
    return {name: repr(value) for name, value in vars(scheduler).items()}


class Broken(Pipeline):
    """Fails in the middle."""

    def ask(self, stream, latent, timestep, text):
        if len(self.calls) == 4:
            raise KeyboardInterrupt
        return super().ask(stream, latent, timestep, text)


def test_calibrate_pipeline_that_fails_is_as_before():
    pipe = Broken()
    model, configs = pipe.transformer, []
    pipe._progress_bar_config = {"desc": "own"}
    pipe.set_progress_bar_config = lambda **config: set_config(pipe, config, configs)
    with pytest.raises(KeyboardInterrupt):
        calibrate(pipe, [1], num_steps=6, **QUIET)
    assert pipe.transformer is model
    assert configs == [{"desc": "own", "disable": True}, {"desc": "own"}]
    assert pipe._progress_bar_config == {"desc": "own"}
    pipe.calls.clear()
    assert calibrate(pipe, [1], num_steps=3, **QUIET).num_steps == 3


def set_config(pipe, config, seen):
    pipe._progress_bar_config = config
    seen.append(config)


def test_calibrate_stock_pipeline_that_fails_is_as_before(dit):
    model, config = dit.transformer, dict(dit.config)
    dit.set_progress_bar_config(disable=True)
    with (
        mock.patch.object(dit.scheduler, "step", side_effect=RuntimeError("no more")),
        pytest.raises(RuntimeError, match="no more"),
    ):
        calibrate(dit, LABELS, num_steps=STEPS, sites="*.0.attn1", **QUIET, **CALL)
    assert dit.transformer is model
    assert dict(dit.config) == config
    assert dit._progress_bar_config == {"disable": True}


def test_calibrate_compiled_transformer_is_put_back_as_it_was():
    pipe = Pipeline()
    plain = calibrate(pipe, [1], num_steps=3, **QUIET)
    pipe.transformer = compiled = torch.compile(pipe.transformer)
    assert_same(calibrate(pipe, [1], num_steps=3, **QUIET), plain)
    assert pipe.transformer is compiled


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_calibrate_half_precision_model_is_measured_in_float32(dtype):
    pipe = Pipeline(streams=("cond", "uncond"))
    pipe.transformer.to(dtype)
    calibration = calibrate(
        pipe, [1, 2], num_steps=4, max_age=2, cells_per_step=2, compare_kv=True, **QUIET
    )
    (calls,) = record(pipe, [1, 2], 4)
    streams = [of_stream(pipe, calls, name) for name in pipe.streams]
    change = np.mean([change_by_hand(steps, 2) for steps in streams], axis=0)
    entropy = np.mean([entropy_by_hand(steps) for steps in streams], axis=0)
    np.testing.assert_allclose(calibration.change, change, rtol=1e-4)
    np.testing.assert_allclose(calibration.entropy, entropy, rtol=1e-3)
    arrays = calibration.snr, calibration.entropy, calibration.change
    assert {array.dtype for array in arrays} == {np.dtype(np.float64)}
    calibration.fingerprint.refuse_other(make_toy(), "this")


# ---- the progress bar --------------------------------------------------------------------


class Bar:
    """Counts."""

    made: list[Bar] = []  # noqa: RUF012

    def __init__(self, *, total, desc, disable):
        self.total, self.desc, self.disable = total, desc, disable
        self.count, self.is_open = 0, False
        self.made.append(self)

    def __enter__(self):
        self.is_open = True
        return self

    def __exit__(self, *_):
        self.is_open = False

    def update(self):
        assert self.is_open
        self.count += 1


@pytest.fixture
def bars(monkeypatch):
    monkeypatch.setattr(sys.modules["dqar_fx.calibrate"], "tqdm", Bar)
    monkeypatch.setattr(Bar, "made", [])
    return Bar.made


@pytest.mark.parametrize("progress", [True, False])
@pytest.mark.parametrize("streams", [("cond",), ("cond", "uncond")])
def test_calibrate_bar_counts_each_step_of_each_batch_once(bars, streams, progress):
    pipe = Pipeline(streams=streams)
    given = {"num_steps": 4, "batch_size": 2, "cells_per_step": 0, "progress": progress}
    calibrate(pipe, [1, 2, 5], **given)
    (bar,) = bars
    assert (bar.desc, bar.disable) == ("calibrate", not progress)
    assert bar.count == bar.total == 8
    assert not bar.is_open


def test_calibrate_bar_counts_calls_of_a_scheduler_that_makes_several(bars):
    calibrate(Pipeline(PNDMScheduler()), [1], num_steps=6, cells_per_step=0)
    (bar,) = bars
    assert bar.count == bar.total == 15


def test_calibrate_bar_is_closed_where_the_pipeline_fails(bars):
    with pytest.raises(KeyboardInterrupt):
        calibrate(Broken(), [1], num_steps=6)
    assert (bars[0].count, bars[0].is_open) == (3, False)


# ---- arguments ---------------------------------------------------------------------------


class Bare:
    """Something without a transformer."""


def test_calibrate_without_a_transformer_says_what_was_found():
    with pytest.raises(DqarError) as caught:
        calibrate(Bare(), [1], **QUIET)
    assert str(caught.value) == (
        "calibration needs a diffusers pipeline with its own transformer; found Bare with a "
        "transformer of type NoneType"
    )


def test_calibrate_transformed_pipeline_says_what_was_found():
    pipe = Pipeline()
    pipe.transformer = dqar_fx.transform(pipe.transformer, Schedule.interval(3, 2))
    denoiser = pipe.transformer
    with pytest.raises(DqarError, match="found Pipeline with a transformer of type Denoiser"):
        calibrate(pipe, [1], num_steps=3, **QUIET)
    assert pipe.transformer is denoiser


def test_calibrate_without_a_scheduler_is_a_dqar_error():
    pipe = Pipeline()
    model = pipe.transformer
    del pipe.scheduler
    with pytest.raises(DqarError):
        calibrate(pipe, [1], **QUIET)
    assert pipe.transformer is model


@pytest.mark.parametrize("nothing", [[], (), iter(())])
def test_calibrate_without_inputs_is_a_schedule_error(nothing):
    with pytest.raises(ScheduleError) as caught:
        calibrate(Pipeline(), nothing, **QUIET)
    assert str(caught.value) == "calibration needs at least one prompt or label"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, found 0"),
        ({"num_steps": 2.5}, "num_steps must be an integer, found 2.5"),
        ({"max_age": 0}, "max_age must be at least 1, found 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, found 0"),
        ({"cells_per_step": -1}, "cells_per_step must be at least 0, found -1"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_calibrate_argument_out_of_range_named(given, message):
    pipe = Pipeline()
    with pytest.raises(ScheduleError) as caught:
        calibrate(pipe, [1], **given, **QUIET)
    assert str(caught.value) == message
    assert pipe.calls == []


def test_calibrate_pattern_that_selects_nothing_is_a_site_error():
    pipe = Pipeline()
    model = pipe.transformer
    with pytest.raises(SiteError, match="selects no site"):
        calibrate(pipe, [1], num_steps=2, sites="nowhere", **QUIET)
    assert pipe.transformer is model


def test_calibrate_raises_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(Pipeline(), [1], num_steps=2, **QUIET)


# ---- files -------------------------------------------------------------------------------


def assert_same(one, other):
    """Two calibrations are equal, bit for bit."""
    assert (one.sites, one.samples) == (other.sites, other.samples)
    pairs = [(getattr(one, name), getattr(other, name)) for name in ARRAYS]
    pairs += [
        (getattr(one.cells, f.name), getattr(other.cells, f.name)) for f in fields(Cells)
    ]
    for a, b in pairs:
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    assert one.fingerprint.model == other.fingerprint.model
    assert one.fingerprint.structure == other.fingerprint.structure
    assert torch.equal(one.fingerprint.values, other.fingerprint.values)


ARRAYS = ("snr", "entropy", "change")


def test_calibration_saved_and_loaded_is_the_same(calibrated, tmp_path):
    calibrated[0].save(tmp_path / "new" / "folder")
    loaded = Calibration.load(tmp_path / "new" / "folder")
    assert_same(loaded, calibrated[0])
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        "calibration.json",
        "calibration.safetensors",
    ]


@pytest.mark.parametrize("cells", [0, 1, 30])
def test_calibration_with_few_cells_saved_and_loaded_is_the_same(cells, tmp_path):
    calibration = random_calibration(cells=cells)
    calibration.save(str(tmp_path))
    assert_same(Calibration.load(str(tmp_path)), calibration)


def test_calibration_saved_over_another_replaces_it(tmp_path):
    for seed in (1, 2):
        random_calibration(seed).save(tmp_path)
    assert_same(Calibration.load(tmp_path), random_calibration(2))


@pytest.mark.parametrize("turn", [np.asfortranarray, lambda a: np.repeat(a, 2, 0)[::2]])
def test_calibration_of_arrays_that_are_not_contiguous_is_saved_and_loaded(turn, tmp_path):
    plain = random_calibration(cells=20)
    turned = replace(plain, **{name: turn(getattr(plain, name)) for name in ARRAYS})
    turned.save(tmp_path)
    assert_same(Calibration.load(tmp_path), plain)


def test_calibration_of_a_meta_model_is_saved_and_loaded(tmp_path):
    meta = copy.deepcopy(make_toy()).to("meta")
    fingerprint = dqar_fx.fingerprint.Fingerprint.of(meta)
    calibration = replace(random_calibration(), fingerprint=fingerprint)
    calibration.save(tmp_path)
    assert_same(Calibration.load(tmp_path), calibration)


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


def edit(**changes):
    def change(path):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def drop(name):
    def change(path):
        facts = json.loads(path.read_text())
        del facts[name]
        path.write_text(json.dumps(facts))

    return change


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("json", lambda path: path.unlink()),
        ("safetensors", lambda path: path.unlink()),
        ("json", cut),
        ("safetensors", cut),
        ("safetensors", lambda path: path.write_bytes(b"")),
        ("json", lambda path: path.write_bytes(b"\xff\xfe")),
        ("json", lambda path: path.write_text("[]")),
        ("json", drop("sites")),
        ("json", drop("samples")),
        ("json", drop("structure")),
        ("json", edit(sites=3)),
        ("json", edit(sites=None)),
        ("json", edit(sites=["blocks.0.attn"])),
    ],
    ids=[
        "no_json",
        "no_arrays",
        "json_cut",
        "arrays_cut",
        "arrays_empty",
        "json_is_noise",
        "json_is_a_list",
        "no_sites",
        "no_samples",
        "no_structure",
        "sites_are_a_number",
        "sites_are_nothing",
        "sites_are_too_few",
    ],
)
def test_calibration_load_damaged_is_a_schedule_error(name, damage, tmp_path):
    random_calibration(cells=5).save(tmp_path)
    damage(tmp_path / f"calibration.{name}")
    with pytest.raises(ScheduleError) as caught:
        Calibration.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_calibration_load_missing_says_what_is_expected(tmp_path):
    with pytest.raises(ScheduleError) as caught:
        Calibration.load(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"no calibration can be read from {tmp_path}: FileNotFoundError")
    assert message.endswith(
        "Expected calibration.json and calibration.safetensors, as save(folder) writes them"
    )


def test_calibration_load_of_a_policy_is_a_schedule_error(tmp_path):
    policy = Policy.fit(random_calibration(cells=100), num_updates=2)
    policy.save(tmp_path)
    with pytest.raises(ScheduleError, match="no calibration can be read"):
        Calibration.load(tmp_path)
    for kind in ("json", "safetensors"):
        (tmp_path / f"policy.{kind}").rename(tmp_path / f"calibration.{kind}")
    with pytest.raises(ScheduleError):
        Calibration.load(tmp_path)


def test_calibration_load_lacking_an_array_names_it(tmp_path):
    random_calibration().save(tmp_path)
    content = {"fingerprint": torch.zeros(0, 8), "snr": torch.zeros(3)}
    save_file(content, tmp_path / "calibration.safetensors")
    with pytest.raises(ScheduleError, match="the calibration lacks 'entropy'"):
        Calibration.load(tmp_path)
