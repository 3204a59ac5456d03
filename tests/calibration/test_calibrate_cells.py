"""Calibration: schedulers, sites and the single reuses that it tries."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import nn

import dqar_fx
from dqar_fx import DqarError, Policy, ScheduleError, calibrate, signal_to_noise
from dqar_fx.calibration.calibration import Cells
from tests.helpers.calibration_oracle import (
    change_by_hand,
    check_cells,
    entropy_by_hand,
    norm_ratio,
    record,
)
from tests.helpers.toy_pipeline import QUIET, WIDTH, Block, Pipeline


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
