"""Every stock pipeline of the bench shows what it must when it is transformed."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from benchmarks.stock.bench import STOCK
from benchmarks.stock.checks import CHECKS, OTHER_SEED, SEED, Trial
from tests.helpers.slow_cases import slow_but

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",  # of diffusers: its schedulers,
    "ignore::FutureWarning",  # and parts of its models
    "ignore:step",  # sites that start cold, which the bench counts
    "ignore:capture='auto'",  # HiDream is captured block by block
)
NAMES = [stock.name for stock in STOCK]
BY_NAME = dict(zip(NAMES, STOCK, strict=True))
QUICK = ("DiT, DDIM", "SD3, img2img")


@lru_cache(maxsize=1)  # cases of one pipeline follow each other
def trial_of(name):
    return Trial(BY_NAME[name])


def test_names_are_unique():
    assert len(BY_NAME) == len(STOCK)


@pytest.mark.parametrize("name", slow_but(*QUICK, of=NAMES))
def test_untouched_pipeline_depends_on_its_seed_alone(name):
    stock, plain = BY_NAME[name], trial_of(name).plain.sample
    assert plain.isfinite().all()
    assert torch.equal(stock.call(stock.make(), SEED), plain)
    assert not torch.equal(stock.call(stock.make(), OTHER_SEED), plain)


@pytest.mark.parametrize(
    ("name", "check"),
    slow_but(
        *((name, check) for name in QUICK for check in CHECKS),
        of=[(name, check) for name in NAMES for check in CHECKS],
    ),
)
def test_pipeline_passes(name, check):
    verdict = CHECKS[check](trial_of(name))
    assert verdict.is_right, verdict.word
