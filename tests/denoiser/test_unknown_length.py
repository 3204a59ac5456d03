"""A schedule without a number of steps, and runs that do not say theirs."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiTTransformer2DModel

import dqar_fx
from dqar_fx import Schedule, StepError

STEPS = 6


def test_run_that_says_its_length_may_follow_one_that_did_not():
    model = DiTTransformer2DModel(num_layers=1, attention_head_dim=8, sample_size=4).eval()
    denoiser = dqar_fx.transform(model, Schedule.interval(every=3))
    latent, labels = torch.randn(1, 4, 4, 4), torch.tensor([1])

    def run():
        for step in range(STEPS):
            timestep = torch.full((1,), 900.0 - step)
            denoiser(latent + step, timestep=timestep, class_labels=labels)

    with pytest.raises(StepError, match="does not say how many"):
        run()
    with denoiser.cache_context("named", num_inference_steps=STEPS):
        run()
    last = denoiser.runs[-1]
    assert (last.length, last.num_reused) == (STEPS, 4)
