"""What schedules of other systems give, as text, and what they may have measured."""

import numpy as np
import pytest
import torch
from hypothesis import settings

from dqar_fx import Calibration, ScheduleError
from dqar_fx.calibration.calibration import Cells
from dqar_fx.calibration.fingerprint import Fingerprint
from tests.helpers.table_texts import texts_of

FEW = settings(max_examples=60, deadline=None)
MODEL = torch.nn.Linear(2, 2)


def text_of(schedule, num_sites=2):
    """The text of all sites, which is one."""
    (text,) = set(texts_of(schedule.resolve([f"blocks.{i}.attn" for i in range(num_sites)])))
    return text


def computed(schedule):
    """Steps that compute."""
    return [step for step, letter in enumerate(text_of(schedule)) if letter in "CS"]


def bits_of(table):
    """1 where a site computes, per site."""
    return [[int(letter in "CS") for letter in text] for text in texts_of(table)]


def sites_of(blocks, parts=("attn1", "ff")):
    """Paths of the sites of a DiT's blocks, in execution order."""
    return [f"transformer_blocks.{i}.{part}" for i in range(blocks) for part in parts]


def reasons_of(schedule, num_sites=1):
    """What each step's row says of its first site, after the action."""
    table = schedule.resolve([f"blocks.{i}.attn" for i in range(num_sites)])
    said = [table.why(step, 0) for step in range(table.num_steps)]
    return [line.partition(": ")[2] for line in said]


def error_of(make):
    """The message of the error that a schedule ends in."""
    with pytest.raises(ScheduleError) as caught:
        make()
    return str(caught.value)


def layers_measured(seed, steps, blocks=3, ages=4, ends=("attn1", "ff")):
    """What a run might have measured; later steps change less, older outputs differ more."""
    rng = np.random.default_rng(seed)
    sites = tuple(f"blocks.{i}.{end}" for i in range(blocks) for end in ends)
    growth = np.arange(1, ages + 1) ** rng.uniform(0.1, 1)
    change = rng.uniform(0.02, 0.3, (steps, len(sites), 1)) * growth
    change *= rng.uniform(0.8, 1.25, change.shape)
    for step in range(steps):
        change[step, :, step:] = np.nan
    none = np.zeros(0)
    cells = Cells(none.astype(int), none.astype(int), none.astype(int), none, none, none)
    flat = np.ones((steps, len(sites)))
    return Calibration(sites, flat[:, 0], flat, change, cells, Fingerprint.of(MODEL), 1)
