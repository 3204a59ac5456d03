"""Every transformer and UNet of diffusers shows what it must, or is known not to."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

import dqar_fx
from benchmarks.zoo.specimens import find_exports, specimens
from benchmarks.zoo.trials import STEPS, TRIALS, Trial, same
from benchmarks.zoo.waiting import Waiting, waiting
from tests.helpers.slow_cases import slow_but

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",  # of diffusers: parts of its models,
    "ignore::FutureWarning",
    "ignore::UserWarning",  # and what torch says of them
)
QUICK = ("DiTTransformer2DModel", "ZImageTransformer2DModel")
COMPILED = (
    *QUICK,
    "FluxTransformer2DModel",
    "LTX2VideoTransformer3DModel",
    "LatteTransformer3DModel",
    "Lumina2Transformer2DModel",
    "NucleusMoEImageTransformer2DModel",
    "SanaTransformer2DModel",
    "StableCascadeUNet",
    "UNet2DConditionModel",
    "WanVACETransformer3DModel",
)
"""Classes of different kinds; `python -m benchmarks.models` compiles all of them."""


def tried(names):
    """Names of classes and trials."""
    keys = ("tier", *TRIALS)
    return [
        (name, key) for name in names for key in keys if key != "compiled" or name in COMPILED
    ]


@lru_cache(maxsize=1)  # cases of one class follow each other
def trial_of(name):
    return Trial(specimens()[name])


def test_each_class_that_diffusers_exports_has_a_small_configuration():
    assert sorted(specimens()) == find_exports()


def test_what_waits_is_a_trial_of_a_class():
    assert set(waiting()) <= set(specimens())
    for known in waiting().values():
        assert set(known.trials) <= set(TRIALS)
        assert bool(known.trials) == bool(known.because)
        assert known.note


@pytest.mark.parametrize("name", slow_but(*QUICK, of=specimens()))
def test_derived_inputs_run_and_matter(name):
    trial = trial_of(name)
    outputs = [tensor for step in trial.plain for tensor in step]
    assert all(output.isfinite().all() for output in outputs)
    assert outputs[0].std() > 1e-3
    assert not same(trial.plain[:1], trial.plain[1:2])


@pytest.mark.parametrize(
    ("name", "key"),
    slow_but(
        *tried(QUICK),
        of=tried(specimens()),
    ),
)
def test_class_passes_a_trial_or_is_known_not_to(name, key):
    known = waiting().get(name, Waiting())
    if key == "tier":
        assert trial_of(name).tier == known.tier
        return
    try:
        verdict = TRIALS[key](trial_of(name))
    except (dqar_fx.DqarError, ValueError, RuntimeError) as error:
        is_right, word = False, f"{type(error).__name__}: {error}"
    else:
        is_right, word = verdict.is_right, verdict.word
    assert is_right == (key not in known.trials), word
    if not is_right:
        assert known.because in word


def test_trials_can_fail():
    """A denoiser that computes where it should reuse is found out, and so is one that errs."""
    trial = Trial(specimens()["DiTTransformer2DModel"])
    plain = [[each.clone() for each in step] for step in trial.plain]
    trial.run = lambda _: plain
    for key in ("attention", "blocks"):
        verdict = TRIALS[key](trial)
        assert (verdict.is_right, verdict.word) == (False, f"2 of {STEPS} steps")
    plain[0][0] += torch.finfo(torch.float32).eps
    assert not TRIALS["computes"](trial).is_right
