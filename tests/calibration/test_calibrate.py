"""Calibration: its numbers against plain hooks on the untouched model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dqar_fx import calibrate
from tests.helpers.calibration_oracle import (
    change_by_hand,
    check_cells,
    entropy_by_hand,
    of_stream,
    record,
)
from tests.helpers.models import Attention, seeded
from tests.helpers.rewrite_checks import JointAttention
from tests.helpers.toy_pipeline import QUIET, WIDTH, Pipeline


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
    """Gives each stream a latent of its own, and no name."""

    def __init__(self):
        super().__init__(streams=("cond", "uncond"), named=False)

    def ask(self, stream, latent, timestep, text):
        return super().ask(stream, latent.clone(), timestep, text)


def test_calibrate_tells_streams_apart_that_have_latents_of_their_own():
    usual = Pipeline(streams=("cond", "uncond"), named=False)
    one, two = (calibrate(each, [1], num_steps=4, **QUIET) for each in (Apart(), usual))
    np.testing.assert_array_equal(one.entropy, two.entropy)
    np.testing.assert_array_equal(one.change, two.change)


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
